"""Masks of objects against pycocotools, by hand, and what is none."""

import math

import numpy as np
import pytest
from feeds import failure
from PIL import Image

from flaxonomy.data import masks

pytestmark = pytest.mark.usefixtures("timely")


def test_rectangles():
  """By hand: two overlapping ones in one object, one beyond the edge."""
  found = masks.arrays([[[1, 1, 4, 1, 4, 3, 1, 3], [2, 2, 6, 2, 6, 4, 2, 4]], [[-3, 3, 2, 3, 2, 9, -3, 9]]], 5, 6)
  want = np.zeros((2, 5, 6), bool)
  want[0, 1:3, 1:4] = want[0, 2:4, 2:6] = want[1, 3:, :2] = True
  np.testing.assert_array_equal(found, want)


def test_run_lengths_by_hand():
  """Column by column, zeros first; "packed" is what COCO writes for them."""
  want = np.array([[0, 1, 0], [1, 1, 0]], bool)
  np.testing.assert_array_equal(masks.runs([1, 3, 2], 2, 3), want)
  np.testing.assert_array_equal(masks.runs([0, 6], 2, 3), np.ones((2, 3), bool))


def test_polygons_and_run_lengths_as_pycocotools_has_them():
  """To the last pixel: inside, across the edge, on whole numbers, with lines that cross each other."""
  theirs = pytest.importorskip("pycocotools.mask")
  rng, inside = np.random.default_rng(0), 0
  for i in range(400):
    height, width = map(int, rng.integers(1, 70, 2))
    points = (rng.random((rng.integers(3, 12), 2)) * 1.3 - 0.15) * [width, height]
    points = [points, np.round(points), np.clip(points, 0, [width, height])][i % 3].ravel().tolist()
    (packed,) = theirs.frPyObjects([points], height, width)
    want = theirs.decode(packed).astype(bool)
    np.testing.assert_array_equal(masks.arrays([[points]], height, width)[0], want)
    np.testing.assert_array_equal(masks.runs(packed["counts"], height, width), want)
    np.testing.assert_array_equal(masks.runs(packed["counts"].decode(), height, width), want)
    inside += want.sum()
  assert inside > 50_000
  noise = rng.random((300, 200)) < 0.5
  packed = theirs.encode(np.asfortranarray(noise.astype(np.uint8)))
  assert len(packed["counts"]) > 10_000
  np.testing.assert_array_equal(masks.arrays([packed], 300, 200)[0], noise)


@pytest.mark.parametrize(
  "segmentation, words",
  [
    ([], "has no mask"),
    (None, "has no mask"),
    ([[1, 2, 3, 4]], "three points or more"),
    ([[1, 2, 3, 4, 5, 6, 7]], "three points or more"),
    ([[[1, 2], [3, 4], [5, 6]]], "three points or more"),
    ([[0, 0, 1e300, 0, 1, 1]], "outside of its image"),
    ([[0, 0, math.nan, 0, 1, 1]], "outside of its image"),
    ({"counts": [6], "size": [2, 4]}, "size is [2, 4], its image's [2, 3]"),
    ({"counts": [5], "size": [2, 3]}, "are of 5 pixels, its image has 6"),
    ({"counts": [7, -1], "size": [2, 3]}, "run lengths are none"),
    ({"counts": [2**70], "size": [2, 3]}, "run lengths are none"),
    ({"counts": [1.5, 4.5], "size": [2, 3]}, "run lengths are none"),
    ({"counts": None, "size": [2, 3]}, "run lengths are none"),
    ({"counts": "\u00e9", "size": [2, 3]}, "damaged"),
    ({"counts": "o" * 10_000, "size": [2, 3]}, "damaged"),
    ({"counts": "P", "size": [2, 3]}, "cut off"),
  ],
)
def test_masks_that_are_none(segmentation, words):
  assert words in failure(lambda: masks.arrays([segmentation], 2, 3))


def test_too_many_masks():
  assert "masks of 4000 x 4000 pixels are too many" in failure(lambda: masks.arrays([None] * 1000, 4000, 4000))


def test_images_that_number_objects(tmp_path):
  """Palette indices, not colours."""
  image = Image.fromarray(np.array([[0, 1], [2, 255]], np.uint8))
  image.putpalette([7] * 768)
  image.save(tmp_path / "x.png")
  for source in (tmp_path / "x.png", (tmp_path / "x.png").read_bytes()):
    found = masks.arrays(masks.Instances(source, (1, 2)), 2, 2)
    np.testing.assert_array_equal(found, [[[0, 1], [0, 0]], [[0, 0], [1, 0]]])
  image.convert("RGB").save(tmp_path / "rgb.png")
  assert "mode 'RGB'" in failure(lambda: masks.instances(tmp_path / "rgb.png"))
  assert "are 2 x 2 pixels, their image is 3 x 2" in failure(
    lambda: masks.arrays(masks.Instances(tmp_path / "x.png", (1,)), 2, 3)
  )
