"""ResNet: layers that learn what to add to their input.

He, Zhang, Ren, Sun 2015, "Deep Residual Learning for Image Recognition". For ImageNet, table 1: `resnet18` 11,689,512
parameters, `resnet34` 21,797,672, `resnet50` 25,557,032, `resnet101` 44,549,160, `resnet152` 60,192,808 at 1000
classes. For CIFAR, section 4.2, three stages of 16, 32 and 64 channels: `resnet20` 269,722, `resnet32` 464,154,
`resnet44` 658,586, `resnet56` 853,018, `resnet110` 1,727,962 at 10 classes.

Deviations: a bottleneck's stride is in its 3 x 3 convolution, as in torchvision ("v1.5"); `stride_in_1x1` puts it where
the paper has it. `residual=False` gives the paper's plain nets.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxonomy.models import layers, pooling
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.norm import BatchNorm
from flaxonomy.models.stages import keep

HE = INITIALIZERS["he_fan_out"]  # He et al. 2015 (b), as torchvision
LINEAR = INITIALIZERS["torch_default"]


class FrozenBatchNorm(nn.Module):
  """Batch norm that learns nothing, as detectors have it whose batches are too small (He et al. 2015, appendix A).

  Scale, bias, mean and var, under the names of `norm.BatchNorm`, make up the collection "frozen", not "params".

  Attributes:
    epsilon: added to the variance.
    scale_init: initialiser of the scale.
    dtype: of the result.
  """

  epsilon: float = 1e-5
  scale_init: nn.initializers.Initializer = nn.initializers.ones_init()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [..., C]. train: changes nothing. Returns: [..., C]."""
    shape = (x.shape[-1],)
    first = {"scale": self.scale_init, "var": nn.initializers.ones_init()}
    made = lambda leaf: first.get(leaf, nn.initializers.zeros_init())(jax.random.PRNGKey(0), shape, jnp.float32)
    scale, bias, mean, var = (
      self.variable("frozen", leaf, made, leaf).value for leaf in ("scale", "bias", "mean", "var")
    )
    factor = scale * lax.rsqrt(var + self.epsilon)
    lead = (None,) * (x.ndim - 1)
    return (x.astype(jnp.float32) * factor[lead] + (bias - mean * factor)[lead]).astype(self.dtype)


def _norm(module):
  """What makes the batch norms of a net or block, by its fields."""
  if module.frozen:
    return functools.partial(FrozenBatchNorm, epsilon=module.epsilon, dtype=module.dtype)
  return functools.partial(BatchNorm, epsilon=module.epsilon, axis_name=module.axis_name, dtype=module.dtype)


