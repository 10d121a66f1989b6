"""SSD, Faster and Mask R-CNN on an accelerator, bfloat16: training images/s, and what detection costs beside the net.

  python tests/benchmarks/detection_gpu.py [--steps=40] [--only=maskrcnn_resnet50_fpn]
  python tests/benchmarks/detection_gpu.py --share [--only=maskrcnn_resnet50_fpn]

On the first device that is not a CPU. The first command prints for each net images/s of our compiled training step on
one batch of random scenes that lies on the device, K steps in a dispatch; and, where torchvision and torch with CUDA
are installed, of torchvision's net on the same scenes, bfloat16 autocast, fused SGD, as it comes (its lists of boxes
have a length of their own for each image, which torch.compile would compile anew); and the ratio ours / torch. The two
take turns, three rounds of `--steps`, medians. Batch norm is frozen in both, all else learns.

The second prints the share of the device's time outside convolutions and matrix products, from a trace of ten of our
steps, and the kernels that took most of it. What is a convolution is told by the kernel's name: look at the list, which
must hold none. Command buffers are off then, for a trace shows them as one kernel each.
"""

import argparse
import collections
import importlib.util
import os
import platform
import re
import tempfile
from pathlib import Path

import jax
import numpy as np
from detection_cpu import Case, scenes, session
from jax.sharding import Mesh
from turns import DISPATCH, rates, ratio, runner

from flaxonomy.train import loop
from flaxonomy.train.sharding import DATA

CANVAS, PICTURE = (800, 1088), (800, 1066)
CASES = {
  "ssd300_vgg16": Case("ssd300_vgg16", (300, 300), (300, 300), 64, 90),
  "fasterrcnn_resnet50_fpn": Case("fasterrcnn_resnet50_fpn", CANVAS, PICTURE, 8, 90),
  "maskrcnn_resnet50_fpn": Case("maskrcnn_resnet50_fpn", CANVAS, PICTURE, 8, 90),
}
SMALL_NET = {"depths": (1, 1, 1, 1), "width": 8, "features": 16, "hidden_size": 32, "before": (50, 50)}
TINY = {"ssd300_vgg16": {"shrink": 16, "sources": 3}} | dict.fromkeys(list(CASES)[1:], SMALL_NET)
PRODUCTS = re.compile(r"conv(?!ert)|gemm|gemv|cublas|cudnn|cutlass|xmma|nvjet|fprop|dgrad|wgrad|(^|_)dot|matmul", re.I)
SHOWN = 12  # kernels


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=40, help="steps of a round (default: 40)")
  parser.add_argument("--only", default=",".join(CASES), help="nets, with commas")
  parser.add_argument("--share", action="store_true", help="of the time outside convolutions and matrix products")
  parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)  # narrow nets, to see that it runs
  given = parser.parse_args()
  if given.share:
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="
  device = jax.devices()[0]
  print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, Python {platform.python_version()}")
  for name in given.only.split(","):
    case = CASES[name]._replace(canvas=(128, 128), picture=(128, 120), batch=2) if given.tiny else CASES[name]
    run = ours(case, device, TINY[name] if given.tiny else {})
    if given.share:
      share(name, run, device)
      continue
    variants = {"ours": run}
    if not given.tiny and (theirs := torch_step(case)):
      variants["torch"] = theirs
    found = rates(variants, given.steps, case.batch)
    said = "".join(f"  {key} {value:,.1f} images/s" for key, value in found.items())
    print(f"{name} batch {case.batch}{said}{ratio(found)}", flush=True)


def batch_of(case: Case) -> dict[str, np.ndarray]:
  """`scenes`, with masks where the model learns from them: all that is in an object's box."""
  batch, (h, w) = scenes(case), case.canvas
  if "mask" not in case.model:
    return batch
  x1, y1, x2, y2 = np.moveaxis(batch["boxes"], 2, 0)[..., None, None]
  y, x = np.arange(h)[:, None], np.arange(w)[None]
  return batch | {"masks": np.packbits((x1 <= x) & (x < x2) & (y1 <= y) & (y < y2), axis=-1)}


