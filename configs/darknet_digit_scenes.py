"""Darknet on the digits of scenes, cut out one by one: what YOLOv3 starts from in detectors_digit_scenes.py.

Redmon and Farhadi 2018, section 2.4, in small: a quarter of the channels, images of 64 pixels. 91.5 % of the test
digits in 10 minutes of one core. The variant darknet19 is YOLOv2's body (2017, section 3).

  python launch.py --config=configs/darknet_digit_scenes.py:darknet53
"""

from flaxonomy.configs.base import IMAGENET_MEAN, Augment, Config, Data, Model, Optim, Train, variant

VARIANTS = ("darknet53", "darknet19")


def get_config(name: str = VARIANTS[0]) -> Config:
  return Config(
    model=Model(variant(name, VARIANTS), {"shrink": 4, "momentum": 0.97}),
    data=Data(
      "digit_scenes_cropped", image_size=(64, 64), batch_size=128, mean=IMAGENET_MEAN, std=(0.25,) * 3,
      augment=Augment(scale=(0.8, 1.6), translate=0.1, brightness=0.1, contrast=0.2),
    ),
    optim=Optim("adamw", lr=2e-3, weight_decay=1e-4, schedule="cosine", warmup_steps=100),
    train=Train(steps=1_000, eval_every=250),
  )  # fmt: skip
