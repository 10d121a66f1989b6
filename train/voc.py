"""PASCAL VOC's average precision (Everingham et al. 2010, section 4.2), as the challenge's development kit counts it.

Every detection, the likeliest of all images first, belongs to the object of its class that it overlaps most. It is a
hit if the overlap reaches the threshold and no likelier one had the object before; if the object is difficult, it is
neither hit nor miss, and difficult objects need not be found.

The kit counts pixels, x2 and y2 those of the last one, so that a width is x2 - x1 + 1. Boxes here end behind their
last pixel, where the kit's x2 and y2 are one less: its widths and overlaps are these boxes' without a +1.

Deviation from the kit: whether a recall reaches 3 tenths is decided in whole numbers, where the kit's steps of 0.1 in
floating point miss 0.3 by a rounding.

Truths and what was found are those of coco.py; `crowd` is VOC's "difficult".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Curve(NamedTuple):
  """A class's detections, the likeliest first.

  Attributes:
    hits: [K] int, those among the first ones.
    precision: [K], the share of hits in hits and misses among the first ones.
    objects: to be found.
  """

  hits: np.ndarray
  precision: np.ndarray
  objects: int


def evaluate(
  truths: list[dict], found: list[dict], threshold: float = 0.5, eleven: bool = True, names: Sequence[str] = ()
) -> dict[str, float]:
  """{"mAP": the mean over the classes that have objects, 0 without any, "AP/cat": of each}, from 0 to 1.

  Args:
    truths: one for each image.
    found: one for each truth, in the same order.
    threshold: the least IoU of a hit.
    eleven: as in VOC 2007, the mean of eleven precisions; False: the area, as since VOC 2010.
    names: of the classes; (): they are called by their labels.
  """
  average = eleven_points if eleven else area
  each = {label: average(curve) for label, curve in curves(truths, found, threshold).items()}
  mean = float(np.mean(list(each.values()))) if each else 0.0
  return {"mAP": mean} | {f"AP/{names[label - 1] if len(names) else label}": value for label, value in each.items()}


def eleven_points(curve: Curve) -> float:
  """VOC 2007's: the mean, over recalls of 0, 0.1, ... 1, of the best precision at that recall or above."""
  best = [curve.precision[10 * curve.hits >= tenths * curve.objects].max(initial=0) for tenths in range(11)]
  return float(np.mean(best))


def area(curve: Curve) -> float:
  """VOC 2010's: the area under the best precision at each recall or above."""
  best = np.maximum.accumulate(curve.precision[::-1])[::-1]
  return float((np.diff(curve.hits, prepend=0) * best).sum() / curve.objects)


def curves(truths: list[dict], found: list[dict], threshold: float = 0.5) -> dict[int, Curve]:
  """The curve of each label that has objects to be found.

  Args:
    truths: one for each image.
    found: one for each truth, in the same order.
    threshold: the least IoU of a hit.
  """
  objects = [np.asarray(truth["labels"], int) for truth in truths]
  difficult = [np.asarray(truth["crowd"], bool) for truth in truths]
  labels = np.concatenate([np.zeros(0, int), *(np.asarray(each["labels"], int) for each in found)])
  scores = np.concatenate([np.zeros(0), *(np.asarray(each["scores"], float) for each in found)])
  owner, first = [np.zeros(0, int)], 0
  for truth, each in zip(truths, found, strict=True):
    own = _owners(truth, each, threshold)
    owner.append(np.where(own >= 0, first + own, -1))
    first += len(truth["labels"])
  owner, objects = np.concatenate(owner), np.concatenate([np.zeros(0, int), *objects])
  difficult = np.concatenate([np.zeros(0, bool), *difficult])
  made = {}
  for label in np.unique(objects[~difficult]).tolist():
    own = np.flatnonzero(labels == label)
    order = own[np.argsort(-scores[own], kind="stable")]
    made[label] = _curve(owner[order], difficult, int((objects[~difficult] == label).sum()))
  return made


def precision_recall(found: dict[int, Curve], names: Sequence[str] = ()) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """{class: (recall [K], precision [K])}, a panel of `box_figures.precision_recall`.

  Args:
    found: from `curves`.
    names: as for `evaluate`.
  """
  called = lambda label: str(names[label - 1] if len(names) else label)
  return {called(label): (curve.hits / curve.objects, curve.precision) for label, curve in found.items()}


def _owners(truth, each, threshold):
  """[K] int, the object of its class that each detection overlaps most, -1 where it is not enough."""
  ours, theirs = (np.asarray(of["boxes"], float).reshape(-1, 4) for of in (each, truth))
  if not len(ours) or not len(theirs):
    return np.full(len(ours), -1)
  corner = np.maximum(ours[:, None, :2], theirs[None, :, :2])
  sides = np.maximum(np.minimum(ours[:, None, 2:], theirs[None, :, 2:]) - corner, 0)
  size = lambda boxes: (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  both = sides.prod(-1)
  overlap = both / np.maximum(size(ours)[:, None] + size(theirs)[None, :] - both, 1e-12)
  overlap[np.asarray(each["labels"])[:, None] != np.asarray(truth["labels"])[None, :]] = -1
  best = overlap.argmax(1)
  return np.where((overlap.max(1) >= threshold) & (overlap.max(1) > 0), best, -1)


def _curve(owner, difficult, objects):
  """The curve of detections [K], given the object of each, or -1, and which objects are difficult."""
  taken = owner >= 0
  hit = np.zeros(len(owner), bool)
  hit[np.unique(owner, return_index=True)[1]] = True
  hit &= taken
  ignored = np.zeros(len(owner), bool)
  ignored[taken] = difficult[owner[taken]]
  hits, misses = np.cumsum(hit & ~ignored), np.cumsum(~hit & ~ignored)
  return Curve(hits, hits / np.maximum(hits + misses, 1), objects)
