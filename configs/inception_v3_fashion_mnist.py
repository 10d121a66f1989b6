"""Inception v3 on Fashion-MNIST, a sixteenth as wide, at 75 x 75: a run of minutes on a CPU.

Szegedy et al. 2015, with its auxiliary classifier and label smoothing. 69.4 % on the subset of 15,000 images in 400
steps, 4 minutes on two busy CPU cores.

  python launch.py --config=configs/inception_v3_fashion_mnist.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Train


def get_config() -> Config:
  return Config(
    model=Model("inception_v3", {"shrink": 16, "dropout": 0.2}),
    data=Data(
      "fashion_mnist", image_size=(75, 75), batch_size=128, eval_batch_size=500, mean=(0.286,), std=(0.353,),
      augment=Augment(flip_horizontal=True),
    ),
    optim=Optim("adam", lr=2e-3, schedule="cosine", warmup_steps=100),
    train=Train(steps=400, eval_every=100, label_smoothing=0.1),
  )  # fmt: skip
