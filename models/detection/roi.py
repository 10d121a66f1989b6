"""Regions of interest: what lies within a box becomes an array of fixed size, and masks go to boxes and back.

RoIPool is Girshick 2015, "Fast R-CNN", section 2.1; RoIAlign is He et al. 2017, "Mask R-CNN", section 3; the choice of
a pyramid's level is Lin et al. 2017, "Feature Pyramid Networks for Object Detection", equation 1. All follow
torchvision's C++ kernels to the rounding. One image at a time; `jax.vmap` makes it a batch.

Both poolings walk over the samples of a bin, all bins of a region at once: a gather of a few rows of channels a step.
So nothing is ever as large as regions x samples x channels. On CPUs regions come one after the other, elsewhere side by
side. Gradients reach the features, never the boxes.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxonomy.errors import UserError

Size = tuple[int, int]
SCALES = (1 / 4, 1 / 8, 1 / 16, 1 / 32)  # of the levels P2 to P5
CANONICAL = (224, 4)  # a box of this side belongs on this level: Lin et al., equation 1


def roi_align(
  features: jax.Array, boxes: jax.Array, size: Size, scale: float, sampling: int = 2, aligned: bool = False
) -> jax.Array:
  """Means of bilinear samples, RoIAlign.

  A sample more than one cell outside the map counts as 0; nearer ones take the border's value. A box that is not finite
  gives zeros.

  Each region costs size x samples gathers of 4 C numbers. With sampling <= 0 a region has its own number of samples, at
  most (H + 3) (W + 3) a bin however large the box, for those outside the map are passed over; where regions go side by
  side, all wait for the largest, and the gradient of a vmapped call copies its features in every step.

  Args:
    features: [H, W, C].
    boxes: [R, 4], x1 y1 x2 y2 in pixels of the image.
    size: (oh, ow), bins of a region.
    scale: cells of the map for a pixel of the image.
    sampling: samples of a bin along each axis; 0 or less: as many as the bin is cells long, rounded up.
    aligned: pixel centres lie at halves. Otherwise at integers, and regions are at least a cell wide and high.

  Returns:
    [R, oh, ow, C] of the features' dtype; sums are in float32.
  """
  _check(size, boxes)
  features = jnp.asarray(features)
  flat, shape = features.reshape(-1, features.shape[2]), features.shape[:2]
  rois = _regions(boxes, jnp.float32(scale), size, sampling, aligned, *map(jnp.int32, shape), jnp.int32(0))
  return _align(flat, rois, tuple(size), max(sampling, 0))


def pyramid_roi_align(
  levels: list[jax.Array], boxes: jax.Array, size: Size, sampling: int = 2, scales: tuple[float, ...] = SCALES
) -> jax.Array:
  """RoIAlign of each box on the level of a pyramid that fits its area, as torchvision's MultiScaleRoIAlign.

  Args:
    levels: [H, W, C] each, the finest first.
    boxes: [R, 4], x1 y1 x2 y2 in pixels of the image.
    size: (oh, ow), bins of a region.
    sampling: as for `roi_align`, not aligned.
    scales: cells for a pixel, of each level; powers of two, each half of the one before.

  Returns:
    [R, oh, ow, C]
  """
  _check(size, boxes)
  if len(levels) != len(scales):
    raise UserError(f"a pyramid of {len(levels)} levels needs as many scales, not {len(scales)}")
  at = pyramid_levels(boxes, scales)
  flat = jnp.concatenate([level.reshape(-1, level.shape[2]) for level in levels])
  heights, widths = (jnp.asarray([level.shape[axis] for level in levels], jnp.int32) for axis in (0, 1))
  starts = jnp.cumsum(heights * widths) - heights * widths
  scale = jnp.asarray(scales, jnp.float32)
  rois = _regions(boxes, scale[at], size, sampling, False, heights[at], widths[at], starts[at])
  return _align(flat, rois, tuple(size), max(sampling, 0))


def pyramid_levels(boxes: jax.Array, scales: tuple[float, ...] = SCALES) -> jax.Array:
  """Which level each box belongs on: Lin et al., equation 1, with torchvision's rounding.

  Args:
    boxes: [R, 4], x1 y1 x2 y2 in pixels.
    scales: cells for a pixel, of each level.

  Returns:
    [R] int32, 0 for the first level. Boxes without an area belong there.
  """
  side, level = CANONICAL
  finest, coarsest = (-jnp.round(jnp.log2(scale)) for scale in (scales[0], scales[-1]))
  area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  fits = jnp.floor(level + jnp.log2(_divide(jnp.sqrt(area), side)) + 1e-6)
  fits = jnp.where(area > 0, fits, finest)
  return (jnp.clip(fits, finest, coarsest) - finest).astype(jnp.int32)


def _check(size, boxes):
  if min(size) < 1:
    raise UserError(f"a region needs at least one bin each way, not {size[0]} x {size[1]}")
  if jnp.ndim(boxes) != 2 or boxes.shape[1] != 4:
    raise UserError(f"boxes must be [R, 4], x1 y1 x2 y2, not {list(boxes.shape)}")


class _Axis(NamedTuple):
  """How regions lie along an axis; all float32 but `length`."""

  start: jax.Array  # [R], in cells
  bin: jax.Array  # [R], cells of a bin
  grid: jax.Array  # [R], samples of a bin
  first: jax.Array  # [R, o], the first sample of each bin that may count
  steps: jax.Array  # [R] int32, samples to go through from there
  length: jax.Array  # [R] int32, cells of the map


class _Regions(NamedTuple):
  """Regions on maps that lie in one array of cells."""

  y: _Axis
  x: _Axis
  offset: jax.Array  # [R] int32, the cell at which a region's map begins


def _regions(boxes, scale, size, sampling, aligned, height, width, offset):
  """Where the samples of each box lie: _Regions of float32, whatever the boxes' dtype."""
  count = boxes.shape[:1]
  scale, height, width, offset = (jnp.broadcast_to(x, count) for x in (scale, height, width, offset))
  x1, y1, x2, y2 = (lax.stop_gradient(boxes).astype(jnp.float32) * scale[:, None]).T - (0.5 if aligned else 0.0)
  axes = []
  for low, high, bins, length in ((y1, y2, size[0], height), (x1, x2, size[1], width)):
    extent = high - low if aligned else jnp.maximum(high - low, 1.0)
    finite = jnp.isfinite(low) & jnp.isfinite(extent)
    low, extent = jnp.where(finite, low, -3.0), jnp.where(finite, extent, 0.0)  # nowhere near the map
    axes.append(_axis(low, _divide(extent, bins), bins, sampling, length))
  return _Regions(*axes, offset)


