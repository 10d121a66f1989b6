"""Augmentation as it is compiled, the maps that are drawn, and SciPy's resampling through them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import scipy.ndimage
import scipy.stats
from jax.sharding import PartitionSpec as P

from flaxonomy.configs.base import Augment, Data
from flaxonomy.data import augment
from flaxonomy.train import loop, step
from flaxonomy.train.sharding import DATA

KEY = jax.random.PRNGKey(7)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

EVERY = {
  "random_resized_crop": (0.5, 1.0),
  "crop_padding": 2,
  "rotate": 20.0,
  "translate": 0.1,
  "scale": (0.8, 1.3),
  "flip_horizontal": True,
  "flip_vertical": True,
  "brightness": 0.1,
  "contrast": 0.3,
  "cutout": 5,
  "mixup": 0.4,
}
GEOMETRIC = ["random_resized_crop", "crop_padding", "scale", "rotate", "translate", "flips"]  # in the documented order


def only(*kinds):
  """EVERY's settings of some kinds, "flips" being both."""
  named = {"flips": ("flip_horizontal", "flip_vertical")}
  return {field: EVERY[field] for kind in kinds for field in named.get(kind, (kind,))}


def batch_of(count=8, size=(11, 14), channels=3, low=0, high=256, seed=0):
  """A batch of random examples whose indices are neither sorted nor their positions."""
  r = np.random.default_rng(seed)
  return {
    "image": r.integers(low, high, (count, *size, channels), dtype=np.uint8),
    "label": r.integers(0, 10, count, dtype=np.int32),
    "index": r.permutation(count).astype(np.int32) + 100,
    "mask": np.ones(count, np.float32),
  }


@functools.lru_cache
def compiled(settings, mean, std, devices):
  function = augment.build(Data(augment=Augment(**dict(settings)), mean=mean, std=std), DATA)
  return step.pmapped(function, loop.make_mesh(devices), (P(), P(DATA)), P(DATA))


def run(batch, settings, mean=(0.0,), std=(1.0,), devices=1, rng=KEY):
  return jax.device_get(compiled(tuple(settings.items()), mean, std, devices)(rng, batch))


@functools.lru_cache
def compiled_matrices(settings, size):
  return jax.jit(jax.vmap(lambda i: augment._matrix(Augment(**dict(settings)), jax.random.fold_in(KEY, i), size)))


def matrices(settings, index, size):
  """The affine maps [n, 3, 3] drawn for some examples."""
  drawn = np.asarray(compiled_matrices(tuple(settings.items()), size)(jnp.asarray(index)), np.float64)
  return np.concatenate([drawn, np.broadcast_to([[[0.0, 0.0, 1.0]]], (len(drawn), 1, 3))], 1)


def resampled(image, matrix):
  """SciPy's bilinear resampling of one image [H, W, C] through a map about the centre, zeros outside."""
  centre = (np.array(image.shape[:2]) - 1) / 2
  offset = centre + matrix[:2, 2] - matrix[:2, :2] @ centre
  channels = [
    scipy.ndimage.affine_transform(c, matrix[:2, :2], offset, order=1, mode="grid-constant", prefilter=False)
    for c in np.moveaxis(image, -1, 0)
  ]
  return np.stack(channels, -1)


def scaled(batch):
  return batch["image"].astype(np.float64) / 255
