"""Inception v3: large windows as rows and columns of small ones.

Szegedy, Vanhoucke, Ioffe, Shlens, Wojna 2015, "Rethinking the Inception Architecture for Computer Vision", as
torchvision has it: 23,834,568 parameters, 27,161,264 with the auxiliary classifier, at 1000 classes and 299 x 299.
Modules bear the names under which the net was published.

Deviations: the paper's table 1 leaves details open, which are torchvision's here; its label smoothing, RMSProp and
averaged weights stand in configs/inception_v3_imagenet.py. Where the auxiliary classifier's map is below 17 x 17, too
small for its 5 x 5 windows at stride 3, it is averaged (or repeated) to the 5 x 5 that the next layer needs.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError
from flaxonomy.models import layers, pooling
from flaxonomy.models.norm import BatchNorm
from flaxonomy.models.stages import keep
from flaxonomy.models.vision.googlenet import renormalised


class ConvUnit(nn.Module):
  """Convolution, batch norm, rectifier.

  Attributes:
    features, kernel, strides, padding: of the convolution; (height, width).
    std: deviation of the weights at the start.
    axis_name, dtype: as in `InceptionV3`.
  """

  features: int
  kernel: tuple[int, int] = (1, 1)
  strides: int = 1
  padding: tuple[int, int] = (0, 0)
  std: float = 0.1
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [B, H, W, C]. train: batch norm by the batch. Returns: [B, H', W', features]."""
    init = nn.initializers.normal(self.std)  # torchvision's is cut at 2, twenty deviations away
    x = layers.Conv(self.features, self.kernel, strides=self.strides, padding=self.padding, use_bias=False,
                    kernel_init=init, dtype=self.dtype, name="conv")(x)  # fmt: skip
    return nn.relu(BatchNorm(epsilon=1e-3, axis_name=self.axis_name, dtype=self.dtype, name="norm")(x, train=train))


# A unit of a branch: its name, channels, kernel, stride. At stride 1 the size is kept, at stride 2 nothing is padded.
Unit = tuple[str, int, tuple[int, int], int]
ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)
SPLIT = ((1, 3), (3, 1))


