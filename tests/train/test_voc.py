"""VOC's average precision against the development kit's loops, written again in its pixels, and by hand."""

import numpy as np
import pytest

from flaxonomy.train import voc


def kit(truths, found, label, threshold, eleven):
  """VOCevaldet.m and VOCap.m, line by line: pixels of boxes are counted, so that sides are x2 - x1 + 1."""
  rows = [
    (float(score), i, [*map(float, box)])
    for i, each in enumerate(found)
    for score, box, own in zip(each["scores"], each["boxes"], each["labels"])
    if own == label
  ]
  objects = {
    i: [[[*map(float, box)], bool(diff), False] for box, diff, own in zip(t["boxes"], t["crowd"], t["labels"])
        if own == label] for i, t in enumerate(truths)
  }  # fmt: skip
  positives = sum(not diff for own in objects.values() for _, diff, _ in own)
  if not positives:
    return None
  rows.sort(key=lambda row: -row[0])
  tp, fp = np.zeros(len(rows)), np.zeros(len(rows))
  inclusive = lambda box: [box[0], box[1], box[2] - 1, box[3] - 1]
  for d, (_, i, box) in enumerate(rows):
    bb, best, owner = inclusive(box), -np.inf, None
    for thing in objects[i]:
      gt = inclusive(thing[0])
      bi = [max(bb[0], gt[0]), max(bb[1], gt[1]), min(bb[2], gt[2]), min(bb[3], gt[3])]
      iw, ih = bi[2] - bi[0] + 1, bi[3] - bi[1] + 1
      if iw > 0 and ih > 0:
        ua = (bb[2] - bb[0] + 1) * (bb[3] - bb[1] + 1) + (gt[2] - gt[0] + 1) * (gt[3] - gt[1] + 1) - iw * ih
        if iw * ih / ua > best:
          best, owner = iw * ih / ua, thing
    if best >= threshold:
      if not owner[1]:
        tp[d], fp[d] = not owner[2], owner[2]
        owner[2] = True
    else:
      fp[d] = 1
  fp, tp = np.cumsum(fp), np.cumsum(tp)
  rec, prec = tp / positives, tp / np.maximum(fp + tp, 1)
  if eleven:
    return sum(max(prec[rec >= t / 10], default=0) for t in range(11)) / 11
  mrec, mpre = [0, *rec, 1], [0, *prec, 0]
  for i in reversed(range(len(mpre) - 1)):
    mpre[i] = max(mpre[i], mpre[i + 1])
  return sum((mrec[i] - mrec[i - 1]) * mpre[i] for i in range(1, len(mrec)) if mrec[i] != mrec[i - 1])


def scene(rng, k=25):
  """(truth, found) on whole pixels, so that overlaps are just the threshold at times, and scores equal at times."""
  n = int(rng.integers(0, 9))
  corner = rng.integers(0, 12, (n, 2))
  boxes, labels = np.concatenate([corner, corner + rng.integers(2, 9, (n, 2))], 1), rng.integers(1, 4, n)
  corner = rng.integers(0, 12, (k, 2))
  found, classes = np.concatenate([corner, corner + rng.integers(2, 9, (k, 2))], 1), rng.integers(1, 5, k)
  if n:
    of, near = rng.integers(0, n, k), rng.random(k) < 0.6
    moved = boxes[of] + np.concatenate([-rng.integers(0, 2, (k, 2)), rng.integers(0, 2, (k, 2))], 1)
    found, classes = np.where(near[:, None], moved, found), np.where(near, labels[of], classes)
  scores = np.sort(np.round(rng.random(k), 1))[::-1]
  truth = {"boxes": np.float32(boxes), "labels": labels, "crowd": rng.random(n) < 0.25}
  return truth, {"boxes": np.float32(found), "scores": np.float32(scores), "labels": classes}


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("threshold", [0.5, 0.7])
def test_is_the_development_kits(seed, threshold):
  rng = np.random.default_rng(seed)
  truths, found = zip(*(scene(rng) for _ in range(rng.integers(1, 12))))
  for eleven in (True, False):
    ours = voc.evaluate(truths, found, threshold, eleven)
    expected = {f"AP/{label}": kit(truths, found, label, threshold, eleven) for label in range(1, 5)}
    expected = {name: value for name, value in expected.items() if value is not None}
    expected["mAP"] = np.mean(list(expected.values())) if expected else 0
    assert ours == pytest.approx(expected, abs=1e-12)
    assert "AP/4" not in ours


