"""Anchors and default boxes: float32 [N, 4], x1 y1 x2 y2 in pixels, in the order of the heads' outputs.

That order is torchvision's: level by level, row by row, column by column, then the shapes of one place. So a head's
[B, H, W, A x K] reshaped to [B, H W A, K] lies beside them. All sizes are Python numbers: the boxes are constants.

  cell, grid, pyramid   torchvision's AnchorGenerator: centred on 0, rounded, no +1
  py_faster_rcnn        the nine of the authors' code, where x2 and y2 are the last pixel inside
  default_boxes         SSD's
  YOLO_V2_*, YOLO_V3    widths and heights alone
"""

import math

import jax
import jax.numpy as jnp

from flaxonomy.errors import UserError

FPN_SIZES = ((32,), (64,), (128,), (256,), (512,))  # Lin et al. 2017, section 4.1, P2 to P6
VGG_SIZES = ((128, 256, 512),)  # Ren et al. 2015, section 3.1.1
RATIOS = (0.5, 1.0, 2.0)  # height over width

SSD300_SHAPES = ((38, 38), (19, 19), (10, 10), (5, 5), (3, 3), (1, 1))  # 8732 boxes
SSD300_STEPS = (8, 16, 32, 64, 100, 300)
SSD300_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
SSD300_COCO = (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05)  # the released code's, torchvision's, too
SSD300_VOC = (0.1, 0.2, 0.375, 0.55, 0.725, 0.9, 1.075)  # Liu et al. 2016, equation 4, and section 3.1 for conv4_3
SSD300_VOC_CODE = (0.1, 0.2, 0.37, 0.54, 0.71, 0.88, 1.05)  # the released code rounds to whole percents

# (width, height) from k-means of the training boxes' sizes. Version 2 in cells of 32 pixels: darknet's yolov2-voc.cfg
# and yolov2.cfg.
YOLO_V2_VOC = (
  (1.3221, 1.73145), (3.19275, 4.00944), (5.05587, 8.09892), (9.47112, 4.84053), (11.2364, 10.0071),
)  # fmt: skip
YOLO_V2_COCO = (
  (0.57273, 0.677385), (1.87446, 2.06253), (3.33843, 5.47434), (7.88282, 3.52778), (9.77052, 9.16828),
)  # fmt: skip
# Version 3 in pixels of a 416 image, for strides 8, 16 and 32: Redmon and Farhadi 2018, section 2.3; yolov3.cfg, and
# yolov3-voc.cfg, too.
YOLO_V3 = (
  ((10, 13), (16, 30), (33, 23)),
  ((30, 61), (62, 45), (59, 119)),
  ((116, 90), (156, 198), (373, 326)),
)  # fmt: skip


def cell(sizes: tuple[float, ...], ratios: tuple[float, ...] = RATIOS) -> jax.Array:
  """Anchors of one place, around (0, 0), their corners rounded to whole pixels (halves to even ones).

  Args:
    sizes: roots of the areas, in pixels.
    ratios: heights over widths.

  Returns:
    [len(ratios) x len(sizes), 4], ratio by ratio.
  """
  corners = [(size / math.sqrt(ratio) / 2, size * math.sqrt(ratio) / 2) for ratio in ratios for size in sizes]
  return jnp.asarray([(-round(x), -round(y), round(x), round(y)) for x, y in corners], jnp.float32)


def grid(cell: jax.Array, shape: tuple[int, int], stride: tuple[int, int]) -> jax.Array:
  """The anchors of one place at every place of a map.

  Args:
    cell: [A, 4].
    shape: (H, W) of the map.
    stride: pixels from row to row and from column to column; the first place is at (0, 0).

  Returns:
    [H W A, 4]
  """
  y, x = (jnp.arange(n, dtype=jnp.float32) * step for n, step in zip(shape, stride))
  y, x = jnp.broadcast_to(y[:, None], shape), jnp.broadcast_to(x[None], shape)
  return (jnp.stack([x, y, x, y], -1)[:, :, None] + cell[None, None]).reshape(-1, 4)


