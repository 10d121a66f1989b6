"""Pooling against loops over windows in NumPy, which count sizes and break ties as torch's documentation says."""

from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxonomy.models import pooling

RNG = np.random.default_rng(0)


def spans(n, window, strides, padding, ceil_mode):
  """(first, end) pixel of each window along an axis, outside the image where padded."""
  starts = [i * strides - padding for i in range(n + 2 * padding)]
  if ceil_mode:  # a window may hang out at the end; it must start inside the input or the left padding
    starts = [s for s in starts if s < n and s - strides + window < n + padding]
  else:
    starts = [s for s in starts if s + window <= n + padding]
  return [(s, s + window) for s in starts]


def max_by_loops(x, target, *how):
  """(values, flat indices, gradient of (values * target).sum()) of x [B, H, W, C]."""
  rows, columns = (spans(n, *how) for n in x.shape[1:3])
  y, at = np.zeros((2, len(x), len(rows), len(columns), x.shape[3]))
  dx = np.zeros(x.shape)
  images, channels = range(len(x)), range(x.shape[3])
  for b, (i, (top, bottom)), (j, (left, right)), c in product(images, enumerate(rows), enumerate(columns), channels):
    block = x[b, max(top, 0) : bottom, max(left, 0) : right, c]
    row, column = np.unravel_index(block.argmax(), block.shape)  # argmax: the first in row order
    row, column = row + max(top, 0), column + max(left, 0)
    y[b, i, j, c], at[b, i, j, c] = x[b, row, column, c], row * x.shape[2] + column
    dx[b, row, column, c] += target(i, j)
  return y, at, dx


POOLS = [  # window, strides, padding, ceil_mode, height, width
  (2, 2, 0, False, 6, 8),
  (2, 2, 0, False, 7, 5),  # a remainder is dropped
  (3, 3, 0, False, 9, 7),
  (2, 2, 0, True, 7, 5),
  (2, 2, 1, True, 5, 6),  # no window of padding alone
  (3, 2, 0, False, 8, 9),
  (3, 2, 0, True, 8, 9),
  (3, 2, 1, False, 8, 7),
  (3, 1, 1, False, 5, 4),
  (5, 2, 2, True, 8, 7),
  (1, 2, 0, True, 5, 6),  # windows that leave pixels out
]


@pytest.mark.parametrize("window, strides, padding, ceil_mode, height, width", POOLS)
def test_max_pool_its_indices_and_its_gradient_with_ties(window, strides, padding, ceil_mode, height, width):
  """Few integers make many ties, and sums of integers are exact."""
  how = (window, strides, padding, ceil_mode)
  x = RNG.integers(-2, 2, (2, height, width, 3)).astype(np.float32)
  weight = lambda i, j: 1.0 + 10 * i + j
  values, indices, gradient = max_by_loops(x, weight, *how)
  target = np.fromfunction(weight, values.shape[1:3])[None, :, :, None]

  @jax.jit
  def ours(x):
    y, pull = jax.vjp(lambda x: pooling.max_pool(x, *how), x)
    again, found = pooling.max_pool_with_indices(x, *how)
    return y, again, found, pull(jnp.broadcast_to(jnp.asarray(target, jnp.float32), y.shape))[0]

  y, again, found, dx = ours(x)
  np.testing.assert_array_equal(y, values)
  np.testing.assert_array_equal(again, values)
  np.testing.assert_array_equal(found, indices)
  np.testing.assert_array_equal(dx, gradient)


def test_max_pool_inside_a_loop_and_in_half_precision():
  x = jnp.asarray(RNG.normal(size=(1, 7, 7, 2)), jnp.bfloat16)
  gradient = lambda x: jax.grad(lambda x: pooling.max_pool(x, 3, 2, padding=1).sum())(x)
  looped = jax.jit(lambda x: lax.fori_loop(0, 1, lambda i, dx: gradient(x), jnp.zeros_like(x)))(x)
  np.testing.assert_array_equal(looped, gradient(x))
  assert looped.dtype == jnp.bfloat16
  assert gradient(x).astype(jnp.float32).sum() == 16 * 2


