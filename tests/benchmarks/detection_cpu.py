"""SSD and Faster R-CNN on two CPU cores, and two operators of detectors: ours against PyTorch's.

  python tests/benchmarks/detection_cpu.py [--rounds=6] [--steps=1] [--only=ssd300_vgg16,nms]

Printed for each case, in one run: ms per step and the ratios torch / ours (above 1: ours is faster), to torch as it
comes and to torch with the C library's memory in huge pages, which `launch.py` sets for us and hardly anyone for torch.

  ssd300_vgg16             300 x 300, batch 4, 20 classes: a training step; inference
  fasterrcnn_resnet50_fpn  320 x 320, batch 2, 90 classes: the same
  fasterrcnn_800           the same at 800 x 1066, on a canvas of 800 x 1088, batch 1; not by default, for all variants
                           are in memory at once: some 20 GB
  nms                      suppression within 20 classes of 1,000 boxes each, two images: the best 100, and all
  roi_align                512 boxes, 7 x 7, on P2 to P5 of 800 x 1088 with 256 channels, two images: forward, and
                           forward and backward

Ours is the whole compiled step of a run (`loop.train_function`: anchors matched and sampled, proposals, RoIAlign, SGD
with momentum, numbers looked at) and the whole compiled prediction of an evaluation (boxes decoded and suppressed; any
score counts, or an untrained net would find nothing), each on a device for each core, if the batch has so many images.
"net" is what torch's is, without what makes boxes of it.

Torch's is a lower bound of torchvision's, which has no CPU build to install: its nets in torch.nn, with none of the
operators that detection adds. In training its loss is given its targets: anchors matched, offsets encoded, regions
sampled; Faster R-CNN's box head sees regions that are given, 512 an image in training and 1,000 else, so there are no
anchors, proposals, suppression, RoIAlign and its gradient. It is written for these cores: two threads, contiguous and
channels last, fused SGD, gradients set to None; inference in inference mode, batch norms folded into the convolutions,
and plain; of all variants the fastest counts. Operators are compared with plain torch, vectorised: overlaps within a
class as a matrix, RoIAlign by `grid_sample` for each level; torchvision's kernels are faster than that.

Workers take turns and are pinned to the same two cores, see interleave.py.
"""

import argparse
import contextlib
import functools
import os
import sys
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
from classifiers_cpu import answer
from interleave import Worker, rounds

from flaxonomy.train import cpu

CORES = 2


class Case(NamedTuple):
  """A detector and what it sees.

  Attributes:
    model: its name.
    canvas, picture: (height, width) of the arrays, and of the pictures at their top left.
    batch: images of a step.
    classes: without the background.
  """

  model: str
  canvas: tuple[int, int]
  picture: tuple[int, int]
  batch: int
  classes: int


FASTER = "fasterrcnn_resnet50_fpn"
CASES = {
  "ssd300_vgg16": Case("ssd300_vgg16", (300, 300), (300, 300), 4, 20),
  FASTER: Case(FASTER, (320, 320), (320, 320), 2, 90),
  "fasterrcnn_800": Case(FASTER, (800, 1088), (800, 1066), 1, 90),
}
KINDS = {"nms": ("best", "all"), "roi_align": ("forward", "backward")} | dict.fromkeys(CASES, ("train", "infer"))
DEFAULT = ("ssd300_vgg16", FASTER, "nms", "roi_align")
OBJECTS, SLOTS = 8, 32  # of an image; rows of a batch's boxes
REGIONS = {"train": 512, "infer": 1000}  # that Faster R-CNN's box head sees of an image
BOXES, CLASSES, THRESHOLD, BEST = 1000, 20, 0.5, 100  # of "nms"
MAPS = ((200, 272), (100, 136), (50, 68), (25, 34))  # of "roi_align"


