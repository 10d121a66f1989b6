"""What a file says of an image, whatever its format: coco.py, voc.py, yolo.py and penn_fudan.py read them."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flaxonomy.errors import DataError, shown

SLACK = 2  # pixels by which a box may jut out of its image, and is cut; a hundredth of boxes given as shares
MOST_OBJECTS = 10_000  # of an image
MOST_BYTES = 2**24  # of one image's file


class Annotation(NamedTuple):
  """What is said of one image.

  Attributes:
    where: the file that says so.
    boxes: [n, 4] float64, x1 y1 x2 y2.
    labels: [n] int64, 1 + class.
    crowd: [n] bool.
    area: [n] float64 pixels, NaN where none is told.
    masks: a segmentation for each object, as in masks.py; or None.
    relative: whether boxes and polygons are shares of width and height.
    first: what x and y of the first pixel are; where it is 1, x2 and y2 are those of an object's last one.
    size: (height, width) that the file tells, or None.
  """

  where: str
  boxes: np.ndarray
  labels: np.ndarray
  crowd: np.ndarray
  area: np.ndarray
  masks: Any = None
  relative: bool = False
  first: int = 0
  size: tuple[int, int] | None = None


def annotation(where: str, boxes, labels: Iterable[int], crowd=None, area=None, size=None) -> Annotation:
  """An `Annotation` of plain numbers.

  Args:
    where: the file.
    boxes: four numbers for each object.
    labels: of each object.
    crowd: likewise; None: no object is one.
    area: likewise; None: not told.
    size: (height, width) of the image, if it is told.

  Raises:
    DataError: too many objects.
  """
  labels = np.array(list(labels), np.int64)
  if len(labels) > MOST_OBJECTS:
    raise DataError(f"{where}: {len(labels):,} objects, and {MOST_OBJECTS:,} are the most of an image")
  crowd = np.zeros(len(labels), bool) if crowd is None else np.array(crowd, bool)
  area = np.full(len(labels), np.nan) if area is None else np.array(area, np.float64)
  return Annotation(where, np.array(boxes, np.float64).reshape(-1, 4), labels, crowd, area, size=size)


def placed(given: Annotation, height: int, width: int, classes: int) -> Annotation:
  """The same in pixels of its image, counted from 0, boxes cut at the image's edge.

  Args:
    given: as it was read.
    height: of the image.
    width: likewise.
    classes: how many there are.

  Raises:
    DataError: the image has another size; a box is empty or lies outside; a label is none of the classes.
  """
  if given.size and given.size != (height, width):
    told = f"{given.size[1]} x {given.size[0]}"
    raise DataError(f"{given.where}: the image is {width} x {height} pixels, not {told}, as is said there")
  edges, boxes, polygons = np.array([width, height, width, height], np.float64), given.boxes, given.masks
  slack = np.full(4, SLACK)
  if given.relative:
    boxes, slack = boxes * edges, np.maximum(edges / 100, SLACK)
    if isinstance(polygons, list):  # and no masks in an image
      polygons = [[(np.reshape(one, (-1, 2)) * edges[:2]).ravel().tolist() for one in thing] for thing in polygons]
  boxes = boxes - np.array([given.first, given.first, 0, 0])
  cut = np.clip(boxes, 0, edges)
  far = ~(np.abs(boxes - cut) <= slack).all(1)  # NaN is far, too
  empty = ~(cut[:, 2:] > cut[:, :2]).all(1)
  for wrong, what in ((far, f"lies outside of the image, which is {width} x {height}"), (empty, "is empty")):
    if wrong.any():
      box = ", ".join(f"{x:.6g}" for x in boxes[np.argmax(wrong)])
      raise DataError(f"{given.where}: the box ({box}) of object {np.argmax(wrong) + 1} {what}")
  if ((given.labels < 1) | (given.labels > classes)).any():
    raise DataError(f"{given.where}: an object's class is none of the {classes}")
  return given._replace(boxes=cut, masks=polygons, relative=False, first=0)


def content(path: Path, most: int = MOST_BYTES) -> bytes:
  """What a file holds.

  Raises:
    DataError: it cannot be read, or is too large.
  """
  try:
    if not path.is_file():
      raise DataError(f"{str(path)!r} is no file")
    if (size := path.stat().st_size) > most:
      raise DataError(f"{str(path)!r} has {size:,} bytes, and {most:,} are the most that is read")
    return path.read_bytes()
  except OSError as error:
    raise DataError(f"{str(path)!r} cannot be read: {error.strerror}") from None


def numbers(values, count: int, what: str) -> list[float]:
  """So many finite numbers.

  Args:
    values: anything.
    count: how many they must be.
    what: they are, for the message.

  Raises:
    DataError: they are something else.
  """
  whole = isinstance(values, (list, tuple)) and len(values) == count
  if not whole or any(type(x) not in (int, float) or not abs(x) <= 1e9 for x in values):
    raise DataError(f"{what} must be {count} numbers, not {shown(values, 80)}")
  return [float(x) for x in values]


def number(text: str | None) -> float | None:
  """The finite number that a text is, or None."""
  try:
    found = float(text)
  except (TypeError, ValueError):
    return None
  return found if math.isfinite(found) else None
