"""What happens to a workdir when the disk, another program or another run harms it."""

import json
import os
import re
import resource
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.configs import base
from flaxonomy.errors import BusyError, DataError, NumericError, UserError
from flaxonomy.train import checkpoint, inference, loop, report, step, workdir


def state(value, features=3):
  params = {"layer": {"kernel": jnp.full((2, features), value, jnp.float32), "bias": jnp.zeros(features)}}
  return step.State(jnp.int32(value), jax.random.PRNGKey(0), params, {}, {"count": jnp.int32(0)})


def like(tree):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def saved(folder, *steps, **options):
  """Checkpoints of some steps, whole."""
  saves = checkpoint.Checkpoints(folder, keep_last=10, **options)
  for at in steps:
    assert saves.save(at, state(at), {"next_position": at, "batch_size": 1}, {})
  saves.poll(wait=True)
  return saves


def largest(folder):
  return max((p for p in folder.rglob("*") if p.is_file() and "/d/" in str(p)), key=lambda p: p.stat().st_size)


def cut(path):
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zero(path):
  content = path.read_bytes()
  path.write_bytes(content[:16] + bytes(min(4096, len(content) - 16)) + content[16 + 4096 :])


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 4
  path.write_bytes(content)


def empty(folder):
  shutil.rmtree(folder)
  folder.mkdir()


