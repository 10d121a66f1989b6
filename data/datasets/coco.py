"""COCO's JSON: images, their objects and categories."""

import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from flaxonomy.data.datasets import annotations
from flaxonomy.errors import DataError, first_line, shown

IDS = tuple(i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))  # of its 80 classes


class Coco(NamedTuple):
  """A JSON file.

  Attributes:
    images: (id, file name, (height, width) or None, its annotations packed as `objects` reads them).
    classes: {category id: name}, ordered by id.
    has_masks: whether an object has one.
  """

  images: list[tuple[int, str, tuple[int, int] | None, bytes]]
  classes: dict[int, str]
  has_masks: bool


_FIELDS = ("category_id", "bbox", "iscrowd", "area", "segmentation")


def read(path: Path, with_masks: bool) -> Coco:
  """Reads a file as COCO's instances_*.json.

  Args:
    path: of it.
    with_masks: else objects whose area is told lose their masks, which are most of the file.

  Raises:
    DataError: it is something else, or contradicts itself.
  """
  where = repr(str(path))
  try:
    found = json.loads(annotations.content(path, 2**32))
  except (ValueError, RecursionError, MemoryError) as error:
    raise DataError(f"{where} is no JSON: {first_line(error)}") from None
  lists = [found.get(key) if isinstance(found, dict) else None for key in ("images", "annotations", "categories")]
  if not all(isinstance(entries, list) and all(isinstance(e, dict) for e in entries) for entries in lists):
    raise DataError(f"{where} has no lists 'images', 'annotations' and 'categories' of objects, as COCO's files have")
  pictures, things, categories = lists
  classes = {_id(c, where): c.get("name") for c in categories}
  if len(classes) != len(categories) or not all(isinstance(name, str) for name in classes.values()) or not classes:
    raise DataError(f"{where}: categories must have names, and ids of their own")
  held, has_masks = {_id(picture, where): [] for picture in pictures}, False
  if len(held) != len(pictures):
    raise DataError(f"{where}: two images have one id")
  for thing in things:
    if not isinstance(of := thing.get("image_id"), int) or of not in held:
      raise DataError(f"{where}: annotation {shown(thing.get('id'))} is of image {shown(of)}, which is not there")
    has_masks |= bool(thing.get("segmentation"))
    fields = _FIELDS if with_masks or thing.get("area") is None else _FIELDS[:-1]
    held[of].append([thing.get(name) for name in fields])
  entries = [
    (picture["id"], _file_name(picture, where), _told_size(picture), json.dumps(held[picture["id"]]).encode())
    for picture in pictures
  ]
  return Coco(entries, dict(sorted(classes.items())), has_masks)


def _id(entry, where) -> int:
  if type(entry.get("id")) is not int or not -(2**63) <= entry["id"] < 2**63:
    raise DataError(f"{where}: an id must be a whole number, not {shown(entry.get('id'))}")
  return entry["id"]


def _file_name(picture, where) -> str:
  """A path below some folder, with slashes."""
  name = picture.get("file_name")
  parts = name.replace("\\", "/").split("/") if isinstance(name, str) else [".."]
  if ".." in parts or not all(parts) or "\0" in name or re.match("[A-Za-z]:", name):
    raise DataError(f"{where}: the file_name of an image must be a path within the folder, not {shown(name)}")
  return "/".join(part for part in parts if part != ".")


def _told_size(picture) -> tuple[int, int] | None:
  size = picture.get("height"), picture.get("width")
  return size if all(type(n) is int and n > 0 for n in size) else None


def objects(where: str, packed: bytes, size, labels: dict[int, int]) -> annotations.Annotation:
  """What a COCO file says of an image.

  Args:
    where: the file.
    packed: from `read`.
    size: likewise.
    labels: by category id.

  Raises:
    DataError: a box is no box, or a category unknown.
  """
  boxes, found, crowd, area, segmentations = [], [], [], [], []
  for category, box, is_crowd, size_told, *segmentation in json.loads(packed):
    x, y, width, height = annotations.numbers(box, 4, f"{where}: bbox")
    if type(category) is not int or category not in labels:
      raise DataError(f"{where}: category_id {shown(category)} is none of its categories")
    boxes.append((x, y, x + width, y + height))
    found.append(labels[category])
    crowd.append(is_crowd in (1, True))
    area += [math.nan] if size_told is None else annotations.numbers([size_told], 1, f"{where}: area")
    segmentations += segmentation or [None]
  told = segmentations if any(segmentations) else None
  return annotations.annotation(where, boxes, found, crowd, area, size)._replace(masks=told)
