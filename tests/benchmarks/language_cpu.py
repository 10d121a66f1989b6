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

Ours is the compiled step of a run on two devices, and `decoding.greedy` mapped over these, for a batch of 1 on one
device of two threads. Torch's is written for these cores: two threads, eager, fused optimizers, gradients set to None,
queries, keys and values in one product, `scaled_dot_product_attention`; the LSTM batch first and time first, decoding
also on one thread; of all variants the fastest counts. Workers take turns and are pinned to the same two cores, see
interleave.py.

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

  from flaxonomy import models

  jax.config.update("jax_num_cpu_devices", devices)
  name, fields, batch, length = CASES[case]
  model = models.create(name, **fields, **(DRY if name == "gpt2" else {}))
  answer((training if case in TRAINED else writing)(model, batch, length, cut and int(cut)))


def training(model, batch: int, length: int, cut: int | None):
  """A function that makes a step of a run on all devices."""
  from flaxonomy.train import loop

  state, function = prepared(model, batch, length, cut, loop.make_mesh(), 1, lambda resident, item: item)
  item = {"tokens": text(batch, length)[None]}

  def run():
    nonlocal state
    state, metrics = function(state, {}, item, np.int32(1))
    float(metrics["loss"][0])

  return run


def prepared(model, batch: int, length: int, cut: int | None, mesh, most: int, fetch):
  """(the first state, a run's compiled function of up to `most` steps).

  Args:
    model: GPT or RecurrentLM.
    batch, length: B and T; a batch is {"tokens": [B, T + 1]}.
    cut: microbatches; None: a run's own.
    mesh: of the devices.
    most: steps of a dispatch.
    fetch: as in `pipeline.Feed`.
  """
  import jax
  import jax.numpy as jnp

  from flaxonomy.configs.base import Config, Data, Optim, Train
  from flaxonomy.train import loop, losses, optim, sharding, step, tasks

  adam = Optim("adam", lr=1e-3, clip_norm=5.0)
  settings = adam if hasattr(model, "cell") else Optim("adamw", lr=1e-3, weight_decay=0.1)
  config = Config(data=Data(batch_size=batch), optim=settings, train=Train(steps=10**6, accumulate=cut))
  variables = lambda rng: model.init(rng, jnp.zeros((1, length), jnp.int32), train=False)["params"]
  params = jax.eval_shape(variables, jax.random.PRNGKey(0))
  optimizer = optim.create(settings, config.train.steps, params)

  def init(rng):
    params = variables(rng)
    return step.State(jnp.zeros([], jnp.int32), rng, params, {}, optimizer.init(params))

  def loss(params, collections, batch, rng):
    tokens = batch["tokens"]
    logits = model.apply({"params": params}, tokens[:, :-1], train=True, rngs={"dropout": rng})["logits"]
    entropy = losses.nll(jax.nn.log_softmax(logits), tokens[:, 1:])
    return {"loss": (entropy.sum(), jnp.float32(entropy.size))}, collections

  train_step = step.supervised(
    loss=loss, optimizer=optimizer, plan=sharding.plan(params, 1), augment=lambda rng, batch: batch,
    accumulate=tasks.microbatches(config, mesh.size, params, {}),
  )  # fmt: skip
  specs = step.specs(jax.eval_shape(init, jax.random.PRNGKey(0)), 1)
  task = SimpleNamespace(train_step=train_step, init=init, specs=specs)
  session = loop.Session(config, mesh, None, task, SimpleNamespace(fetch=fetch), None)
  return loop.initial_state(session), loop.train_function(session, most)


def writing(model, batch: int, length: int, cut: None):
  """A function that writes `length` tokens behind the first, each device its rows."""
  import jax
  from jax.sharding import PartitionSpec as P

  from flaxonomy.models.sequence import decoding
  from flaxonomy.train import loop, step
  from flaxonomy.train.sharding import DATA

  begin = text(batch, 0)
  params = jax.jit(lambda: model.init(jax.random.PRNGKey(0), begin, train=False)["params"])()

  def write(params, begin):
    def read(tokens, cache):
      stages = model.apply({"params": params}, tokens, cache, train=False)
      return stages["logits"][:, -1], stages["cache"]

    return decoding.greedy(read, model.start(len(begin), length), begin, decoding.Rules(length + 1))

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