def module_a(pool: int) -> tuple[tuple[Unit, ...], ...]:
  """Figure 5: 35 x 35 maps; `pool` channels behind the pooling."""
  return (
    (("branch1x1", 64, ONE, 1),),
    (("branch5x5_1", 48, ONE, 1), ("branch5x5_2", 64, FIVE, 1)),
    (("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 1)),
    (("branch_pool", pool, ONE, 1),),
  )


def module_c(middle: int) -> tuple[tuple[Unit, ...], ...]:
  """Figure 6 with n = 7: 17 x 17 maps; `middle` channels within the branches."""
  one, two = "branch7x7_", "branch7x7dbl_"
  return (
    (("branch1x1", 192, ONE, 1),),
    ((one + "1", middle, ONE, 1), (one + "2", middle, ROW, 1), (one + "3", 192, COLUMN, 1)),
    (
      (two + "1", middle, ONE, 1), (two + "2", middle, COLUMN, 1), (two + "3", middle, ROW, 1),
      (two + "4", middle, COLUMN, 1), (two + "5", 192, ROW, 1),
    ),
    (("branch_pool", 192, ONE, 1),),
  )  # fmt: skip


# Figure 10: to half the size. The last branch is the pooled input itself.
MODULE_B = (
  (("branch3x3", 384, THREE, 2),),
  (("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 2)),
  (),
)
MODULE_D = (
  (("branch3x3_1", 192, ONE, 1), ("branch3x3_2", 320, THREE, 2)),
  (
    ("branch7x7x3_1", 192, ONE, 1), ("branch7x7x3_2", 192, ROW, 1), ("branch7x7x3_3", 192, COLUMN, 1),
    ("branch7x7x3_4", 192, THREE, 2),
  ),
  (),
)  # fmt: skip
# Figure 7: 8 x 8 maps. Kernel SPLIT stands for a 1 x 3 and a 3 x 1 convolution side by side.
MODULE_E = (
  (("branch1x1", 320, ONE, 1),),
  (("branch3x3_1", 384, ONE, 1), ("branch3x3_2", 384, SPLIT, 1)),
  (("branch3x3dbl_1", 448, ONE, 1), ("branch3x3dbl_2", 384, THREE, 1), ("branch3x3dbl_3", 384, SPLIT, 1)),
  (("branch_pool", 192, ONE, 1),),
)
MODULES = {
  "Mixed_5b": module_a(32),
  "Mixed_5c": module_a(64),
  "Mixed_5d": module_a(64),
  "Mixed_6a": MODULE_B,
  "Mixed_6b": module_c(128),
  "Mixed_6c": module_c(160),
  "Mixed_6d": module_c(160),
  "Mixed_6e": module_c(192),
  "Mixed_7a": MODULE_D,
  "Mixed_7b": MODULE_E,
  "Mixed_7c": MODULE_E,
}


class Mixed(nn.Module):
  """Branches side by side; the last one starts with a pooling.

  Attributes:
    branches: a value of `MODULES`.
    shrink, axis_name, dtype: as in `InceptionV3`.
  """

  branches: tuple[tuple[Unit, ...], ...]
  shrink: int = 1
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [B, H, W, C]. train: batch norm by the batch. Returns: [B, H', W', channels of all branches]."""

    def unit(y, name, features, kernel, strides):
      padding = (kernel[0] // 2, kernel[1] // 2) if strides == 1 else (0, 0)
      return ConvUnit(features // self.shrink, kernel, strides, padding, axis_name=self.axis_name, dtype=self.dtype,
                      name=name)(y, train=train)  # fmt: skip

    outputs = []
    for i, branch in enumerate(self.branches):
      y = x
      if i == len(self.branches) - 1:
        y = pooling.avg_pool(x, 3, 1, padding=1) if branch else pooling.max_pool(x, 3, 2)
      for name, features, kernel, strides in branch:
        if kernel == SPLIT:
          parts = [unit(y, name + letter, features, k, strides) for letter, k in zip("ab", SPLIT)]
          y = jnp.concatenate(parts, -1)
        else:
          y = unit(y, name, features, kernel, strides)
      outputs.append(y)
    return jnp.concatenate(outputs, -1)


class Auxiliary(nn.Module):
  """Section 4: a classifier on the last 17 x 17 map, for training only.

  Attributes:
    num_classes, shrink, axis_name, dtype: as in `InceptionV3`.
  """

  num_classes: int
  shrink: int = 1
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [B, 17, 17, C]. train: batch norm by the batch. Returns: logits [B, num_classes] float32."""
    unit = functools.partial(ConvUnit, axis_name=self.axis_name, dtype=self.dtype)
    x = pooling.avg_pool(x, 5, 3) if min(x.shape[1:3]) >= 17 else pooling.adaptive_avg_pool(x, (5, 5))
    x = unit(128 // self.shrink, name="conv0")(x, train=train)
    x = unit(768 // self.shrink, (5, 5), std=0.01, name="conv1")(x, train=train)
    init = nn.initializers.normal(0.001)
    return nn.Dense(self.num_classes, kernel_init=init, name="fc")(x.mean((1, 2)).astype(jnp.float32))


class InceptionV3(nn.Module):
  """Inception v3.

  Attributes:
    num_classes: outputs.
    aux_logits: an auxiliary classifier in training.
    aux_weight: of its loss; the paper gives none.
    transform_input: takes images normalised by ImageNet's mean and deviation to (pixel - .5) / .5, on which
      torchvision's public weights were trained.
    shrink: every number of channels is divided by this, 32 at most.
    dropout: rate before the last layer.
    axis_name: mapped axis of batch norm.
    dtype: compute type; parameters, statistics and logits are float32.
  """

  num_classes: int = 1000
  aux_logits: bool = True
  aux_weight: float = 0.4
  transform_input: bool = False
  shrink: int = 1
  dropout: float = 0.5
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      x: images [B, H, W, C], H and W at least 75; 299 in the paper.
      train: dropout on (needs the rng stream "dropout"), batch norm by the batch, the auxiliary classifier.

    Returns:
      {"pool1": [B, 73, 73, 64], "pool2": [B, 35, 35, 192], "Mixed_5b": [B, 35, 35, 256], ...,
      "Mixed_7c": [B, 8, 8, 2048], "pooled": [B, 2048], "logits": [B, num_classes] float32} at 299; in training also
      "aux", logits as the last.
    """
    if self.shrink > 32:
      raise UserError(f"shrink={self.shrink} leaves no channels: the narrowest layer has 32")
    given = {"axis_name": self.axis_name, "dtype": self.dtype}
    width, stages = lambda n: n // self.shrink, {}

    def unit(x, name, features, kernel, strides=1, padding=(0, 0)):
      return ConvUnit(width(features), kernel, strides, padding, **given, name=name)(x, train=train)

    x = (renormalised(x) if self.transform_input else x).astype(self.dtype)
    x = unit(x, "Conv2d_1a_3x3", 32, THREE, 2)
    x = unit(x, "Conv2d_2a_3x3", 32, THREE)
    x = unit(x, "Conv2d_2b_3x3", 64, THREE, padding=(1, 1))
    x = keep(self, stages, "pool1", pooling.max_pool(x, 3, 2))
    x = unit(x, "Conv2d_3b_1x1", 80, ONE)
    x = unit(x, "Conv2d_4a_3x3", 192, THREE)
    x = keep(self, stages, "pool2", pooling.max_pool(x, 3, 2))
    for name, branches in MODULES.items():
      x = keep(self, stages, name, Mixed(branches, self.shrink, **given, name=name)(x, train=train))
      if name == "Mixed_6e" and self.aux_logits and (train or self.is_initializing()):
        stages["aux"] = Auxiliary(self.num_classes, self.shrink, **given, name="AuxLogits")(x, train=train)
    x = keep(self, stages, "pooled", x.mean((1, 2)))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    x = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.1), name="fc")(x.astype(jnp.float32))
    return stages | {"logits": x}
