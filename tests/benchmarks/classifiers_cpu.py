"""ResNet and VGG on two CPU cores: training steps and inference, ours against PyTorch's.

  python tests/benchmarks/classifiers_cpu.py [--rounds=8] [--steps=3] [--only=resnet18,vgg11]

Printed for each case, in one run: ms per step and the ratios torch / ours (above 1: ours is faster), to torch as it
comes and to torch with the C library's memory in huge pages, which `launch.py` sets for us and hardly anyone for torch.

  resnet18  32 x 32 with the small stem, batch 64, 10 classes
  resnet50  224 x 224, batch 8, 1000 classes
  vgg11     32 x 32 without batch norm, batch 64, hidden layers of 512, 10 classes

Ours is the compiled step of a run (`loop.train_function`: SGD with momentum, batch norm over the whole batch, numbers
looked at) and the compiled prediction of an evaluation, each on two devices, called on one fixed item. Torch's is
written for these cores: two threads, contiguous and channels last, fused SGD, gradients set to None; inference in
inference mode with batch norms folded into the convolutions, and plain; of all variants the fastest counts. Workers
take turns and are pinned to the same two cores, see interleave.py.
"""

import argparse
import contextlib
import os
import sys
import time
from types import SimpleNamespace

import numpy as np
from interleave import Worker, rounds

from flaxonomy.train import cpu

CORES = 2
CASES = {  # (our model, its fields, side, batch, classes)
  "resnet18": ("resnet18", {"small_images": True}, 32, 64, 10),
  "resnet50": ("resnet50", {}, 224, 8, 1000),
  "vgg11": ("vgg11", {"hidden_size": 512, "pool": 1}, 32, 64, 10),
}
KINDS = ("train", "infer")


def main() -> None:
  """Measures and prints; with --worker, answers one that does."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=8, help="turns of every variant (default: 8)")
  parser.add_argument("--steps", type=int, default=3, help="steps in a turn (default: 3)")
  parser.add_argument("--only", default=",".join(CASES), help="cases, with commas")
  parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.worker:
    {"ours": ours, "torch": theirs}[given.worker[0]](*given.worker[1:])
    return
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
  print(f"{CORES} cores, float32, {given.rounds} rounds of {given.steps} steps; ms per step, medians (least)")
  for case in given.only.split(","):
    for kind in KINDS:
      measure(case, kind, given)


def measure(case: str, kind: str, given: argparse.Namespace) -> None:
  """One line of the table."""
  layouts = ("contiguous", "channels_last") + (("folded",) if kind == "infer" else ())
  with contextlib.ExitStack() as stack:

    def start(*words, **env):
      command = [sys.executable, __file__, "--worker", *words, case, kind]
      return stack.enter_context(Worker(command, env)), str(given.steps)

    variants = {"ours": start("ours")}
    variants |= {(layout, False): start("torch", layout) for layout in layouts}
    variants |= {(layout, True): start("torch", layout, GLIBC_TUNABLES=f"{cpu.TUNABLE}=1") for layout in layouts}
    times = rounds(variants, given.rounds)
  mine = times.pop("ours")
  print(f"{case:9}{kind:6} ours {mine.median * 1e3:.0f} ({mine.least * 1e3:.0f})")
  for huge, named in ((False, "as it comes"), (True, "huge pages")):
    torch = {layout: t for (layout, pages), t in times.items() if pages == huge}
    said = "  ".join(f"{layout} {t.median * 1e3:.0f} ({t.least * 1e3:.0f})" for layout, t in torch.items())
    median = min(t.median for t in torch.values()) / mine.median
    least = min(t.least for t in torch.values()) / mine.least
    print(f"  torch {named}: {said}  torch / ours {median:.2f} ({least:.2f})", flush=True)


def answer(run) -> None:
  """Says ready, and answers every number of steps with the seconds of one; `run(steps)` waits for its end."""
  run(2)
  print("ready", flush=True)
  for line in sys.stdin:
    run(1)
    began = time.perf_counter()
    run(int(line))
    print((time.perf_counter() - began) / int(line), flush=True)


def images(side: int, batch: int, classes: int):
  """Random images [B, side, side, 3] uint8 and labels [B]."""
  rng = np.random.default_rng(0)
  return rng.integers(0, 256, (batch, side, side, 3), np.uint8), rng.integers(0, classes, batch)


def ours(case: str, kind: str) -> None:
  """Worker: our compiled step, in a process set up as `launch.py` does."""
  cpu.huge_pages()
  cpu.one_thread_each(CORES)
  import jax
  from jax.sharding import PartitionSpec as P

  from flaxonomy.configs.base import Config, Data, Model, Optim, Train
  from flaxonomy.data.pipeline import Info
  from flaxonomy.train import loop, step, tasks
  from flaxonomy.train.sharding import DATA

  jax.config.update("jax_num_cpu_devices", CORES)
  name, fields, side, batch, classes = CASES[case]
  config = Config(
    model=Model(name, fields), data=Data(batch_size=batch), optim=Optim("momentum", lr=0.01), train=Train(steps=10**6)
  )
  mesh = loop.make_mesh()
  info = Info("random", tuple(map(str, range(classes))), (side, side, 3), batch)
  task = tasks.build(config, info, mesh.size)
  feed = SimpleNamespace(fetch=lambda resident, item: item)
  session = loop.Session(config, mesh, info, task, feed, feed)
  x, y = images(side, batch, classes)
  item = {"image": x, "label": y.astype(np.int32), "index": np.arange(batch, dtype=np.int32),
          "mask": np.ones(batch, np.float32)}  # fmt: skip
  state = loop.initial_state(session)
  if kind == "train":
    function = loop.train_function(session, 1)
    item = jax.tree.map(lambda a: a[None], item)

    def run(steps):
      nonlocal state
      for _ in range(steps):
        state, metrics = function(state, {}, item, np.int32(1))
        float(metrics["loss"][0])

  else:
    function = step.pmapped(task.predict_step, mesh, (P(), P(DATA)), P(DATA))

    def run(steps):
      for _ in range(steps):
        np.asarray(function(state.replace(opt_state=None), item)["probs"])

  answer(run)


def theirs(layout: str, case: str, kind: str) -> None:
  """Worker: the same in torch."""
  import torch
  import torch_models

  torch.set_num_threads(CORES)
  _, _, side, batch, classes = CASES[case]
  model = {
    "resnet18": lambda: torch_models.resnet((2, 2, 2, 2), False, classes, True),
    "resnet50": lambda: torch_models.resnet((3, 4, 6, 3), True, classes),
    "vgg11": lambda: torch_models.vgg((1, 1, 2, 2, 2), 512, 1, classes),
  }[case]()
  x, y = images(side, batch, classes)
  x, y = torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(y)
  form = torch.contiguous_format if layout == "contiguous" else torch.channels_last
  if layout == "folded":
    from torch.fx.experimental import optimization

    model = optimization.fuse(model.eval())
  model = model.to(memory_format=form)
  pixels = lambda: x.float().div_(255).contiguous(memory_format=form)
  if kind == "train":
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)

    def run(steps):
      for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(pixels()), y)
        loss.backward()
        optimizer.step()
        loss.item()

  else:
    model.eval()

    def run(steps):
      with torch.inference_mode():
        for _ in range(steps):
          torch.softmax(model(pixels()), 1).numpy()

  answer(run)


if __name__ == "__main__":
  main()
