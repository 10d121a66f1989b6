"""How a class of models is named in public."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

LEAVES = {
  "kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias", "mean": "running_mean",
  "var": "running_var",
}  # fmt: skip


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
    cleaned: tensors -> the same under the names used here: older files spell some differently or hold more.
    layout: (module, our path) -> how the public tensor lies: "torch", convolutions as O, I, h, w and matrices as
      out, in; "same" as ours; "row", ours with a leading axis of 1.
    part: (module, our path) -> (axis, index, count) where the public tensor packs that many of our leaves along an axis
      of it; None where it is this one.
    stacks: module -> {our module that holds a stack of layers with a leading axis: (name of a layer, count)}; a layer's
      name has its number for {}.
    tied: module -> {public name: the tensor that it is again}.
    constants: module -> {public name: tensor that the public model stores and ours computes}.
    sizes: (module, tensors) -> fields for depths and widths, which otherwise are those of the model's name.
  """

  names: Callable
  told: Callable
  flattened: Callable = lambda module: {}
  stem: str = "conv1"
  side: int = 224
  channels: int = 3
  tensor: Callable = lambda name, leaf: f"{name}.{LEAVES[leaf]}"
  example: Callable = image_like
  cleaned: Callable = lambda tensors: tensors
  layout: Callable = lambda module, path: "same" if path.endswith("embedding") else "torch"
  part: Callable = lambda module, path: None
  stacks: Callable = lambda module: {}
  tied: Callable = lambda module: {}
  constants: Callable = lambda module: {}
  sizes: Callable = lambda module, tensors: {}
