"""Optimizers without a counterpart in torch against NumPy, and what a config adds to all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.configs.base import Optim
from flaxonomy.data.pipeline import Info
from flaxonomy.errors import UserError
from flaxonomy.train import optim, tasks

RNG = np.random.default_rng(0)
PARAMS = {
  "conv": {"kernel": RNG.normal(size=(3, 3, 2, 4)).astype(np.float32), "bias": RNG.normal(size=4).astype(np.float32)},
  "norm": {"scale": RNG.normal(size=4).astype(np.float32)},
  "fc": {"kernel": RNG.normal(size=(6, 5)).astype(np.float32)},
}
GRADS = [jax.tree.map(lambda x: RNG.normal(size=x.shape).astype(np.float32), PARAMS) for _ in range(3)]
LEAVES = [("conv", "kernel"), ("conv", "bias"), ("norm", "scale"), ("fc", "kernel")]


def follow(settings, grads=GRADS):
  tx = optim.create(settings, 10, PARAMS)
  params, state, infos = jax.tree.map(jnp.asarray, PARAMS), tx.init(PARAMS), []
  for i, g in enumerate(grads):
    params, state, info = tx.update(g, state, params, i)
    infos.append(info)
  return jax.device_get(params), infos


def decays(leaf):
  return leaf not in ("bias", "scale")


def lars(w, grads, decay, lr=0.1, wd=0.01, momentum=0.9, trust=0.001):
  v = np.zeros_like(w)
  for g in grads:
    if decay:
      g = g + wd * w
      g = g * trust * np.linalg.norm(w) / np.linalg.norm(g)
    v = momentum * v + lr * g
    w = w - v
  return w


def lamb(w, grads, decay, lr=0.1, wd=0.01, b1=0.9, b2=0.999, eps=1e-6):
  m, v = np.zeros_like(w), np.zeros_like(w)
  for t, g in enumerate(grads, 1):
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    u = m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps)
    if decay:
      u = u + wd * w
      u = u * np.linalg.norm(w) / np.linalg.norm(u)
    w = w - lr * u
  return w


@pytest.mark.parametrize("name, formula", [("lars", lars), ("lamb", lamb)])
def test_layerwise_optimizers(name, formula):
  """You et al. 2017 with optax's denominator; You et al. 2019, algorithm 2; plain steps for biases and norms."""
  params, _ = follow(Optim(name, lr=0.1, weight_decay=0.01))
  for module, leaf in LEAVES:
    expected = formula(PARAMS[module][leaf], [g[module][leaf] for g in GRADS], decays(leaf))
    np.testing.assert_allclose(params[module][leaf], expected, rtol=2e-5, atol=1e-6, err_msg=f"{module}/{leaf}")


def test_muon_orthogonalises_matrices_and_flattened_kernels():
  """Jordan 2024: the step of a matrix has singular values near one, times sqrt(max(1, rows / columns))."""
  params, _ = follow(Optim("muon", lr=0.1), GRADS[:1])
  for module in ("conv", "fc"):
    old, new = (p[module]["kernel"].reshape(-1, p[module]["kernel"].shape[-1]) for p in (PARAMS, params))
    update = (old - new) / 0.1
    values = np.linalg.svd(update / np.sqrt(max(1, update.shape[1] / update.shape[0])), compute_uv=False)
    assert values.min() > 0.6, values
    assert values.max() < 1.3, values
  u, _, vt = np.linalg.svd(GRADS[0]["fc"]["kernel"], full_matrices=False)
  update = (PARAMS["fc"]["kernel"] - params["fc"]["kernel"]) / 0.1
  assert (update * (u @ vt)).sum() / np.linalg.norm(update) / np.linalg.norm(u @ vt) > 0.95


def test_frozen_parameters_do_not_move_and_do_not_count_for_clipping():
  settings = Optim("adamw", lr=0.1, weight_decay=0.1, freeze=("^conv/", "norm"), clip_norm=1.0)
  params, infos = follow(settings)
  np.testing.assert_array_equal(params["conv"]["kernel"], PARAMS["conv"]["kernel"])
  np.testing.assert_array_equal(params["norm"]["scale"], PARAMS["norm"]["scale"])
  assert np.abs(params["fc"]["kernel"] - PARAMS["fc"]["kernel"]).max() > 0.01
  np.testing.assert_allclose(infos[0]["grad_norm"], np.linalg.norm(GRADS[0]["fc"]["kernel"]), rtol=1e-6)


