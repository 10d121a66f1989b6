"""Basics: weights of deviation .01, Xavier's and He's in a ReLU perceptron, on digits.

initialisers_*.png: what becomes of the activations of five layers, as in Saito 2016, "Deep Learning from Scratch",
section 6.2.2, with both meanings of "Xavier". comparison.png: section 6.2.4, with ten layers rather than five, where
Xavier's falls behind He's.

  python launch.py --config=configs/basics_initialisers.py
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Study, Train


def get_config() -> Config:
  names = ("std_0.01", "xavier_uniform_fan_in", "xavier_normal", "he_normal")
  return Config(
    model=Model("mlp", {"hidden": (100,) * 10, "activation": "relu"}),
    data=Data("digits", batch_size=100),
    optim=Optim("sgd", lr=0.01),
    train=Train(steps=2_000, eval_every=100),
    study=Study({name: {"model.fields.initializer": name} for name in names}, "initialisers"),
  )
