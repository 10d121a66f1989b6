"""Losses by their definitions in NumPy's double precision, and gradients where formulas are fragile."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.train import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(3, 4, 5)).astype(np.float32)
LABELS = RNG.integers(0, 5, (3, 4))
LOG_PROBS = np.log(np.exp(LOGITS.astype(np.float64)) / np.exp(LOGITS.astype(np.float64)).sum(-1, keepdims=True))
PICKED = np.take_along_axis(LOG_PROBS, LABELS[..., None], -1)[..., 0]


def close(a, b):
  np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_cross_entropy_and_nll():
  close(losses.cross_entropy(LOGITS, jax.nn.one_hot(LABELS, 5)), -PICKED)
  close(losses.nll(jnp.asarray(LOG_PROBS, jnp.float32), jnp.asarray(LABELS)), -PICKED)
  assert losses.nll(jnp.asarray(LOG_PROBS[0, :1], jnp.float32), jnp.asarray([-100]))[0] == 0


def test_label_cross_entropy():
  weight = np.array([1.0, 0.5, 2.0, 3.0, 0.0])
  values, weights = losses.label_cross_entropy(LOGITS, jnp.asarray(LABELS), 0.3, jnp.asarray(weight, jnp.float32), 2)
  kept = LABELS != 2
  # torch: (1 - s) w_t (-log p_t) + s / C sum_c w_c (-log p_c), over the sum of w_t
  close(values, kept * -(0.7 * weight[LABELS] * PICKED + 0.3 / 5 * (weight * LOG_PROBS).sum(-1)))
  close(weights, kept * weight[LABELS])
  plain, ones = losses.label_cross_entropy(LOGITS, jnp.asarray(LABELS))
  close(plain, -PICKED)
  close(ones, np.ones_like(PICKED))


def test_gradient_of_label_cross_entropy_is_probabilities_minus_targets():
  loss = lambda x: losses.label_cross_entropy(x, jnp.asarray(LABELS), smoothing=0.1)[0].sum()
  close(jax.jit(jax.grad(loss))(LOGITS), np.exp(LOG_PROBS) - (0.9 * np.eye(5)[LABELS] + 0.1 / 5))


def test_binary_cross_entropy_on_probabilities_is_held_at_100_and_has_gradients():
  p, t = jnp.asarray([0.0, 1.0, 0.0, 1.0, 0.25]), jnp.asarray([1.0, 0.0, 0.0, 1.0, 0.5])
  close(losses.binary_cross_entropy(p, t), [100, 100, 0, 0, -(np.log(0.25) + np.log(0.75)) / 2])
  gradient = jax.grad(lambda p: losses.binary_cross_entropy(p, t).sum())(p)
  assert np.isfinite(gradient).all()
  assert gradient[4] == pytest.approx((0.25 - 0.5) / (0.25 * 0.75))


def test_binary_cross_entropy_with_logits_is_exact_at_any_size():
  x, t = jnp.asarray([-200.0, -2.0, 0.0, 3.0, 200.0]), jnp.asarray([1.0, 0.3, 1.0, 0.0, 0.0])
  expected = [200.0, np.log1p(np.exp(-2)) + 0.6, np.log(2), np.log1p(np.exp(3)), 200.0]
  close(losses.binary_cross_entropy_with_logits(x, t), expected)
  gradient = jax.grad(lambda x: losses.binary_cross_entropy_with_logits(x, t).sum())(x)
  close(gradient, 1 / (1 + np.exp(-np.asarray(x, np.float64))) - t)


def test_errors_by_element():
  a, b = jnp.asarray([0.0, 1.0, -3.0]), jnp.asarray([0.5, 1.0, 1.0])
  close(losses.squared_error(a, b), [0.25, 0, 16])
  close(losses.absolute_error(a, b), [0.5, 0, 4])
  close(losses.huber(a, b, 2.0), [0.125, 0, 2 * (4 - 1)])
  close(losses.smooth_l1(a, b, 2.0), [0.0625, 0, 4 - 1])
  slopes = jax.vmap(jax.grad(lambda d: losses.huber(d, 0.0)))(jnp.asarray([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0]))
  close(slopes, [-1, -1, 0, 0.5, 1, 1])


def test_kl():
  q = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
  p = np.array([[0.25, 0.5, 0.25], [0.2, 0.3, 0.5]])
  close(losses.kl(jnp.log(jnp.asarray(p, jnp.float32)), jnp.asarray(q, jnp.float32)), [0.5 * np.log(2), 0])