def pyramid(
  shapes: tuple[tuple[int, int], ...],
  image: tuple[int, int],
  sizes: tuple[tuple[float, ...], ...] = FPN_SIZES,
  ratios: tuple[float, ...] = RATIOS,
) -> jax.Array:
  """The anchors of all levels.

  A level's stride is the image's side over the map's, rounded down, as in torchvision: for an image of 800 pixels the
  coarsest level, of 13 places, has a stride of 61, not 64.

  Args:
    shapes: (H, W) of each level's map.
    image: (height, width) of the padded batch.
    sizes: of each level's anchors.
    ratios: of all.

  Returns:
    [sum of A H W, 4]
  """
  if len(shapes) != len(sizes):
    raise UserError(f"{len(shapes)} feature maps need as many tuples of anchor sizes, not {len(sizes)}")
  levels = []
  for shape, level in zip(shapes, sizes):
    stride = image[0] // shape[0], image[1] // shape[1]
    levels.append(grid(cell(level, ratios), shape, stride))
  return jnp.concatenate(levels)


def py_faster_rcnn(base: int = 16, scales: tuple[int, ...] = (8, 16, 32)) -> jax.Array:
  """The cell of py-faster-rcnn's generate_anchors: [-84, -40, 99, 55] and eight more, for `grid` with a stride of 16.

  There a box's width is x2 - x1 + 1, and the first place's centre is (7.5, 7.5).

  Args:
    base: side in pixels of the square that is scaled, the stride.
    scales: factors on it.

  Returns:
    [3 x len(scales), 4], ratio by ratio.
  """
  centre, anchors = (base - 1) / 2, []
  for ratio in RATIOS:
    width = round(math.sqrt(base * base / ratio))
    height = round(width * ratio)
    for scale in scales:
      x, y = (scale * width - 1) / 2, (scale * height - 1) / 2
      anchors.append((centre - x, centre - y, centre + x, centre + y))
  return jnp.asarray(anchors, jnp.float32)


def default_boxes(
  scales: tuple[float, ...] = SSD300_COCO,
  shapes: tuple[tuple[int, int], ...] = SSD300_SHAPES,
  steps: tuple[float, ...] | None = SSD300_STEPS,
  ratios: tuple[tuple[float, ...], ...] = SSD300_RATIOS,
  image: tuple[int, int] = (300, 300),
) -> jax.Array:
  """SSD's default boxes (Liu et al. 2016, section 2.2), as torchvision's DefaultBoxGenerator makes them.

  At each place: a square of the level's scale, one of the geometric mean with the next scale, then for each ratio a
  lying box and a standing one. Wider or higher than the image they are cut to its size, about the same centre: corners
  may lie outside.

  Args:
    scales: of each level, as shares of the image, and one more.
    shapes: (H, W) of each level's map.
    steps: pixels between places of a level, not always image / map; None: just that.
    ratios: of each level, beside 1.
    image: (height, width).

  Returns:
    [sum of (2 + 2 len(ratios)) H W, 4], in pixels.
  """
  if not len(scales) - 1 == len(shapes) == len(ratios) == len(steps or shapes):
    raise UserError(f"{len(shapes)} feature maps need as many steps and tuples of ratios, and one scale more")
  levels = []
  for k, shape in enumerate(shapes):
    step = (steps[k], steps[k]) if steps else (image[0] / shape[0], image[1] / shape[1])
    sides = [(scales[k], scales[k]), (math.sqrt(scales[k] * scales[k + 1]),) * 2]
    for ratio in ratios[k]:
      long, short = scales[k] * math.sqrt(ratio), scales[k] / math.sqrt(ratio)
      sides += [(long, short), (short, long)]
    halves = [(min(w, 1) * image[1] / 2, min(h, 1) * image[0] / 2) for w, h in sides]
    centred = jnp.asarray([(step[1] / 2 - w, step[0] / 2 - h, step[1] / 2 + w, step[0] / 2 + h) for w, h in halves])
    levels.append(grid(centred.astype(jnp.float32), shape, step))
  return jnp.concatenate(levels)
