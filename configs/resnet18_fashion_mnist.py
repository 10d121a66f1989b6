"""ResNet-18 on Fashion-MNIST, a quarter as wide: a run of minutes on a CPU.

He, Zhang, Ren, Sun 2015, the net for ImageNet on parts of 56 x 56 of images of 64 x 64. 88.4 % on the subset of
15,000 images, 6 minutes on two busy CPU cores.

  python launch.py --config=configs/resnet18_fashion_mnist.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Train, variant

VARIANTS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


def get_config(name: str = VARIANTS[0]) -> Config:
  return Config(
    model=Model(variant(name, VARIANTS), {"width": 16}),
    data=Data(
      "fashion_mnist", image_size=(64, 64), crop_size=(56, 56), batch_size=128, eval_batch_size=500, mean=(0.286,),
      std=(0.353,),
      augment=Augment(flip_horizontal=True),
    ),
    optim=Optim("momentum", lr=0.1, weight_decay=5e-4, schedule="cosine", warmup_steps=100),
    train=Train(steps=800, eval_every=100),
  )  # fmt: skip
