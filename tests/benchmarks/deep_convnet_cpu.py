"""DeepConvNet on MNIST, two CPU cores: our whole training against PyTorch's, and against our own bare step.

  python tests/benchmarks/deep_convnet_cpu.py [--data_dir=DIR] [--rounds=12] [--steps=40] [--quick]

DIR holds MNIST as TFDS prepares it; without it random images of the same shape are used. Printed are, in one run:

  1. ms per step at batch 128 and the ratios torch / ours (above 1: ours is faster), for torch in the environment as it
     is and with glibc's malloc told to keep its memory, which torch profits from and hardly anyone sets. Of its plain
     and its fused Adam the faster one counts.
  2. whole loop / bare step; at most 1.05 is the demand.
  3. seconds from the start of a process to the end of the first step, without and with a compilation cache.

Ours is `loop.run` itself: config, feed, progress line, metrics of every step read, every tenth written to
metrics.jsonl. Only its feed is held between rounds, and evaluation and checkpoints lie beyond the last step. A round
begins and ends when the feed is asked for an item, with one step in flight both times. The bare step is the very
function `loop.run` compiled, called by hand on one fixed item, waited for at the end of a round.

Torch's is as fast as we know how to write it: channels last, two threads, the decoded set in memory, a permutation
each epoch, `index_select` for a batch, gradients set to None, dropout as ours, the loss read every step (ours reads the
accuracy too). Workers take turns and are pinned to the same two cores, see interleave.py.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from interleave import Times, Worker, rounds

from flaxonomy.configs import base, mnist
from flaxonomy.train import cpu

CORES, BATCH, RANDOM = 2, 128, 12_800
FAR = 1_000_000  # steps, more than are ever made
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1000000000", "MALLOC_TRIM_THRESHOLD_": "10000000000"}
HUGE = {"GLIBC_TUNABLES": f"{cpu.TUNABLE}=1"}  # as launch.py has it for us


def main() -> None:
  """Measures and prints; with --worker, answers one that does."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data_dir", help="folder of TFDS's prepared MNIST; default: random images")
  parser.add_argument("--rounds", type=int, default=12, help="turns of every variant (default: 12)")
  parser.add_argument("--steps", type=int, default=40, help="steps in a turn (default: 40)")
  parser.add_argument("--quick", action="store_true", help="3 rounds of 10 steps")
  parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.worker:
    {"ours": ours, "start": start, "torch": theirs}[given.worker[0]](*given.worker[1:])
    return
  if given.quick:
    given.rounds, given.steps = 3, 10
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
  with tempfile.TemporaryDirectory() as folder:
    measure(given, Path(folder))


def measure(given: argparse.Namespace, folder: Path) -> None:
  """All three measurements, printed as they come."""
  config, what = prepare(given.data_dir, folder)
  print(f"DeepConvNet, batch {BATCH}, float32, {what}; {CORES} cores, {given.rounds} rounds of {given.steps} steps")

  def worker(*words, **env):
    command = [sys.executable, __file__, "--worker", *map(str, words)]
    return Worker(command, env | {"FLAXONOMY_CACHE": str(folder / "cache")})

  with contextlib.ExitStack() as stack:
    mine = stack.enter_context(worker("ours", config, folder / "run"))
    variants = {"ours, loop.run": (mine, f"loop {given.steps}"), "ours, bare step": (mine, f"bare {given.steps}")}
    if importlib.util.find_spec("torch") is None:
      print("torch is not installed, so ours is compared with itself only; type: pip install 'flaxonomy[parity]'")
    else:
      for name, env in (("torch", {}), ("torch, huge pages", HUGE), ("torch, malloc tuned", MALLOC | HUGE)):
        for adam in ("plain", "fused"):
          process = stack.enter_context(worker("torch", folder / "data.npz", adam, **env))
          variants[f"{name}, {adam} adam"] = (process, str(given.steps))
    report(rounds(variants, given.rounds))
  starts(worker, config, folder, 1 if given.quick else 3)


