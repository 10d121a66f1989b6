"""Regions of interest against loops over bins and samples in NumPy, written from the C++ kernels' rules."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxonomy.errors import UserError
from flaxonomy.models.detection import roi

RNG = np.random.default_rng(0)
H, W, C = 9, 12, 2
SIZE, SCALE, COUNT = (3, 2), 0.5, 6
MAP = RNG.normal(size=(H, W, C)).astype(np.float32)
QUICK = settings(deadline=None, max_examples=60)

# On the map, beyond it, in the wrong order; whole numbers meet the borders of bins, cells and map.
near = st.integers(-12, 40).map(float)
corner = near | near.map(lambda x: x + 0.13) | st.integers(-400, 400).map(float)
boxes_of = st.lists(st.tuples(*[corner] * 4), min_size=COUNT, max_size=COUNT).map(lambda x: np.array(x, np.float32))


def weights_along(low, high, bins, n, sampling, aligned):
  """What each cell of an axis counts for in each bin, [bins, n], and whether rounding decides what counts at all."""
  one = np.float32
  low, high = (one(edge) * one(SCALE) - one(0.5 * aligned) for edge in (low, high))
  extent = high - low if aligned else max(high - low, one(1))
  width = extent / one(bins)
  count = sampling if sampling > 0 else int(np.ceil(width))
  rows, doubtful = np.zeros((bins, n)), False
  for i in range(bins):
    for k in range(count):
      place = float(low) + i * float(width) + (k + 0.5) * float(width) / count
      doubtful |= min(abs(place + 1), abs(place - n)) < 1e-4
      if -1 <= place <= n:
        place = min(max(place, 0), n - 1)
        cell = int(place)
        rows[i, cell] += (1 - (place - cell)) / count
        rows[i, min(cell + 1, n - 1)] += (place - cell) / count
  return rows, doubtful


def weights_of(boxes, sampling, aligned):
  """Weights [R, oh, H] and [R, ow, W] of boxes, of which doubtful ones have become [2, 2, 9, 9]."""
  rows, columns, boxes = [], [], boxes.copy()
  for i in range(len(boxes)):
    for box in (boxes[i], np.array([2, 2, 9, 9])):
      y, doubt_y = weights_along(box[1], box[3], SIZE[0], H, sampling, aligned)
      x, doubt_x = weights_along(box[0], box[2], SIZE[1], W, sampling, aligned)
      if not doubt_y | doubt_x:
        break
    boxes[i] = box
    rows.append(y)
    columns.append(x)
  return np.stack(rows), np.stack(columns), boxes


@functools.cache
def aligned_and_back(sampling, aligned):
  """Compiled: boxes, g -> RoIAlign of MAP and the gradient for it."""

  def both(boxes, g):
    y, back = jax.vjp(lambda x: roi.roi_align(x, boxes, SIZE, SCALE, sampling, aligned), jnp.asarray(MAP))
    return y, back(g)[0]

  return jax.jit(both)


@pytest.mark.parametrize("sampling, aligned", [(2, False), (3, True), (0, False), (0, True)])
@QUICK
@given(boxes_of)
def test_roi_align_and_its_gradient(sampling, aligned, boxes):
  g = np.random.default_rng(1).normal(size=(COUNT, *SIZE, C)).astype(np.float32)
  rows, columns, boxes = weights_of(boxes, sampling, aligned)
  y, d = aligned_and_back(sampling, aligned)(boxes, g)
  np.testing.assert_allclose(y, np.einsum("rph,rqw,hwc->rpqc", rows, columns, MAP), atol=2e-5)
  np.testing.assert_allclose(d, np.einsum("rph,rqw,rpqc->hwc", rows, columns, g), atol=1e-4)


def test_samples_by_hand():
  """One bin of one sample on a map that is 10 row + column, and where it starts to count."""
  x = jnp.asarray(10.0 * np.arange(4)[:, None, None] + np.arange(5)[None, :, None], jnp.float32)
  at = lambda row, column: [column - 1, row - 1, column + 1, row + 1]
  points = [(1.5, 2.25), (-1, 2), (-1.01, 2), (0, 5), (0, 5.01), (3.5, 4.5)]
  y = roi.roi_align(x, jnp.asarray([at(*point) for point in points]), (1, 1), 1.0, 1)
  np.testing.assert_allclose(y[:, 0, 0, 0], [17.25, 2, 0, 4, 0, 34])


def test_boxes_without_end_or_sense():
  """What is not finite is zero, and huge boxes take no longer than the map is large."""
  inf, nan, far = np.inf, np.nan, 1e30
  boxes = [[0, 0, inf, 5], [-inf, 0, 3, 3], [nan, 0, 3, 3], [0, nan, 3, 3], [-inf, -inf, inf, inf], [-far, 0, far, 9]]
  g = np.ones((COUNT, *SIZE, C), np.float32)
  for sampling in (2, 0):
    y, d = aligned_and_back(sampling, False)(np.array(boxes, np.float32), g)
    np.testing.assert_allclose(y, 0, atol=1e-20)
    np.testing.assert_allclose(d, 0, atol=1e-20)
  y, _ = aligned_and_back(0, False)(np.array([[-4e4, -4e4, 4e4, 4e4]] * COUNT, np.float32), g)
  rows, columns = (weights_along(-4e4, 4e4, bins, n, 0, False)[0] for bins, n in zip(SIZE, (H, W)))
  np.testing.assert_allclose(y[0], np.einsum("ph,qw,hwc->pqc", rows, columns, MAP), atol=1e-9)


def pool_by_cells(boxes, size=SIZE, x=MAP):
  """RoIPool and the cell that won each bin, -1 for none, with the kernel's float32."""
  shape = (len(boxes), *size, x.shape[2])
  y, at = np.zeros(shape, np.float32), np.full(shape, -1)
  for r, box in enumerate(np.float32(boxes) * np.float32(SCALE)):
    x1, y1, x2, y2 = (int(np.trunc(v + np.copysign(np.float32(0.5), v))) for v in box)
    high, wide = (np.float32(max(hi - lo + 1, 1)) / np.float32(n) for lo, hi, n in zip((y1, x1), (y2, x2), size))
    begin = lambda low, k, width, n: min(max(low + int(np.floor(np.float32(k) * width)), 0), n)
    end = lambda low, k, width, n: min(max(low + int(np.ceil(np.float32(k + 1) * width)), 0), n)
    for i, j, c in np.ndindex(*shape[1:]):
      top, bottom = (edge(y1, i, high, x.shape[0]) for edge in (begin, end))
      left, right = (edge(x1, j, wide, x.shape[1]) for edge in (begin, end))
      if top < bottom and left < right:
        part = x[top:bottom, left:right, c]
        row, column = np.unravel_index(part.argmax(), part.shape)  # the first in row order
        y[r, i, j, c], at[r, i, j, c] = part.max(), (top + row) * x.shape[1] + left + column
  return y, at


