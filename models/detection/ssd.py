"""SSD: classes and boxes straight from six maps of one net.

Liu et al. 2016, "SSD: Single Shot MultiBox Detector", SSD300 on VGG16: 26,285,486 parameters for VOC's 21 classes with
the background, 35,641,826 for COCO's 91. As torchvision's ssd300_vgg16, whose weights it takes; names of layers are
those of the authors' Caffe model.

Deviation from the paper: the third pooling counts the odd last row and column (75 to 38), as the released code's does.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxonomy.models import layers, pooling
from flaxonomy.models.detection import anchors
from flaxonomy.models.detection.boxes import Detections, clip, decode, nms_by_class
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.stages import keep

HE, XAVIER = INITIALIZERS["he_fan_out"], INITIALIZERS["xavier_uniform"]
DEPTHS, FEATURES, FC = (2, 2, 3, 3, 3), (64, 128, 256, 512, 512), 1024  # VGG16's, and of its two dense layers
EXTRA = {  # (channels of the 1 x 1, of the 3 x 3 convolution, its stride, its padding)
  "conv8": (256, 512, 2, 1), "conv9": (128, 256, 2, 1), "conv10": (128, 256, 1, 0), "conv11": (128, 256, 1, 0),
}  # fmt: skip
SOURCES = ("conv4_3", "fc7", *(f"{name}_2" for name in EXTRA))
WEIGHTS = (10, 10, 5, 5)  # of the boxes' offsets; the released code's variances .1 and .2 turned over
PLACES = (4, 6, 6, 6, 4, 4)  # default boxes at each place of a source


class SSD(nn.Module):
  """VGG16 without its last pooling and dense layers, more convolutions behind it, and two small heads on six maps.

  Attributes:
    num_classes: with the background, class 0.
    sources: how many of the six maps have heads, from the first; for images smaller than 300.
    scales: of each map's default boxes, in hundredths of the image, and one more; the released code's for COCO.
    shrink: divides all channels.
    dtype: compute type; parameters, the first map's norm and what the heads put out are float32.
  """

  num_classes: int = 91
  sources: int = 6
  scales: tuple[int, ...] = (7, 15, 33, 51, 69, 87, 105)
  shrink: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Looks at images.

    Args:
      x: [B, H, W, 3], red, green, blue less their means, in 255ths; 300 x 300 in the paper.
      train: changes nothing.

    Returns:
      {"conv4_3": [B, 38, 38, 512], scaled to the head's liking, "fc7": [B, 19, 19, 1024], "conv8_2": [B, 10, 10, 512],
      "conv9_2": [B, 5, 5, 256], "conv10_2": [B, 3, 3, 256], "conv11_2": [B, 1, 1, 256], "boxes": [B, A, 4], the
      default boxes' offsets, "logits": [B, A, num_classes]}, both float32, A = 8732, at 300
    """
    stages = {}
    x = x.astype(self.dtype)
    for i, (depth, features) in enumerate(zip(DEPTHS, FEATURES), 1):
      for j in range(1, depth + 1):
        x = self._conv(x, features, f"conv{i}_{j}", 3, padding=1, kernel_init=HE)
        if (i, j) == (4, 3):
          keep(self, stages, "conv4_3", self._l2_norm(x))
      x = pooling.max_pool(x, 2, ceil_mode=i == 3) if i < 5 else pooling.max_pool(x, 3, 1, 1)
    x = self._conv(x, FC, "fc6", 3, padding=6, dilation=6)
    x = keep(self, stages, "fc7", self._conv(x, FC, "fc7", 1))
    for name, (narrow, features, strides, padding) in list(EXTRA.items())[: self.sources - 2]:
      x = self._conv(x, narrow, f"{name}_1", 1)
      x = keep(self, stages, f"{name}_2", self._conv(x, features, f"{name}_2", 3, strides=strides, padding=padding))
    boxes, logits = [], []
    for source, places in zip(SOURCES[: self.sources], PLACES):
      head = functools.partial(layers.Conv, kernel_size=(3, 3), padding=1, kernel_init=XAVIER)
      seen = stages[source].astype(jnp.float32)
      boxes.append(head(places * 4, name=f"{source}_boxes")(seen).reshape(x.shape[0], -1, 4))
      out = head(places * self.num_classes, name=f"{source}_logits")(seen)
      logits.append(out.reshape(x.shape[0], -1, self.num_classes))
    keep(self, stages, "boxes", jnp.concatenate(boxes, 1))
    keep(self, stages, "logits", jnp.concatenate(logits, 1))
    return stages

  @nn.nowrap
  def defaults(self, stages: dict, image: tuple[int, int]) -> jax.Array:
    """The default boxes of all maps, [A, 4] in pixels: the released code's steps at 300 x 300, else image over map.

    Args:
      stages: of `SSD`, arrays or shapes.
      image: (height, width) of what the net saw.
    """
    return anchors.default_boxes(
      tuple(scale / 100 for scale in self.scales[: self.sources + 1]),
      tuple(stages[source].shape[1:3] for source in SOURCES[: self.sources]),
      anchors.SSD300_STEPS[: self.sources] if image == (300, 300) else None,
      anchors.SSD300_RATIOS[: self.sources],
      image,
    )

  @nn.nowrap
  def detect(
    self, stages: dict, defaults: jax.Array, size: tuple[int, int], score: float = 0.01, candidates: int = 400,
    threshold: float = 0.45, most: int = 200,
  ) -> Detections:  # fmt: skip
    """What was found in a batch (section 2.2, and the released code's numbers): suppression within each class.

    Args:
      stages: of `SSD`.
      defaults: [A, 4] default boxes in pixels.
      size: (height, width) of the images that the net saw.
      score: what a probability must be above, to count; .01 for evaluation, more for pictures.
      candidates: boxes of a class that go into the suppression.
      threshold: IoU above which the less likely of two boxes of a class is left out.
      most: detections of an image.

    Returns:
      Detections in pixels of what the net saw.
    """

    def one(offsets, logits):
      found = clip(decode(offsets, defaults, WEIGHTS), *size)
      scores, places = lax.top_k(nn.softmax(logits).T[1:], min(candidates, len(defaults)))  # [C - 1, K], no background
      labels = jnp.repeat(jnp.arange(1, len(scores) + 1), scores.shape[1])
      scores, places = scores.ravel(), places.ravel()
      kept, there = nms_by_class(found[places], scores, labels, scores > score, threshold, most)
      return Detections(found[places[kept]], scores[kept], labels[kept].astype(jnp.int32), there)

    return jax.vmap(one)(stages["boxes"], stages["logits"])

  def _conv(self, x, features, name, side, kernel_init=XAVIER, **how):
    conv = layers.Conv(
      features // self.shrink, (side, side), kernel_init=kernel_init, dtype=self.dtype, name=name, **how
    )
    return nn.relu(conv(x))

  def _l2_norm(self, x):
    """Each place's channels to length 1, times a scale that is learned (section 3.1; Liu et al. 2015, ParseNet)."""
    scale = self.param("conv4_3_scale", nn.initializers.constant(20.0), (x.shape[-1],), jnp.float32)
    x = x.astype(jnp.float32)
    length = jnp.sqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))
    return (x / length * scale[None, None, None]).astype(self.dtype)
