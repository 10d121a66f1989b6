"""Basics: sigmoid, tanh, ReLU, leaky ReLU and ELU in a perceptron of twenty layers, on digits.

activations.png: their curves and derivatives; sigmoid's is never above .25, so that each layer takes three quarters
of the gradient or more. vanishing_gradient.png: what that makes of 20 and of 50 layers, by initialiser; Glorot and
Bengio 2010, He et al. 2015. comparison.png: what it makes of training. After 600 steps sigmoid is at chance, 9.6 %
of 364 test images, tanh at 97.8, ReLU 96.7, leaky ReLU 98.4 and ELU 97.3 %; three minutes on two busy CPU cores.

  python launch.py --config=configs/basics_activations.py
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Study, Train


def get_config() -> Config:
  names = ("sigmoid", "tanh", "relu", "leaky_relu", "elu")
  return Config(
    model=Model("mlp", {"hidden": (100,) * 20, "initializer": "he_normal"}),
    data=Data("digits", batch_size=100),
    optim=Optim("momentum", lr=0.01),
    train=Train(steps=600, eval_every=50),
    study=Study({name: {"model.fields.activation": name} for name in names}, "activations"),
  )