DAMAGE = {
  "data file cut": lambda s: cut(largest(s)),
  "data file zeroed": lambda s: zero(largest(s)),
  "data file removed": lambda s: largest(s).unlink(),
  "one bit of a data file flipped": lambda s: flip(largest(s)),
  "manifest removed": lambda s: (s / "state/manifest.ocdbt").unlink(),
  "manifest cut": lambda s: cut(s / "state/manifest.ocdbt"),
  "mark of the commit removed": lambda s: (s / "commit_success.txt").unlink(),
  "_METADATA removed": lambda s: (s / "state/_METADATA").unlink(),
  "_METADATA cut": lambda s: cut(s / "state/_METADATA"),
  "_CHECKPOINT_METADATA removed": lambda s: (s / "_CHECKPOINT_METADATA").unlink(),
  "_CHECKPOINT_METADATA cut": lambda s: cut(s / "_CHECKPOINT_METADATA"),
  "JSON item cut": lambda s: cut(s / "position/metadata"),
  "step empty": empty,
  "state gone": lambda s: shutil.rmtree(s / "state"),
  "checksums removed": lambda s: (s / "checksums.json").unlink(),
  "checksums cut": lambda s: cut(s / "checksums.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_step_is_set_aside_and_the_one_before_is_used(name, tmp_path, capsys):
  saved(tmp_path, 1, 2, 3).close()
  DAMAGE[name](tmp_path / "checkpoints/3")
  reader = checkpoint.Checkpoints(tmp_path, read_only=True)  # as --mode=eval opens it
  assert reader.choose("latest") == 2
  assert (tmp_path / "checkpoints/3").is_dir()
  with pytest.raises(DataError, match="checkpoint 3 of .* is damaged"):
    reader.restore(3, like(state(0)))
  reader.close()
  capsys.readouterr()
  saves = checkpoint.Checkpoints(tmp_path, keep_last=10)
  assert saves.newest() == 2
  told = capsys.readouterr().err.strip()
  assert told.startswith("warning: checkpoint 3 is damaged (")
  assert told.endswith("); set aside as 3.corrupt, going back to 2")
  assert "\n" not in told
  restored, _ = saves.restore(2, like(state(0)))
  np.testing.assert_array_equal(restored.params["layer"]["kernel"], np.full((2, 3), 2))
  assert saves.save(3, state(33), {"next_position": 3, "batch_size": 1}, {})
  saves.poll(wait=True)
  assert saves.newest() == 3
  assert (tmp_path / "checkpoints/3.corrupt").is_dir()
  saves.close()


def test_none_whole(tmp_path):
  """Stops with every reason, twice, and never begins afresh in silence."""
  saved(tmp_path, 1, 2).close()
  flip(largest(tmp_path / "checkpoints/1"))
  (tmp_path / "checkpoints/2/checksums.json").unlink()
  for _ in range(2):
    saves = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(UserError, match=r"is whole: step 2: checksums.json is missing; step 1: the content of state/"):
      saves.newest()
    saves.close()
  for at in (1, 2):
    (tmp_path / f"checkpoints/{at}").rename(tmp_path / f"checkpoints/{at}.corrupt")
  saves = checkpoint.Checkpoints(tmp_path)
  with pytest.raises(UserError, match="set aside before"):
    saves.newest()
  saves.close()


@pytest.mark.parametrize("name", ["one bit of a data file flipped", "state gone"])
def test_a_run_goes_on_from_the_step_before(any_task, assert_same_run, tmp_path, name, capsys):
  config = any_task(train__checkpoint_every=3)
  loop.run(config, tmp_path / "whole", quiet=True)
  loop.run(base.override(config, {"train.steps": 9, "train.eval_every": 6}), tmp_path / "run", quiet=True)
  DAMAGE[name](tmp_path / "run/checkpoints/9")
  loop.run(config, tmp_path / "run", quiet=True)
  assert "set aside as 9.corrupt, going back to 6" in capsys.readouterr().err
  assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_steps_without_checksums_of_an_older_version_are_read(tmp_path):
  saved(tmp_path, 1).close()
  (tmp_path / "checkpoints/1/checksums.json").unlink()
  (tmp_path / "checkpoints/1/position/metadata").write_text('{"next_position": 1, "batch_size": 1}')
  saves = checkpoint.Checkpoints(tmp_path)
  assert saves.newest() == 1
  saves.restore(1, like(state(0)))
  saves.close()


def test_leftovers_are_cleared_away_and_clocks_do_not_matter(tmp_path):
  saved(tmp_path, 1, 2, 10).close()
  for at, seconds in ((1, 3e9), (2, 2e9), (10, 1e9)):
    os.utime(tmp_path / f"checkpoints/{at}", (seconds, seconds))
  shutil.copytree(tmp_path / "checkpoints/10", tmp_path / "checkpoints/12.orbax-checkpoint-tmp")
  saves = checkpoint.Checkpoints(tmp_path, keep_last=10)
  assert saves.newest() == 10
  saves.close()
  assert not (tmp_path / "checkpoints/12.orbax-checkpoint-tmp").exists()


def test_the_last_whole_step_outlives_unfinished_ones(tmp_path):
  """With one step kept, the old one goes only when a newer one is known to be whole and yet another is saved."""
  saves = checkpoint.Checkpoints(tmp_path, keep_last=1)
  for at in (1, 2, 3):
    saves.save(at, state(at), {}, {})
    saves.poll(wait=True)
  assert saves.steps() == [2, 3]
  saves.close()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_not_saved(tmp_path, value):
  saves = saved(tmp_path, 1)
  bad = state(2)
  bad.params["layer"]["bias"] = bad.params["layer"]["bias"].at[1].set(value)
  with pytest.raises(NumericError, match="step 2 is not saved: params/layer/bias and 0 other leaves are not finite"):
    saves.save(2, bad, {}, {})
  assert saves.steps() == [1]
  saves.close()


def test_other_types_are_refused(tmp_path):
  """Orbax would cast in silence."""
  saves = saved(tmp_path, 1)
  half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, state(0))
  with pytest.raises(UserError, match=r"2 leaves differ: .*bias: file \(\(3,\), 'float32'\), model .*bfloat16"):
    saves.restore(1, like(half))
  saves.close()


def test_the_first_five_leaves_are_told(tmp_path):
  saves = saved(tmp_path, 1)
  other = state(0).replace(params={f"other_{i}": jnp.zeros(2) for i in range(9)})
  with pytest.raises(UserError, match="11 leaves differ") as told:
    saves.restore(1, like(other))
  assert str(told.value).count("file ") == 5
  saves.close()


FULL = """
import resource
from flaxonomy.train import checkpoint
inner = checkpoint.Checkpoints.save
def save(self, step, *rest):
  # From step 6 to step {until} no file can grow: writes fail as on a full disk.
  self.poll(wait=True)
  full = 6 <= step <= {until}
  resource.setrlimit(resource.RLIMIT_FSIZE, (0 if full else resource.RLIM_INFINITY, resource.RLIM_INFINITY))
  return inner(self, step, *rest)
checkpoint.Checkpoints.save = save
"""


@pytest.mark.parametrize("until", [6, 100])
def test_a_full_disk(any_task, start, assert_same_run, tmp_path, until):
  """One save that fails is a warning and training goes on; the second ends the run; older steps are as they were."""
  config = any_task(train__checkpoint_every=3, train__eval_every=3, train__keep_last=10)
  process = start(config, f"--workdir={tmp_path / 'run'}", patch=FULL.format(until=until))
  told = process.communicate(timeout=120)[1]
  assert "warning: checkpoint 6 could not be written: " in told
  assert "saved steps: 3; training goes on" in told
  steps = lambda: sorted(int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit())
  if until == 6:
    assert process.returncode == 0, told
    assert steps() == [3, 9, 12]
  else:
    assert process.returncode == 2, told
    last = told.strip().splitlines()[-1]
    assert last.startswith("error: two checkpoints in a row could not be written, the last at step 9: ")
    assert steps() == [3]
    loop.run(config, tmp_path / "run", quiet=True)
  loop.run(config, tmp_path / "whole", quiet=True)
  assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_a_full_disk_with_tensorboard(tiny, start, tmp_path):
  """Its writer's thread dies; the run does not wait for it."""
  config = tiny(train__tensorboard=True, train__steps=10**5, train__checkpoint_every=20, train__eval_every=20)
  process = start(config, f"--workdir={tmp_path / 'run'}", patch=FULL.format(until=10**6))
  told = process.communicate(timeout=120)[1]
  assert process.returncode == 2, told
  assert "error: two checkpoints in a row could not be written" in told


def test_no_room_is_seen_before_writing(tmp_path, monkeypatch, capsys):
  saves = saved(tmp_path, 1)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: type("Usage", (), {"free": 10})())
  assert saves.save(2, state(2), {}, {}) is False
  assert "checkpoint 2 could not be written: 0.0 MB needed, 0.0 MB free" in capsys.readouterr().err
  assert not list((tmp_path / "checkpoints").glob("2*"))
  monkeypatch.undo()
  assert saves.save(3, state(3), {}, {})
  saves.close()


