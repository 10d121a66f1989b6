"""DeepConvNet on MNIST: the book's recipe.

Saito 2016, "Deep Learning from Scratch", chapter 8.1: Adam 1e-3, batch 100, 20 epochs, no augmentation; 99.38 %
there.

  python launch.py --config=configs/mnist.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Train


def get_config() -> Config:
  return Config(
    model=Model("deep_convnet"),
    data=Data("mnist", batch_size=100, eval_batch_size=1000),
    optim=Optim("adam", lr=1e-3),
    train=Train(steps=12_000, eval_every=600),
  )
