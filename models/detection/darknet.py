"""What YOLO's three versions share, as Redmon's framework darknet has it: convolutions, bodies, boxes of a grid.

  Unit         convolution, batch norm, leaky rectifier
  darknet19    Redmon and Farhadi 2017, table 6, without its classifier
  darknet53    Redmon and Farhadi 2018, table 1, likewise
  Priors       anchors at every place of every map; decode, match and report are versions 2's and 3's

Convolutions are conv1, conv2, ... in the order of the cfg file, by which models/interop/darknet.py reads weights.

Deviations from darknet: batch norm divides by sqrt(var + 1e-5) as its CUDA path does, and normalises by the biased
variance; its CPU path divides by sqrt(var) + 1e-6, and both take the unbiased one. Log sizes are held at boxes.LIMIT
when boxes are decoded.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxonomy.errors import UserError
from flaxonomy.models import layers, pooling
from flaxonomy.models.activations import ACTIVATIONS
from flaxonomy.models.detection import anchors, boxes
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.norm import BatchNorm

HE = INITIALIZERS["he_normal"]  # sqrt(2 / fan_in), as darknet's convolutions start
LEAKY = ACTIVATIONS["leaky_relu_0.1"]
MOMENTUM = 0.99  # darknet's, of running statistics; runs of a few hundred steps want less
LEAST = 0.01  # pixels of width and height that a box must have, to be reported


class Unit(nn.Module):
  """A convolution of odd side that keeps the size or halves it, batch norm, and the leaky rectifier of slope .1.

  Attributes:
    features: output channels.
    side: of the kernel; the padding is half of it.
    strides: step of the window.
    batch_norm: otherwise the convolution has a bias.
    linear: no rectifier, no batch norm, and float32: what the last layer is.
    momentum: of batch norm's running statistics.
    axis_name: as in `BatchNorm`.
    dtype: compute type; parameters are float32.
  """

  features: int
  side: int
  strides: int = 1
  batch_norm: bool = True
  linear: bool = False
  momentum: float = MOMENTUM
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [B, H, W, C]. train: batch norm by the batch. Returns: [B, H / strides, W / strides, features]."""
    normed, dtype = self.batch_norm and not self.linear, jnp.float32 if self.linear else self.dtype
    conv = functools.partial(layers.Conv, self.features, (self.side, self.side), kernel_init=HE, name="conv")
    x = conv(strides=self.strides, padding=self.side // 2, use_bias=not normed, dtype=dtype)(x)
    if normed:
      x = BatchNorm(momentum=self.momentum, axis_name=self.axis_name, dtype=dtype, name="norm")(x, train=train)
    return x if self.linear else LEAKY(x)


def units(model: nn.Module, train: bool, batch_norm: bool = True) -> Callable:
  """What makes numbered units within a model's compact method: (x, number, features, side, strides=1) -> x.

  Args:
    model: whose fields shrink, momentum, axis_name and dtype they have.
    train: batch norm by the batch.
    batch_norm: as in `Unit`.
  """

  def unit(x, number, features, side, strides=1):
    how = {"momentum": model.momentum, "axis_name": model.axis_name, "dtype": model.dtype, "name": f"conv{number}"}
    return Unit(features // model.shrink, side, strides, batch_norm, **how)(x, train=train)

  return unit


def darknet19(unit: Callable, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The 18 convolutions of the body: 3 x 3 ones with 1 x 1 ones between them, a pooling before each widening.

  Args:
    unit: from `units`.
    x: [B, H, W, 3], H and W multiples of 32.

  Returns:
    ([B, H / 16, W / 16, 512], behind conv13, [B, H / 32, W / 32, 1024], behind conv18)
  """
  number, maps = 0, []
  for features, depth in ((32, 1), (64, 1), (128, 3), (256, 3), (512, 5), (1024, 5)):
    x = pooling.max_pool(x, 2) if number else x
    for i in range(depth):
      number += 1
      x = unit(x, number, features // (1 + i % 2), 3 - 2 * (i % 2))
    maps.append(x)
  return maps[-2], maps[-1]


def darknet53(unit: Callable, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The 52 convolutions of the body: five halvings by stride, 1, 2, 8, 8 and 4 residual blocks behind them.

  Args:
    unit: from `units`.
    x: [B, H, W, 3], H and W multiples of 32.

  Returns:
    ([B, H / 8, W / 8, 256], [B, H / 16, W / 16, 512], [B, H / 32, W / 32, 1024])
  """
  x, number, maps = unit(x, 1, 32, 3), 1, []
  for i, depth in enumerate((1, 2, 8, 8, 4)):
    features = 64 << i
    x, number = unit(x, number + 1, features, 3, 2), number + 1
    for _ in range(depth):
      x += unit(unit(x, number + 1, features // 2, 1), number + 2, features, 3)
      number += 2
    maps.append(x)
  return tuple(maps[-3:])


def require(size: tuple[int, int], stride: int, name: str) -> None:
  """Raises UserError unless images (height, width) are so many whole cells."""
  if size[0] % stride or size[1] % stride or 0 in size:
    raise UserError(
      f"{name} sees images whose sides are multiples of {stride} pixels, not {size[0]} x {size[1]} "
      "(config field 'data.image_size')"
    )


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