def _divide(x, n):
  """The quotient to the bit. XLA would multiply by 1 / n, and its rounding adds a cell or a sample to whole bins."""
  return x / jnp.where(x == x, jnp.float32(n), 1.0)


def _axis(start, width, bins, sampling, length):
  if sampling > 0:
    grid, first = jnp.full_like(start, sampling), jnp.zeros((*start.shape, bins))
    return _Axis(start, width, grid, first, jnp.full(start.shape, sampling, jnp.int32), length)
  grid = jnp.ceil(width)
  # Samples are more than half a cell apart where there are two of them: pass over those before -1 and beyond the map.
  apart = jnp.maximum(width / jnp.maximum(grid, 1.0), 1e-6)[:, None]
  begin = start[:, None] + jnp.arange(bins, dtype=jnp.float32)[None] * width[:, None]
  low, high = (-1 - begin) / apart - 1, (length[:, None] - begin) / apart + 1
  first = jnp.clip(jnp.floor(low), 0.0, grid[:, None])
  last = jnp.minimum(jnp.ceil(high), grid[:, None])
  steps = jnp.clip((last - first).max(1), 0.0, length + 5.0).astype(jnp.int32)
  return _Axis(start, width, grid, first, steps, length)


def _taps(axis, bins, k):
  """The two cells on either side of sample first + k of each bin of a region, and their weights: [2, bins] each."""
  sample = axis.first + k
  place = axis.start + jnp.arange(bins, dtype=jnp.float32) * axis.bin
  place += _divide((sample + 0.5) * axis.bin, jnp.maximum(axis.grid, 1.0))
  inside = (sample < axis.grid) & (place >= -1) & (place <= axis.length)
  place = jnp.where(inside, jnp.clip(place, 0.0, axis.length - 1.0), 0.0)
  low = jnp.floor(place)
  share = jnp.where(inside, 1 / jnp.maximum(axis.grid, 1.0), 0.0)
  cells = jnp.stack([low, jnp.minimum(low + 1, axis.length - 1.0)]).astype(jnp.int32)
  return cells, jnp.stack([1 - (place - low), place - low]) * share[None]


