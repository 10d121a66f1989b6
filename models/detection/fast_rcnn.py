"""Fast R-CNN: one pass of a net over the image, and a small one for each box that somebody proposes.

Girshick 2015, "Fast R-CNN", on VGG16: 134,690,729 parameters for VOC's 21 classes with the background. Layers are named
as VGG's are, so that weights learned on ImageNet fit up to fc7.

Deviations: the number of stages can be less, for images with small objects: each one left out doubles the map's
resolution. Convolutions start as VGG's here do, where the paper always starts from ImageNet's weights.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError
from flaxonomy.models import layers, pooling
from flaxonomy.models.detection import roi
from flaxonomy.models.detection.boxes import Detections, clip, decode, large_enough, nms_by_class
from flaxonomy.models.stages import keep
from flaxonomy.models.vision import vgg

DEPTHS, FEATURES = vgg.VGG16.keywords["depths"], vgg.VGG.features
WEIGHTS = (10, 10, 5, 5)  # of the boxes' offsets, so that targets have about unit variance (section 2.3)
SMALL = 1e-2  # pixels; proposals and detections that are smaller are none
# Section 2.3: deviations of the two new layers.
CLASSES, BOXES = nn.initializers.normal(0.01), nn.initializers.normal(0.001)


class FastRCNN(nn.Module):
  """VGG16's convolutions, maxima of each region of interest, two dense layers, classes and boxes.

  Attributes:
    num_classes: with the background, class 0.
    stages: of VGG16's five; a pooling stands between two, so that the map's stride is 16 with 5, 8 with 4, 4 with 3.
    shrink: divides the channels of all convolutions.
    hidden_size: units of fc6 and fc7.
    pool: side of the map that fc6 sees of a region.
    dropout: rate behind fc6 and fc7.
    regions: of an image, that are learned from; 64 of each of two images in the paper.
    background: IoU from which on regions below .5 are learned from as background; .1 mines hard examples (section 2.3).
    dtype: compute type; parameters, logits and boxes are float32.
  """

  num_classes: int = 21
  stages: int = 5
  shrink: int = 1
  hidden_size: int = 4096
  pool: int = 7
  dropout: float = 0.5
  regions: int = 64
  background: float = 0.1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, boxes, *, train: bool) -> dict[str, jax.Array]:
    """Looks at regions of images.

    Args:
      x: [B, H, W, 3]; 600 pixels high or wide at least in the paper.
      boxes: [B, R, 4], x1 y1 x2 y2 in pixels of x.
      train: dropout on; needs the rng stream "dropout".

    Returns:
      {"conv1_2": ..., "conv5_3": [B, H / 16, W / 16, 512], the last map of each stage, "regions": [B, R, 7, 7, 512],
      "fc6": [B, R, 4096], "fc7": [B, R, 4096], "boxes": [B, R, num_classes, 4], each class's offsets, "logits": [B, R,
      num_classes]}, both float32, with all five stages.
    """
    if self.stages > len(DEPTHS):
      raise UserError(f"VGG16 has {len(DEPTHS)} stages, not {self.stages} (config field 'model.fields.stages')")
    stages = {}
    x = x.astype(self.dtype)
    for i, (depth, features) in enumerate(zip(DEPTHS[: self.stages], FEATURES), 1):
      x = pooling.max_pool(x, 2) if i > 1 else x
      conv = functools.partial(layers.Conv, padding=1, kernel_init=vgg.HE, dtype=self.dtype)
      for j in range(1, depth + 1):
        x = nn.relu(conv(features // self.shrink, (3, 3), name=f"conv{i}_{j}")(x))
      x = keep(self, stages, f"conv{i}_{depth}", x)
    bins, scale = (self.pool, self.pool), 0.5 ** (self.stages - 1)
    x = keep(self, stages, "regions", jax.vmap(lambda x, boxes: roi.roi_pool(x, boxes, bins, scale))(x, boxes))
    x = x.reshape(*x.shape[:2], -1)
    drop = nn.Dropout(self.dropout, deterministic=not train)
    dense = functools.partial(nn.Dense, self.hidden_size, kernel_init=vgg.GAUSSIAN, dtype=self.dtype)
    x = keep(self, stages, "fc6", nn.relu(dense(name="fc6")(x)))
    x = keep(self, stages, "fc7", nn.relu(dense(name="fc7")(drop(x))))
    x = drop(x).astype(jnp.float32)
    offsets = nn.Dense(4 * self.num_classes, kernel_init=BOXES, name="boxes")(x)
    keep(self, stages, "boxes", offsets.reshape(*x.shape[:2], self.num_classes, 4))
    keep(self, stages, "logits", nn.Dense(self.num_classes, kernel_init=CLASSES, name="logits")(x))
    return stages

  @nn.nowrap
  def detect(
    self, stages: dict, boxes: jax.Array, size: jax.Array, score: float = 0.05, threshold: float = 0.3,
    most: int = 100,
  ) -> Detections:  # fmt: skip
    """What was found in a batch: suppression within each class, with the numbers of the released code.

    Args:
      stages: of `FastRCNN`.
      boxes: [B, R, 4] that it was given; empty ones, which fill up, find nothing.
      size: [B, 2], (height, width) of the pictures, to which boxes are clipped.
      score: what a probability must be above, to count.
      threshold: IoU above which the less likely of two boxes of a class is left out.
      most: detections of an image.

    Returns:
      Detections in pixels of what the net saw.
    """
    there = large_enough(boxes, SMALL)
    moved = decode(stages["boxes"][:, :, 1:], boxes[:, :, None], WEIGHTS)
    return by_class(nn.softmax(stages["logits"])[:, :, 1:], moved, there, size, score, threshold, most)


def by_class(
  scores: jax.Array, boxes: jax.Array, there: jax.Array, size: jax.Array, score: float, threshold: float, most: int
) -> Detections:
  """Detections from scores and boxes of each class: clipped, those above a score, then suppression within each class.

  Args:
    scores: [B, R, C], without the background.
    boxes: [B, R, C, 4].
    there: [B, R] bool, False for rows that only fill up.
    size: [B, 2], (height, width) of the pictures.
    score: what a score must be above.
    threshold: IoU above which the less likely of two boxes of a class is left out.
    most: detections of an image.
  """

  def one(scores, boxes, there, size):
    boxes = clip(boxes, size[0], size[1])
    labels = jnp.broadcast_to(jnp.arange(1, scores.shape[1] + 1, dtype=jnp.int32)[None], scores.shape).ravel()
    good = ((scores > score) & there[:, None] & large_enough(boxes, SMALL)).ravel()
    scores, boxes = scores.ravel(), boxes.reshape(-1, 4)
    kept, valid = nms_by_class(boxes, scores, labels, good, threshold, most)
    return Detections(boxes[kept], scores[kept], labels[kept], valid)

  return jax.vmap(one)(scores, boxes, there, size)
