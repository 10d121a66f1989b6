"""Runs that are really stopped and really killed, in processes of their own, and go on as if nothing had been."""

import json
import os
import signal
import time

import numpy as np
import pytest

from flaxonomy.configs import base
from flaxonomy.train import loop, report

SLOW_EVALUATION = """
import time
from pathlib import Path
from flaxonomy.train import evaluation
inner = evaluation.evaluate
def evaluate(function, task, feed, states, stop):
  Path("evaluating").touch()
  until = time.monotonic() + 20
  while time.monotonic() < until and not stop():
    time.sleep(0.05)
  return inner(function, task, feed, states, stop)
evaluation.evaluate = evaluate
"""
SLOW_SAVE = """
import time
from pathlib import Path
from flaxonomy.train import checkpoint
inner = checkpoint.Checkpoints._write_sums
def write_sums(self):
  Path("saving").touch()
  time.sleep({seconds})
  inner(self)
checkpoint.Checkpoints._write_sums = write_sums
"""


SLOW_STEPS = """
import time
from flaxonomy.train import log
push_at_once = log.Log.push
def push(self, *rest):
  time.sleep(0.03)
  push_at_once(self, *rest)
log.Log.push = push
"""


def rows(folder):
  return [row for row in report.read_metrics(folder) if row["split"] == "train"]


def wait_for(condition, process, seconds=60):
  """Until the condition holds of a running process."""
  until = time.monotonic() + seconds
  while not condition():
    assert process.poll() is None, process.communicate()[1]
    assert time.monotonic() < until, "nothing happened"
    time.sleep(0.005)


def finish(process, seconds=60):
  """(exit code, standard error)"""
  told = process.communicate(timeout=seconds)[1]
  return process.returncode, told


def status(folder):
  return json.loads((folder / "status.json").read_text())


def test_stopped_by_sigterm(any_task, start, assert_same_run, tmp_path):
  """Saved at the very step, code 143, status.json says the same, and the same line goes on to the same bits."""
  config = any_task(train__steps=400, train__eval_every=200, data__eval_batch_size=500)
  folder = tmp_path / "run"
  process = start(config, f"--workdir={folder}", patch=SLOW_STEPS)
  wait_for(lambda: len(rows(folder)) > 20, process)
  process.send_signal(signal.SIGTERM)
  began = time.monotonic()
  code, told = finish(process)
  assert code == 143, told
  assert time.monotonic() - began < 25
  step = status(folder)["step"]
  assert 20 < step < 400
  assert told.strip().endswith(f"stopped by SIGTERM at step {step} of 400, saved at step {step}; the same line goes on")
  assert (status(folder)["state"], status(folder)["exit_code"]) == ("preempted", 143)
  assert (folder / f"checkpoints/{step}").is_dir()
  assert rows(folder)[-1]["step"] == step
  code, told = finish(start(config, f"--workdir={folder}"), 120)
  assert code == 0, told
  assert f"resuming at step {step}" in told
  assert (status(folder)["state"], status(folder)["step"]) == ("finished", 400)
  assert finish(start(config, f"--workdir={tmp_path / 'whole'}"), 120)[0] == 0
  assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_leaves_at_once(tiny, start, tmp_path, signum, code):
  folder = tmp_path / "run"
  config = tiny(train__steps=10**6, train__eval_every=10**6)
  process = start(config, f"--workdir={folder}", patch=SLOW_SAVE.format(seconds=60))
  wait_for(lambda: len(rows(folder)) > 5, process)
  process.send_signal(signum)
  wait_for(lambda: (tmp_path / "saving").exists(), process)
  process.send_signal(signum)
  began = time.monotonic()
  assert finish(process)[0] == code
  assert time.monotonic() - began < 10
  assert (status(folder)["state"], status(folder)["exit_code"]) == ("preempted", code)
  assert not list((folder / "checkpoints").glob("[0-9]*[0-9]"))


