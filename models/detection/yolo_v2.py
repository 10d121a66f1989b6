"""YOLOv2: Darknet-19, five anchors in each cell, and finer features passed through to the last map.

Redmon and Farhadi 2017, "YOLO9000: Better, Faster, Stronger", as darknet's yolov2-voc.cfg and yolov2.cfg: 50,655,389
parameters for VOC's 20 classes, 50,962,889 for COCO's 80, running statistics (20,672 numbers) not counted.

Deviations from the paper, all of the released code: a convolution to 64 channels before the passthrough; and the
passthrough itself, which the paper describes as stacking adjacent features: darknet's takes blocks out of an image of
the same memory with a quarter of the channels and twice the sides, which shifts rows. The field `adjacent` has the
paper's; its channels are in the same order, so that darknet's weights nearly fit. No training at several image sizes:
a batch's images are of one size.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.models.detection import anchors, cells
from flaxonomy.models.detection.boxes import Detections
from flaxonomy.models.stages import keep
from flaxonomy.models.vision import darknet

STRIDE = 32  # pixels of a cell


class YOLOv2(nn.Module):
  """Darknet-19 and four more convolutions.

  Attributes:
    num_classes: without a background.
    anchors: (width, height) in cells; None: VOC's, anchors.YOLO_V2_VOC.
    adjacent: the passthrough stacks the four pixels of a block, rather than as darknet does.
    prior: as in `cells.head`.
    shrink: divides all channels.
    momentum: as in `darknet.Unit`.
    axis_name: as in `BatchNorm`.
    dtype: compute type; parameters and what the last layer puts out are float32.
  """

  num_classes: int = 20
  anchors: tuple[tuple[float, float], ...] | None = None
  adjacent: bool = False
  prior: float = 0.5
  shrink: int = 1
  momentum: float = darknet.MOMENTUM
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Looks at images.

    Args:
      x: [B, H, W, 3] in [0, 1], H and W multiples of 32; 416 x 416 in the paper.
      train: batch norm by the batch.

    Returns:
      {"conv13": [B, 26, 26, 512], "conv18": [B, 13, 13, 1024], "conv22": [B, 13, 13, 1024], "logits": [B, N, 5 +
      num_classes] float32, N = 13 x 13 x 5, as the priors} at 416: tx, ty, tw, th, objectness, classes
    """
    darknet.require(x.shape[1:3], STRIDE, "YOLOv2")
    unit = darknet.units(self, train)
    stages, count = {}, len(self._anchors())
    fine, x = darknet.darknet19(unit, x.astype(self.dtype))
    fine, x = keep(self, stages, "conv13", fine), keep(self, stages, "conv18", x)
    x = unit(unit(x, 19, 1024, 3), 20, 1024, 3)
    fine = (stack if self.adjacent else reorganise)(unit(fine, 21, 64, 1))
    x = keep(self, stages, "conv22", unit(jnp.concatenate([fine, x], -1), 22, 1024, 3))
    x = cells.head(count, self.num_classes, self.prior, "conv23")(x.astype(jnp.float32), train=train)
    keep(self, stages, "logits", x.reshape(x.shape[0], -1, 5 + self.num_classes))
    return stages

  @nn.nowrap
  def priors(self, size: tuple[int, int]) -> cells.Priors:
    """The anchors at every place of images (height, width)."""
    sides = tuple((w * STRIDE, h * STRIDE) for w, h in self._anchors())
    return cells.priors((sides,), (STRIDE,), size)

  @nn.nowrap
  def detect(
    self, stages: dict, size: tuple[int, int], score: float = 0.005, candidates: int = 400, threshold: float = 0.45,
    most: int = 100,
  ) -> Detections:  # fmt: skip
    """What was found in a batch, scored by objectness times the softmax over the classes.

    Args:
      stages: of `YOLOv2`.
      size: (height, width) of the images that the net saw.
      score: what a score must be above, to count; .005 for evaluation, .24 for pictures.
      candidates: boxes of a class that go into the suppression.
      threshold: IoU above which the less likely of two boxes of a class is left out.
      most: detections of an image.

    Returns:
      Detections in pixels of what the net saw.
    """
    logits = stages["logits"]
    scores = nn.sigmoid(logits[..., 4:5]) * nn.softmax(logits[..., 5:])
    found = cells.decode(logits, self.priors(size))
    return cells.report(found, scores, size, score, candidates, threshold, most)

  @nn.nowrap
  def _anchors(self):
    return self.anchors or anchors.YOLO_V2_VOC


def stack(x: jax.Array) -> jax.Array:
  """The four pixels of each 2 x 2 block in one: [B, H, W, C] to [B, H / 2, W / 2, 4 C], the top left ones first."""
  b, h, w, c = x.shape
  return x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5).reshape(b, h // 2, w // 2, 4 * c)


def reorganise(x: jax.Array) -> jax.Array:
  """Darknet's reorg layer of stride 2: [B, H, W, C], C a multiple of 4, to [B, H / 2, W / 2, 4 C].

  It reads the memory of [C, H, W] as one of [C / 4, 2 H, 2 W], takes the four pixels of each block apart, and reads
  what it wrote, [4, C / 4, H, W], as [4 C, H / 2, W / 2].
  """
  b, h, w, c = x.shape
  x = x.transpose(0, 3, 1, 2).reshape(b, c * h // 4, 2, w, 2).transpose(0, 2, 4, 1, 3)
  return x.reshape(b, 4 * c, h // 2, w // 2).transpose(0, 2, 3, 1)
