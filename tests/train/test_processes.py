"""Several processes of one run, on the loopback interface: same numbers, one writer, one end."""

import json
import os
import re
import signal
import socket
import time

import jax
import numpy as np
import pytest

from flaxonomy.configs import base
from flaxonomy.train import checkpoint, loop, report, workdir

FULL = """
import resource
from flaxonomy.train import checkpoint
inner = checkpoint.Checkpoints.save
def save(self, step, *rest):
  self.poll(wait=True)
  if step >= 6:
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
  return inner(self, step, *rest)
checkpoint.Checkpoints.save = save
"""


def free_port():
  with socket.socket() as free:
    free.bind(("localhost", 0))
    return free.getsockname()[1]


@pytest.fixture
def start_two(start):
  """A function: (config, *arguments, patches) -> two processes of two devices each."""

  def start_two(config, *arguments, patches=("", "")):
    config = base.override(config, {"train.devices": None, "train.cpu_devices": 2})
    joined = ["--distributed", f"--coordinator=localhost:{free_port()}", "--num_processes=2"]
    return [start(config, *joined, f"--process_id={i}", *arguments, patch=patches[i]) for i in range(2)]

  return start_two


def finish(processes, seconds=90):
  """Exit codes and what was said on standard error, once all have ended."""
  told = [process.communicate(timeout=seconds)[1] for process in processes]
  return [process.returncode for process in processes], told


def wait_for_steps(folder, count, processes):
  until = time.monotonic() + 60
  while len(report.read_metrics(folder)) < count:
    assert all(process.poll() is None for process in processes), [p.communicate()[1] for p in processes]
    assert time.monotonic() < until
    time.sleep(0.01)


def state_of(folder):
  session = loop.prepare(base.override(workdir.load_config(folder), {"train.devices": 1}))
  saves = checkpoint.Checkpoints(folder, read_only=True)
  state, _ = saves.restore(saves.newest(), loop.abstract_state(session.task, session.mesh))
  saves.close()
  return jax.device_get(state)


def assert_close(one, other):
  """The same rows and the same state, to 1e-6 of their size."""
  rows = [[r for r in report.read_metrics(folder) if r["split"] == "train"] for folder in (one, other)]
  assert len(rows[0]) == len(rows[1])
  for a, b in zip(*rows):
    assert a["step"] == b["step"]
    np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-6)
  close = lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6 * max(np.abs(y).max(), 1e-3), rtol=0)
  jax.tree.map(close, state_of(one), state_of(other))


def test_two_processes_are_one_and_each_resumes_the_other(any_task, start_two, tmp_path):
  """2 x 2 devices against 1 x 4; six steps by two processes and six by one; and the other way round."""
  # Adam divides by small numbers; with plain SGD what is compared is the gradients.
  config = any_task(optim__name="sgd", optim__b1=None, train__devices=4, train__zero=True)
  half = base.override(config, {"train.steps": 6})
  loop.run(config, tmp_path / "one", quiet=True)
  codes, told = finish(start_two(config, f"--workdir={tmp_path / 'two'}"))
  assert codes == [0, 0], told
  assert "4 x cpu in 2 processes" in told[0]
  assert "step" not in told[1]  # one of them speaks
  rows = [r["step"] for r in report.read_metrics(tmp_path / "two") if r["split"] == "train"]
  assert rows == list(range(1, 13))
  assert {p.name for p in (tmp_path / "two").iterdir()} == {p.name for p in (tmp_path / "one").iterdir()}
  assert_close(tmp_path / "two", tmp_path / "one")
  assert finish(start_two(half, f"--workdir={tmp_path / 'mixed'}"))[0] == [0, 0]
  loop.run(config, tmp_path / "mixed", quiet=True)
  assert_close(tmp_path / "mixed", tmp_path / "one")


def test_an_evaluation_keeps_what_every_process_wrote(tiny_translation, start_two, tmp_path):
  config = tiny_translation(train__devices=4, train__steps=2)
  loop.run(config, tmp_path / "one", quiet=True)
  codes, told = finish(start_two(config, f"--workdir={tmp_path / 'two'}"))
  assert codes == [0, 0], told
  one, two = ((tmp_path / name / "translations.txt").read_text() for name in ("one", "two"))
  assert one == two
  assert one.count("source   ") == 21


def test_one_process_then_two(tiny, start_two, tmp_path):
  config = tiny(train__devices=4)
  loop.run(config, tmp_path / "one", quiet=True)
  loop.run(base.override(config, {"train.steps": 6}), tmp_path / "mixed", quiet=True)
  codes, told = finish(start_two(config, f"--workdir={tmp_path / 'mixed'}"))
  assert codes == [0, 0], told
  assert "resuming at step 6" in told[0]
  assert_close(tmp_path / "mixed", tmp_path / "one")


