"""A run that is killed, stopped, damaged and starved at random, for as long as asked; its curve must not show it.

  python tests/soak/faults.py --count=100 --events=kill       100 random kills, every second one while it saves
  python tests/soak/faults.py --minutes=60                    everything below, in random order

After every event the process must have ended with the code it should and without a traceback; every row that was ever
written must equal the rows of a run left in peace, and so must every bit of the last state. Prints a line for each kind
of event and one verdict; exit code 1 if anything was wrong. Linux; two cores make about 600 events an hour.
"""

import argparse
import collections
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10**6
PARTIAL = "*.orbax-checkpoint-tmp*"
FULL = """
import resource
from flaxonomy.train import checkpoint
inner, saves = checkpoint.Checkpoints.save, []
def save(self, step, *rest):
  self.poll(wait=True)
  saves.append(step)
  if len(saves) > 2:  # as on a full disk, no file can grow
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
  return inner(self, step, *rest)
checkpoint.Checkpoints.save = save
"""


def config(task):
  """A state of about 20 MB, saved every other step."""
  from flaxonomy.configs.base import Config, Data, Model, Optim, Train

  train = Train(STEPS, eval_every=200, checkpoint_every=2, log_every=1, keep_last=3, tensorboard=False, accumulate=1)
  if task == "classification":
    model = Model("deep_convnet", {"features": (4, 4, 8), "hidden_size": 100_000, "dropout": 0.5})
    return Config(task, model, Data("digits", batch_size=32), Optim("adam"), train)
  model = Model("dcgan", {"nz": 8, "generator_features": 96, "discriminator_features": 8})
  data = Data("digits", image_size=(8, 8), batch_size=32, mean=(0.5,), std=(0.5,))
  return Config(task, model, data, Optim("adam", lr=2e-4, b1=0.5), train)


