"""DCGAN: a generator and a discriminator, both convolutional.

Radford, Metz, Chintala 2015, "Unsupervised Representation Learning with Deep Convolutional GANs", section 3 and
figure 1; widths as in pytorch/examples dcgan: 3,576,704 and 2,765,568 parameters at 64 x 64 x 3, nz 100, 64 features.

Strided and transposed convolutions instead of pooling, batch norm everywhere but on the generator's output and the
discriminator's input, ReLU and tanh in the generator, leaky ReLU of slope .2 in the discriminator, weights N(0, .02),
batch-norm scales N(1, .02), no biases before batch norm.

Deviations from the paper: the first layer of the generator is a transposed convolution rather than a projection and
a reshape (the same function), and like pytorch/examples neither net's last layer has a bias.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.models import layers
from flaxonomy.models.norm import BatchNorm

NORMAL = nn.initializers.normal(0.02)  # section 3, "Details of adversarial training"


def SCALE(key, shape, dtype=jnp.float32):
  """Batch-norm scales about 1: N(1, .02)."""
  return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class Generator(nn.Module):
  """Noise to images.

  Attributes:
    image_size: height and width of the images, a power of two from 8.
    channels: of the images.
    features: channels of the last hidden layer; doubled for each layer before it.
    axis_name: axis over which batch statistics are shared, or None.
    dtype: compute type.
  """

  image_size: int = 64
  channels: int = 3
  features: int = 64
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, z, *, train: bool) -> jax.Array:
    """Args: z: noise [B, nz]. Returns: images [B, image_size, image_size, channels] in [-1, 1], float32."""
    norm = functools.partial(BatchNorm, scale_init=SCALE, axis_name=self.axis_name, dtype=self.dtype)
    up = functools.partial(
      layers.ConvTranspose, kernel_size=(4, 4), use_bias=False, kernel_init=NORMAL, dtype=self.dtype
    )
    depth = int(math.log2(self.image_size)) - 3  # doublings between 4 x 4 and half the image
    x = z.astype(self.dtype)[:, None, None, :]
    x = up(self.features * 2**depth, strides=1, padding=0, name="up0")(x)  # [B, 4, 4, .]
    x = nn.relu(norm(name="norm0")(x, train=train))
    for i in range(1, depth + 1):
      x = up(self.features * 2 ** (depth - i), strides=2, padding=1, name=f"up{i}")(x)
      x = nn.relu(norm(name=f"norm{i}")(x, train=train))
    x = up(self.channels, strides=2, padding=1, name=f"up{depth + 1}")(x)
    return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
  """Images to the logit of being real. Attributes as the generator's, `features` those of the first layer."""

  image_size: int = 64
  features: int = 64
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: images [B, image_size, image_size, C] in [-1, 1]. Returns: logits [B], float32."""
    norm = functools.partial(BatchNorm, scale_init=SCALE, axis_name=self.axis_name, dtype=self.dtype)
    conv = functools.partial(layers.Conv, kernel_size=(4, 4), use_bias=False, kernel_init=NORMAL, dtype=self.dtype)
    depth = int(math.log2(self.image_size)) - 3
    x = x.astype(self.dtype)
    for i in range(depth + 1):
      x = conv(self.features * 2**i, strides=2, padding=1, name=f"down{i}")(x)
      x = norm(name=f"norm{i}")(x, train=train) if i else x
      x = nn.leaky_relu(x, 0.2)
    return conv(1, strides=1, padding=0, name=f"down{depth + 1}")(x)[:, 0, 0, 0].astype(jnp.float32)


class DCGAN(nn.Module):
  """Both nets, `generator` and `discriminator`, each with variables of its own.

  Attributes:
    image_size: a power of two from 8.
    channels: of the images.
    generator_features, discriminator_features: channels next to the image.
    nz: length of the noise vector.
    axis_name: axis over which batch statistics are shared, or None.
    dtype: compute type.
  """

  image_size: int = 64
  channels: int = 3
  generator_features: int = 64
  discriminator_features: int = 64
  nz: int = 100
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  def setup(self):  # noqa: D102
    shared = {"image_size": self.image_size, "axis_name": self.axis_name, "dtype": self.dtype}
    self.generator = Generator(channels=self.channels, features=self.generator_features, **shared)
    self.discriminator = Discriminator(features=self.discriminator_features, **shared)

  def generate(self, z, *, train: bool) -> jax.Array:
    """Images [B, S, S, C] in [-1, 1] from noise [B, nz]."""
    return self.generator(z, train=train)

  def discriminate(self, x, *, train: bool) -> jax.Array:
    """Logits [B] of images [B, S, S, C] in [-1, 1] being real."""
    return self.discriminator(x, train=train)

  def __call__(self, z, *, train: bool) -> jax.Array:
    """Logits [B] of generated images; exists to initialise both nets."""
    return self.discriminate(self.generate(z, train=train), train=train)
