"""The mapped step: whatever devices, dispatches, microbatches, shards and data paths, the numbers are the same."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

from flaxonomy.train import loop, sharding, step
from flaxonomy.train.sharding import DATA

STEPS = 5


def spans(counts, first=0):
  """(first step, count) of dispatches that follow one another."""
  return list(zip(itertools.accumulate([first, *counts]), counts))


def train(config, most=1, steps=STEPS):
  """Parameters after some steps of a config, and the losses on the way."""
  session = loop.prepare(config)
  state, function = loop.initial_state(session), loop.train_function(session, most)
  losses, counts = [], [min(most, steps - i) for i in range(0, steps, most)]
  for count, items in zip(counts, session.train.train_items(spans(counts), most)):
    state, metrics = function(state, session.train.resident, items, np.int32(count))
    losses += np.asarray(metrics["loss"])[:count].tolist()
  return jax.device_get(state.params), losses


def assert_same(a, b, tolerance=1e-6):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=tolerance * max(np.abs(y).max(), 1e-3), rtol=0), a, b)


@pytest.fixture(scope="module")
def reference():
  return {}


@pytest.fixture
def one_device(tiny, reference):
  """The plainest run: one device, one step a dispatch, data on the device."""
  if not reference:
    reference["params"], reference["losses"] = train(tiny(train__devices=1))
  return reference["params"]


@pytest.mark.parametrize(
  "changes",
  [
    {"train__devices": 2},
    {"train__devices": 4},
    {"train__devices": 1, "train__accumulate": 4},
    {"train__devices": 2, "train__accumulate": 2},
    {"train__devices": 2, "train__zero": True},
    {"train__devices": 2, "data__on_device": False},
  ],
  ids=lambda changes: " ".join(f"{k.split('__')[1]}={v}" for k, v in changes.items()),
)
def test_layout_does_not_change_sgd(tiny, one_device, changes):
  params, losses = train(tiny(**changes))
  assert_same(params, one_device)
  assert losses[-1] < losses[0]


@pytest.mark.parametrize("devices", [1, 2])
def test_steps_in_one_dispatch_do_not_change_sgd(tiny, one_device, devices):
  params, losses = train(tiny(train__devices=devices), most=8)
  assert_same(params, one_device)
  assert len(losses) == STEPS


def test_pmap_gives_the_same(tiny, one_device):
  session = loop.prepare(tiny(train__devices=2))
  state = jax.device_get(loop.initial_state(session))
  pmapped = jax.pmap(
    session.task.train_step, DATA, in_axes=(None, 0), out_axes=(None, 0), devices=session.mesh.devices.tolist()
  )
  order = iter(session.train.train_items(spans([1] * STEPS), 1))
  for _ in range(STEPS):
    batch = session.train.read(np.asarray(next(order)["index"])[0].tolist())
    batch = {key: x.reshape(2, -1, *x.shape[1:]) for key, x in batch.items()}
    state, _ = pmapped(jax.device_get(state), batch)
  assert_same(jax.device_get(state.params), one_device)


def test_gradient_is_not_multiplied_by_the_devices():
  """The trap of shard_map's default: four devices would give four times this gradient."""
  mesh = loop.make_mesh(4)

  def per_device(w, x):
    return lax.pmean(jax.grad(lambda w: (w * x).mean())(w), DATA)

  x = jnp.arange(8.0)
  assert float(step.pmapped(per_device, mesh, (P(), P(DATA)), P())(jnp.float32(1), x)) == 3.5
  unchecked = jax.jit(jax.shard_map(per_device, mesh=mesh, in_specs=(P(), P(DATA)), out_specs=P()))
  assert float(unchecked(jnp.float32(1), x)) == 14.0, "the trap is gone: check_vma=False may go too"


@pytest.mark.parametrize("name", ["adam", "lars", "lamb", "muon"])
def test_zero_does_not_change_other_optimizers(tiny, name):
  """Clipping, freezing, averaging and optimizers that need whole leaves, on shards."""
  wide = {"features": (4, 8, 16), "hidden_size": 128, "dropout": 0.0}
  changes = {"optim__name": name, "optim__lr": 0.01, "optim__clip_norm": 0.5, "optim__weight_decay": 0.01}
  changes |= {"optim__freeze": ("conv1_1", "conv3_2"), "train__ema_decay": 0.9, "model__fields": wide}
  plain, _ = train(tiny(**changes), steps=3)
  config = tiny(**changes, train__zero=True)
  assert any(d != sharding.WHOLE for d in jax.tree.leaves(sharding.plan(plain, 2).dims)), (
    "nothing is cut: a test of nothing"
  )
  cut, _ = train(config, steps=3)
  assert_same(cut, plain, 2e-5)


