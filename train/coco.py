"""COCO's metrics (Lin et al. 2014), by faster-coco-eval, and its files: what is true, and what was found.

A truth is what is known of an image, `found` what a detector says of it, in pixels of the original image:

  truth   {"image_id": int, "height": int, "width": int, "boxes" [N, 4] x1 y1 x2 y2, "labels" [N] int from 1 on,
          "crowd" bool [N], "area" [N], "masks": N masks bool [h, w], or None}
  found   {"boxes" [K, 4], "scores" [K], "labels" [K], "masks": K masks bool [h, w], if there are any}
"""

import importlib.util
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flaxonomy.errors import missing_extra

RECALLS = np.linspace(0, 1, 101)  # at which precision is measured
OVERLAPS = np.linspace(0.5, 0.95, 10)  # IoU that a box or a mask must reach
AREAS = ("", "_small", "_medium", "_large")  # all, to 32 x 32 pixels, to 96 x 96, and more
MOST = (1, 10, 100)  # detections of an image and a class


class Scores(NamedTuple):
  """What was found, counted; -1 where there is nothing to find.

  Attributes:
    precision: [10 overlaps, 101 recalls, C, 4 areas], of the 100 likeliest of an image and a class.
    recall: [10 overlaps, C, 4 areas, 3], of the 1, 10 and 100 likeliest.
  """

  precision: np.ndarray
  recall: np.ndarray


def require() -> None:
  """Raises UserError if faster-coco-eval is not installed."""
  try:
    found = importlib.util.find_spec("faster_coco_eval") is not None
  except ValueError:  # its import is blocked
    found = False
  if not found:
    raise missing_extra("faster_coco_eval", "detection", "the task 'detection'")


def evaluate(
  truths: list[dict],
  found: list[dict],
  kind: str = "bbox",
  categories: Sequence[int] = (),
  names: Sequence[str] = (),
) -> dict[str, float]:
  """COCO's numbers, from 0 to 1: `summary` of `scores`.

  Args:
    truths: one for each image.
    found: one for each truth, in the same order.
    kind: "bbox" compares boxes, "segm" masks.
    categories: as for `dataset`.
    names: of the classes; (): they are called by their categories' numbers.
  """
  called = names or categories
  return summary(scores(truths, found, kind, len(called)), called)


def scores(truths: list[dict], found: list[dict], kind: str = "bbox", classes: int = 0) -> Scores:
  """Precision and recall of every class, with crowds ignored as COCO does.

  Args:
    truths: one for each image.
    found: one for each truth, in the same order.
    kind: "bbox" compares boxes, "segm" masks.
    classes: how many there are; 0: up to the highest label.
  """
  require()
  from faster_coco_eval import COCO, COCOeval_faster

  labels = [np.asarray(each["labels"], int) for each in (*truths, *found)]
  classes = max([classes, *(int(each.max(initial=0)) for each in labels)])
  quiet = lambda *_: None
  known = COCO(dataset(truths, range(1, classes + 1), masks=kind == "segm"), print_function=quiet)
  judge = COCOeval_faster(known, known.loadRes(to_json(truths, found, kind)), kind, print_function=quiet)
  judge.evaluate()
  judge.accumulate()
  return Scores(np.asarray(judge.eval["precision"])[..., -1], np.asarray(judge.eval["recall"]))


def summary(counted: Scores, names: Sequence = ()) -> dict[str, float]:
  """COCO's numbers by name, from 0 to 1.

  Args:
    counted: from `scores`.
    names: of the classes; (): they are called by their labels.

  Returns:
    "AP", "AP50", "AP75" and "AR1", "AR10", "AR100", 0 if there is nothing to find; "AP_small", "AR_small" and so on
    and "AP/zero" and so on of the classes, where there is something to find.
  """
  precision, recall = counted
  all_found = {"AP": precision[..., 0], "AP50": precision[:1, ..., 0], "AP75": precision[5:6, ..., 0]}
  all_found |= {f"AR{most}": recall[..., 0, i] for i, most in enumerate(MOST)}
  some = {f"AP{area}": precision[..., i] for i, area in enumerate(AREAS) if area}
  some |= {f"AR{area}": recall[..., i, -1] for i, area in enumerate(AREAS) if area}
  some |= {f"AP/{_name(names, i)}": precision[:, :, i, 0] for i in range(precision.shape[2])}
  mean = lambda values: float(values[values > -1].mean()) if (values > -1).any() else 0.0
  some = {name: values for name, values in some.items() if (values > -1).any()}
  return {name: mean(values) for name, values in (all_found | some).items()}


