"""Scenes of digits as a folder in COCO's format, and the detectors as small as they can be, for tests."""

import json

import numpy as np
from PIL import Image

from flaxonomy.configs.base import Config, Data, Detect, Model, Optim, Scenes, Train, override
from flaxonomy.data.datasets import digit_scenes
from flaxonomy.train import coco

SIDE = 64
PYRAMID = {
  "depths": (1, 1), "bottleneck": False, "width": 8, "features": 16, "hidden_size": 32, "sizes": ((8,), (14,), (22,)),
  "before": (60, 40), "after": (40, 20), "sampled_anchors": 64, "sampled_regions": 24, "frozen": False,
}  # fmt: skip
ANCHORS = (((4, 7), (5, 9), (6, 9)), ((7, 11), (7, 12), (9, 14)), ((11, 17), (13, 21), (15, 23)))
LARGE = {"data.image_size": (128, 128)}
SEARCHED = LARGE | {"data.scenes.proposals": 200}  # in scenes of 64 pixels the search misses some digits
NETS = {  # by name: model, its fields, other changes of the config
  "ssd": ("ssd300_vgg16", {"sources": 3, "scales": (12, 22, 40, 60), "shrink": 8}, {}),
  "yolo_v1": (
    "yolo_v1", {"cell": 16, "hidden_size": 512, "shrink": 16, "batch_norm": True, "dropout": 0.0, "momentum": 0.9},
    LARGE,
  ),
  "yolo_v2": ("yolo_v2", {"anchors": ((0.28, 0.44), (0.44, 0.72), (0.8, 0.9)), "shrink": 16, "momentum": 0.9}, LARGE),
  "yolo_v3": ("yolo_v3", {"anchors": ANCHORS, "shrink": 16, "momentum": 0.9}, {"train.steps": 300}),
  "rcnn": (
    "rcnn_alexnet",
    {"body": "alexnet", "side": 67, "shrink": 4, "hidden_size": 512, "regions": 16, "dropout": 0.0, "cost": 0.1},
    SEARCHED | {"train.steps": 400, "optim.lr": 1e-3},
  ),
  "fast_rcnn": (
    "fast_rcnn_vgg16", {"stages": 3, "shrink": 4, "hidden_size": 512, "dropout": 0.0}, SEARCHED
  ),
  "faster_rcnn_vgg16": (
    "fasterrcnn_vgg16",
    {
      "depths": (1, 2, 2), "features": (16, 32, 64), "hidden_size": 256, "sizes": (16, 24, 40), "before": (200, 100),
      "after": (80, 40), "least": 4, "sampled_anchors": 64, "sampled_regions": 32, "dropout": 0.0,
    },
    LARGE | {"train.steps": 300},
  ),
  "faster_rcnn": ("fasterrcnn_resnet50_fpn", PYRAMID, {"train.steps": 300}),
  "mask_rcnn": ("maskrcnn_resnet50_fpn", PYRAMID, {"data.scenes.masks": True, "train.steps": 300}),
}  # fmt: skip


def folder(root, count: int = 8, side: int = SIDE):
  """Writes the first scenes of training, and their annotations with masks, as train and as test; returns the folder."""
  root = root / str(side)
  truths = []
  (root / "annotations").mkdir(parents=True)
  for i in range(count):
    scene = digit_scenes.scene("train", i, side)
    Image.fromarray(scene.image).save(root / f"{i}.png")
    boxes = np.float32([[each.box[1], each.box[0], each.box[3], each.box[2]] for each in scene.objects])
    truths.append({
      "image_id": i, "height": side, "width": side, "boxes": boxes, "crowd": np.zeros(len(boxes), bool),
      "labels": np.array([each.label + 1 for each in scene.objects]),
      "area": np.array([each.area for each in scene.objects], float),
      "masks": [scene.instances == k for k in range(1, len(boxes) + 1)],
    })  # fmt: skip
  known = coco.dataset(truths, digit_scenes.NAMES)
  known["images"] = [image | {"file_name": f"{image['id']}.png"} for image in known["images"]]
  for split in ("train", "test"):
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(known))
  return root


def config(root, net: str, **changes) -> Config:
  """A config that learns the folder by heart."""
  model, fields, more = NETS[net]
  made = Config(
    task="detection",
    model=Model(model, fields),
    data=Data(
      "coco_json", str(root / str(128 if "data.image_size" in more else SIDE)), batch_size=8, eval_batch_size=8,
      mean=(0.5,), std=(0.25,), image_size=(SIDE, SIDE), scenes=Scenes(objects=8),
    ),
    optim=Optim("adam", lr=2e-3, schedule="cosine", warmup_steps=10, clip_norm=10.0),
    train=Train(steps=150, eval_every=150, log_every=10, devices=1, cpu_devices=4, tensorboard=False),
    detect=Detect(),
  )  # fmt: skip
  return override(made, more | {key.replace("__", "."): value for key, value in changes.items()})