def test_zero_cuts_parameters_optimizer_state_and_average(tiny):
  wide = {"features": (4, 8, 16), "hidden_size": 128, "dropout": 0.0}
  config = tiny(train__zero=True, optim__name="adam", train__ema_decay=0.9, model__fields=wide)
  state = loop.initial_state(loop.prepare(config))
  whole = [x for x in jax.tree.leaves((state.params, state.opt_state, state.ema)) if x.size >= 1024]
  assert len(whole) >= 4
  for x in whole:
    assert x.addressable_shards[0].data.size == x.size // 2


def test_synced_batch_norm_does_not_depend_on_devices(tiny_gan):
  """Statistics over the whole batch on one and two devices; each device's own give something else."""

  def statistics(devices, sync):
    session = loop.prepare(tiny_gan(data__image_size=(16, 16), train__devices=devices, train__sync_batchnorm=sync))
    model = loop.tasks.module(session.config, image_size=16, channels=1)
    variables = model.init(jax.random.PRNGKey(0), jnp.zeros((1, 8)), train=False)

    def forward(x):
      _, new = model.apply(variables, x, train=True, method="discriminate", mutable=["batch_stats"])
      batch = jax.tree.map(
        lambda x: (x - 0.9) / 0.1, {k: v["var"] for k, v in new["batch_stats"]["discriminator"].items()}
      )
      return lax.pmean(batch, DATA)  # the batch's own variances: the running ones start at 1 and move by a tenth

    x = jax.random.normal(jax.random.PRNGKey(1), (16, 16, 16, 1)) + jnp.linspace(-3, 3, 16)[:, None, None, None]
    return jax.device_get(step.pmapped(forward, session.mesh, P(DATA), P())(x))

  one, two, own = statistics(1, True), statistics(2, True), statistics(2, False)
  assert jax.tree.leaves(one)
  assert_same(two, one, 1e-2)  # a variance of 1e-4 read back from a float32 of about 1
  with pytest.raises(AssertionError):
    assert_same(own, one, 1e-1)


def test_bfloat16_keeps_parameters_and_losses_in_float32(tiny):
  config = tiny(train__dtype="bfloat16")
  session = loop.prepare(config)
  out = jax.eval_shape(
    lambda rng: loop.tasks.module(config, num_classes=10).init_with_output(rng, jnp.zeros((1, 8, 8, 1)), train=False)[
      0
    ],
    jax.random.PRNGKey(0),
  )
  assert out["logits"].dtype == jnp.float32
  assert out["stage1"].dtype == jnp.bfloat16
  params, losses = train(config)
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
  assert np.isfinite(losses).all()
  assert losses[-1] < losses[0]
  assert session.mesh.size == 2


def test_average_of_parameters_follows_its_formula(tiny):
  session = loop.prepare(tiny(train__ema_decay=0.5, train__devices=1))
  state, function = loop.initial_state(session), loop.train_function(session, 1)
  ema = jax.device_get(state.params)
  for i, items in enumerate(session.train.train_items(spans([1] * 4), 1)):
    state, _ = function(state, session.train.resident, items, np.int32(1))
    d = min(0.5, (1 + i) / (10 + i))
    ema = jax.tree.map(lambda e, p, d=d: d * e + (1 - d) * np.asarray(p), ema, state.params)
  assert_same(jax.device_get(state.ema), ema)
  assert_same(jax.device_get(state.variables()["params"]), ema)


def test_no_slow_convolution_in_a_compiled_loop(tiny):
  """XLA's CPU backend runs only this layout as a matrix product; a stock gradient in a loop is 30 times slower."""
  session = loop.prepare(tiny(train__devices=1, model__fields={}, data__image_size=(28, 28)))
  items = next(session.train.train_items(spans([4]), 4))
  args = (loop.initial_state(session), session.train.resident, items, np.int32(4))
  text = loop.train_function(session, 4).lower(*args).compile().as_text()
  layouts = {line.split("dim_labels=")[1].split(",")[0] for line in text.splitlines() if "dim_labels=" in line}
  assert " while(" in text
  assert layouts <= {"b01f_01io->b01f"}, layouts
