"""Anchors against published numbers and NumPy that goes through all places."""

import math
from itertools import product

import numpy as np
import pytest

from flaxonomy.errors import UserError
from flaxonomy.models.detection import anchors


def test_the_nine_of_py_faster_rcnn():
  """The table in the authors' generate_anchors.py, written with 1-based corners there: -83 -39 100 56 and so on."""
  table = [
    [-83, -39, 100, 56], [-175, -87, 192, 104], [-359, -183, 376, 200],
    [-55, -55, 72, 72], [-119, -119, 136, 136], [-247, -247, 264, 264],
    [-35, -79, 52, 96], [-79, -167, 96, 184], [-167, -343, 184, 360],
  ]  # fmt: skip
  np.testing.assert_array_equal(anchors.py_faster_rcnn(), np.array(table) - 1)


def test_cells_are_rounded_and_centred():
  expected = [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]  # torchvision's for 32
  np.testing.assert_array_equal(anchors.cell((32,)), expected)
  np.testing.assert_array_equal(anchors.cell((33, 35), (1.0,)), [[-16, -16, 16, 16], [-18, -18, 18, 18]])  # 16.5, 17.5


def test_grids_go_row_by_row_with_the_shapes_of_a_place_together():
  cell = np.array([[-1, -2, 1, 2], [-3, -1, 3, 1]], np.float32)
  expected = [cell[k] + [x * 8, y * 4, x * 8, y * 4] for y, x, k in product(range(3), range(2), range(2))]
  found = anchors.grid(cell, (3, 2), (4, 8))
  assert found.dtype == np.float32
  np.testing.assert_array_equal(found, expected)


def test_pyramids_take_their_strides_from_the_image():
  """The coarsest level of an image of 800 x 1088 has 13 x 17 places, 61 and 64 pixels apart."""
  shapes = ((200, 272), (100, 136), (50, 68), (25, 34), (13, 17))
  found = np.asarray(anchors.pyramid(shapes, (800, 1088)))
  assert found.shape == (3 * sum(h * w for h, w in shapes), 4)
  np.testing.assert_array_equal(found[-1], np.array([-181, -362, 181, 362]) + [64 * 16, 61 * 12] * 2)
  np.testing.assert_array_equal(found[3] - found[0], [4, 0, 4, 0])
  with pytest.raises(UserError, match="4 feature maps"):
    anchors.pyramid(shapes[1:], (800, 1088))


def test_default_boxes_by_loops():
  scales, steps = anchors.SSD300_VOC_CODE, anchors.SSD300_STEPS
  expected = []
  for k, (n, _) in enumerate(anchors.SSD300_SHAPES):
    sides = [(scales[k], scales[k]), (math.sqrt(scales[k] * scales[k + 1]),) * 2]
    for ratio in anchors.SSD300_RATIOS[k]:
      for each in (ratio, 1 / ratio):
        sides.append((scales[k] * math.sqrt(each), scales[k] / math.sqrt(each)))
    for i, j, (w, h) in product(range(n), range(n), sides):
      x, y, w, h = (j + 0.5) * steps[k], (i + 0.5) * steps[k], 300 * min(w, 1), 300 * min(h, 1)
      expected.append((x - w / 2, y - h / 2, x + w / 2, y + h / 2))
  found = np.asarray(anchors.default_boxes(scales))
  assert found.shape == (8732, 4)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-3)
  assert (found < 0).any()  # widths are cut, corners are not
  assert (found[:, 2:] - found[:, :2]).max() == 300


def test_default_boxes_without_steps_fill_any_image():
  found = np.asarray(anchors.default_boxes((0.5, 2.0), ((2, 4),), None, ((),), (100, 200)))
  np.testing.assert_allclose(found[:2], [[-25, 0, 75, 50], [-75, -25, 125, 75]])
  np.testing.assert_allclose(found[-1] - found[1], [150, 50, 150, 50])
  with pytest.raises(UserError, match="one scale more"):
    anchors.default_boxes((0.5,), ((2, 4),), None, ((),))


def test_yolo_anchors_grow():
  for table in (anchors.YOLO_V2_VOC, anchors.YOLO_V2_COCO, sum(anchors.YOLO_V3, ())):
    areas = [w * h for w, h in table]
    assert areas == sorted(areas) and len(areas) in (5, 9)
