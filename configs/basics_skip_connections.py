"""Basics: what shortcuts are for, ResNet-20 and ResNet-56 with and without them, on CIFAR-10.

He et al. 2015, section 4.2 and figure 6: without shortcuts the deeper net has the higher training error, with them
the lower one. The nets have half the paper's channels, a sixty-fourth of its steps and a cosine schedule, so that two
CPU cores can do it; comparison.png.

  python launch.py --config=configs/basics_skip_connections.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Study, Train


def get_config() -> Config:
  compare = {
    f"{name}_{kind}": {"model.name": name, "model.fields.residual": kind == "residual"}
    for name in ("resnet20", "resnet56")
    for kind in ("plain", "residual")
  }
  return Config(
    model=Model("resnet20", {"width": 8}),
    data=Data(
      "cifar10", batch_size=128, eval_batch_size=500, mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262),
      augment=Augment(crop_padding=4, flip_horizontal=True),
    ),
    optim=Optim("momentum", lr=0.1, schedule="cosine", warmup_steps=100, weight_decay=1e-4),
    train=Train(steps=1_000, eval_every=200),
    study=Study(compare),
  )  # fmt: skip
