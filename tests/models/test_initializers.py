"""Initialisers: deviation and limits by their formulas, for dense and convolution kernels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.models.initializers import INITIALIZERS

# Deviation for fans (in, out), and whether uniform.
PROMISED = {
  "xavier_uniform_fan_in": (lambda i, o: (1 / (3 * i)) ** 0.5, True),
  "xavier_uniform": (lambda i, o: (2 / (i + o)) ** 0.5, True),
  "xavier_normal": (lambda i, o: (2 / (i + o)) ** 0.5, False),
  "xavier_normal_fan_in": (lambda i, o: i**-0.5, False),
  "he_uniform": (lambda i, o: (2 / i) ** 0.5, True),
  "he_normal": (lambda i, o: (2 / i) ** 0.5, False),
  "he_fan_out": (lambda i, o: (2 / o) ** 0.5, False),
  "torch_default": (lambda i, o: (1 / (3 * i)) ** 0.5, True),
  "std_1": (lambda i, o: 1.0, False),
  "std_0.01": (lambda i, o: 0.01, False),
}


def test_every_initialiser_is_tested():
  assert set(PROMISED) == set(INITIALIZERS)


@pytest.mark.parametrize("name", PROMISED)
@pytest.mark.parametrize("shape, fans", [((300, 400), (300, 400)), ((3, 3, 32, 64), (288, 576))])
def test_deviation_and_largest(name, shape, fans):
  deviation, uniform = PROMISED[name]
  kernel = np.asarray(INITIALIZERS[name](jax.random.PRNGKey(3), shape, jnp.float32), np.float64) / deviation(*fans)
  assert abs(kernel.std() - 1) < 0.02
  assert abs(kernel.mean()) < 0.04
  if uniform:
    assert 3**0.5 * 0.99 < np.abs(kernel).max() <= 3**0.5 * 1.00001
  else:
    assert np.abs(kernel).max() > 3.5  # not cut at two deviations and widened, where it would be 2.3
