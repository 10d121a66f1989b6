"""Pooling: maximum, average, adaptive average, and SegNet's maximum with indices and its inverse.

Sizes are counted as torch counts them. Images are [B, H, W, C]; windows, strides and paddings are the same in both
directions. Nothing here is a `reduce_window`: on CPUs its gradients are 3 to 25 times slower, up to half of a small
net's step.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from flaxonomy.errors import UserError


def max_pool(
  x: jax.Array, window: int, strides: int | None = None, padding: int = 0, ceil_mode: bool = False
) -> jax.Array:
  """Largest value of each window x window block; of equal ones the first in row order takes the gradient, as in torch.

  Args:
    x: [B, H, W, C], floating point.
    window: side of a block.
    strides: step from block to block; None: as the window.
    padding: rows and columns of -inf on all four sides, at most half of the window.
    ceil_mode: a remainder at the right or bottom makes a last, smaller block, which must start inside the input or
      the left padding; otherwise it is dropped.

  Returns:
    [B, (H + 2 padding - window) // strides + 1, ..., C]; with ceil_mode the division rounds up.
  """
  strides = strides or window
  x = _fit(x, window, strides, padding, ceil_mode, -jnp.inf)
  return _max_of_blocks(x, window) if strides == window else _max_of_windows(x, window, strides)


def _fit(x, window, strides, padding, ceil_mode, value):
  """The image with `padding` around it, and so much more or less at the bottom and right that the last windows fit."""
  ends = []
  for n in x.shape[1:3]:
    size = _size(n, window, strides, padding, ceil_mode)
    ends.append((padding, (size - 1) * strides + window - n - padding, 0))
  if not any(lo or hi for lo, hi, _ in ends):
    return x
  return lax.pad(x, jnp.asarray(value, x.dtype), [(0, 0, 0), *ends, (0, 0, 0)])


def _size(n, window, strides, padding, ceil_mode):
  """Windows along an axis of n."""
  size = (n + 2 * padding - window + (strides - 1 if ceil_mode else 0)) // strides + 1
  if size < 1:
    raise UserError(f"{n} pixels are too few for a pooling window of {window}: the images are too small for this model")
  return size - 1 if ceil_mode and (size - 1) * strides >= n + padding else size


def _taps(x, window, strides):
  """The window^2 images that hold the first, second, ... pixel of every window of a fitted x."""
  h, w = (n - window + 1 for n in x.shape[1:3])
  return [x[:, i : i + h : strides, j : j + w : strides] for i in range(window) for j in range(window)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_blocks(x, window):
  return functools.reduce(jnp.maximum, _taps(x, window, window))


def _max_of_blocks_fwd(x, window):
  y = _max_of_blocks(x, window)
  return y, (x, y)


def _max_of_blocks_bwd(window, saved, g):
  x, y = saved
  taken, grads = jnp.zeros(y.shape, bool), []
  for tap in _taps(x, window, window):
    first = (tap == y) & ~taken
    grads.append(jnp.where(first, g, 0))
    taken |= first
  dx = jnp.stack([jnp.stack(grads[i * window :][:window], 3) for i in range(window)], 2)  # [B, h, window, w, window, C]
  return (dx.reshape(x.shape),)


_max_of_blocks.defvjp(_max_of_blocks_fwd, _max_of_blocks_bwd)


def _max_of_windows(x, window, strides):
  """Windows that overlap: within rows, then across them, which keeps the first in row order first."""
  return _max_along(_max_along(x, window, strides, 2), window, strides, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_along(x, window, strides, axis):
  return functools.reduce(jnp.maximum, _taps_along(x, window, strides, axis))


def _taps_along(x, window, strides, axis):
  reach = x.shape[axis] - window + 1
  return [lax.slice_in_dim(x, i, i + reach, strides, axis) for i in range(window)]


def _max_along_fwd(x, window, strides, axis):
  y = _max_along(x, window, strides, axis)
  return y, (x, y)


def _max_along_bwd(window, strides, axis, saved, g):
  x, y = saved
  size, length = y.shape[axis], -(-x.shape[axis] // strides)
  # Pixels 0, strides, 2 strides, ... of x get their gradients apart from pixels 1, strides + 1, ...: so no zeros need
  # be put between the gradients. Tap i is pixel i // strides of phase i % strides.
  taken, phases = jnp.zeros(y.shape, bool), [jnp.zeros((), g.dtype)] * strides
  for i, tap in enumerate(_taps_along(x, window, strides, axis)):
    first = (tap == y) & ~taken
    around = [(0, 0, 0)] * 4
    around[axis] = (i // strides, length - size - i // strides, 0)
    phases[i % strides] += lax.pad(jnp.where(first, g, 0), jnp.zeros((), g.dtype), around)
    taken |= first
  shape = (*x.shape[:axis], length, *x.shape[axis + 1 :])
  dx = jnp.stack([jnp.broadcast_to(phase, shape) for phase in phases], axis + 1)
  dx = dx.reshape(*x.shape[:axis], length * strides, *x.shape[axis + 1 :])
  return (lax.slice_in_dim(dx, 0, x.shape[axis], axis=axis),)


_max_along.defvjp(_max_along_fwd, _max_along_bwd)


def max_pool_with_indices(
  x: jax.Array, window: int, strides: int | None = None, padding: int = 0, ceil_mode: bool = False
) -> tuple[jax.Array, jax.Array]:
  """`max_pool` and where each maximum was found: row * W + column of x, int32, the first of equal ones.

  Args:
    x: [B, H, W, C], floating point.
    window: side of a block.
    strides: step from block to block; None: as the window.
    padding: as for `max_pool`.
    ceil_mode: as for `max_pool`.

  Returns:
    (values, indices), each of max_pool's shape.
  """
  strides = strides or window
  y = max_pool(x, window, strides, padding, ceil_mode)
  taps = _taps(_fit(lax.stop_gradient(x), window, strides, padding, ceil_mode, -jnp.inf), window, strides)
  offset = jnp.zeros(y.shape, jnp.int32)  # from the window's first pixel to the maximum
  for tap, (i, j) in reversed(list(zip(taps, [(i, j) for i in range(window) for j in range(window)]))):
    offset = jnp.where(tap == y, i * x.shape[2] + j, offset)
  return y, offset + _corners(y.shape, strides, padding, x.shape[2])


def _corners(shape, strides, padding, width):
  """Flat index in an image of that width of the first pixel of each window: [1, h, w, 1]."""
  rows, columns = (lax.broadcasted_iota(jnp.int32, (1, *shape[1:3], 1), axis) * strides - padding for axis in (1, 2))
  return rows * width + columns


def max_unpool(x: jax.Array, indices: jax.Array, size: tuple[int, int], window: int = 2) -> jax.Array:
  """Puts pooled values back where their maxima were found, zeros elsewhere (Badrinarayanan et al. 2015, SegNet).

  Without a scatter: each pixel of a block asks whether it is the one. So windows must not overlap.

  Args:
    x: [B, h, w, C].
    indices: [B, h, w, C], as `max_pool_with_indices(..., window)` gives them without padding.
    size: (H, W) of the image that was pooled; odd sizes are lost in pooling.
    window: side of a block.

  Returns:
    [B, H, W, C]
  """
  b, h, w, c = x.shape
  offset = indices - _corners(x.shape, window, 0, size[1])
  rows = []
  for i in range(window):
    rows.append(jnp.stack([jnp.where(offset == i * size[1] + j, x, 0) for j in range(window)], 3))
  y = jnp.stack(rows, 2).reshape(b, h * window, w * window, c)
  rest = [(0, n - m, 0) for n, m in zip(size, y.shape[1:3])]
  return lax.pad(y, jnp.zeros((), y.dtype), [(0, 0, 0), *rest, (0, 0, 0)])


def avg_pool(
  x: jax.Array,
  window: int,
  strides: int | None = None,
  padding: int = 0,
  include_padding: bool = True,
  ceil_mode: bool = False,
) -> jax.Array:
  """Mean of each window x window block, summed in float32.

  Args:
    x: [B, H, W, C].
    window: side of a block.
    strides: step from block to block; None: as the window.
    padding: rows and columns of zeros on all four sides.
    include_padding: the padding counts as values; otherwise means are over the pixels of x alone.
    ceil_mode: as for `max_pool`; what it adds beyond the padding never counts.

  Returns:
    [B, (H + 2 padding - window) // strides + 1, ..., C]
  """
  strides, dtype = strides or window, x.dtype
  counts, extra = [], padding if include_padding else 0
  for n in x.shape[1:3]:
    starts = [i * strides - padding for i in range(_size(n, window, strides, padding, ceil_mode))]
    counts.append(jnp.asarray([min(i + window, n + extra) - max(i, -extra) for i in starts], jnp.float32))
  x = _fit(x, window, strides, padding, ceil_mode, 0).astype(jnp.float32)
  for axis in (2, 1):
    x = functools.reduce(jnp.add, _taps_along(x, window, strides, axis))
  return (x / (counts[0][None, :, None, None] * counts[1][None, None, :, None])).astype(dtype)


def adaptive_avg_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Means over bins that cover the image: bin i of n goes from floor(i H / n) to ceil((i + 1) H / n), as in torch.

  Bins may overlap, and may outnumber the pixels.

  Args:
    x: [B, H, W, C].
    size: (h, w), bins in each direction.

  Returns:
    [B, h, w, C]
  """
  (b, h, w, c), (rows, columns) = x.shape, size
  if (h, w) == tuple(size):
    return x
  if h % rows == 0 and w % columns == 0:
    return x.reshape(b, rows, h // rows, columns, w // columns, c).mean((2, 4))
  down, down_count = _bins(h, rows)
  across, across_count = _bins(w, columns)
  # Products with zeros and ones, exact in any type.
  exact = {"precision": lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
  y = jnp.einsum("ph,bhwc->bpwc", down.astype(x.dtype), x, **exact)
  y = jnp.einsum("qw,bpwc->bpqc", across, y, **exact)
  return (y / (down_count[None, :, None, None] * across_count[None, None, :, None])).astype(x.dtype)


def _bins(n, bins):
  """(which of n pixels lie in each bin, zeros and ones [bins, n]; how many, [bins]), float32."""
  ends = [(i * n // bins, -(-(i + 1) * n // bins)) for i in range(bins)]
  inside = [[float(lo <= j < hi) for j in range(n)] for lo, hi in ends]
  return jnp.asarray(inside, jnp.float32), jnp.asarray([hi - lo for lo, hi in ends], jnp.float32)
