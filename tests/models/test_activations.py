"""Activations by their formulas in double precision, and by their derivatives, at 0 torch's."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.models.activations import ACTIVATIONS

SELU = 1.0507009873554805, 1.6732632423543772  # scale, alpha: Klambauer et al. 2017
# Value and derivative at 0, as torch 2.13 gives it.
FORMULAS = {
  "identity": (lambda x: x, 1.0),
  "sigmoid": (lambda x: 1 / (1 + math.exp(-x)), 0.25),
  "tanh": (math.tanh, 1.0),
  "relu": (lambda x: max(x, 0), 0.0),
  "leaky_relu": (lambda x: x if x > 0 else 0.01 * x, 0.01),
  "leaky_relu_0.1": (lambda x: x if x > 0 else 0.1 * x, 0.1),
  "leaky_relu_0.2": (lambda x: x if x > 0 else 0.2 * x, 0.2),
  "elu": (lambda x: x if x > 0 else math.expm1(x), 1.0),
  "selu": (lambda x: SELU[0] * (x if x > 0 else SELU[1] * math.expm1(x)), SELU[0] * SELU[1]),
  "gelu": (lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2, 0.5),
  "gelu_tanh": (lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2, 0.5),
  "silu": (lambda x: x / (1 + math.exp(-x)), 0.5),
  "softplus": (lambda x: math.log1p(math.exp(-abs(x))) + max(x, 0), 0.5),
}


def test_every_activation_is_tested():
  assert set(FORMULAS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", FORMULAS)
def test_values_and_derivatives(name):
  formula, at_zero = FORMULAS[name]
  points = [-30.0, -3.3, -1.0, -0.1, 0.2, 1.0, 4.7, 30.0]
  values, slopes = jax.vmap(jax.value_and_grad(ACTIVATIONS[name]))(jnp.asarray([*points, 0.0]))
  np.testing.assert_allclose(values[:-1], [formula(x) for x in points], rtol=1e-5, atol=1e-6)
  assert values[-1] == pytest.approx(formula(0.0), abs=1e-7)
  h = 1e-5
  expected = [(formula(x + h) - formula(x - h)) / (2 * h) for x in points]
  np.testing.assert_allclose(slopes[:-1], expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(slopes[-1], at_zero, rtol=1e-6)
  assert ACTIVATIONS[name](jnp.ones(1, jnp.bfloat16)).dtype == jnp.bfloat16
