"""X against O: the smallest convolutional net, offline, in seconds.

Drawings of 9 x 9 pixels from our own builder, three 3 x 3 filters, and a sigmoid for each letter, with its binary
cross-entropy ("bce") or squared error ("mse"). 96.5 % with bce, 97.5 % with mse, of 200 drawings, in 9 s.

  python launch.py --config=configs/xo.py:mse
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Train, variant

VARIANTS = ("bce", "mse")


def get_config(name: str = VARIANTS[0]) -> Config:
  return Config(
    model=Model("xo_net"),
    data=Data("xo", batch_size=40, eval_batch_size=200),
    optim=Optim("adam", lr=1e-2),
    train=Train(steps=1_000, eval_every=100, loss=variant(name, VARIANTS)),
  )
