"""Basics: augmentation where labels are few, DeepConvNet on a hundred digits.

comparison.png: with and without rotation, translation and scaling. 88.7 % of 364 test images without, 93.7 % with
them, at a test loss of .43 and .20. Two minutes on two busy CPU cores.

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