def prepare(data_dir: str | None, folder: Path) -> tuple[Path, str]:
  """Writes config.json for us and the same examples, decoded, as data.npz for torch.

  Returns:
    (the config's file, what the data are)
  """
  config = base.override(mnist.get_config(), {"data.batch_size": BATCH, "data.data_dir": data_dir, "train.steps": FAR,
                         "train.eval_every": FAR, "train.cpu_devices": CORES, "train.devices": CORES})  # fmt: skip
  if data_dir is None:
    config = base.override(
      config,
      {
        "data.name": "folder",
        "data.data_dir": str(random_images(folder / "images")),
        "data.image_size": (28, 28),
        "data.channels": 1,
      },
    )
  from flaxonomy.data import images, sources

  records = sources.open_source(config.data, "train").records
  pairs = [(images.decode(r["image"], 1), r["label"]) for r in map(records.__getitem__, range(len(records)))]
  np.savez(folder / "data.npz", images=np.stack([i for i, _ in pairs]), labels=np.array([t for _, t in pairs]))
  path = folder / "config.json"
  path.write_text(json.dumps(base.to_dict(config)))
  return path, f"{len(pairs):,} {'random images' if data_dir is None else 'images of MNIST'}"


def random_images(root: Path) -> Path:
  """A folder of random 28 x 28 images in ten classes, with a few for the test split."""
  from PIL import Image

  rng = np.random.default_rng(0)
  for split, count in (("train", RANDOM), ("test", 100)):
    for i in range(count):
      path = root / split / str(i % 10) / f"{i:05}.png"
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(rng.integers(0, 256, (28, 28), np.uint8)).save(path)
  return root


def report(times: dict[str, Times]) -> None:
  """The table of times, and the first two measurements' ratios."""
  print(f"\n{'ms per step':44}{'median':>9}{'least':>9}")
  for name, t in times.items():
    print(f"  {name:42}{t.median * 1e3:9.2f}{t.least * 1e3:9.2f}")
  whole, bare = list(times.values())[:2]
  print(f"\n{'ratios':44}{'medians':>9}{'least':>9}")
  for name in ("torch", "torch, huge pages", "torch, malloc tuned"):
    if both := [t for key, t in times.items() if key in (f"{name}, plain adam", f"{name}, fused adam")]:
      median, least = min(t.median for t in both), min(t.least for t in both)
      print(f"  {name + ' / ours, whole training':42}{median / whole.median:9.3f}{least / whole.least:9.3f}")
  print(f"  {'whole loop / bare step':42}{whole.median / bare.median:9.3f}{whole.least / bare.least:9.3f}")


def starts(worker, config: Path, folder: Path, count: int) -> None:
  """The third measurement: a start with an empty cache, then one with the cache it left; `count` times."""
  seconds = {"cold": Times(), "warm": Times()}
  for i in range(count):
    for kind, t in seconds.items():
      if kind == "cold":
        shutil.rmtree(folder / "cache", ignore_errors=True)
      began = time.monotonic()
      with worker("start", config, folder / f"{kind}{i}"):  # ready: the first step is done
        t.rounds.append(time.monotonic() - began)
  cold, warm = seconds["cold"].median, seconds["warm"].median
  print(
    f"\nstart of the process to the end of the first step: {cold:.1f} s cold, {warm:.1f} s with a warm cache,", end=" "
  )
  print(f"{cold - warm:.1f} s saved (medians of {count})")


def ours(config: str, workdir: str) -> None:
  """Worker: "loop N" answers with the seconds of a step in `loop.run`, "bare N" with those of the bare step."""
  loop, session = opened(config)
  most = loop.steps_per_dispatch(session.config)
  step = loop.train_function(session, most)
  bare = bare_rounds(loop, session, step, most)

  def held(items):
    print("ready", flush=True)
    for line in sys.stdin:
      kind, count = line.split()
      if kind == "bare":
        print(bare(int(count)), flush=True)
        continue
      yield from itertools.islice(items, 2)  # asked for the next item now, the loop has one step in flight
      began = time.perf_counter()
      yield from itertools.islice(items, int(count))
      print((time.perf_counter() - began) / int(count) / most, flush=True)

  run_held(loop, session, held, step, workdir)


