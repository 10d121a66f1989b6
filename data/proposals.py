"""Boxes that may hold objects: selective search, for detectors that make no proposals of their own.

Uijlings et al. 2013, "Selective Search for Object Recognition", the "fast mode" of the authors' code as OpenCV has it:
an image cut into regions in two ways, which two measures of likeness then merge step by step. R-CNN and Fast R-CNN take
about 2,000 boxes of an image 500 pixels wide.

Deviation: OpenCV ranks boxes by their place in the merging times a random number of the C library, which no seed of its
own reaches. Here the place is that by area, the largest first, and the random numbers are always the same.
"""

import hashlib
import importlib.util
import os
import tempfile
from pathlib import Path

import numpy as np

from flaxonomy.data.datasets import cache_folder
from flaxonomy.errors import missing_extra

WIDTH = 500  # of the image that is searched: R-CNN's code
ENLARGED = 2.0  # at most so many times: a small image has no more to find, but takes 16 times as long at four times
LEAST = 4  # pixels of the image that a box is wide and high
VERSION = 1  # of what is cached; raised when the same image and settings give other boxes


def require() -> None:
  """Raises UserError if OpenCV's extra modules are not installed."""
  try:
    found = importlib.util.find_spec("cv2") is not None
  except ValueError:  # its import is blocked
    found = False
  if found:
    import cv2

    found = hasattr(cv2, "ximgproc")  # plain OpenCV has it not
  if not found:
    raise missing_extra("cv2.ximgproc", "proposals", "config field 'data.scenes.proposals'")


def proposals(image: np.ndarray, most: int, width: int = WIDTH, least: int = LEAST) -> np.ndarray:
  """Boxes of an image, the best first; found once, then read from the private cache.

  Args:
    image: [H, W, 3] uint8, red, green, blue.
    most: how many to give.
    width: to which the image is brought before the search, but to twice its own at most.
    least: pixels of the image that a box is wide and high, or the box is left out.

  Returns:
    [n, 4] float32, x1 y1 x2 y2 in the image's pixels, n <= most; without duplicates, the same in every run.

  Raises:
    UserError: OpenCV's extra modules are not installed.
  """
  require()
  import cv2

  settings = f"{VERSION} {cv2.__version__} {width} {ENLARGED} {least} {image.shape}"
  key = hashlib.sha256(settings.encode() + np.ascontiguousarray(image).tobytes()).hexdigest()
  path = cache_folder() / "proposals" / key[:2] / key[2:]
  found = _read(path)
  if found is None:
    found = _ranked(_search(image, width, least))
    _write(path, found)
  return found[:most]


def _search(image, width, least) -> np.ndarray:
  """All boxes [n, 4] float32, each once, by their corners."""
  import cv2

  h, w = image.shape[:2]
  new_w = max(1, round(w * min(width / w, ENLARGED)))
  new_h = max(1, round(h * new_w / w))
  seen = cv2.resize(np.ascontiguousarray(image[:, :, ::-1]), (new_w, new_h), interpolation=cv2.INTER_LINEAR)
  search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
  search.setBaseImage(seen)
  search.switchToSelectiveSearchFast()
  found = np.asarray(search.process(), np.float32).reshape(-1, 4)  # x y w h
  corners = np.concatenate([found[:, :2], found[:, :2] + found[:, 2:]], 1)
  corners = np.rint(corners * np.float32([w / new_w, h / new_h] * 2))  # whole pixels: in halves most come twice
  corners = corners[(corners[:, 2:] - corners[:, :2] >= least).all(1)]
  return np.unique(corners, axis=0)


def _ranked(boxes) -> np.ndarray:
  """Boxes by place times a random number (Uijlings et al., section 3.3), so that large ones do not all come first."""
  place = np.empty(len(boxes))
  place[np.argsort(-np.prod(boxes[:, 2:] - boxes[:, :2], 1), kind="stable")] = np.arange(1, len(boxes) + 1)
  chance = np.random.PCG64(0).random_raw(len(boxes)) / 2.0**64
  return boxes[np.argsort(place * chance, kind="stable")]


def _read(path: Path) -> np.ndarray | None:
  """What `_write` wrote; None if it is not there, or not whole."""
  try:
    kept = path.read_bytes()
  except OSError:
    return None
  sums, rows = kept[:32], kept[32:]
  if len(rows) % 16 or hashlib.sha256(rows).digest() != sums:
    return None
  return np.frombuffer(rows, "<f4").reshape(-1, 4).astype(np.float32)


def _write(path: Path, boxes: np.ndarray) -> None:
  """A checksum and the boxes, in one move, so that other processes see all or nothing."""
  rows = boxes.astype("<f4").tobytes()
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=".partial")
    try:
      with os.fdopen(handle, "wb") as file:
        file.write(hashlib.sha256(rows).digest() + rows)
      Path(partial).replace(path)
    except OSError:
      Path(partial).unlink(missing_ok=True)
  except OSError:  # a full or read-only disk: the boxes are at hand all the same
    pass
