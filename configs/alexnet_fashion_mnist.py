"""AlexNet on Fashion-MNIST, a quarter as wide, at 67 x 67: a run of minutes on a CPU.

Krizhevsky, Sutskever, Hinton 2012, and torchvision's net of 2014. 78.7 % on the subset of 15,000 images, 2 minutes on
two busy CPU cores.

  python launch.py --config=configs/alexnet_fashion_mnist.py:alexnet_original --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Train, variant

VARIANTS = ("alexnet", "alexnet_original")


def get_config(name: str = VARIANTS[0]) -> Config:
  fields = {"features": (16, 48, 96, 64, 64), "hidden_size": 128}
  if variant(name, VARIANTS) == "alexnet":
    fields |= {"pool": 1}
  return Config(
    model=Model(name, fields),
    data=Data(
      "fashion_mnist", image_size=(67, 67), batch_size=128, eval_batch_size=500, mean=(0.286,), std=(0.353,),
      augment=Augment(flip_horizontal=True),
    ),
    optim=Optim("adam", lr=1e-3, schedule="cosine", warmup_steps=100),
    train=Train(steps=800, eval_every=100),
  )  # fmt: skip
