"""Feature pyramid: maps of all sizes, each with the meaning of the coarsest.

Lin, Dollár, Girshick, He, Hariharan, Belongie 2017, "Feature Pyramid Networks for Object Detection", section 3, with
torchvision's start: biases zero, kernels U(+-sqrt(3 / fan_in)). No non-linearity, as in the paper.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError
from flaxonomy.models import layers, resize

UNIFORM = nn.initializers.lecun_uniform()  # kaiming_uniform_(a=1)


class FeaturePyramid(nn.Module):
  """Lateral 1 x 1 convolutions `inner0`, ..., sums from the top down, 3 x 3 convolutions `layer0`, ...; figure 3.

  Attributes:
    features: channels of every level.
    pool: one more level, every second cell of the last: the paper's P6, for anchors of 512 pixels (footnote 2).
    dtype: compute type; parameters are float32.
  """

  features: int = 256
  pool: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: list[jax.Array]) -> list[jax.Array]:
    """Levels, the finest first.

    Args:
      maps: a backbone's, [B, H, W, C] each, the finest first; 256, 512, 1024 and 2048 channels at strides 4 to 32 for
        ResNet-50.

    Returns:
      [B, H, W, features] for each map, and with `pool` [B, ceil(H / 2), ceil(W / 2), features] of the last.
    """
    if not maps:
      raise UserError("a feature pyramid needs at least one map")
    above, levels = None, []
    for i in reversed(range(len(maps))):
      x = layers.Conv(self.features, (1, 1), kernel_init=UNIFORM, dtype=self.dtype, name=f"inner{i}")(maps[i])
      above = x if above is None else x + resize.nearest(above, x.shape[1:3])
      layer = layers.Conv(self.features, (3, 3), padding=1, kernel_init=UNIFORM, dtype=self.dtype, name=f"layer{i}")
      levels.insert(0, layer(above))
    return [*levels, levels[-1][:, ::2, ::2]] if self.pool else levels