def main() -> None:
  """Measures and prints; with --worker, answers one that does."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--rounds", type=int, default=6, help="turns of every variant (default: 6)")
  parser.add_argument("--steps", type=int, default=1, help="steps in a turn (default: 1); operators: ten times")
  parser.add_argument("--only", default=",".join(DEFAULT), help=f"of {', '.join(KINDS)}, with commas")
  parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.worker:
    side, *words = given.worker
    detectors, operators = {"ours": (ours, our_operator), "torch": (theirs, their_operator)}[side]
    (detectors if words[0] in CASES else operators)(*words)
    return
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
  print(f"{CORES} cores, float32, {given.rounds} rounds of {given.steps} steps; ms per step, medians (least)")
  print("torch's detectors: the nets alone, a lower bound; its operators: plain torch, without torchvision's kernels")
  for case in given.only.split(","):
    for kind in KINDS[case]:
      measure(case, kind, given)


def measure(case: str, kind: str, given: argparse.Namespace) -> None:
  """A few lines for a case."""
  folded = kind == "infer" and case != "ssd300_vgg16"  # which has no batch norm
  layouts = ("contiguous", "channels_last") + (("folded",) if folded else ())
  layouts = layouts if case != "nms" else ("one_thread", "two_threads")
  steps = given.steps * (1 if case in CASES else 10)
  with contextlib.ExitStack() as stack:

    def start(side, how, **env):
      command = [sys.executable, __file__, "--worker", side, case, how, *([kind] if side == "torch" else [])]
      return stack.enter_context(Worker(command, env)), str(steps)

    mine = ("infer", "net") if kind == "infer" else (kind,)
    variants = {("ours", how): start("ours", how) for how in mine}
    variants |= {(layout, False): start("torch", layout) for layout in layouts}
    variants |= {(layout, True): start("torch", layout, GLIBC_TUNABLES=f"{cpu.TUNABLE}=1") for layout in layouts}
    times = rounds(variants, given.rounds)
  shown = lambda t: f"{t.median * 1e3:,.1f} ({t.least * 1e3:,.1f})"
  print(f"{case} {kind}:  " + "  ".join(f"our {how} {shown(times['ours', how])}" for how in mine))
  for huge, named in ((False, "as it comes"), (True, "huge pages")):
    torch = {layout: t for (layout, pages), t in times.items() if layout != "ours" and pages == huge}
    said = "".join(f"  {layout} {shown(t)}" for layout, t in torch.items())
    for how in mine:
      median = min(t.median for t in torch.values()) / times["ours", how].median
      least = min(t.least for t in torch.values()) / times["ours", how].least
      said += f"  torch / our {how} {median:.2f} ({least:.2f})"
    print(f"  torch {named}:{said}", flush=True)


def scenes(case: Case) -> dict[str, np.ndarray]:
  """A batch of random pictures, each with a few objects; see data/__init__.py."""
  rng, (h, w) = np.random.default_rng(0), case.picture
  image = np.zeros((case.batch, *case.canvas, 3), np.uint8)
  image[:, :h, :w] = rng.integers(0, 256, (case.batch, h, w, 3), np.uint8)
  boxes, labels = np.zeros((case.batch, SLOTS, 4), np.float32), np.zeros((case.batch, SLOTS), np.int32)
  boxes[:, :OBJECTS] = some_boxes(rng, (case.batch, OBJECTS), case.picture)
  labels[:, :OBJECTS] = rng.integers(1, 1 + case.classes, (case.batch, OBJECTS))
  return {
    "image": image, "size": np.tile(np.int32(case.picture), (case.batch, 1)), "boxes": boxes, "labels": labels,
    "scale": np.ones((case.batch, 2), np.float32), "crowd": np.zeros((case.batch, SLOTS), bool),
    "index": np.arange(case.batch, dtype=np.int32), "mask": np.ones(case.batch, np.float32),
  }  # fmt: skip


def some_boxes(rng, shape: tuple[int, ...], picture: tuple[int, int]) -> np.ndarray:
  """Random boxes [*shape, 4] within a picture, sides from a thirtieth of it to all, as many small as large ones."""
  size = np.array(picture[::-1])
  side = size * np.exp(rng.uniform(np.log(1 / 30), 0, (*shape, 2)))
  low = rng.uniform(0, 1, (*shape, 2)) * (size - side)
  return np.concatenate([low, low + side], -1).astype(np.float32)


def session(case: Case, mesh, fetch, fields: dict | None = None, masks: bool = False, **train):
  """A run made ready: `loop.Session`.

  Args:
    case: the model and its images.
    mesh: of the devices.
    fetch: as in `pipeline.Feed`.
    fields: of the model.
    masks: whether batches have them.
    **train: fields of `configs.base.Train`.
  """
  from flaxonomy.configs.base import Config, Data, Detect, Model, Optim, Scenes, Train
  from flaxonomy.data.pipeline import Info
  from flaxonomy.train import loop, tasks

  config = Config(
    task="detection", model=Model(case.model, fields or {}), optim=Optim("momentum", lr=1e-4),
    data=Data(batch_size=case.batch, scenes=Scenes(SLOTS, masks)), train=Train(steps=10**6, **train),
    detect=Detect(score=0.0),
  )  # fmt: skip
  info = Info("random", tuple(map(str, range(case.classes))), (*case.canvas, 3), case.batch)
  feed = SimpleNamespace(fetch=fetch)
  return loop.Session(config, mesh, info, tasks.build(config, info, mesh.size), feed, feed)


def devices(count: int):
  """JAX, in a process set up as `launch.py` does, with so many devices."""
  cpu.huge_pages()
  cpu.one_thread_each(count)
  import jax

  jax.config.update("jax_num_cpu_devices", count)
  return jax


def ours(name: str, kind: str) -> None:
  """Worker: our compiled step, prediction, or net."""
  case = CASES[name]
  jax = devices(min(CORES, case.batch))
  from jax.sharding import PartitionSpec as P

  from flaxonomy.train import loop, step
  from flaxonomy.train.sharding import DATA

  made = session(case, loop.make_mesh(), lambda resident, item: item)
  state, item = loop.initial_state(made), scenes(case)
  if kind == "train":
    function = loop.train_function(made, 1)
    item = jax.tree.map(lambda a: a[None], item)

    def run(steps):
      nonlocal state
      for _ in range(steps):
        state, metrics = function(state, {}, item, np.int32(1))
        float(metrics["loss"][0])

  else:
    state = state.replace(opt_state=None)
    mapped = lambda f: step.pmapped(f, made.mesh, (P(), P(DATA)), P(DATA))
    if kind == "net":
      item["regions"] = np.ones((case.batch, REGIONS["infer"] if case.model == FASTER else 0, 7, 7, 256), np.float32)
      item = jax.device_put(item, jax.NamedSharding(made.mesh, P(DATA)))
    function = mapped(functools.partial(net, made.config, case) if kind == "net" else made.task.predict_step)

    def run(steps):
      for _ in range(steps):
        jax.tree.map(np.asarray, function(state, item))

  answer(run)


def net(config, case: Case, state, batch: dict):
  """What torch's nets give: our nets alone."""
  from flaxonomy.data import scene_augment
  from flaxonomy.train import tasks

  model, variables = tasks.module(config, num_classes=case.classes + 1), state.variables()
  images = scene_augment.prepared(config.data, batch)["image"]
  if case.model != FASTER:
    stages = model.apply(variables, images, train=False)
    return stages["boxes"], stages["logits"]
  stages = model.apply(variables, images, train=False, method="look")
  found = model.apply(variables, batch["regions"], method=lambda model, x: model.box_head(x, train=False))
  return stages["objectness"], stages["deltas"], found["logits"], found["offsets"]


