"""How a class of models is named in public."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}


def image_like(family: "Family", module, tensors: dict[str, np.ndarray]) -> tuple:
  """An image with the channels of the checkpoint's first convolution."""
  first = tensors.get(family.names(module, family.stem) + ".weight")
  channels = first.shape[1] if first is not None and first.ndim == 4 else family.channels
  return (jnp.zeros((1, family.side, family.side, channels)),)


class Family(NamedTuple):
  """How one class of models is named in public.

  Attributes:
    names: (module, our path with slashes) -> the public module's name.
    told: tensors -> fields that they tell of.
    flattened: module -> {our path: channels of the square map that this dense layer sees}.
    stem: our path of the first convolution.
    side, channels: of an image that the model takes.
    tensor: (public module's name, our leaf) -> the public tensor's name.
    example: (family, module, tensors) -> what the module can be called with.
  """

  names: Callable
  told: Callable
  flattened: Callable = lambda module: {}
  stem: str = "conv1"
  side: int = 224
  channels: int = 3
  tensor: Callable = lambda name, leaf: f"{name}.{LEAVES[leaf]}"
  example: Callable = image_like
