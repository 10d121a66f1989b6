"""Masks of objects as arrays: from polygons and run lengths as COCO has them, from images whose values name objects."""

import io
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from flaxonomy.data import images
from flaxonomy.errors import DataError, first_line, shown

FINE = 5  # a polygon's edge is followed in steps of so many to the pixel
MOST_PIXELS = 2**31  # of all masks of an image


class Instances(NamedTuple):
  """Masks in one image.

  Attributes:
    source: encoded bytes or a path.
    values: of the pixels of each object.
  """

  source: Any
  values: tuple[int, ...]


def arrays(segmentations, height: int, width: int) -> np.ndarray:
  """Masks of objects, [n, height, width] bool.

  Args:
    segmentations: `Instances`; or for each object a list of polygons [x, y, x, y, ...] in pixels, or COCO's run lengths
      {"counts": list, str or bytes, "size": [height, width]}.
    height: of the image.
    width: likewise.

  Raises:
    DataError: they are something else, of another size, or too many.
  """
  several = isinstance(segmentations, Instances)
  count = len(segmentations.values if several else segmentations)
  if count * height * width > MOST_PIXELS:
    raise DataError(f"{count} masks of {width} x {height} pixels are too many")
  if several:
    found = instances(segmentations.source)
    if found.shape != (height, width):
      raise DataError(f"masks are {found.shape[1]} x {found.shape[0]} pixels, their image is {width} x {height}")
    return found[None] == np.array(segmentations.values, np.int64).reshape(-1, 1, 1)
  every = np.zeros((count, height, width), bool)
  for mask, one in zip(every, segmentations):
    mask[:] = _one(one, height, width)
  return every


def _one(segmentation, height, width) -> np.ndarray:
  if isinstance(segmentation, dict):
    if list(segmentation.get("size") or ()) != [height, width]:
      raise DataError(f"a mask's size is {shown(segmentation.get('size'))}, its image's [{height}, {width}]")
    return runs(segmentation.get("counts"), height, width)
  if not isinstance(segmentation, (list, tuple)) or not segmentation:
    raise DataError(f"an object has no mask, but {shown(segmentation)}")
  return np.any([polygon(points, height, width) for points in segmentation], axis=0)


def instances(source) -> np.ndarray:
  """[H, W] uint8, the values or palette indices of an image's pixels.

  Args:
    source: encoded bytes or a path.

  Raises:
    DataError: no image of 8 bits, or too large a one.
  """
  try:
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=images.FORMATS)
    if image.width * image.height > images.MAX_PIXELS:
      raise ValueError(f"{image.width} x {image.height} pixels are too many")
    if image.mode not in ("L", "P", "1"):
      raise ValueError(f"its pixels are of mode {image.mode!r}, not of 8 bits, which number the objects")
    return np.asarray(image).astype(np.uint8)
  except Exception as error:  # damaged files make Pillow raise nearly anything
    name = f"of {len(source)} bytes" if isinstance(source, bytes) else repr(str(source))
    raise DataError(f"cannot read masks {name}: {first_line(error)}") from None


def runs(counts, height: int, width: int) -> np.ndarray:
  """[height, width] bool of COCO's run lengths: of zeros, of ones, of zeros, ..., column by column.

  Args:
    counts: a list, or what COCO packs it into, str or bytes.
    height: of the image.
    width: likewise.

  Raises:
    DataError: no run lengths, or not those of such an image.
  """
  if isinstance(counts, (str, bytes)):
    counts = _unpacked(counts.encode("utf-8", "replace") if isinstance(counts, str) else counts)
  if not isinstance(counts, list) or any(type(n) is not int or not 0 <= n <= height * width for n in counts):
    raise DataError("a mask's run lengths are none")
  if sum(counts) != height * width:
    raise DataError(f"a mask's run lengths are of {sum(counts)} pixels, its image has {height * width}")
  return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _unpacked(packed: bytes) -> list[int]:
  """Six bits a character, from "0" on: five of a number, the least first, and whether more follow.

  Numbers from the fourth on are differences to the last but one.
  """
  counts, value, shift = [], 0, 0
  for byte in packed:
    bits = byte - 48
    if not 0 <= bits < 64 or shift > 60:
      raise DataError("a mask's packed run lengths are damaged")
    value |= (bits & 31) << shift
    shift += 5
    if not bits & 32:
      value -= (bits & 16) << shift - 4  # the sign
      counts.append(value + (counts[-2] if len(counts) > 2 else 0))
      value, shift = 0, 0
  if shift:
    raise DataError("a mask's packed run lengths are cut off")
  return counts


def polygon(points, height: int, width: int) -> np.ndarray:
  """[height, width] bool, the pixels inside a polygon, as COCO's own code has them.

  The edge is followed in fifths of a pixel; where it comes to another column, the pixels of that column below it turn
  from outside to inside or back.

  Args:
    points: x, y, x, y, ... in pixels.
    height: of the image.
    width: likewise.

  Raises:
    DataError: fewer than three points, or points far from the image.
  """
  corners = np.array(points, np.float64) if isinstance(points, (list, tuple)) else np.zeros(0)
  if corners.ndim != 1 or len(corners) < 6 or len(corners) % 2:
    raise DataError(f"a polygon needs three points or more: {shown(points, 80)}")
  corners = corners.reshape(-1, 2)
  if not (np.abs(corners) <= (2 * width, 2 * height)).all():
    raise DataError(f"a polygon lies outside of its image, which is {width} x {height}: {shown(points, 80)}")
  x, y = _edge(np.trunc(FINE * corners + 0.5).astype(np.int64))
  across = np.flatnonzero(x[1:] != x[:-1]) + 1
  column = (np.minimum(x[across], x[across - 1]) + 0.5) / FINE - 0.5
  row = (np.minimum(y[across], y[across - 1]) + 0.5) / FINE - 0.5
  held = (column == np.floor(column)) & (column >= 0) & (column <= width - 1)
  row = np.ceil(np.clip(row[held], 0, height))
  turns = np.bincount((column[held] * height + row).astype(np.int64), minlength=height * width)[: height * width]
  return (np.cumsum(turns) % 2 == 1).reshape(width, height).T


def _edge(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(x, y) of a closed line through whole-numbered points [k, 2], one step at a time along the longer way."""
  ends = np.roll(corners, -1, axis=0)
  far = np.abs(ends - corners)
  steep = far[:, 0] < far[:, 1]
  length = far.max(1)
  # Lines are rounded the same in both directions: each is drawn from its left, or upper, end.
  flip = np.where(steep, corners[:, 1] > ends[:, 1], corners[:, 0] > ends[:, 0])
  start, end = np.where(flip[:, None], ends, corners), np.where(flip[:, None], corners, ends)
  across = np.where(steep, end[:, 0] - start[:, 0], end[:, 1] - start[:, 1])
  slope = across / np.maximum(length, 1)
  of = np.repeat(np.arange(len(corners)), length + 1)
  step = np.arange(len(of)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
  step = np.where(flip[of], length[of] - step, step)
  along = step + np.where(steep, start[:, 1], start[:, 0])[of]
  beside = np.trunc(np.where(steep, start[:, 0], start[:, 1])[of] + slope[of] * step + 0.5).astype(np.int64)
  return np.where(steep[of], beside, along), np.where(steep[of], along, beside)