class Block(nn.Module):
  """Two 3 x 3 convolutions and a shortcut: figure 5, left.

  Attributes:
    features: channels.
    strides: of the first convolution.
    option: how the shortcut changes shape, section 3.3: "A" zeros for the new channels, "B" a 1 x 1 convolution.
    residual: False leaves the shortcut out.
    zero_init_residual: the last scale starts at 0, so that the block starts as its shortcut (Goyal et al. 2017, 5.1).
    frozen, epsilon, axis_name, dtype: as in `ResNet`.
  """

  features: int
  strides: int = 1
  option: str = "B"
  residual: bool = True
  zero_init_residual: bool = False
  frozen: bool = False
  epsilon: float = 1e-5
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [B, H, W, C]. train: batch norm by the batch. Returns: [B, H / strides, W / strides, features]."""
    conv = functools.partial(layers.Conv, kernel_init=HE, use_bias=False, dtype=self.dtype)
    norm = _norm(self)
    last = nn.initializers.zeros_init() if self.zero_init_residual else nn.initializers.ones_init()
    y = conv(self.features, (3, 3), strides=self.strides, padding=1, name="conv1")(x)
    y = nn.relu(norm(name="norm1")(y, train=train))
    y = conv(self.features, (3, 3), padding=1, name="conv2")(y)
    y = norm(scale_init=last, name="norm2")(y, train=train)
    if not self.residual:
      return nn.relu(y)
    if x.shape[-1] == self.features and self.strides == 1:
      return nn.relu(x + y)
    if self.option == "A":
      x = x[:, :: self.strides, :: self.strides]
      more = self.features - x.shape[-1]
      return nn.relu(jnp.pad(x, ((0, 0), (0, 0), (0, 0), (more // 2, more - more // 2))) + y)
    x = conv(self.features, (1, 1), strides=self.strides, name="shortcut")(x)
    return nn.relu(norm(name="shortcut_norm")(x, train=train) + y)


class Bottleneck(nn.Module):
  """1 x 1, 3 x 3 and 1 x 1 convolutions and a shortcut: figure 5, right.

  Attributes:
    features: channels of the first two convolutions; the third has four times as many.
    strides: of the second convolution, or the first if `stride_in_1x1`.
    stride_in_1x1: the paper's place for the stride.
    residual, zero_init_residual, frozen, epsilon, axis_name, dtype: as in `Block`.
  """

  features: int
  strides: int = 1
  stride_in_1x1: bool = False
  residual: bool = True
  zero_init_residual: bool = False
  frozen: bool = False
  epsilon: float = 1e-5
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [B, H, W, C]. train: batch norm by the batch. Returns: [B, H / strides, W / strides, 4 features]."""
    conv = functools.partial(layers.Conv, kernel_init=HE, use_bias=False, dtype=self.dtype)
    norm = _norm(self)
    last = nn.initializers.zeros_init() if self.zero_init_residual else nn.initializers.ones_init()
    first, second = (self.strides, 1) if self.stride_in_1x1 else (1, self.strides)
    y = conv(self.features, (1, 1), strides=first, name="conv1")(x)
    y = nn.relu(norm(name="norm1")(y, train=train))
    y = conv(self.features, (3, 3), strides=second, padding=1, name="conv2")(y)
    y = nn.relu(norm(name="norm2")(y, train=train))
    y = conv(4 * self.features, (1, 1), name="conv3")(y)
    y = norm(scale_init=last, name="norm3")(y, train=train)
    if not self.residual:
      return nn.relu(y)
    if x.shape[-1] != 4 * self.features or self.strides != 1:
      x = conv(4 * self.features, (1, 1), strides=self.strides, name="shortcut")(x)
      x = norm(name="shortcut_norm")(x, train=train)
    return nn.relu(x + y)


def _body(module, stages, x, block, depths, train):
  """The stages of a net, each but the first at half the size with twice the channels, and the mean of the last map."""
  for i, depth in enumerate(depths, 1):
    for j in range(1, depth + 1):
      strides = 2 if i > 1 and j == 1 else 1
      x = block(module.width * 2 ** (i - 1), strides, name=f"stage{i}_block{j}")(x, train=train)
    x = keep(module, stages, f"stage{i}", x)
  return keep(module, stages, "pooled", x.mean((1, 2)))


