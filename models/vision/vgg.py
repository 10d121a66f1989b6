"""VGG: nothing but 3 x 3 convolutions, 11 to 19 layers deep.

Simonyan and Zisserman 2014, "Very Deep Convolutional Networks for Large-Scale Image Recognition", configurations A, B,
D and E of table 1, and each with batch norm, as torchvision has them. 138,357,544 parameters for VGG16 at 1000 classes.

Deviations: the last map is averaged to 7 x 7, so that any image of 32 pixels and more fits, as in torchvision (at 224
it changes nothing); weights start as torchvision's (He et al. 2015, by outputs) where the paper starts its deeper nets
from its shallowest.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.models import layers, pooling
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.norm import BatchNorm
from flaxonomy.models.stages import keep

HE = INITIALIZERS["he_fan_out"]  # He et al. 2015, equation 14
GAUSSIAN = nn.initializers.normal(0.01)  # section 3.1


class VGG(nn.Module):
  """Five stages of 3 x 3 convolutions, each ended by a pooling, and three dense layers.

  Attributes:
    depths: convolutions of each stage.
    batch_norm: between each convolution and its rectifier.
    num_classes: outputs; 0: ends with the last map before its pooling, for nets that have this one as a part.
    features: channels of each stage.
    hidden_size: units of fc6 and fc7.
    pool: side of the map that fc6 sees.
    dropout: rate behind fc6 and fc7.
    axis_name: mapped axis of batch norm.
    dtype: compute type; parameters, statistics and logits are float32.
  """

  depths: tuple[int, int, int, int, int]
  batch_norm: bool = False
  num_classes: int = 1000
  features: tuple[int, int, int, int, int] = (64, 128, 256, 512, 512)
  hidden_size: int = 4096
  pool: int = 7
  dropout: float = 0.5
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      x: images [B, H, W, C], H and W at least 32; 224 in the paper.
      train: dropout on (needs the rng stream "dropout"), batch norm by the batch.

    Returns:
      {"conv1_2": ..., the last map of each stage before its pooling, "pool1": [B, 112, 112, 64], ..., "pool5": [B, 7,
      7, 512], "fc6": [B, 4096], "fc7": [B, 4096], "logits": [B, num_classes] float32} at 224.
    """
    stages = {}
    x = x.astype(self.dtype)
    for i, (depth, features) in enumerate(zip(self.depths, self.features), 1):
      for j in range(1, depth + 1):
        x = layers.Conv(features, (3, 3), padding=1, kernel_init=HE, dtype=self.dtype, name=f"conv{i}_{j}")(x)
        if self.batch_norm:
          x = BatchNorm(axis_name=self.axis_name, dtype=self.dtype, name=f"norm{i}_{j}")(x, train=train)
        x = keep(self, stages, f"conv{i}_{j}", nn.relu(x))
      if i == len(self.depths) and not self.num_classes:
        return stages
      x = keep(self, stages, f"pool{i}", pooling.max_pool(x, 2))
    x = pooling.adaptive_avg_pool(x, (self.pool, self.pool))
    x = x.reshape(x.shape[0], -1)
    dense = functools.partial(nn.Dense, self.hidden_size, kernel_init=GAUSSIAN, dtype=self.dtype)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    x = keep(self, stages, "fc6", nn.relu(dense(name="fc6")(x)))
    x = keep(self, stages, "fc7", nn.relu(dense(name="fc7")(drop(x))))
    x = nn.Dense(self.num_classes, kernel_init=GAUSSIAN, name="fc8")(drop(x).astype(jnp.float32))
    return stages | {"logits": x}


# Table 1: columns A, B, D, E.
VGG11 = functools.partial(VGG, depths=(1, 1, 2, 2, 2))
VGG13 = functools.partial(VGG, depths=(2, 2, 2, 2, 2))
VGG16 = functools.partial(VGG, depths=(2, 2, 3, 3, 3))
VGG19 = functools.partial(VGG, depths=(2, 2, 4, 4, 4))
VGG11BN = functools.partial(VGG11, batch_norm=True)
VGG13BN = functools.partial(VGG13, batch_norm=True)
VGG16BN = functools.partial(VGG16, batch_norm=True)
VGG19BN = functools.partial(VGG19, batch_norm=True)