def _corners(roi, size, k, across):
  """Sample k of each bin of a region, `across` of them in a row: cells and weights of its four corners, [4, oh, ow]."""
  (rows, down), (columns, right) = _taps(roi.y, size[0], k // across), _taps(roi.x, size[1], k % across)
  cells = roi.offset + rows[:, None, :, None] * roi.x.length + columns[None, :, None]
  weights = down[:, None, :, None] * right[None, :, None]
  return cells.reshape(4, *size), weights.reshape(4, *size)


def _steps(rois, sampling):
  """(samples of a bin to go through, those in a row): known to the compiler if `sampling` is."""
  if sampling:
    return sampling * sampling, sampling
  across = rois.x.steps.max()
  return rois.y.steps.max() * across, jnp.maximum(across, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _align(flat, rois, size, sampling):
  """[R, oh, ow, C] from cells [N, C]; sampling 0: each region's own."""

  def one(roi):
    count, across = _steps(roi, sampling)

    def add(k, total):
      for cells, weights in zip(*_corners(roi, size, k, across)):
        total += weights[:, :, None] * flat.at[cells].get(mode="promise_in_bounds")
      return total

    total = lax.fori_loop(0, count, add, jnp.zeros((*size, flat.shape[1]), jnp.float32))
    return total.astype(flat.dtype)

  return lax.platform_dependent(rois, cpu=lambda rois: lax.map(one, rois), default=jax.vmap(one))


def _align_fwd(flat, rois, size, sampling):
  # An empty array remembers the features' dtype and number: they are not needed themselves.
  return _align(flat, rois, size, sampling), (rois, flat[:, :0])


def _align_bwd(size, sampling, saved, g):
  rois, like = saved
  g = g.astype(jnp.float32)

  def spread(d, rois, g):
    """Adds what the regions [r] give back to d [N, C]."""
    count, across = _steps(rois, sampling)

    def add(k, d):
      cells, weights = jax.vmap(lambda roi: _corners(roi, size, k, across))(rois)
      return d.at[cells].add(weights[..., None] * g[:, None], mode="promise_in_bounds")

    return lax.fori_loop(0, count, add, d)

  def in_turn(d, rois, g):
    take = lambda i: jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, i, 1), (rois, g))
    return lax.fori_loop(0, g.shape[0], lambda i, d: spread(d, *take(i)), d)

  d = jnp.zeros((like.shape[0], g.shape[-1]), jnp.float32)
  d = lax.platform_dependent(d, rois, g, cpu=in_turn, default=spread)
  return d.astype(like.dtype), None


_align.defvjp(_align_fwd, _align_bwd)


def roi_pool(features: jax.Array, boxes: jax.Array, size: Size, scale: float) -> jax.Array:
  """Largest value of each bin, RoIPool; of equal ones the first in row order takes the gradient.

  Box corners are rounded to cells, halves away from zero, and the last cell belongs to the region. Bins overlap where
  the region is not a multiple of them. A bin without a cell of the map is 0.

  Args:
    features: [H, W, C]; NaN is never the largest.
    boxes: [R, 4], x1 y1 x2 y2 in pixels of the image, finite.
    size: (oh, ow), bins of a region.
    scale: cells of the map for a pixel of the image.

  Returns:
    [R, oh, ow, C]
  """
  _check(size, boxes)
  boxes = lax.stop_gradient(boxes).astype(jnp.float32) * jnp.float32(scale)
  x1, y1, x2, y2 = jnp.trunc(boxes + jnp.where(boxes < 0, -0.5, 0.5)).T
  rows, columns = (_bins(*ends, bins, n) for ends, bins, n in zip(((y1, y2), (x1, x2)), size, features.shape[:2]))
  return _pool(features, rows, columns)


def _bins(low, high, bins, length):
  """First and end cell of each bin along an axis, cut to the map, [R, bins] int32; an empty one ends no later."""
  width = _divide(jnp.maximum(high - low + 1, 1.0), bins)[:, None]
  k = jnp.arange(bins, dtype=jnp.float32)[None]
  ends = jnp.floor(k * width) + low[:, None], jnp.ceil((k + 1) * width) + low[:, None]
  return tuple(jnp.clip(end, 0, length).astype(jnp.int32) for end in ends)


@jax.custom_vjp
def _pool(features, rows, columns):
  return _pool_fwd(features, rows, columns)[0]


