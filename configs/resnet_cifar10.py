"""ResNet on CIFAR-10: the paper's recipe for 20 to 110 layers.

He, Zhang, Ren, Sun 2015, section 4.2: SGD with momentum .9, weight decay 1e-4, batch 128, lr .1 divided by ten at
32,000 and 48,000 of 64,000 steps; padded by 4 pixels and cropped, mirrored. Published errors: 8.75, 7.51, 7.17, 6.97,
6.43 %. Not run to its end here: resnet20_cifar10.py is its CPU-sized sister.

Deviation: the 110 layers start with a rate that rises over 400 steps, where the paper trains them with .01 until the
error falls below 80 %.

  python launch.py --config=configs/resnet_cifar10.py:resnet56 --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import CIFAR_MEAN, CIFAR_STD, Augment, Config, Data, Model, Optim, Train, variant

VARIANTS = ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")


def get_config(name: str = VARIANTS[0]) -> Config:
  return Config(
    model=Model(variant(name, VARIANTS)),
    data=Data(
      "cifar10", batch_size=128, eval_batch_size=500, mean=CIFAR_MEAN, std=CIFAR_STD,
      augment=Augment(crop_padding=4, flip_horizontal=True),
    ),
    optim=Optim("momentum", lr=0.1, weight_decay=1e-4, schedule="step", boundaries=(32_000, 48_000),
                warmup_steps=400 if name == "resnet110" else 0),
    train=Train(steps=64_000, eval_every=2_000),
  )  # fmt: skip
