"""Layers against XLA's own convolution, against NumPy, and inside compiled loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from flaxonomy.errors import UserError
from flaxonomy.models import layers

RNG = np.random.default_rng(0)


def normal(*shape):
  return jnp.asarray(RNG.normal(size=shape), jnp.float32)


def close(a, b, tolerance=1e-5):
  np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max(), rtol=0)


def stock(x, w, strides, padding, dilation, groups):
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(
    x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=layout, feature_group_count=groups
  )


CONVOLUTIONS = [  # kernel, stride, padding, dilation, groups, input channels, output channels, side
  ((3, 3), 1, ((1, 1), (1, 1)), 1, 1, 1, 16, 12),
  ((3, 3), 1, ((2, 2), (2, 2)), 1, 1, 32, 32, 6),
  ((3, 3), 1, ((3, 3), (3, 3)), 1, 1, 2, 3, 5),  # padding beyond the kernel
  ((5, 5), 2, ((1, 1), (1, 1)), 1, 1, 3, 8, 11),
  ((4, 4), 2, ((1, 1), (1, 1)), 1, 1, 4, 8, 8),
  ((7, 7), 2, ((3, 3), (3, 3)), 1, 1, 3, 8, 14),
  ((3, 3), 3, ((0, 0), (0, 0)), 1, 1, 4, 4, 11),  # rows that no window reaches
  ((3, 3), 1, ((0, 1), (2, 0)), 1, 1, 5, 4, 7),
  ((1, 1), 1, ((0, 0), (0, 0)), 1, 1, 16, 8, 5),
  ((1, 7), 1, ((0, 0), (3, 3)), 1, 1, 4, 8, 8),
  ((7, 1), 2, ((3, 3), (0, 0)), 1, 1, 20, 8, 9),
  ((3, 3), 1, ((2, 2), (2, 2)), 2, 1, 4, 8, 8),
  ((3, 3), 1, ((1, 1), (1, 1)), 3, 1, 20, 8, 9),  # padding less than the dilation
  ((3, 3), 2, ((2, 2), (2, 2)), 2, 1, 4, 8, 10),
  ((5, 5), 1, ((2, 2), (2, 2)), 1, 2, 4, 6, 8),
  ((3, 3), 2, ((1, 1), (1, 1)), 1, 4, 4, 8, 8),
  ((3, 3), 1, ((2, 2), (2, 2)), 2, 2, 6, 4, 8),
]


@pytest.mark.parametrize("kernel, stride, padding, dilation, groups, inputs, outputs, side", CONVOLUTIONS)
@pytest.mark.parametrize("looped", [False, True])
def test_convolution_and_gradients(kernel, stride, padding, dilation, groups, inputs, outputs, side, looped):
  how = ((stride, stride), padding, (dilation, dilation), groups)
  x, w = normal(2, side, side, inputs), normal(*kernel, inputs // groups, outputs)
  target = normal(*stock(x, w, *how).shape)

  def all_of(convolve):
    def value(x, w):
      y = convolve(x, w, *how)
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


STAMPS = [  # kernel, stride, padding, output padding, groups
  (4, 2, 1, 0, 1),
  (4, 1, 0, 0, 1),
  (2, 2, 0, 0, 1),
  (3, 2, 1, 1, 1),
  (5, 3, 2, 2, 1),
  (16, 8, 4, 0, 1),
  (2, 3, 0, 2, 1),  # rows that no stamp reaches
  (4, 2, 1, 0, 6),
  (3, 2, 1, 1, 2),
]


@pytest.mark.parametrize("kernel, stride, padding, more, groups", STAMPS)
def test_transposed_convolution_is_the_sum_of_stamps(kernel, stride, padding, more, groups):
  """torch's definition: each input pixel stamps its kernel on the output, which is then cropped."""
  x, w = np.asarray(normal(2, 3, 4, 6)), np.asarray(normal(kernel, kernel, 12 // groups, 6))
  full = np.zeros((2, 2 * stride + kernel + more, 3 * stride + kernel + more, 12), np.float32)
  parts = zip(np.split(x, groups, 3), np.split(w, groups, 3), np.split(full, groups, 3))  # views
  for a, b, stamped in parts:
    for i in range(3):
      for j in range(4):
        rows, columns = slice(i * stride, i * stride + kernel), slice(j * stride, j * stride + kernel)
        stamped[:, rows, columns] += np.einsum("bi,hwoi->bhwo", a[:, i, j], b)
  expected = full[:, padding : full.shape[1] - padding, padding : full.shape[2] - padding]
  close(layers.conv_transpose(x, w, stride, padding, more, groups), expected)


def test_modules_name_and_shape_their_parameters_as_flax_does():
  x = jnp.zeros((1, 8, 8, 3))
  pairs = [
    (layers.Conv(5, (3, 3), padding=1), nn.Conv(5, (3, 3), padding=1)),
    (layers.Conv(6, (1, 7), padding=(0, 3), groups=3), nn.Conv(6, (1, 7), feature_group_count=3)),
    (layers.ConvTranspose(5, (4, 4), strides=2, padding=1), nn.ConvTranspose(5, (4, 4), (2, 2), transpose_kernel=True)),
  ]
  for ours, theirs in pairs:
    shapes = [jax.tree.map(jnp.shape, module.init(jax.random.PRNGKey(0), x)) for module in (ours, theirs)]
    assert shapes[0] == shapes[1]


def test_module_pads_each_direction_by_its_own():
  x = normal(1, 6, 8, 2)
  module = layers.Conv(3, (1, 7), padding=(0, 3))
  y, variables = module.init_with_output(jax.random.PRNGKey(0), x)
  assert y.shape == (1, 6, 8, 3)
  close(y, stock(x, variables["params"]["kernel"], (1, 1), ((0, 0), (3, 3)), (1, 1), 1))


@pytest.mark.parametrize("module", [layers.Conv(4, (3, 3), groups=3), layers.ConvTranspose(3, (3, 3), groups=2)])
def test_groups_must_divide_the_channels(module):
  with pytest.raises(UserError, match="groups"):
    module.init(jax.random.PRNGKey(0), jnp.zeros((1, 8, 8, 4)))


def test_half_precision_computes_in_half_and_keeps_parameters_in_float32():
  module = layers.Conv(5, (3, 3), dtype=jnp.bfloat16)
  y, variables = module.init_with_output(jax.random.PRNGKey(0), normal(1, 8, 8, 3))
  assert y.dtype == jnp.bfloat16
  assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
