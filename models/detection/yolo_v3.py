"""YOLOv3: Darknet-53, three maps with three anchors each, classes that do not exclude each other.

Redmon and Farhadi 2018, "YOLOv3: An Incremental Improvement", as darknet's yolov3.cfg: 61,949,149 parameters for COCO's
80 classes, 61,626,049 for VOC's 20, running statistics (52,608 numbers) not counted.

Deviations: no training at several image sizes: a batch's images are of one size.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError
from flaxonomy.models import resize
from flaxonomy.models.detection import anchors, cells
from flaxonomy.models.detection.boxes import Detections
from flaxonomy.models.stages import keep
from flaxonomy.models.vision import darknet

STRIDES = (8, 16, 32)


class YOLOv3(nn.Module):
  """Darknet-53 and a head on each of three maps, the coarsest first, whose features go up to the next.

  Attributes:
    num_classes: without a background.
    anchors: (width, height) in pixels of the image that the net sees, for each map, the finest first; None:
      anchors.YOLO_V3.
    ignore: in training: predictions that overlap an object by more count as no background; .5 in the paper and
      yolov3-voc.cfg, .7 in yolov3.cfg.
    prior: as in `cells.head`.
    shrink: divides all channels.
    momentum: as in `darknet.Unit`.
    axis_name: as in `BatchNorm`.
    dtype: compute type; parameters and what the heads put out are float32.
  """

  num_classes: int = 80
  anchors: tuple[tuple[tuple[float, float], ...], ...] | None = None
  ignore: float = 0.5
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
      {"stage3": [B, 52, 52, 256], "stage4": [B, 26, 26, 512], "stage5": [B, 13, 13, 1024], "logits": [B, N, 5 +
      num_classes] float32, N = 3 (52^2 + 26^2 + 13^2), as the priors} at 416: tx, ty, tw, th, objectness, classes
    """
    darknet.require(x.shape[1:3], STRIDES[-1], "YOLOv3")
    unit = darknet.units(self, train)
    stages, out, levels, number, up = {}, [], self._anchors(), 53, None
    maps = darknet.darknet53(unit, x.astype(self.dtype))
    maps = [keep(self, stages, f"stage{i}", x) for i, x in enumerate(maps, 3)]
    for x, level, features in zip(maps[::-1], levels[::-1], (1024, 512, 256)):
      if up is not None:
        up = resize.nearest(unit(up, number, features // 2, 1), x.shape[1:3])
        x, number = jnp.concatenate([up, x], -1), number + 1
      for i in range(6):
        x = unit(x, number + i, features // (2 - i % 2), 1 + 2 * (i % 2))
        up = x if i == 4 else up
      head = cells.head(len(level), self.num_classes, self.prior, f"conv{number + 6}")
      out.append(head(x.astype(jnp.float32), train=train).reshape(x.shape[0], -1, 5 + self.num_classes))
      number += 7
    keep(self, stages, "logits", jnp.concatenate(out[::-1], 1))
    return stages

  @nn.nowrap
  def priors(self, size: tuple[int, int]) -> cells.Priors:
    """The anchors at every place of images (height, width)."""
    return cells.priors(self._anchors(), STRIDES, size)

  @nn.nowrap
  def detect(
    self, stages: dict, size: tuple[int, int], score: float = 0.005, candidates: int = 400, threshold: float = 0.45,
    most: int = 100,
  ) -> Detections:  # fmt: skip
    """What was found in a batch, scored by objectness times each class's own probability.

    Args:
      stages: of `YOLOv3`.
      size: (height, width) of the images that the net saw.
      score: what a score must be above, to count; .005 for evaluation, .5 for pictures.
      candidates: boxes of a class that go into the suppression.
      threshold: IoU above which the less likely of two boxes of a class is left out.
      most: detections of an image.

    Returns:
      Detections in pixels of what the net saw.
    """
    logits = stages["logits"]
    scores = nn.sigmoid(logits[..., 4:5]) * nn.sigmoid(logits[..., 5:])
    found = cells.decode(logits, self.priors(size))
    return cells.report(found, scores, size, score, candidates, threshold, most)

  @nn.nowrap
  def _anchors(self):
    levels = self.anchors or anchors.YOLO_V3
    if len(levels) != len(STRIDES):
      raise UserError(f"field 'anchors' of YOLOv3 must hold those of {len(STRIDES)} maps, not {len(levels)}")
    return levels
