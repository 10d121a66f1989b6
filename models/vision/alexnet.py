"""AlexNet: the net of 2012, and its one-tower successor of 2014, which is torchvision's.

`alexnet_original`: Krizhevsky, Sutskever, Hinton 2012, "ImageNet Classification with Deep Convolutional Neural
Networks". 60,965,224 parameters at 227 x 227 x 3 and 1000 classes; 62,378,344 without the groups that stood for two
GPUs. `alexnet`: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks", as torchvision
has it: 61,100,840 parameters, no response normalisation, any image of 63 pixels and more.

Deviations: the paper says 224 x 224, from which 11 x 11 windows at stride 4 do not give its 55 x 55; 227 does, as in
Caffe. torchvision's net puts dropout before fc6 and fc7 instead of behind them, and averages the last map to 6 x 6.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.models import layers, norm, pooling
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.stages import keep

# Section 5: deviation .01; biases of 1 in conv2, conv4, conv5, fc6 and fc7 give their rectifiers positive input.
GAUSSIAN = nn.initializers.normal(0.01)
ONES = nn.initializers.ones_init()
# torch's default for convolutions and linear layers, which torchvision leaves as it is.
TORCH = INITIALIZERS["torch_default"]


class AlexNet(nn.Module):
  """torchvision's AlexNet.

  Attributes:
    num_classes: outputs.
    features: channels of the five convolutions.
    hidden_size: units of fc6 and fc7.
    pool: side of the map that fc6 sees.
    dropout: rate before fc6 and fc7.
    dtype: compute type; parameters and logits are float32.
  """

  num_classes: int = 1000
  features: tuple[int, int, int, int, int] = (64, 192, 384, 256, 256)
  hidden_size: int = 4096
  pool: int = 6
  dropout: float = 0.5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      x: images [B, H, W, C], H and W at least 63; 224 in the reference.
      train: dropout on; needs the rng stream "dropout".

    Returns:
      {"pool1": [B, 27, 27, 64], "pool2": [B, 13, 13, 192], "conv3": [B, 13, 13, 384], "conv4": [B, 13, 13, 256],
      "pool5": [B, 6, 6, 256], "fc6": [B, 4096], "fc7": [B, 4096], "logits": [B, num_classes] float32} at 224.
    """
    conv = functools.partial(layers.Conv, dtype=self.dtype, kernel_init=TORCH)
    dense = functools.partial(nn.Dense, dtype=self.dtype, kernel_init=TORCH)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    f, stages = self.features, {}
    x = nn.relu(conv(f[0], (11, 11), strides=4, padding=2, name="conv1")(x.astype(self.dtype)))
    x = keep(self, stages, "pool1", pooling.max_pool(x, 3, 2))
    x = nn.relu(conv(f[1], (5, 5), padding=2, name="conv2")(x))
    x = keep(self, stages, "pool2", pooling.max_pool(x, 3, 2))
    x = keep(self, stages, "conv3", nn.relu(conv(f[2], (3, 3), padding=1, name="conv3")(x)))
    x = keep(self, stages, "conv4", nn.relu(conv(f[3], (3, 3), padding=1, name="conv4")(x)))
    x = nn.relu(conv(f[4], (3, 3), padding=1, name="conv5")(x))
    x = keep(self, stages, "pool5", pooling.max_pool(x, 3, 2))
    x = pooling.adaptive_avg_pool(x, (self.pool, self.pool))
    x = drop(x.reshape(x.shape[0], -1))
    x = keep(self, stages, "fc6", nn.relu(dense(self.hidden_size, name="fc6")(x)))
    x = keep(self, stages, "fc7", nn.relu(dense(self.hidden_size, name="fc7")(drop(x))))
    x = nn.Dense(self.num_classes, kernel_init=TORCH, name="fc8")(x.astype(jnp.float32))
    return stages | {"logits": x}


class AlexNetOriginal(nn.Module):
  """The net of 2012.

  Attributes:
    num_classes: outputs.
    features: channels of the five convolutions.
    hidden_size: units of fc6 and fc7.
    groups: of conv2, conv4 and conv5: 2 for the paper's two GPUs.
    dropout: rate behind fc6 and fc7.
    dtype: compute type; parameters and logits are float32.
  """

  num_classes: int = 1000
  features: tuple[int, int, int, int, int] = (96, 256, 384, 384, 256)
  hidden_size: int = 4096
  groups: int = 2
  dropout: float = 0.5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Classifies images.

    Args:
      x: images [B, H, W, C]; the paper's are [B, 227, 227, 3]. At least 67 pixels.
      train: dropout on; needs the rng stream "dropout".

    Returns:
      {"pool1": [B, 27, 27, 96], "pool2": [B, 13, 13, 256], "conv3": [B, 13, 13, 384], "conv4": [B, 13, 13, 384],
      "pool5": [B, 6, 6, 256], "fc6": [B, 4096], "fc7": [B, 4096], "logits": [B, num_classes] float32} at 227.
    """
    conv = functools.partial(layers.Conv, dtype=self.dtype, kernel_init=GAUSSIAN)
    split = functools.partial(conv, groups=self.groups, bias_init=ONES)
    dense = functools.partial(nn.Dense, self.hidden_size, dtype=self.dtype, kernel_init=GAUSSIAN, bias_init=ONES)
    # Section 3.3, equation 1: k 2, n 5, alpha 1e-4 for the sum, so 5e-4 for the mean, beta .75.
    lrn = functools.partial(norm.local_response_norm, size=5, alpha=5e-4, beta=0.75, k=2.0)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    f, stages = self.features, {}
    x = lrn(nn.relu(conv(f[0], (11, 11), strides=4, name="conv1")(x.astype(self.dtype))))
    x = keep(self, stages, "pool1", pooling.max_pool(x, 3, 2))
    x = lrn(nn.relu(split(f[1], (5, 5), padding=2, name="conv2")(x)))
    x = keep(self, stages, "pool2", pooling.max_pool(x, 3, 2))
    x = keep(self, stages, "conv3", nn.relu(conv(f[2], (3, 3), padding=1, name="conv3")(x)))
    x = keep(self, stages, "conv4", nn.relu(split(f[3], (3, 3), padding=1, name="conv4")(x)))
    x = nn.relu(split(f[4], (3, 3), padding=1, name="conv5")(x))
    x = keep(self, stages, "pool5", pooling.max_pool(x, 3, 2))
    x = x.reshape(x.shape[0], -1)
    x = keep(self, stages, "fc6", nn.relu(dense(name="fc6")(x)))
    x = keep(self, stages, "fc7", nn.relu(dense(name="fc7")(drop(x))))
    x = nn.Dense(self.num_classes, kernel_init=GAUSSIAN, name="fc8")(drop(x).astype(jnp.float32))
    return stages | {"logits": x}
