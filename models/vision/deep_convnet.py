"""DeepConvNet: six small convolutions, 99.38 % on MNIST.

Saito 2016, "Deep Learning from Scratch", chapter 8. 123,552 parameters at 28 x 28 x 1.

  [conv16, conv16, pool] [conv32, conv32 (pad 2), pool] [conv64, conv64, pool] fc50, dropout, fc10, dropout, softmax

Deviations: rectification and pooling change places (they commute, and the rectifier then sees a quarter of the
pixels); the gradient of a tie inside a pooling window goes to the first of the tied pixels, as in torch.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.models import layers, pooling
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.stages import keep

# He et al. 2015: deviation sqrt(2 / fan_in), which is what the book's `weight_init_scales` are; not truncated.
HE = INITIALIZERS["he_normal"]


class Dropout(nn.Module):
  """The book's dropout: units are silenced in training and scaled by (1 - rate) afterwards, not the other way round.

  Attributes:
    rate: share of the units that are silenced.
  """

  rate: float

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Args: x: [...]. train: silences units; needs the rng stream "dropout". Returns: [...]."""
    if self.rate == 0.0 or not train:
      return x * (1.0 - self.rate)
    keep = jax.random.bernoulli(self.make_rng("dropout"), 1.0 - self.rate, x.shape)
    return jnp.where(keep, x, 0.0)


class DeepConvNet(nn.Module):
  """Saito's DeepConvNet.

  Attributes:
    num_classes: outputs.
    features: channels of the three stages.
    hidden_size: units of the hidden layer.
    dropout: rate after the hidden layer and on the logits.
    dtype: compute type; parameters and logits are float32.
  """

  num_classes: int = 10
  features: tuple[int, int, int] = (16, 32, 64)
  hidden_size: int = 50
  dropout: float = 0.5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      x: images [B, H, W, C], pixels in [0, 1]; the paper's are [B, 28, 28, 1].
      train: dropout on; needs the rng stream "dropout".

    Returns:
      {"stage1": [B, 14, 14, 16], "stage2": [B, 8, 8, 32], "stage3": [B, 4, 4, 64], "hidden": [B, 50],
      "logits": [B, num_classes] float32}
    """
    stages = {}
    x = x.astype(self.dtype)
    for i, features in enumerate(self.features, 1):
      second = 2 if i == 2 else 1  # the odd one out: padding 2 makes 14 into 16, so that three poolings end at 4
      x = nn.relu(layers.Conv(features, (3, 3), padding=1, kernel_init=HE, dtype=self.dtype, name=f"conv{i}_1")(x))
      x = layers.Conv(features, (3, 3), padding=second, kernel_init=HE, dtype=self.dtype, name=f"conv{i}_2")(x)
      x = keep(self, stages, f"stage{i}", nn.relu(pooling.max_pool(x, 2)))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(self.hidden_size, kernel_init=HE, dtype=self.dtype, name="fc1")(x))
    x = keep(self, stages, "hidden", x)
    x = Dropout(self.dropout)(x, train=train)
    x = nn.Dense(self.num_classes, kernel_init=HE, dtype=jnp.float32, name="fc2")(x.astype(jnp.float32))
    return stages | {"logits": Dropout(self.dropout)(x, train=train)}
