"""Faster R-CNN in training (Ren et al. 2015, section 3.1.2; Girshick 2015, section 2.3): both stages at once.

Numbers are torchvision's, the models' fields hold those that models differ in.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxonomy.models.detection import boxes as geometry
from flaxonomy.models.detection.proposals import WEIGHTS
from flaxonomy.train import losses, tasks
from flaxonomy.train.detection import Detector

BETA = 1 / 9  # where the first stage's smooth L1 turns linear
OBJECTS = 0.25  # of the regions, at most


class Regions(NamedTuple):
  """What the second stage learns from; rows of objects come first.

  Attributes:
    boxes: [B, S, 4].
    matched: [B, S] int32, each one's box of truth; -1 for background.
    counted: bool [B, S], False for rows that only fill up.
  """

  boxes: jax.Array
  matched: jax.Array
  counted: jax.Array

  @property
  def objects(self) -> jax.Array:
    """Bool [B, S]."""
    return self.counted & (self.matched >= 0)

  def of(self, truth: jax.Array) -> jax.Array:
    """Each region's row of truth [B, G, ...]: [B, S, ...]; of background any."""
    return jax.vmap(lambda truth, matched: truth[jnp.maximum(matched, 0)])(truth, self.matched)


def build(config, shape: tuple[int, int, int], classes: int) -> Detector:
  """See `detection.build`."""
  model = tasks.module(config, num_classes=classes + 1)
  init = lambda rng: model.init(rng, jnp.zeros((1, *shape)), train=False)

  def loss(variables, batch, rng):
    terms, collections, *_ = learn(model, variables, batch, rng)
    return terms, collections

  def detect(variables, batch, limits):
    stages = model.apply(variables, batch["image"], batch["size"], train=False)
    return model.detect(stages, batch["size"], **limits.given())._asdict()

  return Detector(init, loss, detect)


def learn(model, variables: dict, batch: dict, rng: jax.Array, choose=geometry.sample) -> tuple:
  """What a batch teaches both stages.

  Args:
    model: of `models.detection.faster_rcnn` or `mask_rcnn`.
    variables: of the model.
    batch: with "image", "size", "boxes" and "labels".
    rng: key.
    choose: what samples, as `boxes.sample`.

  Returns:
    (terms as of `Detector.loss`, collections, stages of `look`, Regions)
  """
  first, second, drop = jax.random.split(rng, 3)
  stages, changed = model.apply(variables, batch["image"], train=True, method="look", mutable=["batch_stats"])
  truth, there = batch["boxes"], batch["labels"] > 0
  learns = model.learns(stages["anchors"], batch["size"])
  terms = proposing(stages, learns, truth, there, first, model.sampled_anchors, choose)
  proposals, valid = model.propose(stages, batch["size"], train=True)
  regions = sampled(proposals, valid, truth, there, second, model.sampled_regions, choose)
  judged = model.apply(variables, stages, regions.boxes, train=True, method="judge", rngs={"dropout": drop})
  terms |= judging(judged["logits"], judged["offsets"], regions, truth, batch["labels"], model.beta)
  kept = {name: value for name, value in variables.items() if name != "params"}
  return terms, kept | changed, stages, regions


def proposing(
  stages: dict, learns: jax.Array, truth: jax.Array, there: jax.Array, rng: jax.Array, count: int,
  choose=geometry.sample,
) -> dict:  # fmt: skip
  """The first stage's loss (Ren et al. 2015, equation 1), lambda 1 and both terms by the anchors drawn.

  Args:
    stages: with "anchors", "objectness" and "deltas", of `look`.
    learns: bool [B, N], the anchors that learn.
    truth: [B, G, 4], G >= 1.
    there: bool [B, G].
    rng: key.
    count: anchors to draw from each image.
    choose: as `boxes.sample`.

  Returns:
    {"objectness": (sum, anchors drawn), "proposals": likewise}.
  """
  anchors = stages["anchors"]

  def one(logits, deltas, learns, truth, there, rng):
    overlap = jnp.where(learns[None], geometry.iou(truth, anchors), 0)
    matched = geometry.match(overlap, there, 0.3, 0.7, low_quality=True)
    matched = jnp.where(learns, matched, geometry.BETWEEN)
    objects, background = choose(rng, matched, count, 0.5)
    drawn = objects | background
    entropy = losses.binary_cross_entropy_with_logits(logits, objects.astype(jnp.float32))
    aim = geometry.encode(truth[jnp.maximum(matched, 0)], anchors)
    apart = losses.smooth_l1(deltas, aim, BETA).sum(-1)
    sums = jnp.where(drawn, entropy, 0).sum(), jnp.where(objects, apart, 0).sum(), drawn.sum().astype(jnp.float32)
    return jnp.stack(sums)

  keys = jax.random.split(rng, truth.shape[0])
  found = jax.vmap(one)(stages["objectness"], stages["deltas"], learns, truth, there, keys)
  entropy, apart, drawn = found.sum(0)
  return {"objectness": (entropy, drawn), "proposals": (apart, drawn)}


def sampled(
  proposals: jax.Array, valid: jax.Array, truth: jax.Array, there: jax.Array, rng: jax.Array, count: int,
  choose=geometry.sample,
) -> Regions:  # fmt: skip
  """Proposals, and the truth itself, from which the second stage learns: an IoU of .5 makes an object.

  Args:
    proposals: [B, P, 4].
    valid: bool [B, P].
    truth: [B, G, 4], G >= 1.
    there: bool [B, G].
    rng: key.
    count: regions to draw from each image.
    choose: as `boxes.sample`.
  """

  def one(proposals, valid, truth, there, rng):
    boxes, valid = jnp.concatenate([proposals, truth]), jnp.concatenate([valid, there])
    matched = jnp.where(valid, geometry.match(geometry.iou(truth, boxes), there, 0.5, 0.5), geometry.BETWEEN)
    objects, background = choose(rng, matched, count, OBJECTS)
    drawn, places = lax.top_k(2 * objects.astype(jnp.int32) + background, min(count, len(boxes)))
    return Regions(boxes[places], matched[places], drawn > 0)

  return jax.vmap(one)(proposals, valid, truth, there, jax.random.split(rng, truth.shape[0]))


def judging(
  logits: jax.Array, offsets: jax.Array, regions: Regions, truth: jax.Array, labels: jax.Array, beta: float
) -> dict:
  """The second stage's loss (Girshick 2015, equation 1), both terms by the regions drawn.

  Args:
    logits: [B, S, C].
    offsets: [B, S, C, 4].
    regions: drawn ones.
    truth: [B, G, 4].
    labels: [B, G] int, from 1 on.
    beta: where smooth L1 turns linear.

  Returns:
    {"classification": (sum, regions drawn), "boxes": likewise}.
  """
  mine = jnp.where(regions.objects, regions.of(labels), 0)
  entropy = jnp.where(regions.counted, losses.nll(jax.nn.log_softmax(logits), mine), 0)
  own = jnp.take_along_axis(offsets, mine[:, :, None, None], 2)[:, :, 0]
  aim = geometry.encode(regions.of(truth), regions.boxes, WEIGHTS)
  apart = jnp.where(regions.objects, losses.smooth_l1(own, aim, beta).sum(-1), 0)
  drawn = regions.counted.sum().astype(jnp.float32)
  return {"classification": (entropy.sum(), drawn), "boxes": (apart.sum(), drawn)}
