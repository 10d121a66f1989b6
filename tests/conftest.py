"""Four CPU devices, the compilation cache, and small configs for all tests. Runs before anything touches JAX."""

import os
from pathlib import Path

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

from flaxonomy.configs.base import Config, Data, Model, Optim, Train, override  # noqa: E402
from flaxonomy.train import compile_cache  # noqa: E402

compile_cache.enable()

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

TINY = {"features": (4, 4, 8), "hidden_size": 8, "dropout": 0.0}


@pytest.fixture
def root() -> Path:
  """The checkout."""
  return ROOT


@pytest.fixture
def shared_data() -> Path:
  """Prepared real datasets, where there are any."""
  folder = Path(os.environ.get("FLAXONOMY_SHARED_DATA", SHARED / "data"))
  if not folder.is_dir():
    pytest.skip(f"no real datasets at {folder}")
  return folder


@pytest.fixture
def tiny():
  """A function: overrides -> a config of a few seconds on digits, without dropout, plain SGD on two devices."""

  def make(**changes) -> Config:
    config = Config(
      model=Model("deep_convnet", dict(TINY)),
      data=Data("digits", batch_size=32, eval_batch_size=100),
      optim=Optim("sgd", lr=0.1),
      train=Train(steps=12, eval_every=6, log_every=1, devices=2, accumulate=1, tensorboard=False),
    )
    return override(config, {key.replace("__", "."): value for key, value in changes.items()})

  return make


@pytest.fixture
def tiny_gan():
  """A function: overrides -> a GAN config of a few seconds."""

  def make(**changes) -> Config:
    config = Config(
      task="gan",
      model=Model("dcgan", {"nz": 8, "generator_features": 4, "discriminator_features": 4}),
      data=Data("digits", image_size=(8, 8), batch_size=32, eval_batch_size=100, mean=(0.5,), std=(0.5,)),
      optim=Optim("adam", lr=2e-4, b1=0.5),
      train=Train(steps=12, eval_every=6, log_every=1, devices=2, tensorboard=False),
    )
    return override(config, {key.replace("__", "."): value for key, value in changes.items()})

  return make
