"""Language models on two CPU cores: training and cached greedy decoding, ours against PyTorch's.

  python tests/benchmarks/language_cpu.py [--rounds=8] [--only=lstm,gpt] [--cores=1]

Printed for each case, in one run: tokens/s and the ratios ours / torch (above 1: ours is faster), to torch as it comes
and to torch with the C library's memory in huge pages, which `launch.py` sets for us and hardly anyone for torch.

  lstm      training, by letters: 66 letters, 2 layers of 256, sequences of 100, batch 32, Adam, gradients clipped to 5
  gpt       training: 66 letters, 4 layers of 128, 4 heads, sequences of 128, batch 16, AdamW, no dropout
  gpt64     the same with batch 64
  write1    greedy decoding of 256 letters with the cache, the same GPT, batch 1
  write16   the same with batch 16
  gpt2      greedy decoding of 64 tokens, GPT-2 of 124 million parameters, batch 1

Ours is the compiled step of a run on two devices, and `decoding.greedy` with a growing cache mapped over these, for a
batch of 1 on one device of two threads. Torch's is written for these cores: two threads, eager, fused optimizers,
gradients set to None, queries, keys and values in one product, `scaled_dot_product_attention`; the LSTM batch first and
time first, decoding also on one thread; of all variants the fastest counts. Workers take turns and are pinned to the
same two cores, see interleave.py.

With --cores=1 all have one core, one device, one thread, and what is read is processor time: for machines that others
use too, on which torch's threads wait for one another.
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
CLOCKS = {1: time.process_time, 2: time.perf_counter}
LETTERS, GPT2 = 66, {"vocab_size": 50257, "num_layers": 12, "hidden_size": 768, "num_heads": 12}
SMALL = {"vocab_size": LETTERS, "num_layers": 4, "hidden_size": 128, "num_heads": 4}
CASES = {  # (our model, its fields, batch, tokens of a sequence)
  "lstm": ("lstm_lm", {"vocab_size": LETTERS, "hidden_size": 256, "num_layers": 2}, 32, 100),
  "gpt": ("gpt2", SMALL, 16, 128),
  "gpt64": ("gpt2", SMALL, 64, 128),
  "write1": ("gpt2", SMALL, 1, 256),
  "write16": ("gpt2", SMALL, 16, 256),
  "gpt2": ("gpt2", GPT2, 1, 64),
}
DRY = {"embedding_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0}
TRAINED = ("lstm", "gpt", "gpt64")
VARIANTS = {"lstm": ("batch_first", "time_first"), "gpt": ("eager",), "gpt64": ("eager",)}


def main() -> None:
  """Measures and prints; with --worker, answers one that does."""
  global CORES
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=8, help="turns of every variant (default: 8)")
  parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, about (default: 1)")
  parser.add_argument("--only", default=",".join(CASES), help="cases, with commas")
  parser.add_argument("--cores", type=int, default=CORES, choices=CLOCKS, help="see above (default: 2)")
  parser.add_argument("--microbatches", default="", help="of ours in training, with commas; default: a run's own")
  parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
  given = parser.parse_args()
  CORES = given.cores
  if given.worker:
    {"ours": ours, "torch": theirs}[given.worker[0]](*given.worker[1:])
    return
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
  print(f"cores: {CORES}, float32, {given.rounds} rounds of {given.seconds} s; tokens/s, medians (best)")
  for case in given.only.split(","):
    measure(case, given)


def measure(case: str, given: argparse.Namespace) -> None:
  """A few lines for a case."""
  cuts = given.microbatches.split(",") if case in TRAINED else [""]
  torches = VARIANTS.get(case, ("1", "2")[:CORES])
  with contextlib.ExitStack() as stack:

    def start(*words, **env):
      command = [sys.executable, __file__, f"--cores={CORES}", "--worker", *words]
      return stack.enter_context(Worker(command, env)), str(given.seconds)

    variants = {("ours", cut): start("ours", case, *filter(None, [cut])) for cut in cuts}
    variants |= {(kind, False): start("torch", case, kind) for kind in torches}
    variants |= {(kind, True): start("torch", case, kind, GLIBC_TUNABLES=f"{cpu.TUNABLE}=1") for kind in torches}
    times = rounds(variants, given.rounds)
  _, _, batch, length = CASES[case]
  rate = lambda seconds: batch * length / seconds
  shown = lambda t: f"{rate(t.median):,.0f} ({rate(t.least):,.0f})"
  for cut in cuts:
    mine = times["ours", cut]
    print(f"{case:8} ours {f'in {cut} ' if cut else ''}{shown(mine)}")
    for huge, named in ((False, "as it comes"), (True, "huge pages")):
      torch = {kind: t for (kind, pages), t in times.items() if kind != "ours" and pages == huge}
      median = min(t.median for t in torch.values()) / mine.median
      least = min(t.least for t in torch.values()) / mine.least
      said = "  ".join(f"{kind} {shown(t)}" for kind, t in torch.items())
      print(f"  torch {named}: {said}  ours / torch {median:.2f} ({least:.2f})", flush=True)


def answer(run) -> None:
  """Says ready, and answers every number of seconds with those that one run took; `run()` waits for its end."""
  clock = CLOCKS[CORES]
  run()
  print("ready", flush=True)
  for line in sys.stdin:
    began = clock()
    run()
    count = max(1, round(float(line) / (clock() - began)))
    began = clock()
    for _ in range(count):
      run()
    print((clock() - began) / count, flush=True)


def text(batch: int, length: int) -> np.ndarray:
  """Random letters [B, T + 1]."""
  return np.random.default_rng(0).integers(0, LETTERS, (batch, length + 1)).astype(np.int32)


def ours(case: str, cut: str | None = None) -> None:
  """Worker: our compiled step or decoding, in a process set up as `launch.py` does."""
  cpu.huge_pages()
  devices = CORES if CASES[case][2] > 1 else 1
  cpu.one_thread_each(devices)
  import jax

  jax.config.update("jax_num_cpu_devices", devices)
  name, fields, batch, length = CASES[case]
  fields = fields | (DRY if name == "gpt2" else {})
  answer((training if case in TRAINED else writing)(name, fields, batch, length, cut and int(cut)))


def training(name: str, fields: dict, batch: int, length: int, cut: int | None):
  """A function that makes a step of a run on all devices."""
  from flaxonomy.train import loop

  fetch = lambda resident, item: item
  state, function = prepared(name, fields, batch, length, loop.make_mesh(), 1, fetch, accumulate=cut)
  item = {"tokens": text(batch, length)[None], "mask": np.ones((1, batch, length), np.float32)}

  def run():
    nonlocal state
    state, metrics = function(state, {}, item, np.int32(1))
    float(metrics["loss"][0])

  return run


def prepared(name: str, fields: dict, batch: int, length: int, mesh, most: int, fetch, **train):
  """(the first state, the compiled function of up to `most` steps) of a run.

  Args:
    name, fields: the model.
    batch, length: B and T; a batch is {"tokens": [B, T + 1], "mask": [B, T]}.
    mesh: of the devices.
    most: steps of a dispatch.
    fetch: as in `pipeline.Feed`.
    **train: fields of `configs.base.Train`.
  """
  from flaxonomy.configs.base import Config, Data, Model, Optim, Text, Train
  from flaxonomy.train import loop, tasks

  adam = Optim("adam", lr=1e-3, clip_norm=5.0)
  config = Config(
    task="language_model",
    model=Model(name, {key: value for key, value in fields.items() if key != "vocab_size"}),
    data=Data(batch_size=batch, text=Text("chars", length=length)),
    optim=adam if name == "lstm_lm" else Optim("adamw", lr=1e-3, weight_decay=0.1),
    train=Train(steps=10**6, **train),
  )
  size = fields["vocab_size"]
  letters = SimpleNamespace(size=size, unit="character", weights=lambda: np.ones(size))
  task = tasks.build(config, SimpleNamespace(tokenizers={"text": letters}), mesh.size)
  session = loop.Session(config, mesh, None, task, SimpleNamespace(fetch=fetch), None)
  return loop.initial_state(session), loop.train_function(session, most)


def writing(name: str, fields: dict, batch: int, length: int, cut: None):
  """A function that writes `length` tokens behind the first, each device its rows."""
  import jax
  from jax.sharding import PartitionSpec as P

  from flaxonomy import models
  from flaxonomy.models.sequence import attention, decoding
  from flaxonomy.train import loop, step
  from flaxonomy.train.sharding import DATA

  model, begin = models.create(name, **fields), text(batch, 0)
  params = jax.jit(lambda: model.init(jax.random.PRNGKey(0), begin, train=False)["params"])()

  def write(params, begin):
    def read(tokens, cache):
      stages = model.apply({"params": params}, tokens, cache, train=False)
      return stages["logits"][:, -1], stages["cache"]

    return decoding.greedy(read, model.start(len(begin), 1), begin, decoding.Rules(length + 1), attention.grow)

  mapped = step.pmapped(write, loop.make_mesh(), (P(), P(DATA)), P(DATA))
  return lambda: np.asarray(mapped(params, begin))


def theirs(case: str, kind: str) -> None:
  """Worker: the same in torch."""
  import torch
  import torch_language

  torch.set_num_threads(1 if kind == "1" else CORES)
  name, fields, batch, length = CASES[case]
  if name == "lstm_lm":
    model = torch_language.LSTM(LETTERS, fields["hidden_size"], fields["num_layers"], kind == "batch_first")
  else:
    model = torch_language.GPT(*fields.values(), 1024)
  if case not in TRAINED:
    first = torch.from_numpy(text(batch, 0)).long()
    answer(lambda: model.greedy(first, length).numpy())
    return
  tokens = torch.from_numpy(text(batch, length)).long()
  x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
  if name == "lstm_lm":
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
  else:
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1, fused=True)

  def run():
    optimizer.zero_grad(set_to_none=True)
    loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
    loss.backward()
    if name == "lstm_lm":
      torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    loss.item()

  answer(run)


if __name__ == "__main__":
  main()
