"""DeepConvNet on scikit-learn's digits: the default run, offline.

Saito 2016, "Deep Learning from Scratch", chapter 8, on 8 x 8 digits enlarged to the paper's 28 x 28.

  python launch.py --config=configs/digits.py
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Train


def get_config() -> Config:
  return Config(
    model=Model("deep_convnet"),
    data=Data("digits", image_size=(28, 28), batch_size=100),
    optim=Optim("adam", lr=1e-3),
    train=Train(steps=300, eval_every=50),
  )
