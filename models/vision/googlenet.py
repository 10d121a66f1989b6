"""GoogLeNet: modules that look at an image through windows of several sizes at once.

Szegedy et al. 2014, "Going Deeper with Convolutions". `googlenet_original` is table 1: biases, response normalisation,
6,998,552 parameters and 13,378,280 with the two auxiliary classifiers at 1000 classes. `googlenet` is torchvision's:
batch norm in place of both, 6,624,904 and 13,004,888 parameters, and its "5 x 5" convolution is 3 x 3, a slip that its
public weights have made a fact.

Deviations of torchvision's: auxiliary classifiers see an average to 4 x 4 rather than 5 x 5 windows at stride 3, the
last pooling has a 2 x 2 window, dropout is .2 rather than .4. The paper leaves initialisation and the constants of its
response normalisation open: those are Caffe's.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError
from flaxonomy.models import layers, norm, pooling
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.stages import keep

GAUSSIAN = nn.initializers.normal(0.01)  # torchvision's, whose cut at 2 is 200 deviations away
XAVIER = nn.initializers.glorot_uniform()  # Caffe's GoogLeNet; the paper does not say
LINEAR = INITIALIZERS["torch_default"]
BIAS = nn.initializers.constant(0.2)  # Caffe's

# Table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool projection.
MODULES = {
  "3a": (64, 96, 128, 16, 32, 32),
  "3b": (128, 128, 192, 32, 96, 64),
  "4a": (192, 96, 208, 16, 48, 64),
  "4b": (160, 112, 224, 24, 64, 64),
  "4c": (128, 128, 256, 24, 64, 64),
  "4d": (112, 144, 288, 32, 64, 64),
  "4e": (256, 160, 320, 32, 128, 128),
  "5a": (256, 160, 320, 32, 128, 128),
  "5b": (384, 192, 384, 48, 128, 128),
}


class ConvUnit(nn.Module):
  """A convolution and its rectifier, with batch norm between them or a bias.

  Attributes:
    features, kernel, strides: of the convolution, which keeps the size at stride 1.
    original: bias rather than batch norm.
    axis_name, dtype: as in `GoogLeNet`.
  """

  features: int
  kernel: int
  strides: int = 1
  original: bool = False
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [B, H, W, C]. train: batch norm by the batch. Returns: [B, H / strides, W / strides, features]."""
    conv = functools.partial(layers.Conv, self.features, (self.kernel, self.kernel), strides=self.strides,
                             padding=self.kernel // 2, dtype=self.dtype)  # fmt: skip
    if self.original:
      return nn.relu(conv(kernel_init=XAVIER, bias_init=BIAS, name="conv")(x))
    x = conv(use_bias=False, kernel_init=GAUSSIAN, name="conv")(x)
    return nn.relu(
      norm.BatchNorm(epsilon=1e-3, axis_name=self.axis_name, dtype=self.dtype, name="norm")(x, train=train)
    )


class Inception(nn.Module):
  """Figure 2b: four branches side by side.

  Attributes:
    features: a row of `MODULES`.
    original, axis_name, dtype: as in `GoogLeNet`.
  """

  features: tuple[int, int, int, int, int, int]
  original: bool = False
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [B, H, W, C]. train: batch norm by the batch. Returns: [B, H, W, sum of the branches' features]."""
    unit = functools.partial(ConvUnit, original=self.original, axis_name=self.axis_name, dtype=self.dtype)
    one, reduce3, three, reduce5, five, project = self.features
    branch1 = unit(one, 1, name="branch1")(x, train=train)
    branch2 = unit(three, 3, name="branch2")(unit(reduce3, 1, name="branch2_reduce")(x, train=train), train=train)
    kernel = 5 if self.original else 3
    branch3 = unit(five, kernel, name="branch3")(unit(reduce5, 1, name="branch3_reduce")(x, train=train), train=train)
    branch4 = unit(project, 1, name="branch4")(pooling.max_pool(x, 3, 1, padding=1), train=train)
    return jnp.concatenate([branch1, branch2, branch3, branch4], -1)


class Auxiliary(nn.Module):
  """Section 5: a small classifier on a middle layer, for training only.

  Attributes:
    num_classes, shrink, original, axis_name, dtype: as in `GoogLeNet`.
    dropout: rate behind the hidden layer.
  """

  num_classes: int
  dropout: float
  shrink: int = 1
  original: bool = False
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [B, H, W, C]. train: dropout on. Returns: logits [B, num_classes] float32."""
    x = pooling.avg_pool(x, 5, 3) if self.original else pooling.adaptive_avg_pool(x, (4, 4))
    x = ConvUnit(128 // self.shrink, 1, 1, self.original, self.axis_name, self.dtype, name="conv")(x, train=train)
    x = nn.Dense(1024 // self.shrink, kernel_init=GAUSSIAN, dtype=self.dtype, name="fc1")(x.reshape(x.shape[0], -1))
    x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
    return nn.Dense(self.num_classes, kernel_init=GAUSSIAN, name="fc2")(x.astype(jnp.float32))


class GoogLeNet(nn.Module):
  """Nine inception modules.

  Attributes:
    original: the paper's net rather than torchvision's.
    num_classes: outputs.
    aux_logits: two auxiliary classifiers in training.
    aux_weight: of each one's loss.
    transform_input: takes images normalised by ImageNet's mean and deviation to (pixel - .5) / .5, on which
      torchvision's public weights were trained.
    shrink: every number of channels is divided by this, 16 at most.
    dropout: rate before the last layer; None: .2, and .4 in the paper's.
    dropout_aux: rate in the auxiliary classifiers.
    axis_name: mapped axis of batch norm.
    dtype: compute type; parameters, statistics and logits are float32.
  """

  original: bool = False
  num_classes: int = 1000
  aux_logits: bool = True
  aux_weight: float = 0.3
  transform_input: bool = False
  shrink: int = 1
  dropout: float | None = None
  dropout_aux: float = 0.7
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      x: images [B, H, W, C], 224 x 224 in the paper.
      train: dropout on (needs the rng stream "dropout"), batch norm by the batch, auxiliary classifiers.

    Returns:
      {"pool1": [B, 56, 56, 64], "pool2": [B, 28, 28, 192], "inception3a": [B, 28, 28, 256], ...,
      "inception5b": [B, 7, 7, 1024], "pooled": [B, 1024], "logits": [B, num_classes] float32} at 224; in training also
      "aux1" (on 4a) and "aux2" (on 4d), logits as the last.
    """
    if self.shrink > 16:
      raise UserError(f"shrink={self.shrink} leaves no channels: the narrowest layer has 16")
    given = {"original": self.original, "axis_name": self.axis_name, "dtype": self.dtype}
    unit, width = functools.partial(ConvUnit, **given), lambda n: n // self.shrink
    aux = functools.partial(Auxiliary, self.num_classes, self.dropout_aux, self.shrink, **given)
    # Caffe's: alpha 1e-4 of the mean square, k 1.
    lrn = functools.partial(norm.local_response_norm, size=5, alpha=1e-4, beta=0.75, k=1.0)
    lrn = lrn if self.original else (lambda x: x)
    stages = {}
    x = (renormalised(x) if self.transform_input else x).astype(self.dtype)
    x = unit(width(64), 7, 2, name="conv1")(x, train=train)
    x = lrn(keep(self, stages, "pool1", pooling.max_pool(x, 3, 2, ceil_mode=True)))
    x = unit(width(64), 1, name="conv2_reduce")(x, train=train)
    x = lrn(unit(width(192), 3, name="conv2")(x, train=train))
    x = keep(self, stages, "pool2", pooling.max_pool(x, 3, 2, ceil_mode=True))
    for name, features in MODULES.items():
      if name == "4a":
        x = keep(self, stages, "pool3", pooling.max_pool(x, 3, 2, ceil_mode=True))
      if name == "5a":
        x = keep(self, stages, "pool4", pooling.max_pool(x, 3 if self.original else 2, 2, ceil_mode=True))
      x = Inception(tuple(map(width, features)), **given, name=f"inception{name}")(x, train=train)
      x = keep(self, stages, f"inception{name}", x)
      if self.aux_logits and name in ("4a", "4d") and (train or self.is_initializing()):
        number = "aux1" if name == "4a" else "aux2"
        stages[number] = aux(name=number)(x, train=train)
    x = keep(self, stages, "pooled", x.mean((1, 2)))
    rate = (0.4 if self.original else 0.2) if self.dropout is None else self.dropout
    x = nn.Dropout(rate, deterministic=not train)(x)
    x = nn.Dense(self.num_classes, kernel_init=LINEAR, name="fc")(x.astype(jnp.float32))
    return stages | {"logits": x}


def renormalised(x: jax.Array) -> jax.Array:
  """Images [B, H, W, 3] normalised by ImageNet's mean and deviation, as (pixel - .5) / .5."""
  std, mean = jnp.array([0.229, 0.224, 0.225]), jnp.array([0.485, 0.456, 0.406])
  return x * (std / 0.5)[None, None, None] + ((mean - 0.5) / 0.5)[None, None, None]


GoogLeNetOriginal = functools.partial(GoogLeNet, original=True)
