"""Checkpoints: what is kept, what is refused, where they lie."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.errors import UserError
from flaxonomy.train import checkpoint, loop, step


def state(value, features=3):
  params = {"layer": {"kernel": jnp.full((2, features), value), "bias": jnp.zeros(features)}}
  return step.State(jnp.int32(value), jax.random.PRNGKey(0), params, {}, {"count": jnp.int32(0)})


def like(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_the_last_and_the_best_are_kept(tmp_path):
  saves = checkpoint.Checkpoints(tmp_path, keep_last=2, keep_best=1, best="accuracy")
  for at, accuracy in enumerate([0.5, 0.9, 0.7, 0.6, 0.8], 1):
    saves.save(at, state(at), {"next_position": at}, {})
    saves.measured(at, {"accuracy": accuracy})
  saves.poll(wait=True)
  assert saves.steps() == [2, 4, 5]
  assert saves.best_step() == 2
  restored, position = saves.restore(2, like(state(0)))
  np.testing.assert_array_equal(restored.params["layer"]["kernel"], np.full((2, 3), 2))
  assert position == {"next_position": 2, "checksums": True}
  saves.close()


def test_lower_may_be_better(tmp_path):
  saves = checkpoint.Checkpoints(tmp_path, keep_last=1, keep_best=1, best="-loss")
  for at, loss in enumerate([0.5, 0.1, 0.7, 0.6], 1):
    saves.save(at, state(at), {}, {})
    saves.measured(at, {"loss": loss})
  saves.poll(wait=True)
  assert saves.steps() == [2, 3, 4]  # 3 was the last that was known to be whole
  saves.close()
  reopened = checkpoint.Checkpoints(tmp_path, best="-loss", read_only=True)
  assert reopened.best_step() == 2
  reopened.close()


def test_the_best_survives_a_resume(tmp_path):
  """What was measured is read back, and the best step is neither forgotten nor deleted."""
  for first in (1, 4):
    saves = checkpoint.Checkpoints(tmp_path, keep_last=1, keep_best=1, best="accuracy")
    for at in range(first, first + 3):
      saves.save(at, state(at), {}, {})
      saves.measured(at, {"accuracy": 0.9 if at == 2 else 0.1 * at})
      saves.poll(wait=True)
    saves.close()
  reopened = checkpoint.Checkpoints(tmp_path, best="accuracy", read_only=True)
  assert reopened.best_step() == reopened.choose("best") == 2
  assert 2 in reopened.steps()
  reopened.close()


def test_everything_of_a_step_lies_in_one_folder(tmp_path):
  saves = checkpoint.Checkpoints(tmp_path)
  saves.save(7, state(7), {"next_position": 70}, {"seed": 1})
  saves.close()
  assert {p.name for p in (tmp_path / "checkpoints").iterdir() if p.is_dir()} == {"7"}
  assert {"state", "position", "config"} <= {p.name for p in (tmp_path / "checkpoints/7").iterdir()}


def test_another_architecture_is_refused_by_its_leaves(tmp_path):
  saves = checkpoint.Checkpoints(tmp_path)
  saves.save(1, state(1), {}, {})
  saves.poll(wait=True)
  with pytest.raises(
    UserError, match=r"2 leaves differ: params/layer/bias: file \(\(3,\), 'float32'\), model \(\(4,\)"
  ):
    saves.restore(1, like(state(0, features=4)))
  saves.close()


def test_a_sharded_state_is_read_by_another_number_of_devices(tiny, tmp_path):
  wide = {"features": (4, 8, 16), "hidden_size": 128, "dropout": 0.0}
  sessions = [loop.prepare(tiny(train__devices=n, train__zero=n > 1, model__fields=wide)) for n in (4, 1)]
  written = loop.initial_state(sessions[0])
  saves = checkpoint.Checkpoints(tmp_path)
  saves.save(0, written, {}, {})
  saves.poll(wait=True)
  read, _ = saves.restore(0, loop.abstract_state(sessions[1].task, sessions[1].mesh))
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(read), jax.device_get(written))
  saves.close()
