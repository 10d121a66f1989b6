"""Mask R-CNN in training (He et al. 2017, section 3): Faster R-CNN's losses, and that of the masks."""

import jax
import jax.numpy as jnp

from flaxonomy.models.detection import boxes as geometry
from flaxonomy.models.detection import mask_rcnn, roi
from flaxonomy.train import losses, tasks
from flaxonomy.train.detection import Detector, faster_rcnn


def build(config, shape: tuple[int, int, int], classes: int) -> Detector:
  """See `detection.build`."""
  model = tasks.module(config, num_classes=classes + 1)
  init = lambda rng: model.init(rng, jnp.zeros((1, *shape)), train=False)

  def loss(variables, batch, rng):
    return learn(model, variables, batch, rng)[:2]

  def detect(variables, batch, limits):
    stages = model.apply(variables, batch["image"], batch["size"], train=False, **limits.given())
    found = stages["found"]
    masks = jax.nn.sigmoid(mask_rcnn.of_class(stages["mask_logits"], found.labels))
    return found._asdict() | {"masks": masks}

  return Detector(init, loss, detect, masks=True)


def learn(model, variables: dict, batch: dict, rng: jax.Array, choose=geometry.sample) -> tuple:
  """`faster_rcnn.learn` with one term more, "masks", for batches with "masks" [B, G, H, W]."""
  terms, collections, stages, regions = faster_rcnn.learn(model, variables, batch, rng, choose)
  most = max(int(model.sampled_regions * faster_rcnn.OBJECTS), 1)
  objects = jax.tree.map(lambda x: x[:, :most], regions)  # which come first
  logits = model.apply(variables, stages, objects.boxes, method="draw")["mask_logits"]
  terms["masks"] = drawing(logits, objects, batch["labels"], batch["masks"])
  return terms, collections, stages, regions


def drawing(
  logits: jax.Array, regions: faster_rcnn.Regions, labels: jax.Array, masks: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The third stage's loss: cross-entropy of the truth's class's mask, pixel by pixel, of objects alone.

  Args:
    logits: [B, S, M, M, C].
    regions: of which objects count.
    labels: [B, G] int, from 1 on.
    masks: [B, G, H, W], 0 and 1 of any dtype.

  Returns:
    (sum over the objects of their mean over pixels, objects), [] float32.
  """
  size = logits.shape[2:4]
  aim = jax.vmap(lambda *given: roi.project(*given, size))(masks, regions.boxes, regions.matched)
  own = mask_rcnn.of_class(logits, jnp.where(regions.objects, regions.of(labels), 0))
  apart = losses.binary_cross_entropy_with_logits(own, aim).mean((2, 3))
  return jnp.where(regions.objects, apart, 0).sum(), regions.objects.sum().astype(jnp.float32)
