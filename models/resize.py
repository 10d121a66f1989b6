"""Images to other sizes: bilinear and nearest, as torch counts pixels; bilinear kernels for transposed convolutions.

Resizing is linear along each axis: two products with matrices that hold a few numbers a row, which are known when the
program is compiled. Gradients are products with their transposes, no scatter.
"""

import jax
import jax.numpy as jnp
from jax import lax


def bilinear(x: jax.Array, size: tuple[int, int], align_corners: bool = False, antialias: bool = False) -> jax.Array:
  """Bilinear resizing, computed in float32.

  Args:
    x: [B, H, W, C].
    size: (h, w) of the result.
    align_corners: the centres of the corner pixels stay where they are, and pixels are (H - 1) / (h - 1) apart;
      otherwise the edges stay, pixels are H / h apart, and what lies outside takes the nearest pixel.
    antialias: where the image shrinks, average over all pixels within H / h (torchvision's resize of tensors and
      pictures; the detectors' own resize does not). Not with align_corners.

  Returns:
    [B, h, w, C] of x's dtype.
  """
  weigh = _smooth if antialias else _corners if align_corners else _centres
  y = x.astype(jnp.float32)
  for axis, n in ((2, size[1]), (1, size[0])):
    if y.shape[axis] != n:
      y = _apply(weigh(y.shape[axis], n), y, axis)
  return y.astype(x.dtype)


def _apply(matrix, x, axis):
  """Applies a matrix [new, old] along an axis of x, in float32 whatever the default precision of products."""
  if axis == 2:
    return jnp.einsum("ow,bhwc->bhoc", matrix, x, precision=lax.Precision.HIGHEST)
  # Rows are one product for each image, in place; as an einsum it would be one for all, and a transposed copy.
  b, h, w, c = x.shape
  matrix = jnp.broadcast_to(matrix[None], (b, *matrix.shape))
  return jnp.matmul(matrix, x.reshape(b, h, w * c), precision=lax.Precision.HIGHEST).reshape(b, -1, w, c)


def _hats(places, n, width=1.0):
  """Rows of weights that fall from each place to nothing `width` pixels away, each row's sum 1: [len(places), n]."""
  weights = jnp.maximum(0, 1 - jnp.abs(places[:, None] - jnp.arange(n, dtype=jnp.float32)[None]) / width)
  return weights / weights.sum(1, keepdims=True)


def _centres(n, new):
  """Torch's align_corners=False."""
  places = (jnp.arange(new, dtype=jnp.float32) + 0.5) * (n / new) - 0.5
  return _hats(jnp.clip(places, 0, n - 1), n)


def _corners(n, new):
  """Torch's align_corners=True."""
  return _hats(jnp.arange(new, dtype=jnp.float32) * ((n - 1) / max(new - 1, 1)), n)


def _smooth(n, new):
  """The hat as wide as the step; what lies outside the image does not count."""
  places = (jnp.arange(new, dtype=jnp.float32) + 0.5) * (n / new) - 0.5
  return _hats(places, n, max(n / new, 1.0))


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Pixel floor(i H / h) for pixel i, as torch's "nearest"; PIL's and torch's "nearest-exact" take the centre.

  Args:
    x: [B, H, W, C].
    size: (h, w) of the result.

  Returns:
    [B, h, w, C]
  """
  for axis, n in ((1, size[0]), (2, size[1])):
    old = x.shape[axis]
    if n % old == 0:
      x = jnp.repeat(x, n // old, axis)
    elif old % n == 0:
      x = lax.slice_in_dim(x, 0, None, old // n, axis)
    else:
      x = jnp.take(x, jnp.asarray([i * old // n for i in range(n)]), axis)
  return x


def bilinear_kernel(side: int, channels: int) -> jax.Array:
  """The kernel with which a transposed convolution interpolates (Long et al. 2015, FCN, section 3.3).

  Stride side / 2 and padding side / 4 enlarge an image by the stride, each channel by itself.

  Args:
    side: of the kernel; even ones have their middle between two taps.
    channels: in and out.

  Returns:
    [side, side, channels, channels], zero between different channels.
  """
  factor = (side + 1) // 2
  middle = factor - 1 if side % 2 else factor - 0.5
  row = 1 - jnp.abs(jnp.arange(side, dtype=jnp.float32) - middle) / factor
  return (row[:, None] * row[None])[:, :, None, None] * jnp.eye(channels)[None, None]
