"""Optimizers and schedules against torch.optim: trajectories on a valley, losses of a small net, learning rates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded

from flaxonomy.configs.base import Optim
from flaxonomy.train import optim

NAMES = {"momentum_wd": "momentum", "rmsprop_centered": "rmsprop", "adam_l2": "adam"}
KEYS = {"alpha": "rho"}


@pytest.fixture(scope="module")
def case(request):
  return seeded.load(request.config.rootpath / "tests/goldens/optimizers.npz")


def config(name, settings):
  fields = {KEYS.get(k, k): v for k, v in settings.items() if k != "nesterov"}
  return Optim(NAMES.get(name, name), **fields, weight_decay_exclude=())


def follow(settings, loss, params, steps):
  """Losses before each step, and the parameters after each."""
  tx = optim.create(settings, steps, params)

  @jax.jit
  def step(params, state, i):
    value, grads = jax.value_and_grad(loss)(params)
    params, state, _ = tx.update(grads, state, params, i)
    return value, params, state

  state, losses, path = tx.init(params), [], [params]
  for i in range(steps):
    value, params, state = step(params, state, i)
    losses.append(float(value))
    path.append(params)
  return losses, path


CASES = [
  "sgd",
  "momentum",
  "momentum_wd",
  "nesterov",
  "adagrad",
  "adadelta",
  "rmsprop",
  "rmsprop_centered",
  "adam",
  "adam_l2",
  "adamw",
]


@pytest.mark.parametrize("name", CASES)
def test_trajectory(case, name):
  expected = case["out"][f"traj/{name}"]
  valley = lambda p: (p["x"][0] ** 2 / 20 + p["x"][1] ** 2).sum()  # Saito 2016, section 6.1.3
  settings = config(name, case["meta"]["settings"][name]["quad"])
  _, path = follow(settings, valley, {"x": jnp.asarray(expected[0])}, len(expected) - 1)
  np.testing.assert_allclose([p["x"] for p in path], expected, atol=1e-4 * np.abs(expected).max(), rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_small_net(case, name):
  x, y, w = case["in"]["X"], case["in"]["Y"], case["weights"]
  params = {
    layer: {"kernel": jnp.asarray(w[f"{number}.weight"].T), "bias": jnp.asarray(w[f"{number}.bias"])}
    for number, layer in (("0", "a"), ("2", "b"))
  }

  def loss(p):
    hidden = jnp.tanh(x @ p["a"]["kernel"] + p["a"]["bias"][None])
    return ((hidden @ p["b"]["kernel"] + p["b"]["bias"][None] - y) ** 2).mean()

  expected = case["out"][f"mlp/{name}"]
  losses, _ = follow(config(name, case["meta"]["settings"][name]["mlp"]), loss, params, len(expected))
  np.testing.assert_allclose(losses, expected, rtol=1e-4)


SCHEDULES = {
  "step": (Optim(lr=0.1, schedule="step", boundaries=(5, 10, 15), decay_rate=0.1), 20),
  "multistep": (Optim(lr=0.1, schedule="step", boundaries=(3, 8), decay_rate=0.1), 20),
  "exp": (Optim(lr=0.1, schedule="exponential", decay_rate=0.9), 20),
  "cosine": (Optim(lr=0.1, schedule="cosine"), 20),
  "onecycle": (Optim(lr=0.1, schedule="one_cycle"), 21),
  "linear": (Optim(lr=0.01, schedule="linear", final_fraction=10.0), 5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule(case, name):
  settings, steps = SCHEDULES[name]
  rate, expected = optim.schedule(settings, steps), case["out"][f"lr/{name}"]
  np.testing.assert_allclose([float(rate(i)) for i in range(len(expected))], expected, rtol=1e-4, atol=1e-9)


def test_noam(case):
  rate = optim.schedule(Optim(lr=1.0, schedule="noam", warmup_steps=4000, model_size=512), 100_000)
  at = (1, 100, 4000, 10_000, 100_000)  # the paper counts steps from 1
  np.testing.assert_allclose([float(rate(t - 1)) for t in at], case["out"]["lr/noam_d512_w4000"], rtol=1e-4)
