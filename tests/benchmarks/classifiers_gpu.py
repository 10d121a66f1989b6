"""ResNet-50, VGG16 and Inception v3 on an accelerator, bfloat16: training images/s, ours against PyTorch's.

  python tests/benchmarks/classifiers_gpu.py [--steps=40] [--data_dir=DIR] [--only=resnet50]

On the first device that is not a CPU (on a CPU, with tiny batches, to see that the script runs). Printed for each net:

  1. our compiled training step on one batch that lies on the device ("synthetic"), K steps in a dispatch;
  2. with --data_dir, a folder of images with a sub-folder for each class, the whole of `loop.run`'s feed: Grain workers
     that decode and resize, crops and mirroring on the device ("real");
  3. torch on the same device: torchvision's net, channels last, bfloat16 autocast, torch.compile, fused SGD, synthetic
     input; and the ratio ours / torch. The two take turns, three rounds of `--steps`, medians.

Ours and torch's agree in all that costs: batch, precision, batch norm, auxiliary losses, momentum.
"""

import argparse
import importlib.util
import platform
import time
from types import SimpleNamespace

import jax
import numpy as np
from jax.sharding import Mesh
from turns import DISPATCH, rates, ratio, runner

from flaxonomy.configs.base import IMAGENET_MEAN, IMAGENET_STD, Augment, Config, Data, Model, Optim, Train, override
from flaxonomy.data.pipeline import Info
from flaxonomy.train import loop, tasks
from flaxonomy.train.sharding import DATA

CASES = {"resnet50": (224, 256), "vgg16": (224, 128), "inception_v3": (299, 128)}  # (side, batch)


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=40, help="steps of a round (default: 40)")
  parser.add_argument("--data_dir", help="folder of images, for real input")
  parser.add_argument("--only", default=",".join(CASES), help="nets, with commas")
  given = parser.parse_args()
  device = jax.devices()[0]
  print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, Python {platform.python_version()}")
  for name in given.only.split(","):
    side, batch = CASES[name]
    batch = batch if device.platform != "cpu" else 2
    variants = {"ours": ours(name, side, batch, device)}
    if theirs := torch_step(name, side, batch):
      variants["torch"] = theirs
    found = rates(variants, given.steps, batch)
    said = "".join(f"  {key} {value:,.0f} images/s" for key, value in found.items())
    print(f"{name} batch {batch} synthetic{said}{ratio(found)}", flush=True)
    if given.data_dir:
      print(f"{name} batch {batch} real  ours {real(name, side, batch, given):,.0f} images/s", flush=True)


def config(name: str, side: int, batch: int) -> Config:
  """A training in bfloat16 on one device."""
  return Config(
    model=Model(name),
    data=Data(
      "folder", image_size=(side + 32, side + 32), fit="cover", crop_size=(side, side), channels=3, batch_size=batch,
      workers=12, on_device=False, mean=IMAGENET_MEAN, std=IMAGENET_STD, augment=Augment(flip_horizontal=True),
    ),
    optim=Optim("momentum", lr=0.01),
    train=Train(steps=10**6, dtype="bfloat16", devices=1, steps_per_dispatch=DISPATCH),
  )  # fmt: skip


def ours(name, side, batch, device):
  """A function that makes so many of our steps on a batch that lies on the device; compiled."""
  made = override(config(name, side, batch), {"data.crop_size": None, "data.augment.flip_horizontal": False})
  mesh = Mesh(np.array([device]), (DATA,))
  info = Info("random", tuple(map(str, range(1000))), (side, side, 3), batch)
  rng = np.random.default_rng(0)
  resident = jax.device_put(
    {
      "image": rng.integers(0, 256, (batch, side, side, 3), np.uint8),
      "label": rng.integers(0, 1000, batch).astype(np.int32),
      "index": np.arange(batch, dtype=np.int32),
      "mask": np.ones(batch, np.float32),
    }
  )
  feed = SimpleNamespace(fetch=lambda resident, item: resident)
  session = loop.Session(made, mesh, info, tasks.build(made, info, 1), feed, feed)
  return runner(loop.train_function(session, DISPATCH), loop.initial_state(session), resident)


def real(name, side, batch, given):
  """Images/s with the images of a folder, from files to the step."""
  made = override(config(name, side, batch), {"data.data_dir": given.data_dir})
  session = loop.prepare(made)
  state, function = loop.initial_state(session), loop.train_function(session, DISPATCH)
  count = 2 + given.steps // DISPATCH
  began = None
  for items in session.train.train_items(((i * DISPATCH, DISPATCH) for i in range(count)), DISPATCH):
    state, metrics = function(state, session.train.resident, items, np.int32(DISPATCH))
    if began is None:
      jax.block_until_ready(metrics)
      began = time.perf_counter()
  jax.block_until_ready(metrics)
  return (count - 1) * DISPATCH * batch / (time.perf_counter() - began)


def torch_step(name, side, batch):
  """The same in torch, compiled; None without torch, torchvision and CUDA."""
  if not all(map(importlib.util.find_spec, ("torch", "torchvision"))):
    return None
  import torch
  import torchvision

  if not torch.cuda.is_available():
    return None
  print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
  make = getattr(torchvision.models, name)
  model = (make() if name != "inception_v3" else make(init_weights=False)).cuda().to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, fused=True)
  x = torch.randint(0, 256, (batch, 3, side, side), dtype=torch.uint8, device="cuda")
  x, y = x.contiguous(memory_format=torch.channels_last), torch.randint(0, 1000, (batch,), device="cuda")
  entropy = torch.nn.functional.cross_entropy

  @torch.compile(mode="max-autotune")
  def loss(x, y):
    with torch.autocast("cuda", torch.bfloat16):
      out = model(x.float() / 255)
    if name == "inception_v3":
      return entropy(out.logits.float(), y) + 0.4 * entropy(out.AuxLogits.float(), y)
    return entropy(out.float(), y)

  def run(steps):
    for _ in range(steps):
      optimizer.zero_grad(set_to_none=True)
      loss(x, y).backward()
      optimizer.step()
    torch.cuda.synchronize()
    return steps

  run(20)
  return run


if __name__ == "__main__":
  main()
