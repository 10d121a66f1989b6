"""SimpleConvNet on MNIST: one convolution.

Saito 2016, "Deep Learning from Scratch", chapter 7.5: Adam 1e-3, batch 100, 20 epochs; about 98.9 % there.

  python launch.py --config=configs/simple_convnet_mnist.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Train


def get_config() -> Config:
  return Config(
    model=Model("simple_convnet"),
    data=Data("mnist", batch_size=100, eval_batch_size=1000),
    optim=Optim("adam", lr=1e-3),
    train=Train(steps=12_000, eval_every=600),
  )
