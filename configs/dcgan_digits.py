"""DCGAN on scikit-learn's digits: 16 x 16 images from noise, offline.

Radford, Metz, Chintala 2015, at a quarter of the paper's side and half its widths. Blurred but legible
digits, frechet_pixels 1.7, in half a minute on two CPU cores.

  python launch.py --config=configs/dcgan_digits.py
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Train


def get_config() -> Config:
  return Config(
    task="gan",
    model=Model("dcgan", {"nz": 32, "generator_features": 32, "discriminator_features": 32}),
    data=Data("digits", image_size=(16, 16), batch_size=64, mean=(0.5,), std=(0.5,)),
    optim=Optim("adam", lr=2e-4, b1=0.5),
    train=Train(steps=1500, eval_every=250),
  )
