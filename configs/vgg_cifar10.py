"""VGG on CIFAR-10, a quarter as wide: a run of minutes on a CPU.

Simonyan and Zisserman 2014; 32 x 32 images leave one pixel to the dense layers, which have 128 units. 65.9 % in four
epochs (vgg11_bn, JPEG copy), 8 minutes on two busy CPU cores.

  python launch.py --config=configs/vgg_cifar10.py:vgg11_bn --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import CIFAR_MEAN, CIFAR_STD, Augment, Config, Data, Model, Optim, Train, variant

VARIANTS = ("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")


def get_config(name: str = "vgg11_bn") -> Config:
  fields = {"features": (16, 32, 64, 128, 128), "hidden_size": 128, "pool": 1, "dropout": 0.2}
  return Config(
    model=Model(variant(name, VARIANTS), fields),
    data=Data(
      "cifar10", batch_size=128, eval_batch_size=500, mean=CIFAR_MEAN, std=CIFAR_STD,
      augment=Augment(crop_padding=4, flip_horizontal=True),
    ),
    optim=Optim("adam", lr=2e-3, schedule="cosine", warmup_steps=200),
    train=Train(steps=4 * 391, eval_every=391),
  )  # fmt: skip
