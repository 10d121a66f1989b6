"""Mask R-CNN: Faster R-CNN with a third head, which draws the object in each box.

He, Gkioxari, Dollár, Girshick 2017, "Mask R-CNN", sections 3 and 3.1, on ResNet-50 and a feature pyramid.
`maskrcnn_resnet50_fpn` is torchvision's, whose weights it takes: 44,401,393 parameters for COCO's 91 classes with the
background, batch norm frozen; 44,454,513 where it learns.

Deviations, torchvision's: masks of truth are averaged to 28 x 28 and not cut at a half; detections have soft masks, of
which the caller takes what is above a half. The others are those of `faster_rcnn`.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.models import layers
from flaxonomy.models.detection import faster_rcnn
from flaxonomy.models.initializers import INITIALIZERS

HE = INITIALIZERS["he_fan_out"]
BINS = (14, 14)  # of a region; its mask has twice as many


class MaskHead(nn.Module):
  """Four 3 x 3 convolutions, a transposed one, and a mask for each class: figure 4, right.

  Attributes:
    num_classes: with the background, class 0.
    features: channels.
    dtype: compute type; parameters and results are float32.
  """

  num_classes: int
  features: int = 256
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x) -> jax.Array:
    """Args: x: [R, h, w, C]. Returns: logits [R, 2 h, 2 w, num_classes] float32."""
    conv = functools.partial(layers.Conv, kernel_init=HE)
    for i in range(1, 5):
      x = nn.relu(conv(self.features, (3, 3), padding=1, dtype=self.dtype, name=f"conv{i}")(x))
    x = layers.ConvTranspose(self.features, (2, 2), strides=2, kernel_init=HE, dtype=self.dtype, name="conv5")(x)
    return conv(self.num_classes, (1, 1), name="logits")(nn.relu(x).astype(jnp.float32))


class MaskRCNN(faster_rcnn.FasterRCNN):
  """Faster R-CNN on a feature pyramid, and a head for masks with as many channels; fields as of `FasterRCNN`."""

  def setup(self):
    """The parts. Raises UserError for sizes that do not fit the depths."""
    super().setup()
    self.mask_head = MaskHead(self.num_classes, self.features, dtype=self.dtype)

  def __call__(
    self, x, size=None, *, train: bool, score: float = 0.05, threshold: float = 0.5, most: int = 100
  ) -> dict[str, jax.Array]:
    """Looks at images, and draws what it finds.

    Args:
      x: as of `FasterRCNN`, as are
      size: likewise, and
      train: likewise.
      score: as of `FasterRCNN.detect`, as are
      threshold: likewise, and
      most: likewise.

    Returns:
      What `FasterRCNN` and `draw` give, and {"found": Detections}.
    """
    size = faster_rcnn.whole(x) if size is None else size
    stages = super().__call__(x, size, train=train)
    found = self.detect(stages, size, score, threshold, most)
    return stages | {"found": found} | self.draw(stages, found.boxes)

  def draw(self, stages: dict, boxes: jax.Array) -> dict[str, jax.Array]:
    """The third stage.

    Args:
      stages: of `look`.
      boxes: [B, R, 4] in pixels of the image.

    Returns:
      {"mask_pooled": [B, R, 14, 14, features], "mask_logits": [B, R, 28, 28, num_classes] float32}
    """
    pooled = self.pool(stages, boxes, BINS)
    logits = self.mask_head(pooled.reshape(-1, *pooled.shape[2:]))
    return {"mask_pooled": pooled, "mask_logits": logits.reshape(*pooled.shape[:2], *logits.shape[1:])}


def of_class(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """The masks of one class each: logits [B, R, M, M, C] and labels [B, R] to [B, R, M, M]."""
  return jnp.take_along_axis(logits, labels[:, :, None, None, None], -1)[..., 0]