class ResNet(nn.Module):
  """ResNet for ImageNet, table 1.

  Attributes:
    depths: blocks of each stage.
    bottleneck: blocks of three convolutions rather than two.
    num_classes: outputs; 0: no last layer, for nets that have this one as a part.
    width: channels of the first stage; each next stage has twice as many.
    stride_in_1x1: see `Bottleneck`; the paper's and Caffe's nets.
    residual: False gives the paper's plain net.
    zero_init_residual: see `Block`.
    small_images: the first convolution is 3 x 3 at stride 1 and nothing is pooled behind it, as is usual on 32 x 32.
    frozen: batch norm learns nothing, see `FrozenBatchNorm`.
    epsilon: of batch norm.
    axis_name: mapped axis of batch norm.
    dtype: compute type; parameters, statistics and logits are float32.
  """

  depths: tuple[int, int, int, int]
  bottleneck: bool
  num_classes: int = 1000
  width: int = 64
  stride_in_1x1: bool = False
  residual: bool = True
  zero_init_residual: bool = False
  small_images: bool = False
  frozen: bool = False
  epsilon: float = 1e-5
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      x: images [B, H, W, C]; 224 x 224 in the paper, any size will do.
      train: batch norm by the batch.

    Returns:
      {"stem": [B, 56, 56, 64], "stage1": [B, 56, 56, 256], "stage2": [B, 28, 28, 512], "stage3": [B, 14, 14, 1024],
      "stage4": [B, 7, 7, 2048], "pooled": [B, 2048], "logits": [B, num_classes] float32} for ResNet-50 at 224.
    """
    stages = {}
    side, strides, padding = (3, 1, 1) if self.small_images else (7, 2, 3)
    stem = functools.partial(layers.Conv, kernel_init=HE, use_bias=False, dtype=self.dtype, name="stem")
    x = stem(self.width, (side, side), strides=strides, padding=padding)(x.astype(self.dtype))
    x = nn.relu(_norm(self)(name="stem_norm")(x, train=train))
    x = keep(self, stages, "stem", x if self.small_images else pooling.max_pool(x, 3, 2, padding=1))
    block = functools.partial(Bottleneck, stride_in_1x1=self.stride_in_1x1) if self.bottleneck else Block
    block = functools.partial(block, residual=self.residual, zero_init_residual=self.zero_init_residual,
                              frozen=self.frozen, epsilon=self.epsilon, axis_name=self.axis_name,
                              dtype=self.dtype)  # fmt: skip
    x = _body(self, stages, x, block, self.depths, train)
    if not self.num_classes:
      return stages
    x = nn.Dense(self.num_classes, kernel_init=LINEAR, name="head")(x.astype(jnp.float32))
    return stages | {"logits": x}


class CifarResNet(nn.Module):
  """ResNet for CIFAR, section 4.2: 6n + 2 layers, shortcuts without parameters.

  Attributes:
    blocks: n, of each stage.
    num_classes: outputs.
    width: channels of the first stage; each next stage has twice as many.
    residual: False gives the paper's plain net.
    axis_name: mapped axis of batch norm.
    dtype: compute type; parameters, statistics and logits are float32.
  """

  blocks: int
  num_classes: int = 10
  width: int = 16
  residual: bool = True
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      x: images [B, H, W, C]; 32 x 32 in the paper, any size will do.
      train: batch norm by the batch.

    Returns:
      {"stem": [B, 32, 32, 16], "stage1": [B, 32, 32, 16], "stage2": [B, 16, 16, 32], "stage3": [B, 8, 8, 64], "pooled":
      [B, 64], "logits": [B, num_classes] float32} at 32.
    """
    stages = {}
    x = layers.Conv(self.width, (3, 3), padding=1, kernel_init=HE, use_bias=False, dtype=self.dtype, name="stem")(
      x.astype(self.dtype)
    )
    x = nn.relu(BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name="stem_norm")(x, train=train))
    x = keep(self, stages, "stem", x)
    block = functools.partial(Block, option="A", residual=self.residual, axis_name=self.axis_name, dtype=self.dtype)
    x = _body(self, stages, x, block, (self.blocks,) * 3, train)
    x = nn.Dense(self.num_classes, kernel_init=HE, name="head")(x.astype(jnp.float32))
    return stages | {"logits": x}


ResNet18 = functools.partial(ResNet, depths=(2, 2, 2, 2), bottleneck=False)
ResNet34 = functools.partial(ResNet, depths=(3, 4, 6, 3), bottleneck=False)
ResNet50 = functools.partial(ResNet, depths=(3, 4, 6, 3), bottleneck=True)
ResNet101 = functools.partial(ResNet, depths=(3, 4, 23, 3), bottleneck=True)
ResNet152 = functools.partial(ResNet, depths=(3, 8, 36, 3), bottleneck=True)

ResNet20 = functools.partial(CifarResNet, blocks=3)
ResNet32 = functools.partial(CifarResNet, blocks=5)
ResNet44 = functools.partial(CifarResNet, blocks=7)
ResNet56 = functools.partial(CifarResNet, blocks=9)
ResNet110 = functools.partial(CifarResNet, blocks=18)