def ours(case: Case, device, fields: dict):
  """A function that makes so many of our steps on a batch that lies on the device; compiled."""
  mesh, masks = Mesh(np.array([device]), (DATA,)), "mask" in case.model
  made = session(
    case, mesh, lambda resident, item: resident, fields, masks, dtype="bfloat16", devices=1,
    steps_per_dispatch=DISPATCH,
  )  # fmt: skip
  return runner(loop.train_function(made, DISPATCH), loop.initial_state(made), jax.device_put(batch_of(case)))


def share(name: str, run, device) -> None:
  """Prints where the device's time goes."""
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run(DISPATCH)
    spent = kernels(Path(folder), device.platform)
  total = sum(spent.values())
  outside = {kernel: ns for kernel, ns in spent.items() if not PRODUCTS.search(kernel)}
  print(f"{name} {total / DISPATCH / 1e6:.1f} ms a step, outside convolutions and products {share_of(outside, total)}")
  for kernel, ns in collections.Counter(outside).most_common(SHOWN):
    print(f"  {ns / total:6.1%}  {kernel[:100]}", flush=True)


def share_of(outside: dict[str, float], total: float) -> str:
  """As percents, if there is anything."""
  return f"{sum(outside.values()) / total:.0%}" if total else "(the trace is empty)"


def kernels(folder: Path, platform: str) -> collections.Counter:
  """Nanoseconds by kernel, of all streams of the device; on a CPU by operation, loops and what they hold both."""
  spent = collections.Counter()
  for file in folder.rglob("*.xplane.pb"):
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
      on_device = plane.name.startswith("/device:") if platform != "cpu" else plane.name.startswith("/host:")
      for line in plane.lines if on_device else ():
        if platform == "cpu" or line.name.startswith("Stream"):
          for event in line.events:
            if event.duration_ns > 0 and (platform != "cpu" or any(key == "hlo_op" for key, _ in event.stats)):
              spent[re.sub(r"[._]\d+$", "", event.name)] += event.duration_ns
  return spent


def torch_step(case: Case):
  """The same in torchvision; None without torch, torchvision and CUDA."""
  if not all(map(importlib.util.find_spec, ("torch", "torchvision"))):
    return None
  import torch
  import torchvision
  from torchvision.models import detection

  if not torch.cuda.is_available():
    return None
  print(f"torch {torch.__version__}, torchvision {torchvision.__version__}")
  if case.model == "ssd300_vgg16":
    model = detection.ssd300_vgg16(weights=None, weights_backbone=None, num_classes=case.classes + 1)
  else:
    kind = {"fasterrcnn_resnet50_fpn": detection.FasterRCNN, "maskrcnn_resnet50_fpn": detection.MaskRCNN}[case.model]
    norm = torchvision.ops.misc.FrozenBatchNorm2d
    body = detection.backbone_utils.resnet_fpn_backbone(
      backbone_name="resnet50", weights=None, norm_layer=norm, trainable_layers=5
    )
    model = kind(body, case.classes + 1)
  model = model.cuda().to(memory_format=torch.channels_last)
  optimizer = torch.optim.SGD(model.parameters(), 1e-4, momentum=0.9, fused=True)
  images, targets = torch_scenes(case)

  def run(steps):
    for _ in range(steps):
      with torch.autocast("cuda", torch.bfloat16):
        losses = model([image.float() / 255 for image in images], targets)
      optimizer.zero_grad(set_to_none=True)
      sum(losses.values()).backward()
      optimizer.step()
    torch.cuda.synchronize()
    return steps

  run(10)
  return run


def torch_scenes(case: Case):
  """(images, targets) of `batch_of` as torchvision takes them, on the device."""
  import torch

  batch, (h, w) = batch_of(case), case.picture
  images = [torch.from_numpy(image[:h, :w]).permute(2, 0, 1).cuda() for image in batch["image"]]
  targets = []
  for i, labels in enumerate(batch["labels"]):
    there = labels > 0
    target = {"boxes": batch["boxes"][i][there], "labels": labels[there].astype(np.int64)}
    if "masks" in batch:
      target["masks"] = np.unpackbits(batch["masks"][i][there], axis=-1)[:, :h, :w]
    targets.append({key: torch.from_numpy(x).cuda() for key, x in target.items()})
  return images, targets


if __name__ == "__main__":
  main()
