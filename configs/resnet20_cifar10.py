"""ResNet-20 on CIFAR-10 in twelve epochs: as far as two CPU cores go in an hour.

He, Zhang, Ren, Sun 2015, section 4.2, with one cycle of the learning rate (Smith 2018) in place of 164 epochs at
three rates. 84.66 % on the JPEG copy (the paper: 91.25 % after 164 epochs), 53 minutes on two busy CPU cores.

  python launch.py --config=configs/resnet20_cifar10.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import CIFAR_MEAN, CIFAR_STD, Augment, Config, Data, Model, Optim, Train


def get_config() -> Config:
  return Config(
    model=Model("resnet20"),
    data=Data(
      "cifar10", batch_size=128, eval_batch_size=500, mean=CIFAR_MEAN, std=CIFAR_STD,
      augment=Augment(crop_padding=4, flip_horizontal=True),
    ),
    optim=Optim("nesterov", lr=0.3, weight_decay=5e-4, schedule="one_cycle", one_cycle_peak=0.25),
    train=Train(steps=12 * 391, eval_every=391),
  )  # fmt: skip