def test_rows_wait_for_room(tmp_path):
  log = report.Metrics(tmp_path, 0, tensorboard=False)
  log.write(1, "train", {"loss": 1.0})
  size = (tmp_path / "metrics.jsonl").stat().st_size
  before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, before[1]))
  try:
    with pytest.raises(OSError, match="File too large"):
      log.write(2, "train", {"loss": float("nan")})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)
  log.write(3, "train", {"loss": 3.0})
  log.close()
  assert [(row["step"], row["loss"]) for row in report.read_metrics(tmp_path)] == [(1, 1.0), (2, None), (3, 3.0)]


def test_a_damaged_row_costs_only_itself(tmp_path, capsys):
  log = report.Metrics(tmp_path, 0, tensorboard=False)
  for at in range(1, 6):
    log.write(at, "train", {"loss": float(at)})
  log.close()
  lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
  lines[2] = b'{"step": \xff'
  (tmp_path / "metrics.jsonl").write_bytes(b"\n".join(lines) + b'\n{"step": 6, "sp')
  report.Metrics(tmp_path, 10, tensorboard=False).close()
  assert "1 damaged rows are left out" in capsys.readouterr().err
  assert [row["step"] for row in report.read_metrics(tmp_path)] == [1, 2, 4, 5]


def test_a_start_that_was_ended_early_is_no_run(tiny, tmp_path):
  """What a first start leaves that was killed while it read data does not bar the way."""
  for name in (".lock", "status.json", "config.json.partial"):
    (tmp_path / name).write_text("{}")
  assert loop.run(tiny(train__steps=2), tmp_path, quiet=True)["step"] == 2


def test_fewer_steps_than_made(tiny, tmp_path):
  loop.run(tiny(train__steps=6), tmp_path, quiet=True)
  (tmp_path / "result.json").unlink()
  with pytest.raises(UserError, match="has made 6 steps, and config field 'train.steps' is 3"):
    loop.run(tiny(train__steps=3), tmp_path, quiet=True)