class Trial:
  """One workdir and what was seen in it."""

  def __init__(self, folder: Path, task: str, rng):
    self.folder, self.rng, self.task = folder, rng, task
    self.run, self.seen, self.wrong = folder / "run", {}, []
    self.done, self.partial = collections.Counter(), 0

  def start(self, patch="", *arguments):
    from flaxonomy.configs import base

    path = self.folder / "config.py"
    values = json.dumps(base.to_dict(config(self.task)))
    path.write_text(
      f"import json\nfrom flaxonomy.configs import base\n{patch}\n"
      f"def get_config():\n  return base.from_dict(json.loads({values!r}))\n"
    )
    command = [sys.executable, str(ROOT / "launch.py"), f"--config={path}", f"--workdir={self.run}", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=self.folder)

  def rows(self):
    path, rows = self.run / "metrics.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
      try:
        rows.append(json.loads(line))
      except json.JSONDecodeError:
        break
    return [row for row in rows if row["split"] == "train"]

  def saving(self):
    return any((self.run / "checkpoints").glob(PARTIAL))

  def wait(self, process, condition, seconds=120):
    """Whether the condition came to hold while the process ran."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until:
      if condition():
        return True
      time.sleep(0.005)
    return False

  def event(self, kind):
    """Starts the run, lets it get somewhere, and does it harm."""
    before = len(self.rows())
    process = self.start(FULL if kind == "full" else "")
    if not self.wait(process, lambda: len(self.rows()) != before) and kind != "full":
      self.wrong.append(f"{kind}: did not get anywhere")
    time.sleep(self.rng.uniform(0, 1))
    expected = getattr(self, kind)(process)
    try:
      told = process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
      process.kill()
      told = process.communicate()[0]
      self.wrong.append(f"{kind}: did not end")
    code = process.returncode
    if kind == "full" and "two checkpoints in a row" not in told:
      self.wrong.append(f"full: {told[-1500:]}")
    if code not in expected or ("Traceback" in told and kind != "full"):
      self.wrong.append(f"{kind}: code {code}, {told[-1500:]}")
    self.partial += self.saving()
    for row in self.rows():
      if self.seen.setdefault(row["step"], row) != row:
        self.wrong.append(f"{kind}: step {row['step']} was {self.seen[row['step']]}, is {row}")
    self.done[kind] += 1

  def kill(self, process):
    if self.rng.random() < 0.5:
      self.wait(process, self.saving, 5)
    process.kill()
    return (-9,)

  def term(self, process):
    process.send_signal(signal.SIGTERM)
    return (143,)

  def interrupt(self, process):
    process.send_signal(signal.SIGINT)
    return (130,)

  def twice(self, process):
    process.send_signal(signal.SIGTERM)
    time.sleep(self.rng.uniform(0, 0.1))
    process.send_signal(signal.SIGTERM)
    return (143,)

  def damage(self, process):
    """Killed, and the newest step cut, flipped or robbed of a file."""
    process.kill()
    process.wait()
    steps = sorted((p for p in (self.run / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    if len(steps) > 1:
      files = sorted(p for p in steps[-1].rglob("*") if p.is_file() and p.stat().st_size)
      path, how = files[self.rng.integers(len(files))], self.rng.integers(3)
      content = bytearray(path.read_bytes())
      content[self.rng.integers(len(content))] ^= 1 << self.rng.integers(8)
      cut = bytes(content[: len(content) // 2])
      path.unlink() if how == 0 else path.write_bytes(content if how == 1 else cut)
    return (-9,)

  def full(self, process):
    """Left alone: after two saves every write fails, and after two failures it ends."""
    return (2,)

  def tidy(self):
    for path in (self.run / "checkpoints").glob("*.corrupt*"):
      shutil.rmtree(path)


def state_hash(folder, **changes):
  """A hash of every bit of the newest state."""
  import jax

  from flaxonomy.configs import base
  from flaxonomy.train import checkpoint, loop, workdir

  session = loop.prepare(base.override(workdir.load_config(folder), changes))
  saves = checkpoint.Checkpoints(folder, read_only=True)
  state, _ = saves.restore(saves.newest(), loop.abstract_state(session.task, session.mesh))
  saves.close()
  leaves = [np.asarray(x).tobytes() for x in jax.tree.leaves(jax.device_get(state))]
  return hashlib.sha256(b"".join(leaves)).hexdigest()


def in_peace(trial):
  """Finishes the trial at the next even step and compares it with a run that nothing happened to."""
  steps = max(trial.seen) + 20 - max(trial.seen) % 2
  last = f"--config.train.steps={steps}"
  for folder, arguments in ((trial.run, ()), (trial.folder / "whole", ("--config.train.checkpoint_every=1000000",))):
    trial.run = folder
    process = trial.start("", last, *arguments)
    told = process.communicate()[0]
    if process.returncode:
      trial.wrong.append(f"could not be finished in {folder.name}: {told[-1500:]}")
  true = {row["step"]: row for row in trial.rows()}
  trial.wrong += [f"step {at} differs from a run in peace" for at, row in trial.seen.items() if true.get(at) != row]
  if state_hash(trial.folder / "run") != state_hash(trial.folder / "whole"):
    trial.wrong.append("the last state differs from that of a run in peace")
  return steps


def main():
  """Runs the trials in turn."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--count", type=int, default=10**9, help="events")
  parser.add_argument("--minutes", type=float, default=10**9)
  parser.add_argument("--events", default="kill,term,interrupt,twice,damage,full")
  parser.add_argument("--tasks", default="classification,gan")
  parser.add_argument("--seed", type=int, default=0)
  options = parser.parse_args()
  rng, kinds = np.random.default_rng(options.seed), options.events.split(",")
  began = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    trials = []
    for task in options.tasks.split(","):
      (Path(folder) / task).mkdir()
      trials.append(Trial(Path(folder) / task, task, rng))
    for i in range(options.count):
      if time.monotonic() - began > options.minutes * 60:
        break
      trial = trials[i % len(trials)]
      trial.event(kinds[rng.integers(len(kinds))])
      trial.tidy()
      print(f"\r{i + 1} events, {sum(len(t.wrong) for t in trials)} wrong", end="", file=sys.stderr, flush=True)
    minutes = (time.monotonic() - began) / 60
    for trial in trials:
      steps = in_peace(trial)
      events = ", ".join(f"{count} x {kind}" for kind, count in sorted(trial.done.items()))
      print(f"\n{trial.task}: {events}; {trial.partial} partial saves; {steps} steps; {len(trial.wrong)} wrong")
      print("".join(f"  {line}\n" for line in trial.wrong[:20]), end="")
  print(f"{minutes:.0f} minutes; {'ALL IS WELL' if not any(t.wrong for t in trials) else 'WRONG'}")
  sys.exit(any(t.wrong for t in trials))


if __name__ == "__main__":
  os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
  main()
