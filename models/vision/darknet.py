"""Darknet: the convolutions of YOLO, as Redmon's framework of that name has them, and two classifiers made of them.

Redmon and Farhadi 2017, "YOLO9000: Better, Faster, Stronger", table 6: `darknet19`, 20,842,376 parameters at 1000
classes. Redmon and Farhadi 2018, "YOLOv3: An Incremental Improvement", table 1: `darknet53`, 41,609,928.

Convolutions are conv1, conv2, ... in the order of the cfg file, by which models/interop/darknet.py reads weights. YOLO
takes `units` and a body alone: models/detection/yolo_v2.py, yolo_v3.py.

Deviations from darknet: batch norm divides by sqrt(var + 1e-5) as its CUDA path does, and normalises by the biased
variance; its CPU path divides by sqrt(var) + 1e-6, and both take the unbiased one.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError
from flaxonomy.models import layers, pooling
from flaxonomy.models.activations import ACTIVATIONS
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.norm import BatchNorm
from flaxonomy.models.stages import keep

HE = INITIALIZERS["he_normal"]  # sqrt(2 / fan_in), as darknet's convolutions start
LEAKY = ACTIVATIONS["leaky_relu_0.1"]
MOMENTUM = 0.99  # darknet's, of running statistics; runs of a few hundred steps want less


class Unit(nn.Module):
  """A convolution of odd side that keeps the size or halves it, batch norm, and the leaky rectifier of slope .1.

  Attributes:
    features: output channels.
    side: of the kernel; the padding is half of it.
    strides: step of the window.
    batch_norm: otherwise the convolution has a bias.
    linear: no rectifier, no batch norm, and float32: what the last layer is.
    bias_init: initialiser of the bias, where there is one.
    momentum: of batch norm's running statistics.
    axis_name: as in `BatchNorm`.
    dtype: compute type; parameters are float32.
  """

  features: int
  side: int
  strides: int = 1
  batch_norm: bool = True
  linear: bool = False
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  momentum: float = MOMENTUM
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [B, H, W, C]. train: batch norm by the batch. Returns: [B, H / strides, W / strides, features]."""
    normed, dtype = self.batch_norm and not self.linear, jnp.float32 if self.linear else self.dtype
    conv = functools.partial(layers.Conv, self.features, (self.side, self.side), kernel_init=HE, name="conv")
    bias = {"use_bias": not normed, "bias_init": self.bias_init}
    x = conv(strides=self.strides, padding=self.side // 2, **bias, dtype=dtype)(x)
    if normed:
      x = BatchNorm(momentum=self.momentum, axis_name=self.axis_name, dtype=dtype, name="norm")(x, train=train)
    return x if self.linear else LEAKY(x)


def units(model: nn.Module, train: bool, batch_norm: bool = True) -> Callable:
  """What makes numbered units within a model's compact method: (x, number, features, side, strides=1) -> x.

  Args:
    model: whose fields shrink, momentum, axis_name and dtype they have.
    train: batch norm by the batch.
    batch_norm: as in `Unit`.
  """

  def unit(x, number, features, side, strides=1):
    how = {"momentum": model.momentum, "axis_name": model.axis_name, "dtype": model.dtype, "name": f"conv{number}"}
    return Unit(features // model.shrink, side, strides, batch_norm, **how)(x, train=train)

  return unit


def darknet19(unit: Callable, x: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The 18 convolutions of the body: 3 x 3 ones with 1 x 1 ones between them, a pooling before each widening.

  Args:
    unit: from `units`.
    x: [B, H, W, 3], H and W multiples of 32.

  Returns:
    ([B, H / 16, W / 16, 512], behind conv13, [B, H / 32, W / 32, 1024], behind conv18)
  """
  number, maps = 0, []
  for features, depth in ((32, 1), (64, 1), (128, 3), (256, 3), (512, 5), (1024, 5)):
    x = pooling.max_pool(x, 2) if number else x
    for i in range(depth):
      number += 1
      x = unit(x, number, features // (1 + i % 2), 3 - 2 * (i % 2))
    maps.append(x)
  return maps[-2], maps[-1]


def darknet53(unit: Callable, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The 52 convolutions of the body: five halvings by stride, 1, 2, 8, 8 and 4 residual blocks behind them.

  Args:
    unit: from `units`.
    x: [B, H, W, 3], H and W multiples of 32.

  Returns:
    ([B, H / 8, W / 8, 256], [B, H / 16, W / 16, 512], [B, H / 32, W / 32, 1024])
  """
  x, number, maps = unit(x, 1, 32, 3), 1, []
  for i, depth in enumerate((1, 2, 8, 8, 4)):
    features = 64 << i
    x, number = unit(x, number + 1, features, 3, 2), number + 1
    for _ in range(depth):
      x += unit(unit(x, number + 1, features // 2, 1), number + 2, features, 3)
      number += 2
    maps.append(x)
  return tuple(maps[-3:])


def require(size: tuple[int, int], stride: int, name: str) -> None:
  """Raises UserError unless images (height, width) are so many whole cells."""
  if size[0] % stride or size[1] % stride or 0 in size:
    raise UserError(
      f"{name} sees images whose sides are multiples of {stride} pixels, not {size[0]} x {size[1]} "
      "(config field 'data.image_size')"
    )


class Darknet(nn.Module):
  """A body, and what was trained on it before YOLO was: a convolution to the classes, averaged over all places.

  Attributes:
    body: `darknet19` or `darknet53`.
    last: number of that convolution.
    num_classes: outputs.
    shrink: divides all channels.
    momentum: as in `Unit`.
    axis_name: as in `BatchNorm`.
    dtype: compute type; parameters, statistics and logits are float32.
  """

  body: Callable
  last: int
  num_classes: int = 1000
  shrink: int = 1
  momentum: float = MOMENTUM
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      x: images [B, H, W, C] in [0, 1], H and W multiples of 32; 224 x 224 or 256 x 256 (Darknet-53) in the papers.
      train: batch norm by the batch.

    Returns:
      {"stage3": [B, 28, 28, 256] (Darknet-53 alone), "stage4": [B, 14, 14, 512], "stage5": [B, 7, 7, 1024], "pooled":
      [B, 1024], "logits": [B, num_classes] float32} at 224.
    """
    require(x.shape[1:3], 32, "Darknet")
    stages, maps = {}, self.body(units(self, train), x.astype(self.dtype))
    for i, x in enumerate(maps, 6 - len(maps)):
      x = keep(self, stages, f"stage{i}", x)
    x = keep(self, stages, "pooled", x.mean((1, 2)))  # before what is linear, so that the average is of its outputs
    head = Unit(self.num_classes, 1, linear=True, name=f"conv{self.last}")
    keep(self, stages, "logits", head(x[:, None, None].astype(jnp.float32), train=train)[:, 0, 0])
    return stages


Darknet19 = functools.partial(Darknet, body=darknet19, last=19)
Darknet53 = functools.partial(Darknet, body=darknet53, last=53)
