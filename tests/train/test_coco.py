"""COCO's metrics against pycocotools and a golden of it; what is written against what pycocotools reads."""

import copy
import json
import sys

import numpy as np
import pytest
from pycocotools import mask as runs
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from flaxonomy.errors import UserError
from flaxonomy.train import coco

NAMES = ("zero", "one", "two", "three")
HOLES = (90, 3, 17, 44)  # numbers of categories, in no order
STATS = (
  "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
  "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
NOTHING = {"boxes": np.zeros((0, 4), np.float32), "scores": np.zeros(0, np.float32), "labels": np.zeros(0, int)}


def ellipse(box, height, width):
  y, x = np.mgrid[:height, :width] + 0.5
  x1, y1, x2, y2 = box
  return ((2 * x - x1 - x2) / (x2 - x1)) ** 2 + ((2 * y - y1 - y2) / (y2 - y1)) ** 2 <= 1


def rectangles(rng, count, height, width):
  """Of all of COCO's sizes."""
  sides = np.exp(rng.uniform(np.log(14), np.log(0.95 * height), (count, 2)))
  corner = rng.uniform(0, 1, (count, 2)) * ([width, height] - sides)
  return np.concatenate([corner, corner + sides], 1).astype(np.float32)


def scene(rng, image_id, most=12, k=30):
  """(truth, found): some near an object, some of the wrong class, some anywhere; with equal scores, too."""
  height, width, n = 170, 200, int(rng.integers(0, most))
  boxes, labels = rectangles(rng, n, height, width), rng.integers(1, 4, n)  # class 4 has no object
  masks = [ellipse(box, height, width) for box in boxes]
  truth = {
    "image_id": image_id, "height": height, "width": width, "boxes": boxes, "labels": labels, "masks": masks,
    "crowd": rng.random(n) < 0.2, "area": np.array([mask.sum() for mask in masks], float),
  }  # fmt: skip
  found, classes = rectangles(rng, k, height, width), rng.integers(1, 5, k)
  if n:
    of, near = rng.integers(0, n, k), rng.random(k) < 0.7
    sides = np.tile(boxes[of, 2:] - boxes[of, :2], 2)
    found = np.where(near[:, None], boxes[of] + rng.normal(0, 0.05, (k, 4)) * sides, found).astype(np.float32)
    classes = np.where(near & (rng.random(k) < 0.8), labels[of], classes)
  scores = np.sort(np.round(rng.random(k), 2))[::-1].astype(np.float32)
  masks = [ellipse(box, height, width) for box in found]
  return truth, {"boxes": found, "scores": scores, "labels": classes, "masks": masks}


@pytest.fixture(scope="module")
def scenes():
  rng = np.random.default_rng(5)
  truths, found = zip(*(scene(rng, 7 * i) for i in range(12)))
  return [*truths], [*found[:-1], NOTHING | {"masks": []}]


def judged(known, results, kind):
  """pycocotools' COCOeval."""
  known = indexed(copy.deepcopy(known))
  judge = COCOeval(known, known.loadRes(copy.deepcopy(results)), kind)
  judge.evaluate()
  judge.accumulate()
  judge.summarize()
  return judge


def indexed(dataset):
  known = COCO()
  known.dataset = dataset
  known.createIndex()
  return known


def by_hand(truths, found, kind):
  """The same in COCO's form, made here, with pycocotools' own run lengths."""
  shape = lambda mask: runs.encode(np.asfortranarray(mask.astype(np.uint8)))
  corner = lambda box: [float(box[0]), float(box[1]), float(box[2]) - float(box[0]), float(box[3]) - float(box[1])]
  images = [{"id": truth["image_id"], "height": truth["height"], "width": truth["width"]} for truth in truths]
  rows, results = [], []
  for truth, each in zip(truths, found):
    for i in range(len(truth["boxes"])):
      rows.append({
        "id": len(rows) + 1, "image_id": truth["image_id"], "category_id": int(truth["labels"][i]),
        "bbox": corner(truth["boxes"][i]), "segmentation": shape(truth["masks"][i]), "area": truth["area"][i],
        "iscrowd": int(truth["crowd"][i]),
      })  # fmt: skip
    for i in range(len(each["boxes"])):
      row = {"image_id": truth["image_id"], "category_id": int(each["labels"][i]), "score": float(each["scores"][i])}
      row |= {"bbox": corner(each["boxes"][i])} if kind == "bbox" else {"segmentation": shape(each["masks"][i])}
      results.append(row)
  return {
    "images": images,
    "annotations": rows,
    "categories": [{"id": i, "name": str(i)} for i in range(1, 5)],
  }, results


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_every_number_is_pycocotools(scenes, kind):
  judge = judged(*by_hand(*scenes, kind), kind)
  counted = coco.scores(*scenes, kind, classes=4)
  np.testing.assert_allclose(counted.precision, judge.eval["precision"][..., -1], rtol=0, atol=1e-12)
  np.testing.assert_allclose(counted.recall, judge.eval["recall"], rtol=0, atol=1e-12)

  ours = coco.evaluate(*scenes, kind, names=NAMES)
  assert [*ours] == [*STATS[:3], *STATS[6:9], *STATS[3:6], *STATS[9:], "AP/zero", "AP/one", "AP/two"]
  for name, value in zip(STATS, judge.stats):
    assert 0 < ours[name] < 1
    assert ours[name] == pytest.approx(value, abs=1e-9), name
  for i, name in enumerate(NAMES[:3]):
    assert ours[f"AP/{name}"] == pytest.approx(judge.eval["precision"][:, :, i, 0, -1].mean(), abs=1e-9)
  assert sum(truth["crowd"].sum() for truth in scenes[0]) > 3

  curves = coco.precisions(counted, NAMES)
  assert [*curves] == ["IoU 0.5", "IoU 0.75"]
  for i, panel in zip((0, 5), curves.values()):
    assert [*panel] == [*NAMES[:3]]
    np.testing.assert_allclose(panel["two"][1], judge.eval["precision"][i, :, 2, 0, -1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(panel["two"][0], judge.params.recThrs, atol=1e-12)


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_what_is_written_can_be_read(scenes, kind):
  """By way of a file, with COCO's holes in the numbers of categories."""
  known = json.loads(json.dumps(coco.dataset(scenes[0], NAMES, HOLES)))
  results = json.loads(json.dumps(coco.to_json(*scenes, kind, HOLES)))
  assert known["categories"] == [{"id": number, "name": name} for number, name in zip(HOLES, NAMES)]
  assert {row["category_id"] for row in results} == set(HOLES)
  judge, ours = judged(known, results, kind), coco.evaluate(*scenes, kind, categories=HOLES)
  assert judge.stats == pytest.approx([ours[name] for name in STATS], abs=1e-9)
  own = judge.eval["precision"][:, :, sorted(HOLES).index(90), 0, -1].mean()
  assert ours["AP/90"] == pytest.approx(own, abs=1e-9)
  if kind == "segm":
    np.testing.assert_array_equal(runs.decode(results[3]["segmentation"]), scenes[1][0]["masks"][3])
    drawn = [runs.decode(row["segmentation"]).astype(bool) for row in known["annotations"]]
    np.testing.assert_array_equal(drawn, [mask for truth in scenes[0] for mask in truth["masks"]])


def test_golden(root):
  """What pycocotools found on other boxes, in a file."""
  golden = json.loads((root / "tests/goldens/coco_bbox.json").read_text())
  truths, found = [], []
  boxes = lambda rows: np.array([row["bbox"] for row in rows]).reshape(-1, 4) @ [
    [1, 0, 1, 0], [0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 1],
  ]  # fmt: skip
  for image in golden["gt"]["images"]:
    rows, results = (
      [row for row in of if row["image_id"] == image["id"]] for of in (golden["gt"]["annotations"], golden["dets"])
    )
    truth = {"image_id": image["id"], "height": image["height"], "width": image["width"], "boxes": boxes(rows)}
    for key, name in (("labels", "category_id"), ("crowd", "iscrowd"), ("area", "area")):
      truth[key] = np.array([row[name] for row in rows])
    truths.append(truth)
    each = {"labels": [row["category_id"] for row in results], "scores": [row["score"] for row in results]}
    found.append(each | {"boxes": boxes(results)})
  ours = coco.evaluate(truths, found)
  for name, value in zip(STATS, golden["stats"], strict=True):
    assert ours.get(name, -1) == pytest.approx(value, abs=1e-9), name
  assert "AP_large" not in ours


def test_all_or_nothing(scenes, capfd):
  """All found is 1, nothing found 0; without objects only what is always there; and nothing is printed."""
  truths = [truth | {"crowd": np.zeros(len(truth["boxes"]), bool)} for truth in scenes[0]]
  perfect = [truth | {"scores": np.ones(len(truth["boxes"]))} for truth in truths]
  for kind in ("bbox", "segm"):
    ours = coco.evaluate(truths, perfect, kind)
    assert {name for name, value in ours.items() if value != pytest.approx(1)} == {"AR1"}
  nothing = [NOTHING] * len(truths)
  ours = coco.evaluate(truths, nothing)
  assert set(ours.values()) == {0.0}
  assert "AP/3" in ours
  empty = [truth | {key: truth[key][:0] for key in ("boxes", "labels", "crowd", "area", "masks")} for truth in truths]
  for known, found in ((empty, scenes[1]), (empty, nothing), ([], [])):
    ours = coco.evaluate(known, found)
    assert ours == dict.fromkeys((*STATS[:3], *STATS[6:9]), 0.0)
  assert capfd.readouterr() == ("", "")


def test_without_the_library(monkeypatch):
  monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
  with pytest.raises(UserError, match=r"pip install 'flaxonomy\[detection\]'"):
    coco.evaluate([], [])
