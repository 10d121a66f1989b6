"""Selective search: what it finds in scenes of digits, that it is the same every time, and its cache."""

import importlib.util

import numpy as np
import pytest

from flaxonomy.data import proposals as search
from flaxonomy.data.datasets import digit_scenes
from flaxonomy.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  """A cache of the test's own."""
  monkeypatch.setenv("FLAXONOMY_CACHE", str(tmp_path))
  return tmp_path / "proposals"


def overlaps(truth, boxes):
  low, high = np.maximum(truth[:, None, :2], boxes[None, :, :2]), np.minimum(truth[:, None, 2:], boxes[None, :, 2:])
  both = np.clip(high - low, 0, None).prod(-1)
  area = lambda x: (x[:, 2:] - x[:, :2]).prod(-1)
  return both / (area(truth)[:, None] + area(boxes)[None] - both)


def test_it_finds_digits():
  """Most digits of a few scenes; all boxes once, within the image, and not smaller than asked."""
  best = []
  for i in range(4):
    scene = digit_scenes.scene("train", i, 64)
    found = search.proposals(scene.image, 200)
    assert found.dtype == np.float32
    assert 10 < len(found) == len(np.unique(found, axis=0)) <= 200
    assert (found[:, :2] >= 0).all() and (found[:, 2:] <= 64).all()
    assert (found[:, 2:] - found[:, :2] >= search.LEAST).all()
    truth = np.float32([[thing.box[k] for k in (1, 0, 3, 2)] for thing in scene.objects])
    best += list(overlaps(truth, found).max(1))
  assert np.mean(np.array(best) >= 0.5) > 0.8


def test_boxes_are_in_pixels_of_the_image(monkeypatch):
  """A bright rectangle on black is found where it is, whatever the image is resized to, and rows are y."""
  image = np.zeros((60, 120, 3), np.uint8)
  image[12:36, 60:110] = (250, 30, 30)
  for width in (120, 90, 500):
    found = search.proposals(image, 200, width)
    assert overlaps(np.float32([[60, 12, 110, 36]]), found).max() > 0.8
    assert len(found) <= 10


def test_twice_the_same_and_fewer_are_the_first(cache):
  image = digit_scenes.scene("test", 0, 64).image
  all_of_them = search.proposals(image, 200)
  (path,) = (path for path in cache.rglob("*") if path.is_file())
  path.unlink()
  np.testing.assert_array_equal(search.proposals(image, 5), all_of_them[:5])
  np.testing.assert_array_equal(search.proposals(image, 200), all_of_them)


def test_the_cache_is_read_and_what_is_damaged_is_made_again(cache, monkeypatch):
  image = digit_scenes.scene("test", 1, 64).image
  first = search.proposals(image, 50)
  (path,) = (path for path in cache.rglob("*") if path.is_file())
  good = path.read_bytes()
  for bad in (b"", good[:-1], good[:-16], good[:40] + b"\x00\x01" + good[42:], b"no boxes"):
    path.write_bytes(bad)
    np.testing.assert_array_equal(search.proposals(image, 50), first)
    assert path.read_bytes() == good
  monkeypatch.setattr(search, "_search", lambda *_: pytest.fail("searched again"))
  np.testing.assert_array_equal(search.proposals(image, 50), first)
  for changed in ({"width": 70}, {"least": 9}):
    with pytest.raises(pytest.fail.Exception, match="searched again"):
      search.proposals(image, 50, **changed)
  with pytest.raises(pytest.fail.Exception, match="searched again"):
    search.proposals(image ^ 1, 50)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (9, 9)])
def test_images_without_anything(size):
  found = search.proposals(np.zeros((*size, 3), np.uint8), 10)
  assert found.shape == ((1, 4) if size == (9, 9) else (0, 4))


def test_without_opencv_there_is_a_line_to_type(monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "cv2" else real(name))
  with pytest.raises(UserError, match=r"pip install 'flaxonomy\[proposals\]'"):
    search.proposals(np.zeros((9, 9, 3), np.uint8), 10)