def start(config: str, workdir: str) -> None:
  """Worker: ready when the first step of `loop.run` is done and its metrics are read, compilation cached."""
  loop, session = opened(config, cache=True)

  def held(items):
    yield from itertools.islice(items, 2)
    print("ready", flush=True)
    sys.stdin.read()

  run_held(loop, session, held, loop.train_function(session, loop.steps_per_dispatch(session.config)), workdir)


def opened(config: str, cache: bool = False):
  """(the module `loop`, the config's session), after the launcher's preparations."""
  cpu.huge_pages()
  cpu.one_thread_each(CORES)
  import jax

  values = base.from_dict(json.loads(Path(config).read_text()))
  jax.config.update("jax_num_cpu_devices", values.train.cpu_devices)
  from flaxonomy.train import compile_cache, loop

  if cache:
    compile_cache.enable()
  return loop, loop.prepare(values)


def run_held(loop, session, held, step, workdir) -> None:
  """`loop.run` on a prepared session with a given compiled step, its training items passed through `held`."""

  def train_items(*args):
    yield from held(session.train.train_items(*args))
    raise SystemExit  # no line is left to answer: no evaluation, no checkpoint

  loop.prepare = lambda config: session._replace(train=session.train._replace(train_items=train_items))
  loop.train_function = lambda session, most: step
  loop.run(session.config, workdir)


def bare_rounds(loop, session, step, most):
  """A function: count -> seconds of a step, of `count` dispatches on one item from a state of its own."""
  import jax

  state, count = loop.initial_state(session), np.int32(most)
  item = next(session.train.train_items([(0, most)], most))

  def bare(dispatches):
    nonlocal state
    state, _ = jax.block_until_ready(step(state, session.train.resident, item, count))
    began = time.perf_counter()
    for _ in range(dispatches):
      state, _ = step(state, session.train.resident, item, count)
    jax.block_until_ready(state)
    return (time.perf_counter() - began) / dispatches / most

  return bare


def theirs(data: str, adam: str) -> None:
  """Worker: a number of steps is answered with the seconds of one, in torch."""
  import torch
  from torch import nn
  from torch.nn import functional

  torch.set_num_threads(CORES)
  torch.manual_seed(0)
  channels = [1, 16, 16, 32, 32, 64, 64]
  paddings = [1, 1, 1, 2, 1, 1]

  class DeepConvNet(nn.Module):
    def __init__(self):
      super().__init__()
      pairs = zip(channels, channels[1:], paddings)
      self.convs = nn.ModuleList([nn.Conv2d(i, o, 3, padding=p) for i, o, p in pairs])
      self.fc1, self.fc2 = nn.Linear(1024, 50), nn.Linear(50, 10)

    def forward(self, x):
      for i, conv in enumerate(self.convs):
        x = conv(x)
        x = functional.relu(functional.max_pool2d(x, 2) if i % 2 else x)
      x = functional.dropout(functional.relu(self.fc1(x.flatten(1))), 0.5)
      return functional.dropout(self.fc2(x), 0.5)

  model = DeepConvNet().to(memory_format=torch.channels_last)
  optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=adam == "fused")
  loaded = np.load(data)
  images, labels = torch.from_numpy(loaded["images"]), torch.from_numpy(loaded["labels"].astype(np.int64))

  def batches():  # the last, smaller batch of an epoch is left out
    while True:
      for index in torch.randperm(len(images)).split(BATCH)[: len(images) // BATCH]:
        x = images.index_select(0, index).permute(0, 3, 1, 2)  # [B, C, H, W], still channels last in memory
        yield x.float().div_(255), labels.index_select(0, index)

  stream = batches()

  def train(steps):
    for _ in range(steps):
      x, y = next(stream)
      optimizer.zero_grad(set_to_none=True)
      loss = functional.cross_entropy(model(x), y)
      loss.backward()
      optimizer.step()
      loss.item()

  train(3)
  print("ready", flush=True)
  for line in sys.stdin:
    train(2)
    began = time.perf_counter()
    train(int(line))
    print((time.perf_counter() - began) / int(line), flush=True)


if __name__ == "__main__":
  main()