def theirs(name: str, layout: str, kind: str) -> None:
  """Worker: the nets in torch."""
  import torch
  import torch_detection

  torch.set_num_threads(CORES)
  case = CASES[name]
  two = case.model == FASTER
  model = (torch_detection.FasterRCNN if two else torch_detection.SSD300)(case.classes + 1).train(kind == "train")
  x = torch.from_numpy(scenes(case)["image"]).permute(0, 3, 1, 2)
  form = torch.contiguous_format if layout == "contiguous" else torch.channels_last
  if layout == "folded":
    from torch.fx.experimental import optimization

    model = optimization.fuse(model)
  model = model.to(memory_format=form)
  regions = [torch.rand(case.batch * REGIONS[kind], 256, 7, 7, requires_grad=kind == "train")] if two else []
  look = lambda: model(x.float().div_(255).contiguous(memory_format=form), *regions)
  if kind == "train":
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, 1e-4, momentum=0.9, fused=True)
    with torch.no_grad():
      loss = (two_stage_loss if two else multibox_loss)(case, look())

    def run(steps):
      for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        for given in regions:
          given.grad = None
        total = loss(look())
        total.backward()
        optimizer.step()
        total.item()

  else:

    def run(steps):
      with torch.inference_mode():
        for _ in range(steps):
          [y.numpy() for y in look()]

  answer(run)