def precisions(counted: Scores, names: Sequence = ()) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
  """{"IoU 0.5", "IoU 0.75": {class: (recall [101], precision [101])}}, for `box_figures.precision_recall`.

  Args:
    counted: from `scores`.
    names: as for `summary`.
  """
  found = {}
  for i in (0, 5):
    rows = counted.precision[i, :, :, 0].T
    lines = {str(_name(names, k)): (RECALLS, row) for k, row in enumerate(rows) if (row > -1).all()}
    found[f"IoU {OVERLAPS[i]:.2g}"] = lines
  return found


def _name(names, i):
  return names[i] if len(names) else i + 1


def dataset(truths: list[dict], names: Sequence, categories: Sequence[int] = (), masks: bool = True) -> dict:
  """The truths as COCO writes them to a file.

  Args:
    truths: one for each image.
    names: of the classes.
    categories: the number that each class has in its dataset, COCO's own having holes; (): its label.
    masks: write them, too, where there are any.
  """
  annotations = []
  for truth in truths:
    drawn = _encoded(truth["masks"]) if masks and truth.get("masks") is not None else None
    known = [np.asarray(truth[key]).tolist() for key in ("labels", "crowd", "area")]
    rows = zip(_corner_and_size(truth["boxes"]), *known, strict=True)
    for i, (box, label, crowd, area) in enumerate(rows):
      annotations.append({
        "id": len(annotations) + 1, "image_id": int(truth["image_id"]), "category_id": _category(label, categories),
        "bbox": box, "area": float(area), "iscrowd": int(crowd),
      } | ({"segmentation": drawn[i]} if drawn else {}))  # fmt: skip
  return {
    "images": [{"id": int(t["image_id"]), "height": int(t["height"]), "width": int(t["width"])} for t in truths],
    "categories": [{"id": _category(i, categories), "name": str(name)} for i, name in enumerate(names, 1)],
    "annotations": annotations,
  }


def to_json(truths: list[dict], found: list[dict], kind: str = "bbox", categories: Sequence[int] = ()) -> list[dict]:
  """What was found, as COCO's servers and tools read it.

  Args:
    truths: one for each image.
    found: one for each truth, in the same order.
    kind: "bbox": boxes; "segm": masks, without boxes, from which COCO's code would take the objects' sizes.
    categories: as for `dataset`.
  """
  rows = []
  for truth, each in zip(truths, found, strict=True):
    key = "bbox" if kind == "bbox" else "segmentation"
    shapes = _corner_and_size(each["boxes"]) if kind == "bbox" else _encoded(each["masks"])
    labels, likely = np.asarray(each["labels"]).tolist(), np.asarray(each["scores"], float).tolist()
    for shape, label, score in zip(shapes, labels, likely, strict=True):
      row = {"image_id": int(truth["image_id"]), "category_id": _category(label, categories), key: shape}
      rows.append(row | {"score": score})
  return rows


def packed(entry: dict) -> dict:
  """A truth or what was found, its masks as compressed run lengths, which need a thousandth of the memory."""
  return entry | {"masks": _encoded(entry["masks"])} if entry.get("masks") is not None else entry


def predictions(
  files: Sequence[str], truths: list[dict], found: list[dict], names: Sequence[str], categories: Sequence[int] = ()
) -> dict:
  """A COCO dataset of what was found in images of which nothing is known: annotations with scores.

  Args:
    files: name of each image.
    truths: {"image_id", "height", "width"} of each.
    found: one for each.
    names: of the classes.
    categories: as for `dataset`.
  """
  rows = to_json(truths, found)
  if found and "masks" in found[0]:
    rows = [row | masked for row, masked in zip(rows, to_json(truths, found, "segm"))]
  for i, row in enumerate(rows, 1):
    row |= {"id": i, "area": row["bbox"][2] * row["bbox"][3], "iscrowd": 0}
  empty = dict.fromkeys(("boxes", "labels", "crowd", "area"), ())
  whole = dataset([truth | empty for truth in truths], names, categories)
  whole["images"] = [image | {"file_name": file} for image, file in zip(whole["images"], files)]
  return whole | {"annotations": rows}


def _category(label, categories):
  return int(categories[label - 1]) if len(categories) else int(label)


def _corner_and_size(boxes) -> list[list[float]]:
  """(x, y, width, height) of each box."""
  boxes = np.asarray(boxes, float).reshape(-1, 4)
  return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()


def _encoded(masks) -> list[dict]:
  """Each mask, bool [h, w], as COCO's compressed run lengths."""
  from faster_coco_eval import mask

  if not len(masks) or isinstance(masks[0], dict):  # they are already
    return list(masks)
  columns = np.ascontiguousarray(np.asarray(masks).transpose(0, 2, 1), np.uint8)  # runs go down the columns
  rows = mask.encode(columns.T)
  for row in rows:
    row["size"] = [int(side) for side in row["size"]]
    if isinstance(row["counts"], bytes):
      row["counts"] = row["counts"].decode()
  return rows
