r"""DeepConvNet on MNIST with augmentation, cosine decay and averaged weights: one member of an ensemble of five.

Saito 2016, chapter 8, with what chapter 8.1.2 leaves to the reader. 99.6 % each, 99.74 % the five together, in 7 to
12 minutes each on two busy CPU cores.

for s in 0 1 2 3 4; do
  python launch.py --config=configs/mnist_augmented.py --config.seed=$s --workdir=runs/mnist_$s \
    --config.data.data_dir=DIR
done
python launch.py --mode=eval --workdir=runs/mnist_0,runs/mnist_1,runs/mnist_2,runs/mnist_3,runs/mnist_4
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Train


def get_config() -> Config:
  return Config(
    model=Model("deep_convnet", {"dropout": 0.3}),  # augmentation regularises too
    data=Data(
      "mnist", batch_size=128, eval_batch_size=1000, augment=Augment(rotate=15, translate=0.1, scale=(0.85, 1.15))
    ),
    optim=Optim("adam", lr=2e-3, schedule="cosine", warmup_steps=200),
    train=Train(steps=8_000, eval_every=1_000, ema_decay=0.999),
  )