TIED = np.round(MAP)  # many equal values
_pooled = jax.jit(
  lambda boxes, g: (
    roi.roi_pool(jnp.asarray(TIED), boxes, SIZE, SCALE),
    jax.grad(lambda x: (g * roi.roi_pool(x, boxes, SIZE, SCALE)).sum())(jnp.asarray(TIED)),
  )
)


@QUICK
@given(boxes_of)
def test_roi_pool_and_its_gradient(boxes):
  g = np.random.default_rng(1).normal(size=(COUNT, *SIZE, C)).astype(np.float32)
  y, d = _pooled(boxes, g)
  expected, at = pool_by_cells(boxes, x=TIED)
  np.testing.assert_array_equal(y, expected)
  back = np.zeros((H * W, C))
  for index in np.ndindex(*at.shape):
    if at[index] >= 0:
      back[at[index], index[3]] += g[index]
  np.testing.assert_allclose(d.reshape(H * W, C), back, atol=1e-5)


def test_bins_of_whole_cells_have_no_cell_too_many():
  """7 bins of a region of n cells: a product with 1 / 7 in place of the quotient would round some of them up."""
  x = np.arange(60, dtype=np.float32)[None, :, None]
  boxes = np.array([[0, 0, 2 * n, 0] for n in range(50)])
  y = jax.jit(lambda boxes: roi.roi_pool(jnp.asarray(x), boxes, (1, 7), SCALE))(boxes)
  np.testing.assert_array_equal(y, pool_by_cells(boxes, (1, 7), x)[0])
  # 7 k cells in 7 bins: k samples each, in their middles. The map is a step, so that others would show.
  step = jnp.asarray((np.arange(400) >= 3) * 1.0, jnp.float32)[None, :, None]
  boxes = np.array([[0, 0, 7 * k, 1] for k in range(1, 50)])
  y = jax.jit(lambda boxes: roi.roi_align(step, boxes, (1, 7), 1.0, 0))(boxes)[:, 0, 0, 0]
  places = [np.arange(k) + 0.5 for k in range(1, 50)]
  np.testing.assert_allclose(y, [np.clip(place - 2, 0, 1).mean() for place in places], atol=1e-5)


