"""Normalisation against NumPy: formulas, running statistics as torch keeps them, gradients, several devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from flaxonomy.models.norm import BatchNorm, l2_normalise, local_response_norm, moments

RNG = np.random.default_rng(0)
X = RNG.normal(3, 2, (4, 3, 2, 5)).astype(np.float32)
SCALE, BIAS = RNG.normal(1, 0.3, 5).astype(np.float32), RNG.normal(size=5).astype(np.float32)
MEAN, VAR = RNG.normal(size=5).astype(np.float32), RNG.uniform(0.5, 2, 5).astype(np.float32)
VARIABLES = {"params": {"scale": SCALE, "bias": BIAS}, "batch_stats": {"mean": MEAN, "var": VAR}}


def by_hand(x, scale, bias, mean, var, epsilon=1e-5):
  return (x - mean) / np.sqrt(var + epsilon) * scale + bias


def statistics(x):
  """(mean, biased variance) of all but the last axis, in double precision."""
  x = np.float64(x).reshape(-1, x.shape[-1])
  return x.mean(0), x.var(0)


@pytest.mark.parametrize("momentum, epsilon", [(0.9, 1e-5), (0.6, 1e-3)])
def test_batch_norm_in_training(momentum, epsilon):
  norm = BatchNorm(momentum=momentum, epsilon=epsilon)
  y, after = norm.apply(VARIABLES, X, train=True, mutable=["batch_stats"])
  mean, var = statistics(X)
  np.testing.assert_allclose(y, by_hand(X, SCALE, BIAS, mean, var, epsilon), rtol=1e-5, atol=1e-5)
  kept = after["batch_stats"]
  np.testing.assert_allclose(kept["mean"], momentum * MEAN + (1 - momentum) * mean, rtol=1e-5)
  # torch's running variance is the unbiased one: 24 numbers behind each
  np.testing.assert_allclose(kept["var"], momentum * VAR + (1 - momentum) * var * 24 / 23, rtol=1e-5)


def test_batch_norm_in_evaluation():
  y, after = BatchNorm().apply(VARIABLES, X, train=False, mutable=["batch_stats"])
  np.testing.assert_allclose(y, by_hand(X, SCALE, BIAS, MEAN, VAR), rtol=1e-5, atol=1e-5)
  for name, value in VARIABLES["batch_stats"].items():
    np.testing.assert_array_equal(after["batch_stats"][name], value)


def test_batch_norm_starts_as_the_identity_and_untouched_by_the_first_batch():
  variables = BatchNorm(scale_init=jax.nn.initializers.constant(0.5)).init(jax.random.PRNGKey(0), X, train=True)
  assert {path: float(x[0]) for path, x in variables["params"].items()} == {"scale": 0.5, "bias": 0.0}
  assert {path: float(x[0]) for path, x in variables["batch_stats"].items()} == {"mean": 0.0, "var": 1.0}
  np.testing.assert_allclose(BatchNorm().apply(variables, X, train=False), 0.5 * X, rtol=2e-5)


def test_batch_norm_of_a_single_number():
  """Nothing to be unbiased with, as where one image's map is one pixel: no division by zero."""
  x = X[:1, :1, :1]
  y, after = BatchNorm().apply(VARIABLES, x, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(y[0, 0, 0], BIAS, atol=1e-4)  # x / sqrt(epsilon) less itself, as in torch
  np.testing.assert_allclose(after["batch_stats"]["var"], 0.9 * VAR, rtol=1e-6)


def test_batch_norm_does_not_cancel():
  """Small deviations about a large mean, where the mean of squares less the squared mean would be noise."""
  x = (1e4 + RNG.normal(0, 0.1, (64, 1, 1, 5))).astype(np.float32)
  mean, var, n = moments(x)
  assert n == 64
  np.testing.assert_allclose(mean, statistics(x)[0], rtol=1e-6)
  np.testing.assert_allclose(var, statistics(x)[1], rtol=1e-2)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_in_bfloat16(train):
  """bfloat16 in and out; parameters and statistics stay float32, and as exact as the input is."""
  x = jnp.asarray(X, jnp.bfloat16)
  y, after = BatchNorm(dtype=jnp.bfloat16).apply(VARIABLES, x, train=train, mutable=["batch_stats"])
  assert y.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {jnp.dtype(jnp.float32)}
  rounded = np.asarray(x, np.float32)
  mean, var = statistics(rounded) if train else (MEAN, VAR)
  np.testing.assert_allclose(np.float32(y), by_hand(rounded, SCALE, BIAS, mean, var), rtol=2**-8, atol=2**-8)
  if train:
    np.testing.assert_allclose(after["batch_stats"]["mean"], 0.9 * MEAN + 0.1 * mean, rtol=1e-5)
  made = BatchNorm(dtype=jnp.bfloat16).init(jax.random.PRNGKey(0), x, train=True)
  assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.float32)}


