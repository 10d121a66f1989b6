"""The same seed is the same run to the last bit, whatever surrounds it."""

import json
import subprocess
import sys
import time

import pytest

from flaxonomy.configs import base
from flaxonomy.train import report, watch

SURROUNDINGS = {
  "worker processes": ({"data.on_device": False, "data.workers": 2}, {}),
  "threads": ({"data.on_device": False}, {"PYTHONHASHSEED": "1", "LC_ALL": "tr_TR.UTF-8", "TZ": "Asia/Tokyo"}),
  "cold cache": ({}, {"FLAXONOMY_CACHE": "cache", "PYTHONHASHSEED": "2", "LC_ALL": "C", "TZ": "America/Lima"}),
}


def test_fresh_processes_make_the_same_bits(any_task, start, assert_same_run, tmp_path):
  """Data from devices, threads or worker processes; a warm or a cold compilation cache; any locale and hash seed."""
  config = any_task(train__steps=20, train__eval_every=10)
  first = start(config, f"--workdir={tmp_path / 'first'}", env={"PYTHONHASHSEED": "0"})
  assert first.wait(120) == 0
  for name, (changes, env) in SURROUNDINGS.items():
    env = env | ({"FLAXONOMY_CACHE": str(tmp_path / "cache")} if "FLAXONOMY_CACHE" in env else {})
    process = start(base.override(config, changes), f"--workdir={tmp_path / name}", env=env)
    told = process.communicate(timeout=120)[1]
    assert process.returncode == 0, told
    assert report.read_metrics(tmp_path / name) == report.read_metrics(tmp_path / "first"), name
  assert_same_run(tmp_path / "cold cache", tmp_path / "first")
  assert any((tmp_path / "cache/compiled").rglob("*"))


STILL = """
import sys, time
from flaxonomy.train import watch
watch.STILL = 1.0
with watch.Watch(lambda code, reason: print(code, reason)) as guard:
  for _ in range(30):
    guard.beat()
    time.sleep(0.01)
  if sys.argv[1] == "rest":
    with guard.rest():
      time.sleep(3)
    print("done")
  else:
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["still", "rest"])
def test_a_run_that_stands_still_is_ended(how, tmp_path):
  """All stacks are printed and the process ends; time for evaluation does not count."""
  began = time.monotonic()
  done = subprocess.run([sys.executable, "-c", STILL, how], capture_output=True, text=True, timeout=50, cwd=tmp_path)
  if how == "rest":
    assert (done.returncode, done.stdout) == (0, "done\n")
    return
  assert done.returncode == 1
  assert time.monotonic() - began < 20
  assert 'File "<string>", line 14 in <module>' in done.stderr
  assert "left at once: no step for " in done.stderr
  assert watch.STILL == 300


def test_status_is_json_at_every_moment(tiny, start, tmp_path):
  """Readers never see half of it."""
  process = start(tiny(train__steps=60, train__eval_every=10), f"--workdir={tmp_path / 'run'}")
  path, states = tmp_path / "run/status.json", set()
  while process.poll() is None:
    if path.exists():
      states.add(json.loads(path.read_text())["state"])
  assert states <= {"running", "finished"}
  assert json.loads(path.read_text())["state"] == "finished"