def test_pyramid_takes_the_level_of_the_area():
  """Each box as if it were alone on its level; equation 1 at 112, 224 and 448 pixels, and just below."""
  levels = [RNG.normal(size=(n, n + 3, C)).astype(np.float32) for n in (40, 20, 10, 5)]
  sides = [10, 111.9, 112, 223.9, 224, 447.9, 448, 2000, 0]
  boxes = np.array([[3, 5, 3 + side, 5 + side] for side in sides], np.float32)
  np.testing.assert_array_equal(roi.pyramid_levels(boxes), [0, 0, 1, 1, 2, 2, 3, 3, 0])
  turned = np.array([[0, 0, -300, 300], [0, 0, np.nan, 3]], np.float32)
  np.testing.assert_array_equal(roi.pyramid_levels(turned), [0, 0])
  g = RNG.normal(size=(len(boxes), *SIZE, C)).astype(np.float32)
  here = np.arange(4)[:, None] == np.asarray(roi.pyramid_levels(boxes))[None]

  def alone(levels):
    ys = [roi.roi_align(x, boxes, SIZE, 2.0 ** -(i + 2)) for i, x in enumerate(levels)]
    return sum(jnp.where(mask[:, None, None, None], y, 0) for y, mask in zip(ys, here))

  def both(pool):
    y, back = jax.vjp(pool, [jnp.asarray(level) for level in levels])
    return y, back(jnp.asarray(g))[0]

  found = jax.jit(functools.partial(both, lambda levels: roi.pyramid_roi_align(levels, boxes, SIZE)))()
  jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5), found, jax.jit(lambda: both(alone))())


def test_side_by_side_as_one_after_the_other(monkeypatch):
  """What accelerators run is what CPUs run; a batch is its images; half precision stays so."""
  boxes = jnp.asarray([[0.3, 2, 14, 17], [-3, -5, 7, 30], [4, 4, 4, 4]])
  x = jnp.asarray(np.stack([MAP, MAP[::-1]]))

  def all_of(x):
    parts = [roi.roi_align(x, boxes, SIZE, SCALE, n) for n in (2, 0)] + [roi.roi_pool(x, boxes, SIZE, SCALE)]
    return jnp.stack(parts)

  def both(x):
    y, back = jax.vjp(all_of, x)
    return y, back(2 * y)[0]

  alone = [jax.jit(both)(image) for image in x]
  batch = jax.jit(jax.vmap(both))(x)
  same = functools.partial(np.testing.assert_allclose, atol=1e-5)
  for i, (y, d) in enumerate(alone):
    same(batch[0][i], y)
    same(batch[1][i], d)
  monkeypatch.setattr(roi.lax, "platform_dependent", lambda *args, cpu, default: default(*args))
  for ours, theirs in zip(jax.jit(lambda x: both(x))(x[0]), alone[0]):
    same(ours, theirs)
  half, d = jax.jit(lambda x: both(x))(x[0].astype(jnp.bfloat16))
  assert half.dtype == d.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), alone[0][0], atol=0.03)


