"""Checks and speeds on an accelerator: everything that a machine without one cannot say.

  python tests/benchmarks/accelerator.py [--steps=400] [--data_dir=DIR]

Prints, on the first device that is not a CPU (on a CPU if there is none, to see that the script runs):

  1. losses of ten SGD steps there and on the CPU, in float32 at the highest matmul precision, and their largest
     relative difference; 1e-4 is the demand;
  2. whether two runs give the same bits (XLA_FLAGS=--xla_gpu_deterministic_ops=true promises it on GPUs);
  3. DeepConvNet training, batch 128 and 1024: examples/s of the compiled step, data on the device, for 1, 16 and
     100 steps in a dispatch, float32 and bfloat16;
  4. where torch with CUDA is installed, the same in PyTorch, channels last, bfloat16 autocast, torch.compile and
     a fused Adam, its data on the device too, and the ratio.

DIR holds MNIST as TFDS prepares it; without it digits are enlarged to 28 x 28.
"""

import argparse
import importlib.util
import platform
import time

import jax
import numpy as np
from jax.sharding import Mesh

from flaxonomy.configs import base, digits, mnist
from flaxonomy.train import loop
from flaxonomy.train.sharding import DATA


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=400, help="steps of a reading (default: 400)")
  parser.add_argument("--data_dir", help="folder of TFDS's prepared MNIST; default: digits")
  given = parser.parse_args()
  device = jax.devices()[0]
  print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, Python {platform.python_version()}")
  config = base.override(digits.get_config(), {"train.accumulate": 1})
  if given.data_dir:
    config = base.override(mnist.get_config(), {"data.data_dir": given.data_dir, "train.accumulate": 1})
  compare(config, device)
  speeds = {}
  for batch in (128, 1024):
    for dtype in ("float32", "bfloat16"):
      for most in (1, 16, 100):
        rate = speed(base.override(config, {"data.batch_size": batch, "train.dtype": dtype}), device, most, given.steps)
        speeds[batch, dtype, most] = rate
        print(f"batch {batch:>4}  {dtype:>8}  {most:>3} steps a dispatch  {rate:>12,.0f} examples/s", flush=True)
  if importlib.util.find_spec("torch") is None or not __import__("torch").cuda.is_available():
    print("torch with CUDA is not installed: no ratio")
    return
  for batch in (128, 1024):
    rate = torch_speed(batch, given.steps)
    best = max(value for (b, _, _), value in speeds.items() if b == batch)
    print(f"batch {batch:>4}  torch.compile, autocast     {rate:>12,.0f} examples/s; ours / torch {best / rate:.2f}")


def prepare(config, device):
  """Session, state and items on one device."""
  session = loop.prepare(config)._replace(mesh=Mesh(np.array([device]), (DATA,)))
  source, info = loop.pipeline.open_split(config.data, config.data.train_split)
  feed = loop.pipeline.open_feed(config.data, source, info, config.seed, config.data.batch_size, session.mesh)
  return session._replace(train=feed, task=loop.tasks.build(config, info, 1))


def losses(config, device, steps=10):
  """Losses of the first steps on a device."""
  session = prepare(config, device)
  state, function, found = loop.initial_state(session), loop.train_function(session, 1), []
  for items in session.train.train_items(((i, 1) for i in range(steps)), 1):
    state, metrics = function(state, session.train.resident, items, np.int32(1))
    found.append(float(metrics["loss"][0]))
  return np.array(found)


def compare(config, device):
  """Prints 1 and 2."""
  plain = {"optim.name": "sgd", "optim.lr": 0.05, "optim.schedule": "constant", "model.fields.dropout": 0.0}
  plain = base.override(config, plain | {"train.devices": 1})
  with jax.default_matmul_precision("highest"):
    here, again, cpu = losses(plain, device), losses(plain, device), losses(plain, jax.devices("cpu")[0])
  print(f"ten SGD steps against the CPU: largest relative difference {np.abs(here / cpu - 1).max():.1e}")
  print(f"twice the same bits: {'yes' if (here == again).all() else 'no'}")


def speed(config, device, most, steps):
  """Examples/s of the compiled training, compilation excluded."""
  session = prepare(base.override(config, {"train.devices": 1}), device)
  state, function = loop.initial_state(session), loop.train_function(session, most)
  counts = [most] * max(2, steps // most)
  began = None
  for items in session.train.train_items(((i * most, most) for i in range(1 + len(counts))), most):
    state, metrics = function(state, session.train.resident, items, np.int32(most))
    if began is None:
      jax.block_until_ready(metrics)
      began = time.perf_counter()
  jax.block_until_ready(metrics)
  return sum(counts) * config.data.batch_size / (time.perf_counter() - began)


def torch_speed(batch, steps):
  """The same training in PyTorch at its best."""
  import torch
  from torch import nn

  layers, inputs = [], 1
  for features, second in ((16, 1), (32, 2), (64, 1)):
    layers += [nn.Conv2d(inputs, features, 3, padding=1), nn.ReLU(), nn.Conv2d(features, features, 3, padding=second)]
    layers += [nn.ReLU(), nn.MaxPool2d(2)]
    inputs = features
  layers += [nn.Flatten(), nn.Linear(1024, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 10), nn.Dropout(0.5)]
  model = nn.Sequential(*layers).cuda().to(memory_format=torch.channels_last)
  optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
  images = torch.randint(0, 256, (60_000, 1, 28, 28), dtype=torch.uint8, device="cuda")
  labels = torch.randint(0, 10, (60_000,), device="cuda")

  @torch.compile(mode="max-autotune")
  def forward(x, y):
    with torch.autocast("cuda", torch.bfloat16):
      logits = model(x)
    return nn.functional.cross_entropy(logits.float(), y)

  def step():
    at = torch.randint(0, len(images), (batch,), device="cuda")
    loss = forward((images[at].float() / 255).contiguous(memory_format=torch.channels_last), labels[at])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()

  for _ in range(20):
    step()
  torch.cuda.synchronize()
  began = time.perf_counter()
  for _ in range(steps):
    step()
  torch.cuda.synchronize()
  return steps * batch / (time.perf_counter() - began)


if __name__ == "__main__":
  main()