@pytest.mark.parametrize("signum, codes", [(signal.SIGTERM, [143, 143]), (signal.SIGINT, [143, 130])])
def test_a_signal_to_one_stops_both_at_the_same_step(tiny, start_two, tmp_path, signum, codes):
  config = tiny(train__steps=10**6, train__eval_every=10**6)
  processes = start_two(config, f"--workdir={tmp_path / 'run'}")
  wait_for_steps(tmp_path / "run", 10, processes)
  processes[1].send_signal(signum)
  began = time.monotonic()
  ended, told = finish(processes)
  assert ended == codes, told
  assert time.monotonic() - began < 25
  steps = [re.search(r"stopped by SIG\w+ at step (\d+) of 1000000, saved at step (\d+)", t).groups() for t in told]
  assert steps[0] == steps[1]
  assert steps[0][0] == steps[0][1]
  status = json.loads((tmp_path / "run/status.json").read_text())
  assert (status["state"], str(status["step"])) == ("preempted", steps[0][0])
  assert int(state_of(tmp_path / "run").step) == status["step"]


@pytest.mark.parametrize("dead", [0, 1])
def test_when_one_is_killed_the_other_ends(tiny, start_two, tmp_path, dead):
  config = tiny(train__steps=10**6, train__eval_every=10**6)
  processes = start_two(config, f"--workdir={tmp_path / 'run'}")
  wait_for_steps(tmp_path / "run", 10, processes)
  processes[dead].kill()
  began = time.monotonic()
  _, told = finish([processes[1 - dead]])
  assert time.monotonic() - began < 30  # ten seconds of silence, and time to say so
  assert processes[1 - dead].returncode not in (0, 2, 143)
  assert re.search("distributed service detected fatal errors|lost another process of this run", told[0].lower())
  assert loop.run(tiny(train__steps=2), tmp_path / "run", quiet=True)["step"] == 2  # the lock is free


def test_slurm_is_found_by_itself(tiny, start, tmp_path):
  """Nothing but --distributed, in an environment such as Slurm makes."""
  config = tiny(train__devices=None, train__cpu_devices=2, train__steps=2)
  job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost", "SLURM_NTASKS": "2"}
  processes = [
    start(config, "--distributed", f"--workdir={tmp_path / 'run'}", env=job | {"SLURM_PROCID": i, "SLURM_LOCALID": i})
    for i in "01"
  ]
  codes, told = finish(processes)
  assert codes == [0, 0], told
  assert "4 x cpu in 2 processes" in told[0]


def test_one_does_not_come(tiny, start, tmp_path):
  joined = ["--distributed", f"--coordinator=localhost:{free_port()}", "--num_processes=2", "--process_id=0"]
  process = start(tiny(), *joined, "--start_timeout=3", f"--workdir={tmp_path / 'run'}")
  assert finish([process], 60) == (
    [2], ["error: --distributed: not all processes came within 3 s (--start_timeout)\n"]
  )  # fmt: skip
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("on_device", [True, False])
def test_unreadable_data_ends_both(tiny, start_two, photos, tmp_path, on_device):
  """Found before the first step all end with code 3; found while streaming, the one that reads it does."""
  config = tiny(**photos, data__on_device=on_device, data__batch_size=8, train__steps=10**4)
  codes, told = finish(start_two(config, f"--workdir={tmp_path / 'run'}"))
  assert codes == [3, 3] if on_device else 3 in codes, told
  assert 0 not in codes
  assert any("cannot read image" in t for t in told)


@pytest.mark.parametrize("full", [0, 1])
def test_a_checkpoint_that_one_cannot_write_ends_both(tiny, start_two, tmp_path, full):
  config = tiny(train__steps=10**5, train__checkpoint_every=3, train__eval_every=10**5, train__keep_last=10)
  patches = ["", ""]
  patches[full] = FULL
  codes, told = finish(start_two(config, f"--workdir={tmp_path / 'run'}", patches=patches))
  assert codes[full] == 2, told
  assert codes[1 - full] not in (0, 143)
  assert "a checkpoint could not be written" in told[full]
  assert sorted(p.name for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdigit()) == ["3"]


def test_an_error_ends_both(tiny, start_two, tmp_path):
  """A mistake that all see, and a workdir that only the first can find taken."""
  config = tiny(data__name="digitz")
  codes, told = finish(start_two(config, f"--workdir={tmp_path / 'run'}"))
  assert codes == [2, 2]
  assert all("unknown dataset 'digitz'; did you mean 'digits'" in t for t in told)
  assert not (tmp_path / "run").exists()
  with workdir.lock(tmp_path / "taken"):
    codes, told = finish(start_two(tiny(), f"--workdir={tmp_path / 'taken'}"))
  assert codes == [5, 5], told
  assert all("is in use by" in t for t in told)
