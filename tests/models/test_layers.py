"""Layers against XLA's own convolution and pooling, against NumPy, and inside compiled loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from flaxonomy.models import layers

RNG = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)


def stock(x, w, strides, padding):
  return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


CONVOLUTIONS = [  # kernel, stride, padding, input channels, output channels, side
  (3, 1, ((1, 1), (1, 1)), 1, 16, 12),
  (3, 1, ((2, 2), (2, 2)), 32, 32, 6),
  (3, 1, ((3, 3), (3, 3)), 2, 3, 5),  # padding beyond the kernel
  (5, 2, ((1, 1), (1, 1)), 3, 8, 11),
  (4, 2, ((1, 1), (1, 1)), 4, 8, 8),
  (7, 2, ((3, 3), (3, 3)), 3, 8, 14),
  (3, 3, ((0, 0), (0, 0)), 4, 4, 11),  # rows that no window reaches
  (3, 1, ((0, 1), (2, 0)), 5, 4, 7),
  (1, 1, ((0, 0), (0, 0)), 16, 8, 5),
]


@pytest.mark.parametrize("kernel, stride, padding, inputs, outputs, side", CONVOLUTIONS)
@pytest.mark.parametrize("looped", [False, True])
def test_convolution_and_gradients(kernel, stride, padding, inputs, outputs, side, looped):
  x, w, strides = normal(2, side, side, inputs), normal(kernel, kernel, inputs, outputs), (stride, stride)
  target = normal(*stock(x, w, strides, padding).shape)

  def all_of(convolve):
    def value(x, w):
      y = convolve(x, w, strides, padding)
      return (y * target).sum(), y

    def both(x, w):
      (_, y), grads = jax.value_and_grad(value, (0, 1), has_aux=True)(x, w)
      return y, *grads

    if looped:
      zeros = jax.tree.map(jnp.zeros_like, jax.eval_shape(both, x, w))
      return jax.jit(lambda x, w: lax.fori_loop(0, 1, lambda i, _: both(x, w), zeros))(x, w)
    return jax.jit(both)(x, w)

  for ours, theirs in zip(all_of(layers.conv), all_of(stock)):
    close(ours, theirs)


@pytest.mark.parametrize("kernel, stride, padding", [(4, 2, 1), (4, 1, 0), (2, 2, 0), (3, 2, 1), (5, 3, 2), (16, 8, 4)])
def test_transposed_convolution_is_the_sum_of_stamps(kernel, stride, padding):
  """torch's definition: each input pixel stamps its kernel on the output, which is then cropped."""
  x, w = np.asarray(normal(2, 3, 4, 5)), np.asarray(normal(kernel, kernel, 6, 5))
  full = np.zeros((2, 2 * stride + kernel, 3 * stride + kernel, 6), np.float32)
  for i in range(3):
    for j in range(4):
      rows, columns = slice(i * stride, i * stride + kernel), slice(j * stride, j * stride + kernel)
      full[:, rows, columns] += np.einsum("bi,hwoi->bhwo", x[:, i, j], w)
  expected = full[:, padding : full.shape[1] - padding, padding : full.shape[2] - padding]
  close(layers.conv_transpose(x, w, stride, padding), expected)


@pytest.mark.parametrize("window, shape", [(2, (2, 6, 8, 3)), (2, (1, 7, 5, 2)), (3, (2, 9, 7, 4))])
def test_max_pool_and_its_gradient_with_ties(window, shape):
  """Few integers make many ties; of equal values the first takes the gradient, as in XLA's select-and-scatter."""
  x = jnp.asarray(RNG.integers(0, 3, shape), jnp.float32)
  theirs = lambda x: nn.max_pool(x, (window, window), (window, window))
  target = normal(*theirs(x).shape)
  ours = lambda x: layers.max_pool(x, window)
  np.testing.assert_array_equal(ours(x), theirs(x))
  gradient = lambda pool: jax.grad(lambda x: (pool(x) * target).sum())(x)
  np.testing.assert_array_equal(gradient(ours), gradient(theirs))


def test_modules_name_and_shape_their_parameters_as_flax_does():
  x = jnp.zeros((1, 8, 8, 3))
  pairs = [
    (layers.Conv(5, (3, 3), padding=1), nn.Conv(5, (3, 3), padding=1)),
    (layers.ConvTranspose(5, (4, 4), strides=2, padding=1), nn.ConvTranspose(5, (4, 4), (2, 2), transpose_kernel=True)),
  ]
  for ours, theirs in pairs:
    shapes = [jax.tree.map(jnp.shape, module.init(jax.random.PRNGKey(0), x)) for module in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_half_precision_computes_in_half_and_keeps_parameters_in_float32():
  module = layers.Conv(5, (3, 3), dtype=jnp.bfloat16)
  y, variables = module.init_with_output(jax.random.PRNGKey(0), normal(1, 8, 8, 3))
  assert y.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
