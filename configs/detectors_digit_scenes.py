"""Detectors on scenes of handwritten digits, which are drawn on the spot: each a run of minutes on a CPU.

The papers' nets, narrower, for images of 128 pixels with objects of 10 to 48. YOLOv3 starts from a classifier, the run
of darknet_digit_scenes.py:darknet53, and sees the images twice as large: objects are smaller than most of its cells.
Figures, times and machine stand in README.md; the papers' own settings in ssd300_voc.py, yolo_v1_voc.py,
faster_rcnn_coco.py and their like.

  python launch.py --config=configs/detectors_digit_scenes.py:faster_rcnn
"""

from flaxonomy.configs.base import (
  IMAGENET_MEAN,
  Augment,
  Config,
  Data,
  Detect,
  Model,
  Optim,
  Scenes,
  Train,
  override,
  variant,
)  # fmt: skip

PYRAMID = {
  "depths": (2, 2, 2), "bottleneck": False, "width": 32, "features": 64, "hidden_size": 256,
  "sizes": ((14,), (24,), (38,), (56,)), "before": (200, 100), "after": (100, 50), "sampled_anchors": 128,
  "sampled_regions": 48, "frozen": False,
}  # fmt: skip
ANCHORS = (((8, 14), (9, 17), (11, 17)), ((13, 21), (14, 25), (17, 28)), ((22, 34), (26, 42), (30, 46)))  # by k-means
WIDE = tuple(tuple((2 * w, 2 * h) for w, h in level) for level in ANCHORS)
CELLS = ((9 / 32, 14 / 32), (11 / 32, 18 / 32), (14 / 32, 23 / 32), (17 / 32, 28 / 32), (26 / 32, 42 / 32))  # likewise
FROM_DARKNET = {"model.init_from": "runs/darknet_digit_scenes_darknet53", "data.image_size": (256, 256)}
SEARCHED = {"data.scenes.proposals": 100, "data.augment.scale": None}
NETS = {  # by variant: (model, its fields, steps, what else differs)
  "ssd": ("ssd300_vgg16", {"sources": 4, "scales": (12, 22, 36, 55, 80), "shrink": 4}, 5_000, {}),
  "yolo_v1": ("yolo_v1", {"cell": 16, "hidden_size": 256, "shrink": 8, "batch_norm": True}, 4_000, {}),
  "yolo_v2": ("yolo_v2", {"anchors": CELLS, "shrink": 4}, 3_000, {}),
  "yolo_v3": ("yolo_v3", {"anchors": WIDE, "shrink": 4, "momentum": 0.97, "prior": 0.002}, 2_000, FROM_DARKNET),
  "rcnn": (
    "rcnn_alexnet", {"body": "alexnet", "side": 67, "shrink": 4, "hidden_size": 256, "regions": 16, "cost": 0.1}, 2_000,
    SEARCHED | {"detect.draw_score": 0.5},
  ),
  "fast_rcnn": ("fast_rcnn_vgg16", {"stages": 3, "shrink": 4, "hidden_size": 256}, 2_000, SEARCHED),
  "faster_rcnn_vgg16": (
    "fasterrcnn_vgg16",
    {
      "depths": (2, 2, 3), "features": (16, 32, 64), "hidden_size": 256, "sizes": (16, 24, 40), "least": 4,
      "before": (400, 200), "after": (100, 50), "sampled_anchors": 128, "sampled_regions": 48,
    },
    2_000, {},
  ),
  "faster_rcnn": ("fasterrcnn_resnet50_fpn", PYRAMID, 2_000, {}),
  "mask_rcnn": ("maskrcnn_resnet50_fpn", PYRAMID, 2_000, {"data.scenes.masks": True}),
}  # fmt: skip
VARIANTS = tuple(NETS)


def get_config(name: str = VARIANTS[0]) -> Config:
  model, fields, steps, changes = NETS[variant(name, VARIANTS)]
  config = Config(
    task="detection",
    model=Model(model, fields),
    data=Data(
      "digit_scenes", batch_size=16, eval_batch_size=50, mean=IMAGENET_MEAN, std=(0.25,) * 3,
      augment=Augment(scale=(0.8, 1.25), brightness=0.1, contrast=0.2), scenes=Scenes(objects=8),
    ),
    optim=Optim("adamw", lr=1e-3, weight_decay=1e-4, schedule="cosine", warmup_steps=200, clip_norm=10.0),
    train=Train(steps=steps, eval_every=500),
    detect=Detect(),
  )  # fmt: skip
  return override(config, changes)