def test_the_newest_checkpoint_stands_when_time_is_up(tiny, start, assert_same_run, tmp_path):
  """A save that takes longer than schedulers wait is left behind; what it left is cleared away at the next start."""
  folder = tmp_path / "run"
  config = tiny(train__steps=60, train__eval_every=20)
  patch = SLOW_SAVE.format(seconds='60 if Path("run/checkpoints/20").exists() else 0')
  process = start(
    config, f"--workdir={folder}", patch=f"from flaxonomy.train import watch\nwatch.DEADLINE = 2\n{patch}"
  )
  wait_for(lambda: any((folder / "checkpoints").glob("40.orbax-checkpoint-tmp*")), process)
  process.send_signal(signal.SIGTERM)
  code, told = finish(process)
  assert code == 143
  assert "left at once: not done in 2 s" in told
  assert list((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
  assert loop.run(config, folder, quiet=True)["step"] == 60
  assert not list((folder / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
  loop.run(config, tmp_path / "whole", quiet=True)
  assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_before_the_run(tiny, start, tmp_path, signum, code):
  """While the command line is still being read."""
  process = start(tiny(), patch='import time\nfrom pathlib import Path\nPath("here").touch()\ntime.sleep(30)')
  wait_for(lambda: (tmp_path / "here").exists(), process)
  process.send_signal(signum)
  assert finish(process) == (code, "")


def test_stopped_while_it_compiles(tiny, start, tmp_path):
  folder = tmp_path / "run"
  config = tiny(model__fields={}, data__image_size=(28, 28), train__steps=500)
  process = start(config, f"--workdir={folder}", "--nocompilation_cache")
  wait_for(lambda: (folder / "status.json").exists(), process)
  process.send_signal(signal.SIGTERM)
  code, told = finish(process)
  assert code == 143, told
  assert status(folder)["step"] < 500


def test_stopped_while_it_evaluates(tiny, start, assert_same_run, tmp_path):
  """The state is saved, the evaluation is made once, after the resume, and its step can still be the best."""
  folder = tmp_path / "run"
  config = tiny()
  process = start(config, f"--workdir={folder}", patch=SLOW_EVALUATION)
  wait_for(lambda: (tmp_path / "evaluating").exists(), process)
  process.send_signal(signal.SIGTERM)
  code, told = finish(process)
  assert code == 143, told
  assert status(folder)["step"] == 6
  assert not [row for row in report.read_metrics(folder) if row["split"] == "test"]
  loop.run(config, folder, quiet=True)
  loop.run(config, tmp_path / "whole", quiet=True)
  assert_same_run(folder, tmp_path / "whole")
  measured = [(path / "checkpoints/metrics.json").read_text() for path in (folder, tmp_path / "whole")]
  assert measured[0] == measured[1]


def test_stopped_while_it_saves(tiny, start, assert_same_run, tmp_path):
  folder = tmp_path / "run"
  config = tiny(train__steps=100, train__eval_every=50)
  process = start(config, f"--workdir={folder}", patch=SLOW_STEPS + SLOW_SAVE.format(seconds=2))
  wait_for(lambda: (tmp_path / "saving").exists(), process)
  process.send_signal(signal.SIGTERM)
  code, told = finish(process)
  assert code == 143, told
  assert status(folder)["step"] >= 50
  loop.run(config, folder, quiet=True)
  loop.run(config, tmp_path / "whole", quiet=True)
  assert_same_run(folder, tmp_path / "whole")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_to_the_whole_group(tiny, start, assert_same_run, tmp_path, workers):
  """As a terminal or a scheduler sends it: Grain's worker processes get it too."""
  folder = tmp_path / "run"
  config = tiny(train__steps=60, train__eval_every=30, data__on_device=False, data__workers=workers)
  patch = f"import os\nos.getpgrp() == os.getpid() or os.setpgrp()\n{SLOW_STEPS}"
  process = start(config, f"--workdir={folder}", patch=patch)
  wait_for(lambda: len(rows(folder)) > 5, process)
  os.killpg(process.pid, signal.SIGTERM)
  code, told = finish(process)
  assert code == 143, told
  assert rows(folder)[-1]["step"] == status(folder)["step"]
  loop.run(config, folder, quiet=True)
  loop.run(config, tmp_path / "whole", quiet=True)
  assert_same_run(folder, tmp_path / "whole")


def kill_again_and_again(config, start, folder, kills, seed):
  """Kills a run at random moments, every second time while it saves, until it has had its kills.

  Returns:
    (partial saves that were left, every row ever seen)
  """
  rng, partial, seen = np.random.default_rng(seed), 0, []
  saves = folder / "checkpoints"
  saving = lambda: any(saves.glob("*.orbax-checkpoint-tmp*"))
  for i in range(kills):
    before = len(rows(folder))
    process = start(config, f"--workdir={folder}")
    wait_for(lambda before=before: len(rows(folder)) != before, process)
    if i % 2:
      wait_for(saving, process)
      time.sleep(rng.uniform(0, 0.01))
    else:
      time.sleep(rng.uniform(0, 0.3))
    process.kill()
    process.communicate()
    partial += saving()
    seen += rows(folder)
  return partial, seen


KILLS = {"classification": 12, "gan": 4, "language_model": 2}
LARGE = {
  "classification": {"hidden_size": 100_000}, "gan": {"generator_features": 96}, "language_model": {"hidden_size": 500},
}  # fmt: skip


def test_killed_at_random(any_task, start, assert_same_run, tmp_path):
  """kill -9, a save of 20 MB every other step: no bit of curve or state differs from a run left in peace."""
  task = any_task().task
  changes = {f"model__fields__{name}": value for name, value in LARGE[task].items()}
  config = any_task(optim__name="adam", train__steps=400, train__eval_every=100, train__checkpoint_every=2, **changes)
  folder = tmp_path / "run"
  partial, seen = kill_again_and_again(config, start, folder, KILLS[task], seed=0)
  assert partial >= (3 if task == "classification" else 1)
  reached = max(row["step"] for row in seen)
  steps = reached + 10 - reached % 2
  end = base.override(config, {"train.steps": steps, "train.eval_every": 10**6})
  loop.run(end, folder, quiet=True)
  whole = loop.run(base.override(end, {"train.checkpoint_every": 10**6}), tmp_path / "whole", quiet=True)
  assert whole["step"] == steps
  kept = [row for row in report.read_metrics(folder) if row["split"] == "train" or row["step"] == steps]
  report.write_text(folder / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
  assert_same_run(folder, tmp_path / "whole")
  true = {row["step"]: row for row in rows(tmp_path / "whole")}
  assert all(row == true[row["step"]] for row in seen)
