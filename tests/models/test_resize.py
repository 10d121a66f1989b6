"""Resizing against interpolation point by point in NumPy, and kernels that enlarge by transposed convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.models import layers, resize

RNG = np.random.default_rng(0)


def along(x, size, axis, place):
  """x read at place(i) along an axis, between the two neighbours, held at the ends."""
  n = x.shape[axis]
  at = np.clip([place(i, n, size) for i in range(size)], 0, n - 1)
  low = np.floor(at).astype(int)
  high, share = np.minimum(low + 1, n - 1), at - low
  share = share.reshape([-1 if a == axis else 1 for a in range(4)])
  return np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share


def by_points(x, size, place):
  return along(along(x.astype(np.float64), size[0], 1, place), size[1], 2, place)


CENTRES = lambda i, n, size: (i + 0.5) * n / size - 0.5
CORNERS = lambda i, n, size: i * (n - 1) / max(size - 1, 1)


@pytest.mark.parametrize("size", [(14, 9), (3, 11), (7, 1)])
@pytest.mark.parametrize("align_corners", [False, True])
def test_bilinear(size, align_corners):
  x = RNG.normal(size=(2, 7, 6, 3)).astype(np.float32)
  expected = by_points(x, size, CORNERS if align_corners else CENTRES)
  y = resize.bilinear(jnp.asarray(x), size, align_corners=align_corners)
  np.testing.assert_allclose(y, expected, atol=1e-5)


def test_bilinear_keeps_its_precision_over_long_ways():
  x = RNG.normal(size=(1, 65, 65, 1)).astype(np.float32)
  y = resize.bilinear(jnp.asarray(x), (520, 513))
  np.testing.assert_allclose(y, by_points(x, (520, 513), CENTRES), atol=1e-4)


def test_antialiasing_averages_where_the_image_shrinks_and_nowhere_else():
  """By two, the hat is four pixels wide: weights 1, 3, 3, 1, of which the border cuts the first or the last."""
  x = RNG.normal(size=(1, 8, 1, 1)).astype(np.float32)
  rows = np.zeros((4, 8))
  for i in range(4):
    for j, weight in zip(range(2 * i - 1, 2 * i + 3), (1, 3, 3, 1)):
      if 0 <= j < 8:
        rows[i, j] = weight
  rows /= rows.sum(1, keepdims=True)
  smaller = resize.bilinear(jnp.asarray(x), (4, 1), antialias=True)
  np.testing.assert_allclose(smaller[0, :, 0], rows @ x[0, :, 0], atol=1e-6)
  larger = [resize.bilinear(jnp.asarray(x), (13, 2), antialias=flag) for flag in (False, True)]
  np.testing.assert_allclose(*larger, atol=1e-6)


def test_bilinear_gradient_and_half_precision():
  """Linear: <t, f(x)> = <gradient, x>. What is constant stays so in half precision too."""
  x, t = (jnp.asarray(RNG.normal(size=shape), jnp.float32) for shape in ((1, 7, 5, 2), (1, 4, 9, 2)))
  dx = jax.jit(jax.grad(lambda x: (t * resize.bilinear(x, (4, 9))).sum()))(x)
  z = RNG.normal(size=x.shape).astype(np.float32)
  np.testing.assert_allclose((dx * z).sum(), (t * by_points(z, (4, 9), CENTRES)).sum(), rtol=1e-4)
  half = resize.bilinear(jnp.full((1, 7, 5, 2), 1.0078125, jnp.bfloat16), (10, 3))
  assert half.dtype == jnp.bfloat16
  assert (half == 1.0078125).all()


@pytest.mark.parametrize("size", [(14, 5), (3, 13), (7, 2)])
def test_nearest(size):
  x = RNG.normal(size=(1, 7, 10, 2)).astype(np.float32)
  rows, columns = (np.floor(np.arange(m) * n / m).astype(int) for n, m in zip(x.shape[1:3], size))
  np.testing.assert_array_equal(resize.nearest(jnp.asarray(x), size), x[:, rows][:, :, columns])


@pytest.mark.parametrize("strides", [2, 8])
def test_bilinear_kernel_interpolates(strides):
  """Away from the border, where the transposed convolution sees zeros, it is bilinear resizing."""
  x = jnp.asarray(RNG.normal(size=(1, 4, 5, 2)), jnp.float32)
  kernel = resize.bilinear_kernel(2 * strides, 2)
  y = layers.conv_transpose(x, kernel, strides, strides // 2)
  inside = (slice(None), slice(strides, -strides), slice(strides, -strides))
  expected = by_points(np.asarray(x), (4 * strides, 5 * strides), CENTRES)
  np.testing.assert_allclose(y[inside], expected[inside], atol=1e-5)
  odd = resize.bilinear_kernel(3, 1)[:, :, 0, 0]
  np.testing.assert_allclose(odd, np.outer([0.5, 1, 0.5], [0.5, 1, 0.5]))