def multibox_loss(case, found):
  """SSD's loss of what the net gives, with some ten default boxes for each object."""
  import torch
  import torch_detection

  labels = torch.zeros(found[1].shape[:2], dtype=torch.long)
  labels[:, :: labels.shape[1] // (10 * OBJECTS)] = 1
  targets = torch.randn_like(found[0])
  return lambda found: torch_detection.multibox(*found, targets, labels)


def two_stage_loss(case, found):
  """Faster R-CNN's, with 256 anchors an image, a tenth of them objects, and a quarter of the regions objects."""
  import torch
  import torch_detection

  sampled = 256 * case.batch
  anchors = torch.randperm(found[0].numel())[:sampled]
  learned = (torch.arange(sampled) % 10 == 0).float()
  labels = torch.where(torch.arange(len(found[2])) % 4 == 0, 1, 0)
  objects, targets = torch.randn(sampled, 4), torch.randn(len(labels), 4)
  return lambda found: torch_detection.two_stage(found, anchors, learned, objects, labels, targets)


def suppression() -> tuple[np.ndarray, np.ndarray]:
  """(boxes [CORES, CLASSES, BOXES, 4], scores [CORES, CLASSES, BOXES]) of an image for each core."""
  rng = np.random.default_rng(0)
  shape = CORES, CLASSES, BOXES
  return some_boxes(rng, shape, (800, 1066)), rng.uniform(0.05, 1, shape).astype(np.float32)


def pyramid() -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
  """(levels [CORES, H, W, 256], boxes [CORES, 512, 4], what is given back [CORES, 512, 7, 7, 256])."""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.standard_normal((CORES, *shape), np.float32)
  return [draw(*shape, 256) for shape in MAPS], some_boxes(rng, (CORES, 512), (800, 1066)), draw(512, 7, 7, 256)


def our_operator(case: str, kind: str) -> None:
  """Worker: our operator, an image on each device."""
  jax = devices(CORES)
  import jax.numpy as jnp
  from jax.sharding import PartitionSpec as P

  from flaxonomy.models.detection import boxes, roi
  from flaxonomy.train import loop, step
  from flaxonomy.train.sharding import DATA

  def suppress(given):
    labels = jnp.repeat(jnp.arange(CLASSES), BOXES)
    most = BEST if kind == "best" else CLASSES * BOXES
    one = lambda found, scores: boxes.nms_by_class(
      found.reshape(-1, 4), scores.ravel(), labels, scores.ravel() > 0, THRESHOLD, most
    )
    return jax.vmap(one)(*given)

  def align(given):
    levels, found, back = given
    pool = jax.vmap(lambda levels, found: roi.pyramid_roi_align(levels, found, (7, 7)))
    if kind == "forward":
      return pool(levels, found)
    pooled, pull = jax.vjp(lambda levels: pool(levels, found), levels)
    return pooled, pull(back)

  mesh = loop.make_mesh()
  function, given = (suppress, suppression()) if case == "nms" else (align, pyramid())
  function = step.pmapped(function, mesh, (P(DATA),), P(DATA))
  given = jax.device_put(given, jax.NamedSharding(mesh, P(DATA)))

  def run(steps):
    for _ in range(steps):
      jax.block_until_ready(function(given))

  answer(run)


def their_operator(case: str, layout: str, kind: str) -> None:
  """Worker: the same in plain torch, one image after the other."""
  import torch
  import torch_detection

  torch.set_num_threads(1 if layout == "one_thread" else CORES)
  tensors = lambda arrays: list(map(torch.from_numpy, arrays))
  if case == "nms":
    most = BEST if kind == "best" else CLASSES * BOXES
    images = list(zip(*map(tensors, suppression())))
    work = lambda found, scores: torch_detection.suppressed(found, scores, THRESHOLD, most)
  else:
    form = torch.contiguous_format if layout == "contiguous" else torch.channels_last
    levels, found, back = pyramid()
    levels = [torch.from_numpy(x).permute(0, 3, 1, 2).contiguous(memory_format=form) for x in levels]
    back = torch.from_numpy(back).permute(0, 1, 4, 2, 3).contiguous()
    images = [([x[i : i + 1] for x in levels], torch.from_numpy(found[i]), back[i]) for i in range(CORES)]

    def work(levels, found, back):
      levels = [x.detach().requires_grad_(kind == "backward") for x in levels]
      pooled = torch_detection.pyramid_roi_align(levels, found)
      if kind == "backward":
        pooled.backward(back)

  def run(steps):
    with torch.set_grad_enabled(kind == "backward"):
      for _ in range(steps):
        for image in images:
          work(*image)

  answer(run)


if __name__ == "__main__":
  main()
