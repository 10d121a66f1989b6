"""Twenty thousand tiny steps: memory, open files and threads must stay flat, and the step be compiled once.

  python tests/soak/long_run.py            20,000 steps, then 500 checkpoints, one a step

Prints what was measured every 2,000 steps and a verdict; exit code 1 if it is not flat.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 2)

from flaxonomy.configs.base import Config, Data, Model, Optim, Train  # noqa: E402
from flaxonomy.train import log, loop  # noqa: E402

MODEL = Model("deep_convnet", {"features": (4, 4, 8), "hidden_size": 8, "dropout": 0.5})


def usage():
  """(resident memory in MB, open files, threads, memory maps) of this process."""
  pages = int(Path("/proc/self/statm").read_text().split()[1])
  maps = Path("/proc/self/maps").read_text().count("\n")
  return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, len(os.listdir("/proc/self/fd")), threading.active_count(), maps


def slope(steps, values):
  """Growth in 1,000 steps over the second half, where everything has found its size."""
  half = len(steps) // 2
  return float(np.polyfit(steps[half:], values[half:], 1)[0] * 1000)


def main():
  """Runs, measures, judges."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=20_000)
  parser.add_argument("--checkpoints", type=int, default=500)
  options = parser.parse_args()
  every, seen, compiled = max(1, options.steps // 20), [], []
  push, train_function = log.Log.push, loop.train_function

  def watched(self, first, count, metrics):
    push(self, first, count, metrics)
    if (first + count) % every == 0:
      seen.append((first + count, *usage()))
      print("step {:6d}  {:7.1f} MB  {:3d} files  {:3d} threads  {:4d} maps".format(*seen[-1]), flush=True)

  def counted(*args):
    compiled.append(train_function(*args))
    return compiled[-1]

  log.Log.push, loop.train_function = watched, counted
  train = Train(options.steps, eval_every=options.steps // 10, log_every=10, accumulate=1, tensorboard=False)
  with tempfile.TemporaryDirectory() as folder:
    began = time.monotonic()
    loop.run(Config("classification", MODEL, Data("digits", batch_size=32), Optim("adam"), train), folder, quiet=True)
    print(f"{options.steps} steps in {time.monotonic() - began:.0f} s")
  steps, memory, files, threads, maps = (np.array(x) for x in zip(*seen))
  programs = sum(function._cache_size() for function in compiled)
  verdicts = {
    f"memory grows by {slope(steps, memory):.2f} MB in 1,000 steps": slope(steps, memory) < 1,
    f"open files {files.min()} to {files.max()}": files[-1] <= files[len(files) // 2] + 2,
    f"threads {threads.min()} to {threads.max()}": threads[-1] <= threads[len(threads) // 2] + 2,
    f"memory maps {maps.min()} to {maps.max()}": slope(steps, maps) < 5,
    f"the step was compiled {programs} time(s)": programs == 1,
  }
  train = Train(options.checkpoints, eval_every=10**6, checkpoint_every=1, keep_last=3, tensorboard=False)
  with tempfile.TemporaryDirectory() as folder:
    loop.run(Config("classification", MODEL, Data("digits", batch_size=32), Optim("adam"), train), folder, quiet=True)
    kept = sum(p.name.isdigit() for p in (Path(folder) / "checkpoints").iterdir())
    size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file()) / 1e6
    verdicts[f"after {options.checkpoints} checkpoints {kept} are kept, {size:.2f} MB in all"] = kept <= 5
  for told, well in verdicts.items():
    print(f"{'ok ' if well else 'BAD'}  {told}")
  sys.exit(not all(verdicts.values()))


if __name__ == "__main__":
  main()
