"""Normalisation: batch norm as torch keeps it, local response norm, channel-wise L2 norm."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax


class BatchNorm(nn.Module):
  """Batch normalisation over all axes but the last (Ioffe and Szegedy 2015).

  The running variance is the unbiased one, n / (n - 1) times the variance that normalises, as in torch. So statistics
  go to and from public weights unchanged; Flax's own module keeps the biased one.

  Variables are named as Flax's: params scale and bias, batch_stats mean and var.

  Attributes:
    momentum: share of the old statistics that is kept; 1 minus torch's.
    epsilon: added to the variance.
    axis_name: mapped axis over which a batch is one; None: each device's part is.
    scale_init: initialiser of the scale.
    dtype: of the result; statistics are float32.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  axis_name: str | None = None
  scale_init: nn.initializers.Initializer = nn.initializers.ones_init()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> jax.Array:
    """Args: x: [..., C]. train: by the batch's statistics, which also move the running ones. Returns: [..., C]."""
    shape = (x.shape[-1],)
    scale = self.param("scale", self.scale_init, shape, jnp.float32)
    bias = self.param("bias", nn.initializers.zeros_init(), shape, jnp.float32)
    running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, jnp.float32)
    running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
    mean, var = running_mean.value, running_var.value
    if train:
      axis = None if self.is_initializing() else self.axis_name
      mean, var, n = moments(x, axis)
      if not self.is_initializing():
        keep = self.momentum
        running_mean.value = keep * running_mean.value + (1 - keep) * mean
        running_var.value = keep * running_var.value + (1 - keep) * var * (n / max(n - 1, 1))
    factor = scale * lax.rsqrt(var + self.epsilon)
    lead = (None,) * (x.ndim - 1)
    y = x.astype(jnp.float32) * factor[lead] + (bias - mean * factor)[lead]
    return y.astype(self.dtype)


def moments(x: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array, int]:
  """(mean [C], biased variance [C], values behind each) of x [..., C], over the devices of `axis_name` too; float32."""
  axes, x = tuple(range(x.ndim - 1)), x.astype(jnp.float32)
  n = x.size // x.shape[-1]
  mean = x.mean(axes)
  var = jnp.square(x - mean[(None,) * len(axes)]).mean(axes)  # about the mean: no cancellation
  if axis_name is None:
    return mean, var, n
  means, variances = lax.all_gather(jnp.stack([mean, var]), axis_name, axis=1)  # one exchange for both, [devices, C]
  mean = means.mean(0)
  return mean, (variances + jnp.square(means - mean[None])).mean(0), n * lax.axis_size(axis_name)


def local_response_norm(x: jax.Array, size: int, alpha: float, beta: float, k: float) -> jax.Array:
  """Divides x by (k + alpha / size * sum of squares over `size` neighbouring channels) ** beta.

  As torch and Caffe divide alpha by the size; Krizhevsky et al. 2012, section 3.3, do not: alpha here is five times
  the paper's for its size of 5.

  Args:
    x: [..., C].
    size: channels summed; the window lies around its channel, (size - 1) // 2 of them above it.
    alpha: factor of the mean square.
    beta: exponent.
    k: offset.
  """
  lead = [(0, 0)] * (x.ndim - 1)
  total = lax.reduce_window(jnp.square(x), 0.0, lax.add, (1,) * (x.ndim - 1) + (size,), (1,) * x.ndim,
                            (*lead, (size // 2, (size - 1) // 2)))  # fmt: skip
  return x / (k + alpha / size * total) ** beta


def l2_normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
  """Divides x [..., C] by its norm over the channels, times scale [C] (Liu et al. 2015, ParseNet; SSD's conv4_3)."""
  norm = jnp.sqrt(jnp.square(x).sum(-1, keepdims=True))
  return x / jnp.maximum(norm, 1e-12) * scale[(None,) * (x.ndim - 1)]