@pytest.mark.parametrize("window, size", [(2, (7, 5)), (3, (7, 9))])
def test_unpooling_undoes_pooling_at_the_maxima(window, size):
  x = jnp.asarray(RNG.normal(size=(2, *size, 3)), jnp.float32)
  y, indices = pooling.max_pool_with_indices(x, window)
  target = jnp.asarray(RNG.normal(size=x.shape), jnp.float32)
  back, pull = jax.vjp(jax.jit(lambda y: pooling.max_unpool(y, indices, size, window)), y)
  flat, expected = np.asarray(indices).reshape(2, -1, 3), np.zeros((2, size[0] * size[1], 3), np.float32)
  np.put_along_axis(expected, flat, np.asarray(y).reshape(2, -1, 3), 1)
  np.testing.assert_array_equal(back, expected.reshape(x.shape))
  picked = np.take_along_axis(np.asarray(target).reshape(2, -1, 3), flat, 1)
  np.testing.assert_array_equal(pull(target)[0], picked.reshape(y.shape))


def average_by_loops(x, window, strides, padding, include_padding, ceil_mode):
  bins = []
  for n in x.shape[1:3]:
    outer = padding if include_padding else 0
    ends = spans(n, window, strides, padding, ceil_mode)
    bins.append([(max(lo, 0), min(hi, n), min(hi, n + outer) - max(lo, -outer)) for lo, hi in ends])
  return np.stack(
    [
      np.stack([x[:, t:b, l:r].sum((1, 2), dtype=np.float64) / (rows * columns) for l, r, columns in bins[1]], 1)
      for t, b, rows in bins[0]
    ],
    1,
  )


def linear(ours, reference, x, shape):
  """Values, and the gradient: <t, f(z)> = <grad, z> for every z, as f is linear."""
  y, pull = jax.vjp(jax.jit(ours), jnp.asarray(x))
  expected = reference(x)
  assert y.shape == expected.shape == shape
  np.testing.assert_allclose(y, expected, atol=1e-6)
  t = RNG.normal(size=y.shape).astype(np.float32)
  dx = pull(jnp.asarray(t))[0]
  for _ in range(3):
    z = RNG.normal(size=x.shape).astype(np.float32)
    np.testing.assert_allclose((dx * z).sum(), (t * reference(z)).sum(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  "how, shape",
  [
    ((2, 2, 0, True, False), (2, 3, 4, 3)),
    ((5, 3, 0, True, False), (2, 1, 2, 3)),
    ((3, 1, 1, True, False), (2, 7, 8, 3)),
    ((3, 1, 1, False, False), (2, 7, 8, 3)),
    ((3, 2, 1, True, True), (2, 4, 5, 3)),
    ((3, 2, 1, False, True), (2, 4, 5, 3)),
  ],
)
def test_average_pool(how, shape):
  x = RNG.normal(size=(2, 7, 8, 3)).astype(np.float32)
  linear(lambda x: pooling.avg_pool(x, *how), lambda x: average_by_loops(x, *how), x, shape)


@pytest.mark.parametrize("size", [(1, 1), (7, 8), (7, 4), (3, 5), (9, 12)])
def test_adaptive_average_pool(size):
  def reference(x):
    (_, h, w, _), (rows, columns) = x.shape, size
    bins = [[(i * n // m, -(-(i + 1) * n // m)) for i in range(m)] for n, m in ((h, rows), (w, columns))]
    mean = lambda t, b, l, r: x[:, t:b, l:r].mean((1, 2), dtype=np.float64)
    return np.stack([np.stack([mean(*down, *across) for across in bins[1]], 1) for down in bins[0]], 1)

  x = RNG.normal(size=(2, 7, 8, 3)).astype(np.float32)
  linear(lambda x: pooling.adaptive_avg_pool(x, size), reference, x, (2, *size, 3))


def test_means_in_half_precision_are_summed_in_float32():
  x = jnp.full((1, 32, 31, 1), 1.0078125, jnp.bfloat16)
  for y in (
    jax.jit(lambda x: pooling.avg_pool(x, 28, 1))(x),
    pooling.adaptive_avg_pool(x, (1, 1)),
    pooling.adaptive_avg_pool(x, (5, 2)),
  ):
    assert y.dtype == jnp.bfloat16
    assert (y == x[0, 0, 0, 0]).all()