def test_a_step_that_has_no_sums_and_cannot_be_read(any_task, assert_same_run, tmp_path, capsys):
  """As a run of the first version may hold one: Orbax is the first to see it, and the step before is used."""
  config = any_task(train__checkpoint_every=3)
  loop.run(config, tmp_path / "whole", quiet=True)
  loop.run(base.override(config, {"train.steps": 9, "train.eval_every": 6}), tmp_path / "run", quiet=True)
  newest = tmp_path / "run/checkpoints/9"
  (newest / "checksums.json").unlink()
  (newest / "position/metadata").write_text('{"next_position": 288, "batch_size": 32}')
  for path in (newest / "state").rglob("d/*"):
    cut(path)
  loop.run(config, tmp_path / "run", quiet=True)
  assert "cannot be read" in capsys.readouterr().err
  assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_one_run_a_workdir(tiny, start, tmp_path):
  """The second is told who holds it, with code 5; after kill -9 of the holder the next one starts."""
  folder = tmp_path / "run"
  config = tiny(train__steps=10**6, train__eval_every=10**6)
  holder = start(config, f"--workdir={folder}")
  while not (folder / "status.json").exists():
    assert holder.poll() is None, holder.communicate()[1]
    time.sleep(0.01)
  before = {p: p.read_bytes() for p in folder.glob("*.json")}
  second = start(config, f"--workdir={folder}")
  told = second.communicate(timeout=60)[1]
  assert second.returncode == 5
  assert f"is in use by {os.uname().nodename} process {holder.pid} since 2" in told
  assert len(told.strip().splitlines()) == 1
  assert {p: p.read_bytes() for p in folder.glob("*.json")} == before
  assert holder.poll() is None
  with pytest.raises(BusyError), workdir.lock(folder):
    pass
  holder.kill()
  holder.communicate()
  assert loop.run(tiny(train__steps=2), folder, quiet=True)["step"] == 2


def test_an_unreadable_image_ends_with_code_3(tiny, start, photos, tmp_path):
  """Found while training; status.json says the same."""
  config = tiny(**photos, data__on_device=False, data__batch_size=2, train__steps=10**4)
  process = start(config, f"--workdir={tmp_path / 'run'}")
  last = process.communicate(timeout=60)[1].strip().splitlines()[-1]
  assert process.returncode == 3, last
  assert re.match(r"error: example \d+ of split '\w+' of dataset 'folder': cannot read image '.*/cat/7.png'", last)
  status = json.loads((tmp_path / "run/status.json").read_text())
  assert (status["state"], status["exit_code"]) == ("failed", 3)


@pytest.mark.parametrize("name", ["with space", "überraschung 図", "deep/er/still", "trailing/"])
def test_workdirs_of_any_name(tiny, tmp_path, monkeypatch, name):
  monkeypatch.chdir(tmp_path)
  config = tiny(train__steps=2)
  assert loop.run(config, name, quiet=True)["step"] == 2
  assert inference.evaluate([name])["steps"] == [2]


def test_a_workdir_at_home(tiny, tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  assert loop.run(tiny(train__steps=2), "~/run", quiet=True)["step"] == 2
  assert (tmp_path / "run/result.json").exists()


def test_workdirs_that_cannot_be(tiny, tmp_path):
  with pytest.raises(UserError, match="a bucket has no locks"):
    loop.run(tiny(), "gs://bucket/run", quiet=True)
  (tmp_path / "file").write_text("")
  with pytest.raises(UserError, match="cannot write to workdir .*Not a directory"):
    loop.run(tiny(), tmp_path / "file/run", quiet=True)
  for name in ("x" * 300, "~nobody_here/run", "a\0b"):
    with pytest.raises(UserError, match="cannot be"):
      loop.run(tiny(), name, quiet=True)
  with pytest.raises(UserError, match="cannot write to workdir '/proc/"):
    loop.run(tiny(), "/proc/nothing/run", quiet=True)


def test_a_workdir_taken_away_while_it_runs(tiny, start, tmp_path):
  """One line and a code, no traceback."""
  folder = tmp_path / "run"
  process = start(tiny(train__steps=10**6, train__eval_every=200), f"--workdir={folder}")
  while not (folder / "status.json").exists():
    assert process.poll() is None, process.communicate()[1]
    time.sleep(0.01)
  folder.rename(tmp_path / "elsewhere")
  told = process.communicate(timeout=60)[1]
  assert process.returncode == 2, told
  assert "Traceback" not in told
  assert told.strip().splitlines()[-1].startswith("error: ")