def paste_by_pixels(mask, box, size):
  """One mask, from the rule, with the float32 of torch's boxes."""
  m, one = len(mask) + 2, np.float32
  mask, y = np.pad(mask, 1).astype(np.float64), np.zeros(size)
  low, high = np.zeros(2, int), np.zeros(2, int)
  for axis in (0, 1):
    half = one(one(one(box[2 + axis] - box[axis]) * one(0.5)) * one(m / (m - 2)))
    middle = one(one(box[2 + axis] + box[axis]) * one(0.5))
    low[axis], high[axis] = int(middle - half), int(middle + half)
  width, height = (max(int(hi - lo + 1), 1) for lo, hi in zip(low, high))
  for i in range(max(low[1], 0), min(high[1] + 1, size[0])):
    for j in range(max(low[0], 0), min(high[0] + 1, size[1])):
      row = max((i - low[1] + 0.5) * m / height - 0.5, 0)
      column = max((j - low[0] + 0.5) * m / width - 0.5, 0)
      a, b = min(int(row), m - 1), min(int(column), m - 1)
      p, q = row - a, column - b
      a1, b1 = min(a + 1, m - 1), min(b + 1, m - 1)
      y[i, j] = (1 - p) * ((1 - q) * mask[a, b] + q * mask[a, b1]) + p * ((1 - q) * mask[a1, b] + q * mask[a1, b1])
  return y


MASKS = RNG.random((COUNT, 4, 4)).astype(np.float32)
_paste = jax.jit(lambda boxes: roi.paste(jnp.asarray(MASKS), boxes, (14, 17)))


@QUICK
@given(boxes_of)
def test_paste(boxes):
  expected = [paste_by_pixels(mask, box, (14, 17)) for mask, box in zip(MASKS, boxes)]
  np.testing.assert_allclose(_paste(boxes), expected, atol=1e-5)


def test_project_takes_the_matched_mask():
  masks = RNG.random((2, H, W)) > 0.5
  boxes = np.array([[1, 1, 8, 7], [0.5, 2, 11, 6.25], [-3, -2, 30, 30], [4, 4, 5, 5]], np.float32)
  matched = np.array([1, 0, 1, -1])  # -1, of boxes without truth, must not crash
  y = jax.jit(lambda: roi.project(masks, boxes, matched, SIZE))()
  for found, box, mask in zip(y, boxes, masks[[1, 0, 1, 0]]):
    ends = box / np.float32(SCALE)  # the loops below go by SCALE
    rows, columns = (
      weights_along(ends[i], ends[i + 2], bins, n, 0, False)[0] for i, bins, n in ((1, SIZE[0], H), (0, SIZE[1], W))
    )
    np.testing.assert_allclose(found, rows @ mask @ columns.T, atol=1e-6)


def test_mistakes():
  boxes = jnp.zeros((1, 4))
  with pytest.raises(UserError, match="at least one bin"):
    roi.roi_align(jnp.asarray(MAP), boxes, (0, 7), 1.0)
  with pytest.raises(UserError, match=r"must be \[R, 4\]"):
    roi.roi_pool(jnp.asarray(MAP), jnp.zeros((1, 5)), SIZE, 1.0)
  with pytest.raises(UserError, match="1 levels needs as many scales, not 4"):
    roi.pyramid_roi_align([jnp.asarray(MAP)], boxes, SIZE)