def _pool_fwd(features, rows, columns):
  h, w, c = features.shape
  flat = features.reshape(-1, c)
  lowest = jnp.asarray(jnp.finfo(flat.dtype).min, flat.dtype)

  def one(region):
    (top, bottom), (left, right) = region
    size = (*top.shape, *left.shape, c)
    across = jnp.maximum((right - left).max(), 1)

    def look(k, found):
      best, at = found
      y, x = top + k // across, left + k % across
      inside = (y < bottom)[:, None] & (x < right)[None]
      cells = jnp.minimum(y, h - 1)[:, None] * w + jnp.minimum(x, w - 1)[None]
      value = flat.at[cells].get(mode="promise_in_bounds")
      better = inside[:, :, None] & (value > best)
      return jnp.where(better, value, best), jnp.where(better, cells[:, :, None], at)

    start = jnp.full(size, lowest), jnp.full(size, h * w, jnp.int32)  # h w: nowhere
    best, at = lax.fori_loop(0, jnp.maximum((bottom - top).max(), 0) * across, look, start)
    empty = (bottom <= top)[:, None] | (right <= left)[None]
    return jnp.where(empty[:, :, None], 0, best), at

  regions = rows, columns
  y, at = lax.platform_dependent(regions, cpu=lambda regions: lax.map(one, regions), default=jax.vmap(one))
  return y, (at, features[:, :, :0])


def _pool_bwd(saved, g):
  at, like = saved
  h, w, c = *like.shape[:2], g.shape[-1]
  d = jnp.zeros((h * w * c,), jnp.float32)
  d = d.at[at * c + lax.broadcasted_iota(jnp.int32, at.shape, 3)].add(g.astype(jnp.float32), mode="drop")
  return d.reshape(h, w, c).astype(like.dtype), None, None


_pool.defvjp(_pool_fwd, _pool_bwd)


def project(masks: jax.Array, boxes: jax.Array, matched: jax.Array, size: Size) -> jax.Array:
  """Truth for the mask head: RoIAlign of each box on the mask it is matched with, torchvision's project_masks_on_boxes.

  Not aligned, as many samples as pixels, as `roi_align` with sampling 0. The caller thresholds nothing: values are in
  [0, 1], and the loss takes them as they are.

  Args:
    masks: [G, H, W], 0 and 1 of any dtype.
    boxes: [R, 4], x1 y1 x2 y2 in pixels of the masks.
    matched: [R], integers, each box's mask; those out of range take the nearest.
    size: (h, w) of the result.

  Returns:
    [R, h, w] float32
  """
  _check(size, boxes)
  g, h, w = masks.shape
  offset = jnp.clip(matched, 0, g - 1).astype(jnp.int32) * (h * w)
  rois = _regions(boxes, jnp.float32(1), size, 0, False, jnp.int32(h), jnp.int32(w), offset)
  return _align(lax.stop_gradient(jnp.asarray(masks, jnp.float32)).reshape(-1, 1), rois, tuple(size), 0)[..., 0]


def paste(masks: jax.Array, boxes: jax.Array, size: Size) -> jax.Array:
  """Masks of boxes laid into the image, soft: torchvision's paste_masks_in_image.

  A mask gets a border of zeros, its box grows likewise, and its corners lose their fractions; then the mask is resized
  bilinearly to the box, the last pixel included. Boxes that end before they begin paint nothing.

  Args:
    masks: [N, M, M], probabilities.
    boxes: [N, 4], x1 y1 x2 y2 in pixels of the image, finite.
    size: (H, W) of the image.

  Returns:
    [N, H, W] float32, zeros outside the boxes.
  """
  _check(size, boxes)
  m = masks.shape[1]
  masks = jnp.pad(jnp.asarray(masks, jnp.float32), ((0, 0), (1, 1), (1, 1)))
  boxes = jnp.asarray(boxes, jnp.float32)
  middle = (boxes[:, 2:] + boxes[:, :2]) * 0.5
  # The barrier keeps the product's rounding, which a fused multiply and add would skip; it decides between two pixels.
  half = lax.optimization_barrier((boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((m + 2) / m))
  low, high = (jnp.trunc(edge) for edge in (middle - half, middle + half))
  columns, rows = (_stretch(low[:, i], high[:, i], m + 2, size[1 - i]) for i in (0, 1))
  exact = {"precision": lax.Precision.HIGHEST}
  return jnp.einsum("nwb,nhb->nhw", columns, jnp.einsum("nha,nab->nhb", rows, masks, **exact), **exact)


def _stretch(low, high, old, new):
  """Matrices [N, new, old] that resize a mask's axis to the pixels low to high of an image's."""
  pixel = jnp.arange(new, dtype=jnp.float32)[None]
  width = jnp.maximum(high - low + 1, 1.0)[:, None]
  place = jnp.clip((pixel - low[:, None] + 0.5) * (old / width) - 0.5, 0.0, old - 1.0)
  inside = (pixel >= low[:, None]) & (pixel <= high[:, None])
  hats = jnp.maximum(0.0, 1 - jnp.abs(place[:, :, None] - jnp.arange(old, dtype=jnp.float32)[None, None]))
  return jnp.where(inside[:, :, None], hats, 0.0)
