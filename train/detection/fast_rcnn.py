"""Fast R-CNN in training (Girshick 2015, section 2.3): which regions are learned from, and the loss of both heads.

As in the released code, the boxes of truth are proposals, too, while it learns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxonomy.models.detection import boxes, fast_rcnn
from flaxonomy.train import losses, tasks
from flaxonomy.train.detection import Detector

OBJECTS, FRACTION = 0.5, 0.25  # IoU from which on a proposal is an object; the share of objects that are drawn


class Regions(NamedTuple):
  """Regions to learn from.

  Attributes:
    boxes: [..., S, 4].
    labels: [..., S] int32, 0 for background.
    truth: [..., S, 4], the box of truth of each that is an object.
    counts: [..., S] bool, False for rows that only fill up.
  """

  boxes: jax.Array
  labels: jax.Array
  truth: jax.Array
  counts: jax.Array


def build(config, shape: tuple[int, int, int], classes: int) -> Detector:
  """See `detection.build`."""
  model = tasks.module(config, num_classes=classes + 1)
  init = lambda rng: model.init(rng, jnp.zeros((1, *shape)), jnp.zeros((1, 1, 4)), train=False)

  def loss(variables, batch, rng):
    rng, dropout = jax.random.split(rng)
    chosen = draw(rng, batch, model.regions, model.background)
    stages = model.apply(variables, batch["image"], chosen.boxes, train=True, rngs={"dropout": dropout})
    return multitask(stages["logits"], stages["boxes"], chosen), {}

  def detect(variables, batch, limits):
    stages = model.apply(variables, batch["image"], batch["proposals"], train=False)
    return model.detect(stages, batch["proposals"], batch["size"], **limits.given())._asdict()

  return Detector(init, loss, detect, proposals=True)


def draw(rng: jax.Array, batch: dict, count: int, background: float) -> Regions:
  """Random regions of each image of a batch: [B, S, ...], S = count, or all proposals if they are fewer.

  A quarter of objects at most; background fills up, and where that does not suffice rows do not count.

  Args:
    rng: key.
    batch: with "boxes", "labels", "proposals", and "crowd" if some are not to be learned from.
    count: regions of an image.
    background: the least IoU of background.
  """
  valid = batch["labels"] > 0
  if "crowd" in batch:
    valid &= ~batch["crowd"]
  given = jax.random.split(rng, valid.shape[0]), batch["boxes"], batch["labels"], valid, batch["proposals"]
  return jax.vmap(lambda *given: _draw(*given, count, background))(*given)


def _draw(rng, truth, labels, valid, proposals, count, background):
  """The same of one image."""
  every = jnp.concatenate([proposals, truth])
  there = boxes.large_enough(every, fast_rcnn.SMALL) & jnp.concatenate([jnp.ones(len(proposals), bool), valid])
  overlap = boxes.iou(truth, every)
  matched = boxes.match(overlap, valid, OBJECTS, OBJECTS)
  far = jnp.where(valid[:, None], overlap, 0).max(0) < background
  matched = jnp.where(there & ~((matched == boxes.BACKGROUND) & far), matched, boxes.BETWEEN)
  objects, rest = boxes.sample(rng, matched, count, FRACTION)
  counts, taken = lax.top_k((objects | rest).astype(jnp.float32), min(count, len(every)))
  of = jnp.maximum(matched[taken], 0)
  return Regions(every[taken], jnp.where(objects[taken], labels[of], 0), truth[of], counts > 0)


def multitask(logits: jax.Array, offsets: jax.Array, chosen: Regions) -> dict[str, tuple[jax.Array, jax.Array]]:
  """Equation 1: cross-entropy, and smooth L1 of the four offsets of an object's own class, both by region.

  Args:
    logits: [B, S, C].
    offsets: [B, S, C, 4].
    chosen: [B, S, ...].

  Returns:
    {"classification": ..., "boxes": ...}: (sum over the batch, regions that count) each, [] float32.
  """
  count = chosen.counts.sum().astype(jnp.float32)
  entropy = losses.nll(jax.nn.log_softmax(logits), chosen.labels) * chosen.counts
  own = chosen.labels[..., None] == jnp.arange(logits.shape[-1])[None, None]
  offsets = jnp.where(own[..., None], offsets, 0).sum(-2)
  targets = boxes.encode(chosen.truth, chosen.boxes, fast_rcnn.WEIGHTS)
  apart = losses.smooth_l1(offsets, targets).sum(-1) * (chosen.counts & (chosen.labels > 0))
  return {"classification": (entropy.sum(), count), "boxes": (apart.sum(), count)}
