"""Basics: SGD, momentum, AdaGrad, AdaDelta, RMSprop and Adam, on MNIST.

valley.png: their ways through x^2 / 20 + y^2, Saito 2016, "Deep Learning from Scratch", section 6.1.3.
comparison.png: section 6.1.8, a perceptron of four hidden layers of 100 for 2,000 steps of 128, with the learning
rates of the book's program; it has neither AdaDelta, which takes its paper's (Zeiler 2012), nor RMSprop, which takes
Adam's. 93.1 % with SGD, 96.9 momentum, 97.5 AdaGrad, 97.3 AdaDelta, 96.9 RMSprop, 97.1 Adam; four minutes on two busy
CPU cores.

  python launch.py --config=configs/basics_optimizers.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Study, Train


def get_config() -> Config:
  rates = {"sgd": 0.01, "momentum": 0.01, "adagrad": 0.01, "adadelta": 1.0, "rmsprop": 0.001, "adam": 0.001}
  return Config(
    model=Model("mlp", {"hidden": (100,) * 4}),
    data=Data("mnist", batch_size=128, eval_batch_size=1000),
    optim=Optim("sgd", lr=0.01),
    train=Train(steps=2_000, eval_every=200),
    study=Study({name: {"optim.name": name, "optim.lr": lr} for name, lr in rates.items()}, "valley"),
  )
