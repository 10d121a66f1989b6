"""Detectors on scenes of handwritten digits, which are drawn on the spot: each a run of minutes on a CPU.

The papers' nets, narrower, for images of 128 pixels with objects of 13 to 50. Figures, times and machine stand in
README.md; the papers' own settings in ssd300_voc.py, yolo_v1_voc.py, faster_rcnn_coco.py and their like.

  python launch.py --config=configs/detectors_digit_scenes.py:ssd
"""

from flaxonomy.configs.base import IMAGENET_MEAN, Augment, Config, Data, Model, Optim, Scenes, Train, variant

NETS = {  # by variant: (model, its fields)
  "ssd": ("ssd300_vgg16", {"sources": 4, "scales": (12, 22, 36, 55, 80), "shrink": 4}),
}
VARIANTS = tuple(NETS)


def get_config(name: str = VARIANTS[0]) -> Config:
  model, fields = NETS[variant(name, VARIANTS)]
  return Config(
    task="detection",
    model=Model(model, fields),
    data=Data(
      "digit_scenes", batch_size=16, eval_batch_size=50, mean=IMAGENET_MEAN, std=(0.25,) * 3,
      augment=Augment(scale=(0.8, 1.25), brightness=0.1, contrast=0.2), scenes=Scenes(objects=8),
    ),
    optim=Optim("adamw", lr=1e-3, weight_decay=1e-4, schedule="cosine", warmup_steps=200, clip_norm=10.0),
    train=Train(steps=2_500, eval_every=500),
  )  # fmt: skip
