"""YOLO: classes and boxes of a coarse grid, all at once, from one net that sees the whole image.

Redmon et al. 2016, "You Only Look Once: Unified, Real-Time Object Detection": 24 convolutions and two dense layers,
271,703,550 parameters at 448 x 448 for VOC's 20 classes.

As the paper, not as the yolov1.cfg that is still released, which has batch norm everywhere (the field `batch_norm`), a
locally connected layer in place of the first dense one, and three boxes in a cell (the field `boxes`).

Deviations: a score is 0 where confidence or class probability is negative, which nothing forbids in linear outputs; in
darknet two negative ones give a positive score. Widths and heights come out as their square roots, as the paper's
section 2.2 has it, and are squared.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError
from flaxonomy.models import pooling
from flaxonomy.models.detection import cells
from flaxonomy.models.detection.boxes import Detections
from flaxonomy.models.stages import keep
from flaxonomy.models.vision import darknet

DENSE = nn.initializers.variance_scaling(2 / 3, "fan_in", "uniform")  # U(+-sqrt(2 / fan_in)), as darknet's
POOL = (0, 0)
LAYERS = (  # figure 3: features and side of each convolution
  (64, 7), POOL, (192, 3), POOL, (128, 1), (256, 3), (256, 1), (512, 3), POOL, *((256, 1), (512, 3)) * 4, (512, 1),
  (1024, 3), POOL, *((512, 1), (1024, 3)) * 2, (1024, 3), (1024, 3), (1024, 3), (1024, 3),
)  # fmt: skip
HALVED = {64: (1, 22), 32: (1,), 16: ()}  # by pixels of a cell: convolutions of stride 2


class YOLOv1(nn.Module):
  """GoogLeNet without its branches, and a dense head.

  Attributes:
    num_classes: without a background.
    boxes: that a cell predicts.
    cell: pixels of a cell's side, 64 as in the paper; for small images 32 (conv22 halves nothing) or 16 (nor conv1).
    hidden_size: units of the first dense layer.
    shrink: divides all channels and these units.
    dropout: rate behind the first dense layer.
    batch_norm: in all convolutions, in place of their biases; not in the paper.
    momentum: as in `darknet.Unit`.
    axis_name: as in `BatchNorm`.
    dtype: compute type; parameters and what the last layer puts out are float32.
  """

  num_classes: int = 20
  boxes: int = 2
  cell: int = 64
  hidden_size: int = 4096
  shrink: int = 1
  dropout: float = 0.5
  batch_norm: bool = False
  momentum: float = darknet.MOMENTUM
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Looks at images.

    Args:
      x: [B, H, W, 3] in [0, 1], H and W multiples of `cell`; 448 x 448 in the paper.
      train: dropout on, with the rng stream "dropout", and batch norm by the batch.

    Returns:
      {"conv20": [B, 14, 14, 1024], "conv24": [B, 7, 7, 1024], "fc1": [B, 4096], "logits": [B, 7, 7, 5 boxes +
      num_classes] float32} at 448: for each box x and y in its cell, the square roots of width and height as shares of
      the image's, and its confidence; then the cell's class probabilities
    """
    if self.cell not in HALVED:
      raise UserError(
        f"field 'cell' of YOLO's first version must be one of {', '.join(map(str, HALVED))}, not {self.cell}"
      )
    darknet.require(x.shape[1:3], self.cell, "YOLO's first version")
    unit = darknet.units(self, train, self.batch_norm)
    stages, number, x = {}, 0, x.astype(self.dtype)
    for features, side in LAYERS:
      if (features, side) == POOL:
        x = pooling.max_pool(x, 2)
        continue
      number += 1
      x = unit(x, number, features, side, 2 if number in HALVED[self.cell] else 1)
      x = keep(self, stages, f"conv{number}", x) if number in (20, 24) else x
    rows, columns = x.shape[1:3]
    dense = functools.partial(nn.Dense, kernel_init=DENSE)
    x = dense(self.hidden_size // self.shrink, dtype=self.dtype, name="fc1")(x.reshape(x.shape[0], -1))
    x = keep(self, stages, "fc1", darknet.LEAKY(x))
    x = nn.Dropout(self.dropout, deterministic=not train)(x).astype(jnp.float32)
    x = dense(rows * columns * (5 * self.boxes + self.num_classes), name="fc2")(x)
    keep(self, stages, "logits", self._by_cell(x, (rows, columns)))
    return stages

  @nn.nowrap
  def detect(
    self, stages: dict, size: tuple[int, int], score: float = 0.005, candidates: int = 400, threshold: float = 0.45,
    most: int = 100,
  ) -> Detections:  # fmt: skip
    """What was found in a batch (section 2, and the released code's numbers): suppression within each class.

    Args:
      stages: of `YOLOv1`.
      size: (height, width) of the images that the net saw.
      score: what class probability times confidence must be above; .005 for evaluation, .2 for pictures.
      candidates: boxes of a class that go into the suppression.
      threshold: IoU above which the less likely of two boxes of a class is left out.
      most: detections of an image.

    Returns:
      Detections in pixels of what the net saw.
    """
    found, confidence, classes = split(stages["logits"], self.boxes)
    scores = nn.relu(confidence)[..., None] * nn.relu(classes)[..., None, :]
    pixels = jnp.asarray([size[1], size[0]] * 2, jnp.float32)
    flat = lambda x, last: x.reshape(x.shape[0], -1, last)
    found, scores = flat(found * pixels[(None,) * 4], 4), flat(scores, self.num_classes)
    return cells.report(found, scores, size, score, candidates, threshold, most)

  @nn.nowrap
  def _by_cell(self, x, shape):
    """Darknet's order, all class probabilities, all confidences, all boxes, as [B, *shape, 5 boxes + classes]."""
    cells = shape[0] * shape[1]
    ends = cells * self.num_classes, cells * (self.num_classes + self.boxes)
    classes, confidence, places = jnp.split(x, ends, -1)
    places = places.reshape(x.shape[0], *shape, self.boxes, 4)
    each = jnp.concatenate([places, confidence.reshape(x.shape[0], *shape, self.boxes, 1)], -1)
    classes = classes.reshape(x.shape[0], *shape, self.num_classes)
    return jnp.concatenate([each.reshape(x.shape[0], *shape, -1), classes], -1)


def split(logits: jax.Array, count: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Boxes, confidences and class probabilities.

  Args:
    logits: [B, H, W, 5 count + C] of `YOLOv1`.
    count: boxes of a cell.

  Returns:
    ([B, H, W, count, 4] boxes as shares of the image, [B, H, W, count], [B, H, W, C])
  """
  each = logits[..., : 5 * count].reshape(*logits.shape[:3], count, 5)
  return corners(each[..., :2], jnp.square(each[..., 2:4])), each[..., 4], logits[..., 5 * count :]


def corners(places: jax.Array, sides: jax.Array) -> jax.Array:
  """Boxes as shares of the image.

  Args:
    places: [B, H, W, K, 2], x and y of the middle in its cell, from 0 to 1.
    sides: [B, H, W, K, 2], width and height as shares of the image's.

  Returns:
    [B, H, W, K, 4], x1 y1 x2 y2
  """
  rows, columns = places.shape[1:3]
  y, x = jnp.meshgrid(jnp.arange(rows), jnp.arange(columns), indexing="ij")
  cells, shape = jnp.stack([x, y], -1)[None, :, :, None], jnp.asarray([columns, rows], jnp.float32)
  middles = (places + cells) / shape[(None,) * 4]
  return jnp.concatenate([middles - sides / 2, middles + sides / 2], -1)
