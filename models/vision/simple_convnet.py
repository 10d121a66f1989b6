"""SimpleConvNet: one convolution, one pooling, two dense layers; and a net that tells X from O.

`simple_convnet`: Saito 2016, "Deep Learning from Scratch", chapter 7.5: 433,890 parameters at 28 x 28 x 1, about 98.9 %
on MNIST. `xo_net`: the smallest net of its kind, for 9 x 9 drawings of an X or an O, as Rohrer's "How Convolutional
Neural Networks Work" (2016) draws them: three 3 x 3 filters, rectifier, pooling, one dense layer.

Deviations: weights of `simple_convnet` start as He's rather than with deviation .01 (`convs` of them may be stacked,
where .01 stops the signal); `xo_net` pools once where Rohrer's drawings have two rounds.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.models import layers, pooling
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.stages import keep

HE = INITIALIZERS["he_normal"]


class SimpleConvNet(nn.Module):
  """Convolutions without padding, a pooling, a hidden layer.

  Attributes:
    num_classes: outputs.
    features: channels of each convolution.
    kernel_size: side of its window.
    convs: how many stand one behind the other: two of 3 x 3 see what one of 5 x 5 sees.
    hidden_size: units of the hidden layer.
    dtype: compute type; parameters and logits are float32.
  """

  num_classes: int = 10
  features: int = 30
  kernel_size: int = 5
  convs: int = 1
  hidden_size: int = 100
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      x: images [B, H, W, C]; the book's are [B, 28, 28, 1].
      train: of no effect.

    Returns:
      {"conv1": [B, 24, 24, 30], "pool1": [B, 12, 12, 30], "hidden": [B, 100], "logits": [B, num_classes] float32}
    """
    stages, kernel = {}, (self.kernel_size, self.kernel_size)
    x = x.astype(self.dtype)
    for i in range(1, self.convs + 1):
      x = nn.relu(layers.Conv(self.features, kernel, kernel_init=HE, dtype=self.dtype, name=f"conv{i}")(x))
      x = keep(self, stages, f"conv{i}", x)
    x = keep(self, stages, "pool1", pooling.max_pool(x, 2))
    x = x.reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(self.hidden_size, kernel_init=HE, dtype=self.dtype, name="fc1")(x))
    x = keep(self, stages, "hidden", x)
    x = nn.Dense(self.num_classes, kernel_init=HE, name="fc2")(x.astype(jnp.float32))
    return stages | {"logits": x}


class XONet(nn.Module):
  """Three filters, rectifier, pooling, one dense layer.

  Attributes:
    num_classes: outputs.
    features: filters.
    dtype: compute type; parameters and logits are float32.
  """

  num_classes: int = 2
  features: int = 3
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies drawings.

    Args:
      x: images [B, 9, 9, 1].
      train: of no effect.

    Returns:
      {"conv1": [B, 7, 7, 3], "pool1": [B, 3, 3, 3], "logits": [B, num_classes] float32}
    """
    stages = {}
    x = nn.relu(
      layers.Conv(self.features, (3, 3), kernel_init=HE, dtype=self.dtype, name="conv1")(x.astype(self.dtype))
    )
    x = keep(self, stages, "conv1", x)
    x = keep(self, stages, "pool1", pooling.max_pool(x, 2))
    x = nn.Dense(self.num_classes, kernel_init=HE, name="fc")(x.reshape(x.shape[0], -1).astype(jnp.float32))
    return stages | {"logits": x}
