"""GoogLeNet on Fashion-MNIST, an eighth as wide, at 64 x 64: a run of minutes on a CPU.

Szegedy et al. 2014, with its auxiliary classifiers; the paper's own net needs 80 x 80 for theirs.
Compiling it takes a minute.

  python launch.py --config=configs/googlenet_fashion_mnist.py:googlenet_original --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Train, variant

VARIANTS = ("googlenet", "googlenet_original")


def get_config(name: str = VARIANTS[0]) -> Config:
  side = 80 if variant(name, VARIANTS) == "googlenet_original" else 64
  return Config(
    model=Model(name, {"shrink": 8}),
    data=Data(
      "fashion_mnist", image_size=(side, side), batch_size=128, eval_batch_size=500, mean=(0.286,), std=(0.353,),
      augment=Augment(flip_horizontal=True),
    ),
    optim=Optim("adam", lr=2e-3, schedule="cosine", warmup_steps=100),
    train=Train(steps=600, eval_every=100),
  )  # fmt: skip