def numpy_loss(x, scale, bias, weight):
  return (by_hand(x, scale, bias, *statistics(x)) * weight).sum()


def jax_loss(arguments, weight, axis_name=None):
  params = {"scale": arguments["scale"], "bias": arguments["bias"]}
  norm = BatchNorm(axis_name=axis_name)
  y, _ = norm.apply({**VARIABLES, "params": params}, arguments["x"], train=True, mutable=["batch_stats"])
  return (y * weight).sum()


WEIGHT = RNG.normal(size=X.shape).astype(np.float32)
ARGUMENTS = {"x": X, "scale": SCALE, "bias": BIAS}


def test_gradient_of_batch_norm_by_finite_differences():
  grads = jax.jit(jax.grad(jax_loss))(ARGUMENTS, WEIGHT)
  exact = {name: np.float64(value) for name, value in ARGUMENTS.items()}
  for name, value in exact.items():
    for at in list(np.ndindex(value.shape))[::7]:
      beside = []
      for step in (1e-5, -1e-5):
        moved = value.copy()
        moved[at] += step
        beside.append(numpy_loss(**exact | {name: moved}, weight=WEIGHT))
      slope = (beside[0] - beside[1]) / 2e-5
      np.testing.assert_allclose(grads[name][at], slope, rtol=1e-3, atol=1e-4, err_msg=f"{name}{at}")


def test_batch_norm_over_two_devices_is_that_of_the_whole_batch():
  """Result, statistics and gradients: half the batch on each of two devices, and all of it on one."""
  mesh = Mesh(np.array(jax.devices()[:2]), ("data",))
  spread = lambda f, specs, out: jax.jit(jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=out, check_vma=False))

  def apply(x):
    norm = BatchNorm(axis_name="data")
    return norm.apply(VARIABLES, x, train=True, mutable=["batch_stats"])

  y, after = spread(apply, P("data"), (P("data"), P()))(X)
  whole, whole_after = BatchNorm().apply(VARIABLES, X, train=True, mutable=["batch_stats"])
  np.testing.assert_allclose(y, whole, rtol=1e-5, atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), after, whole_after)
  alone = spread(
    lambda x: BatchNorm().apply(VARIABLES, x, train=True, mutable=["batch_stats"])[0], P("data"), P("data")
  )
  assert np.abs(alone(X) - whole).max() > 0.1  # without the axis each device has its own statistics

  specs = {"x": P("data"), "scale": P(), "bias": P()}

  def gradient(arguments, weight):
    grads = jax.grad(jax_loss)(arguments, weight, "data")
    return grads | {name: jax.lax.psum(grads[name], "data") for name in ("scale", "bias")}

  grads = spread(gradient, (specs, P("data")), specs)(ARGUMENTS, WEIGHT)
  expected = jax.grad(jax_loss)(ARGUMENTS, WEIGHT)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected)


@pytest.mark.parametrize("size, alpha, beta, k", [(5, 5e-4, 0.75, 2.0), (5, 1e-4, 0.75, 1.0), (4, 2.0, 0.5, 1.0)])
def test_local_response_norm(size, alpha, beta, k):
  """torch pads size // 2 channels below and (size - 1) // 2 above, and divides alpha by the size."""
  x = RNG.normal(0, 3, (2, 3, 3, 7)).astype(np.float32)
  expected = np.empty(x.shape)
  for c in range(7):
    near = np.float64(x[..., max(0, c - size // 2) : c + (size - 1) // 2 + 1])
    expected[..., c] = x[..., c] / (k + alpha / size * (near**2).sum(-1)) ** beta
  np.testing.assert_allclose(local_response_norm(x, size, alpha, beta, k), expected, rtol=1e-5)


def test_local_response_norm_is_the_papers():
  """Krizhevsky et al. 2012, equation 1, with its k 2, n 5, alpha 1e-4 of the sum, beta .75."""
  x = RNG.normal(0, 100, (1, 1, 1, 8)).astype(np.float32)
  sums = [sum(float(x[0, 0, 0, j]) ** 2 for j in range(max(0, i - 2), min(7, i + 2) + 1)) for i in range(8)]
  expected = x[0, 0, 0] / (2 + 1e-4 * np.array(sums)) ** 0.75
  np.testing.assert_allclose(local_response_norm(x, 5, 5e-4, 0.75, 2.0)[0, 0, 0], expected, rtol=1e-5)


def test_l2_normalise():
  x = RNG.normal(size=(2, 3, 4)).astype(np.float32)
  x[0, 0] = 0.0  # stays 0, and is not divided by 0
  scale = np.float32([20, 10, 5, 1])
  with np.errstate(invalid="ignore"):
    expected = np.nan_to_num(x / np.linalg.norm(np.float64(x), axis=-1, keepdims=True)) * scale
  np.testing.assert_allclose(l2_normalise(x, scale), expected, rtol=1e-5, atol=1e-7)
