"""Numbers going bad: stop, skip, rollback; on all devices alike; never into a checkpoint."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxonomy.configs import base
from flaxonomy.errors import NumericError
from flaxonomy.train import checkpoint, loop, numbers, report, tasks, workdir
from flaxonomy.train.sharding import DATA


@pytest.fixture
def poison(monkeypatch):
  """A function: from now on every task's step makes NaN of its parameters where when(step) says so."""

  def spoil(when):
    build = tasks.build

    def spoilt(*args):
      task = build(*args)

      def train_step(state, batch):
        new, metrics = task.train_step(state, batch)
        bad = jnp.where(when(state.step), jnp.nan, 1.0)
        params = jax.tree.map(lambda x: x * bad, new.params)
        return new.replace(params=params), metrics | {"loss": metrics["loss"] * bad}

      return task._replace(train_step=train_step)

    monkeypatch.setattr(tasks, "build", spoilt)

  return spoil


def final(folder):
  """The last state saved in a workdir, on the host, and its position."""
  session = loop.prepare(workdir.load_config(folder))
  saves = checkpoint.Checkpoints(folder, read_only=True)
  state, position = saves.restore(saves.newest(), loop.abstract_state(session.task, session.mesh))
  saves.close()
  return jax.device_get(state), position


def test_stop(any_task, poison, tmp_path):
  poison(lambda step: step == 7)
  config = any_task(train__checkpoint_every=3, train__steps_per_dispatch=4)
  with pytest.raises(NumericError) as told:
    loop.run(config, tmp_path, quiet=True)
  leaves = {
    "classification": "params/conv1_1/bias",
    "gan": "params/discriminator/",
    "language_model": "params/head/bias",
  }
  first, size = leaves[config.task], config.data.batch_size
  assert str(told.value).startswith(f"step 8: numbers are not finite (loss nan); first bad leaf {first}")
  positions = f"batch at positions {7 * size} to {8 * size - 1} of the training order"
  assert f"{positions}; last good checkpoint: 6; " in str(told.value)
  assert "train.on_nan" in str(told.value)
  assert told.value.exit_code == 4
  status = json.loads((tmp_path / "status.json").read_text())
  assert (status["state"], status["exit_code"], status["reason"]) == ("failed", 4, str(told.value))
  state, _ = final(tmp_path)
  assert state.step == 6
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
  assert report.read_metrics(tmp_path)[-1]["loss"] is None
  assert "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_skip_and_rollback_leave_the_batch_out(any_task, poison, tmp_path, capsys):
  """Two ways to the same numbers: the state kept over the step, and the step never made."""
  poison(lambda step: step == 7)
  for policy in ("skip", "rollback"):
    config = any_task(train__on_nan=policy, train__checkpoint_every=3)
    assert loop.run(config, tmp_path / policy, quiet=True)["step"] == 12
    assert capsys.readouterr().err.count("warning: step 8: numbers are not finite") == 1
  (one, kept), (other, kept_too) = final(tmp_path / "skip"), final(tmp_path / "rollback")
  assert one.step == other.step == 12
  assert kept["bad_steps"] == kept_too["bad_steps"] == [8]
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6, rtol=1e-5), one, other)
  steps = lambda policy: [r["step"] for r in report.read_metrics(tmp_path / policy) if r["split"] == "train"]
  assert steps("skip") == list(range(1, 13))
  assert steps("rollback") == [s for s in range(1, 13) if s != 8]
  before = {r["step"]: r for r in report.read_metrics(tmp_path / "skip") if r["split"] == "train"}
  for row in report.read_metrics(tmp_path / "rollback"):
    if row["split"] == "train":
      np.testing.assert_allclose(row["loss"], before[row["step"]]["loss"], rtol=1e-5)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_resumed_after_a_bad_step(any_task, poison, assert_same_run, tmp_path, policy):
  """Stopped before and after it, the run is the same to the last bit, and the count goes on."""
  poison(lambda step: step == 7)
  config = any_task(train__on_nan=policy, train__eval_every=12, train__checkpoint_every=3)
  loop.run(config, tmp_path / "whole", quiet=True)
  for steps in (6, 9, 12):
    loop.run(base.override(config, {"train.steps": steps}), tmp_path / "parts", quiet=True)
  kept = [r for r in report.read_metrics(tmp_path / "parts") if r["split"] == "train" or r["step"] == 12]
  report.write_text(tmp_path / "parts/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
  assert_same_run(tmp_path / "parts", tmp_path / "whole")
  assert final(tmp_path / "parts")[1]["bad_steps"] == [8]


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_too_many(tiny, poison, tmp_path, policy):
  """Where optax's apply_if_finite would let the NaN through."""
  poison(lambda step: step >= 5)
  config = tiny(train__on_nan=policy, train__nan_limit=3, train__checkpoint_every=3)
  with pytest.raises(NumericError, match="3 bad steps among the last 1000, train.nan_limit is 3"):
    loop.run(config, tmp_path, quiet=True)
  state, _ = final(tmp_path)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))


@pytest.mark.parametrize("zero", [False, True])
def test_all_devices_decide_alike(tiny, poison, zero):
  """One device alone has the NaN; all keep the state before."""
  poison(lambda step: (step == 3) & (lax.axis_index(DATA) == 1))
  wide = {"features": (4, 8, 16), "hidden_size": 128, "dropout": 0.0}
  config = tiny(train__on_nan="skip", train__zero=zero, train__devices=4, model__fields=wide, train__steps=5)
  session = loop.prepare(config)
  train, state = loop.train_function(session, 1), loop.initial_state(session)
  for i, items in enumerate(session.train.train_items([(i, 1) for i in range(5)], 1)):
    before = jax.device_get(state.params)
    state, metrics = train(state, session.train.resident, items, np.int32(1))
    assert (int(metrics[numbers.BAD][0]) >= 0) == (i == 3)
    assert int(state.step) == i + 1
    same = jax.tree.map(lambda x, y: bool((x == y).all()), before, jax.device_get(state.params))
    assert all(jax.tree.leaves(same)) == (i == 3)
  for leaf in jax.tree.leaves(state.params):
    shards = {}
    for shard in leaf.addressable_shards:
      kept = shards.setdefault(str(shard.index), np.asarray(shard.data))
      np.testing.assert_array_equal(kept, np.asarray(shard.data))


def test_infinite_gradients_and_clipping_end_with_code_4(tiny, start, tmp_path):
  """Clipping makes NaN of infinities rather than hiding them."""
  process = start(tiny(optim__lr=1e30, optim__clip_norm=1.0), f"--workdir={tmp_path / 'run'}")
  told = process.communicate(timeout=60)[1].strip().splitlines()[-1]
  assert process.returncode == 4, told
  assert told.startswith("error: step ")
  assert "first bad leaf " in told


def test_a_spike_only_warns(capsys):
  health = numbers.Health("stop", 10, 32, {"x": jnp.zeros(1)})
  rng = np.random.default_rng(0)
  for step in range(1, 400):
    loss = 50.0 if step == 300 else float(1 + 0.1 * rng.standard_normal())
    health.see(step, -1, {"loss": loss}, lambda: None)
  told = capsys.readouterr().err.strip()
  assert told.startswith("warning: step 300: loss 50, where the last 200 steps had ")
  assert "\n" not in told


def test_parameters_stay_float32_under_bfloat16(any_task):
  session = loop.prepare(any_task(train__dtype="bfloat16"))
  state = jax.eval_shape(session.task.init, jax.random.PRNGKey(0))
  kinds = {x.dtype for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)}
  assert kinds == {jnp.dtype("float32")}