def one(boxes, labels, more):
  return {"boxes": np.float32(boxes).reshape(-1, 4), "labels": np.array(labels, int), **more}


def test_by_hand():
  """Two objects and a difficult one: hit, again the same, the difficult one, a miss, and the other in another image."""
  here, there, hard = [0, 0, 10, 10], [5, 5, 9, 9], [20, 20, 40, 40]
  truths = [one([here, hard], [1, 1], {"crowd": np.array([False, True])}), one([there], [1], {"crowd": [False]})]
  found = [
    one([here, here, hard, hard], [1, 1, 1, 1], {"scores": np.array([0.9, 0.8, 0.7, 0.65])}),
    one([[50, 50, 60, 60], there], [1, 1], {"scores": np.array([0.6, 0.5])}),
  ]
  (curve,) = voc.curves(truths, found).values()
  assert curve.hits.tolist() == [1, 1, 1, 1, 1, 2]
  assert curve.precision.tolist() == [1, 1 / 2, 1 / 2, 1 / 2, 1 / 3, 1 / 2]
  assert curve.objects == 2
  assert voc.evaluate(truths, found) == pytest.approx({"mAP": (6 + 5 / 2) / 11, "AP/1": (6 + 5 / 2) / 11})
  assert voc.evaluate(truths, found, eleven=False, names=["cat"]) == pytest.approx({"mAP": 0.75, "AP/cat": 0.75})
  recall, precision = voc.precision_recall(voc.curves(truths, found), ["cat"])["cat"]
  assert recall.tolist() == [0.5] * 5 + [1]
  assert precision.tolist() == curve.precision.tolist()


@pytest.mark.parametrize("width, expected", [(20, 1.0), (21, 0.0)])
def test_the_threshold_and_the_pixels(width, expected):
  """Half the pixels are enough: in the kit's numbers 0 to 9 in 0 to 19. Without its +1 that would be 9 of 19."""
  truths = [one([[0, 0, width, 10]], [1], {"crowd": [False]})]
  found = [one([[0, 0, 10, 10]], [1], {"scores": [0.5]})]
  assert voc.evaluate(truths, found)["mAP"] == expected


def test_three_of_ten():
  """A recall of 0.3 is one of at least three tenths, which 3 * 0.1 in floating point is not."""
  boxes = [[20 * i, 0, 20 * i + 10, 10] for i in range(10)]
  truths = [one(boxes, [1] * 10, {"crowd": np.zeros(10, bool)})]
  found = [one(boxes[:3], [1] * 3, {"scores": [0.9, 0.8, 0.7]})]
  assert voc.evaluate(truths, found)["mAP"] == pytest.approx(4 / 11)
  assert voc.evaluate(truths, found, eleven=False)["mAP"] == pytest.approx(3 / 10)


def test_nothing():
  empty = one([], [], {"crowd": np.zeros(0, bool), "scores": np.zeros(0)})
  cat = one([[0, 0, 9, 9]], [2], {"crowd": [False], "scores": [0.5]})
  hard = cat | {"crowd": [True]}
  for truths, found in (([], []), ([empty], [empty]), ([empty], [cat]), ([hard], [cat])):
    assert voc.evaluate(truths, found) == {"mAP": 0.0}
  assert voc.evaluate([cat], [empty]) == {"mAP": 0.0, "AP/2": 0.0}
  assert voc.evaluate([cat, empty], [cat, cat]) == {"mAP": 1.0, "AP/2": 1.0}
  nowhere = cat | {"boxes": np.float32([[3, 3, 3, 3]])}
  assert voc.evaluate([nowhere], [nowhere], eleven=False) == {"mAP": 0.0, "AP/2": 0.0}
  with pytest.raises(ValueError):
    voc.evaluate([cat], [cat, cat])
