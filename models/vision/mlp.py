"""Multi-layer perceptron: the net on which activations, initialisers and optimizers are compared.

Saito 2016, "Deep Learning from Scratch", chapters 4 to 6. 119,910 parameters with five hidden layers of 100 at
28 x 28 x 1.

Deviation: the last layer is initialised as the others are, and all biases with zero, whatever the initialiser.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import unknown
from flaxonomy.models.activations import ACTIVATIONS
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.stages import keep


class MLP(nn.Module):
  """Flattens, then dense layers.

  Attributes:
    num_classes: outputs.
    hidden: units of each hidden layer; none: softmax regression.
    activation: name in `models.activations`, after every hidden layer.
    initializer: name in `models.initializers`, for the kernel of every layer.
    dtype: compute type; parameters and logits are float32.
  """

  num_classes: int = 10
  hidden: tuple[int, ...] = (100,) * 5
  activation: str = "relu"
  initializer: str = "he_normal"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies.

    Args:
      x: [B, ...].
      train: makes no difference.

    Returns:
      {"hidden1": [B, hidden[0]], ..., "logits": [B, num_classes] float32}

    Raises:
      UserError: unknown activation or initialiser.
    """
    if self.activation not in ACTIVATIONS:
      raise unknown("activation", self.activation, ACTIVATIONS, "(config field 'model.fields.activation')")
    if self.initializer not in INITIALIZERS:
      raise unknown("initializer", self.initializer, INITIALIZERS, "(config field 'model.fields.initializer')")
    activation, init = ACTIVATIONS[self.activation], INITIALIZERS[self.initializer]
    stages = {}
    x = x.reshape(x.shape[0], -1).astype(self.dtype)
    for i, features in enumerate(self.hidden, 1):
      x = activation(nn.Dense(features, kernel_init=init, dtype=self.dtype, name=f"fc{i}")(x))
      x = keep(self, stages, f"hidden{i}", x)
    last = nn.Dense(self.num_classes, kernel_init=init, dtype=jnp.float32, name=f"fc{len(self.hidden) + 1}")
    return stages | {"logits": last(x.astype(jnp.float32))}
