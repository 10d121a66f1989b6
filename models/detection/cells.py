"""What YOLO's three versions share of detecting: cells of a grid, their anchors, and what answers for an object.

  head       the last convolution of versions 2 and 3
  Priors     anchors at every place of every map
  decode     boxes of versions 2 and 3
  match      which prior answers for which object, likewise
  report     suppression within each class

Deviation from darknet: log sizes are held at boxes.LIMIT when boxes are decoded.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxonomy.errors import UserError
from flaxonomy.models.detection import anchors, boxes
from flaxonomy.models.vision import darknet

LEAST = 0.01  # pixels of width and height that a box must have, to be reported


def head(count: int, classes: int, prior: float, name: str) -> darknet.Unit:
  """The last convolution of a map: tx, ty, tw, th, objectness and the classes for each anchor.

  Args:
    count: anchors of a cell.
    classes: that there are.
    prior: probability of an object that the objectness starts around (Lin et al. 2017, "Focal Loss for Dense Object
      Detection", section 4.1); .5 as in darknet, where a burn-in by SGD brings it down.
    name: of the module.

  Raises:
    UserError: a probability of 0.
  """
  if not prior:
    raise UserError("field 'prior' of YOLO must be above 0 (config field 'model.fields')")

  def bias(rng, shape, dtype=jnp.float32):
    return jnp.zeros((count, 5 + classes), dtype).at[:, 4].set(math.log(prior / (1 - prior))).reshape(shape)

  return darknet.Unit(count * (5 + classes), 1, linear=True, bias_init=bias, name=name)


class Priors(NamedTuple):
  """The anchors of every cell, in the order of the heads' outputs: map by map, row by row, then those of a cell.

  Attributes:
    boxes: [N, 4] pixels, around the middle of their cell.
    cells: [N, 2], column and row.
    strides: [N], pixels of a cell's side.
  """

  boxes: jax.Array
  cells: jax.Array
  strides: jax.Array


def priors(sides: tuple, strides: tuple[int, ...], size: tuple[int, int]) -> Priors:
  """Those of an image.

  Args:
    sides: for each map the anchors' (width, height) in pixels.
    strides: of each map.
    size: (height, width) of the images that the net sees.
  """
  found = []
  for level, stride in zip(sides, strides):
    shape, middle = (size[0] // stride, size[1] // stride), stride / 2
    cell = [(middle - w / 2, middle - h / 2, middle + w / 2, middle + h / 2) for w, h in level]
    placed = anchors.grid(jnp.asarray(cell, jnp.float32), shape, (stride, stride))
    corners = anchors.grid(jnp.zeros((len(level), 4)), shape, (1, 1))[:, :2]
    found.append(Priors(placed, corners, jnp.full(len(placed), stride, jnp.float32)))
  return Priors(*map(jnp.concatenate, zip(*found)))


def decode(logits: jax.Array, priors: Priors) -> jax.Array:
  """Boxes (Redmon and Farhadi 2017, section 2, "direct location prediction").

  Args:
    logits: [..., N, 4 or more], tx ty tw th first.
    priors: of the image.

  Returns:
    [..., N, 4] pixels, not clipped: the middle sigmoid(tx) of a cell right of its left edge, the width e^tw anchors.
  """
  x1, y1, x2, y2 = priors.boxes.T
  sides = jnp.stack([x2 - x1, y2 - y1], -1)
  lead = (None,) * (logits.ndim - 2)
  moves = (nn.sigmoid(logits[..., :2]) - 0.5) * (priors.strides[:, None] / sides)[lead]
  return boxes.decode(jnp.concatenate([moves, logits[..., 2:4]], -1), priors.boxes[lead])


class Matched(NamedTuple):
  """Which priors answer for which boxes of truth in an image.

  Attributes:
    slots: [G] int32, the prior of each box of truth.
    counts: bool [G]: it is there, and no later one has the same prior.
    same: bool [G, G], which boxes of truth share a prior; those that are not there share none.
    objects: bool [N], priors that answer for one.
    best: [N], IoU of each prediction with the box of truth that it overlaps most.
    own: [G], IoU of each box of truth with its prior's prediction.
    targets: [G, 4], what sigmoid(tx), sigmoid(ty), tw and th should be.
    weights: [G], 2 less the share of the image that the box covers: small boxes weigh twice as much as large ones.
  """

  slots: jax.Array
  counts: jax.Array
  same: jax.Array
  objects: jax.Array
  best: jax.Array
  own: jax.Array
  targets: jax.Array
  weights: jax.Array


def match(found: jax.Array, truth: jax.Array, valid: jax.Array, priors: Priors, size: tuple[int, int]) -> Matched:
  """The prior of each box of truth: of those whose cell holds its middle, the one most of its shape.

  Args:
    found: [N, 4] predictions.
    truth: [G, 4].
    valid: bool [G], False for rows that only fill up.
    priors: of the image.
    size: (height, width) of the image.
  """
  x1, y1, x2, y2 = truth.T
  edge = jnp.asarray([size[1], size[0]], jnp.float32) - LEAST  # what lies on the edge belongs to the last cell
  middles = jnp.clip(jnp.stack([x1 + x2, y1 + y2], -1) / 2, 0, edge[None])
  inside = (jnp.floor(middles[:, None] / priors.strides[None, :, None]) == priors.cells[None]).all(-1)
  slots = jnp.where(inside, boxes.iou(_centred(truth), _centred(priors.boxes)), -1).argmax(1).astype(jnp.int32)
  g = jnp.arange(truth.shape[0])
  same = (slots[:, None] == slots[None]) & valid[:, None] & valid[None]
  counts = valid & ~(same & (g[:, None] < g[None])).any(1)
  n = priors.strides.shape[0]
  objects = jnp.zeros(n, bool).at[jnp.where(counts, slots, n)].set(True, mode="drop")
  overlap = jnp.where(valid[None], boxes.iou(found, truth), 0)
  places = middles / priors.strides[slots][:, None] - priors.cells[slots]
  targets = jnp.concatenate([places, boxes.encode(truth, priors.boxes[slots])[:, 2:]], -1)
  weights = 2 - boxes.area(truth) / (size[0] * size[1])
  return Matched(slots, counts, same, objects, overlap.max(1), overlap[slots, g], targets, weights)


def _centred(some):
  """Boxes [N, 4] moved onto one middle."""
  x1, y1, x2, y2 = some.T
  w, h = (x2 - x1) / 2, (y2 - y1) / 2
  return jnp.stack([-w, -h, w, h], -1)


def report(
  found: jax.Array, scores: jax.Array, size: tuple[int, int], score: float, candidates: int, threshold: float, most: int
) -> boxes.Detections:
  """What was found in a batch: suppression within each class.

  Args:
    found: [B, N, 4] pixels.
    scores: [B, N, C], of each class.
    size: (height, width) of the images.
    score: what a score must be above, to count.
    candidates: boxes of a class that go into the suppression.
    threshold: IoU above which the less likely of two boxes of a class is left out.
    most: detections of an image.
  """

  def one(found, scores):
    found = boxes.clip(found, *size)
    good = (scores > score) & boxes.large_enough(found, LEAST)[:, None]
    best, places = lax.top_k(jnp.where(good, scores, 0).T, min(candidates, scores.shape[0]))  # [C, K]
    labels = jnp.repeat(jnp.arange(1, best.shape[0] + 1, dtype=jnp.int32), best.shape[1])
    best, places = best.ravel(), places.ravel()
    kept, there = boxes.nms_by_class(found[places], best, labels, best > 0, threshold, most)
    return boxes.Detections(found[places[kept]], best[kept], labels[kept], there)

  return jax.vmap(one)(found, scores)