def test_clipping_by_global_norm():
  total = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(GRADS[0])))
  params, infos = follow(Optim("sgd", lr=1.0, clip_norm=0.5), GRADS[:1])
  np.testing.assert_allclose(infos[0]["grad_norm"], total, rtol=1e-6)
  moved = np.sqrt(sum(((a - b) ** 2).sum() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(PARAMS))))
  np.testing.assert_allclose(moved, 0.5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weight_decay_skips_biases_and_norms(name):
  none = jax.tree.map(np.zeros_like, GRADS[0])
  params, _ = follow(Optim(name, lr=0.1, weight_decay=0.5), [none])
  np.testing.assert_array_equal(params["conv"]["bias"], PARAMS["conv"]["bias"])
  np.testing.assert_array_equal(params["norm"]["scale"], PARAMS["norm"]["scale"])
  np.testing.assert_allclose(params["fc"]["kernel"], PARAMS["fc"]["kernel"] * (1 - 0.1 * 0.5), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_every_optimizer_goes_downhill(name):
  params = {"w": jnp.ones((4, 4))}
  tx = optim.create(Optim(name, lr={"adadelta": 1.0}.get(name, 0.01)), 10, params)
  state, step = tx.init(params), jax.jit(tx.update)
  for i in range(5):
    params, state, info = step(jax.tree.map(lambda w: 2 * w, params), state, params, i)
  assert float((params["w"] ** 2).sum()) < 16
  assert info["lr"].dtype == jnp.float32


@pytest.mark.parametrize("name", sorted(set(optim.SCHEDULES) - {"noam"}))
def test_warm_up_rises_to_the_schedules_first_value(name):
  settings = Optim(lr=0.1, schedule=name, warmup_steps=10, boundaries=(50,), decay_every=100)
  rate = optim.schedule(settings, 100)
  cold = optim.schedule(Optim(lr=0.1, schedule=name, boundaries=(40,), decay_every=100), 90)
  first = float(cold(0))
  np.testing.assert_allclose([float(rate(i)) for i in range(10)], first * np.arange(10) / 10, rtol=1e-6, atol=1e-9)
  np.testing.assert_allclose([float(rate(i)) for i in range(10, 100)], [float(cold(i)) for i in range(90)], rtol=1e-5)


@pytest.mark.parametrize("name, field", [("sgd", "momentum"), ("adam", "rho"), ("muon", "eps"), ("lamb", "centered")])
def test_a_setting_that_would_be_ignored_is_refused(name, field):
  with pytest.raises(UserError, match=f"optimizer '{name}' does not read config field 'optim.{field}'"):
    optim.create(Optim(name, **{field: True if field == "centered" else 0.5}), 10, PARAMS)
  with pytest.raises(UserError, match="schedule 'cosine' does not read config field 'optim.boundaries'"):
    optim.create(Optim(schedule="cosine", boundaries=(5,)), 10, PARAMS)


def test_schedule_errors():
  with pytest.raises(UserError, match="must be below 'train.steps'"):
    optim.schedule(Optim(warmup_steps=10), 10)
  with pytest.raises(UserError, match="needs config field 'optim.warmup_steps'"):
    optim.schedule(Optim(schedule="noam"), 10)


def test_frozen_parameters_of_one_net_of_two(tiny_gan):
  """Each pattern must find something in one of the nets, not in all."""
  info = Info("digits", tuple("0123456789"), (8, 8, 1), 100)
  for patterns in (("^up0/",), ("^up0/", "^down0/")):
    tasks.build(tiny_gan(optim__freeze=patterns), info, 1)
  with pytest.raises(UserError, match="'optim.freeze': '\\^up9/'"):
    tasks.build(tiny_gan(optim__freeze=("^down0/", "^up9/")), info, 1)
