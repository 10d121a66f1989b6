"""Basics: augmentation where labels are few, DeepConvNet on a hundred digits.

comparison.png: with and without rotation, translation and scaling. Without, the training loss falls to nothing and
the test loss rises; with them the hundred do for longer.

  python launch.py --config=configs/basics_augmentation.py
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Study, Train


def get_config() -> Config:
  augmented = {
    "data.augment.rotate": 15.0, "data.augment.translate": 0.1, "data.augment.scale": (0.85, 1.15),
  }  # fmt: skip
  return Config(
    model=Model("deep_convnet"),
    data=Data("digits", train_split="train[:100]", image_size=(28, 28), batch_size=50),
    optim=Optim("adam", lr=1e-3),
    train=Train(steps=600, eval_every=50),
    study=Study({"plain": {}, "augmented": augmented}),
  )
