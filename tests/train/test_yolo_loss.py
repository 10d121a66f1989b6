"""YOLO's losses against torch's numbers and against NumPy written as darknet's loops, their gradients above all.

Darknet computes no loss but "deltas", what it takes for minus the gradient: they are repeated here line by line.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.configs.base import Config, Model, Train
from flaxonomy.errors import UserError
from flaxonomy.models.detection import anchors, cells
from flaxonomy.train import detection
from flaxonomy.train.detection import yolo_v1, yolo_v2, yolo_v3

SIZE, C = (64, 96), 3  # height and width
V2 = [(w * 32, h * 32) for w, h in anchors.YOLO_V2_VOC]
V3 = [((10, 13), (16, 30), (33, 23)), ((30, 61), (62, 45), (59, 50)), ((50, 40), (70, 60), (90, 62))]
TRUTH = np.float32([  # two objects share cell and shape; what fills up, last, counts for nothing, whatever stands there
  [[10, 10, 41, 60], [12, 12, 42, 58], [60, 3, 90, 30], [5, 40, 14, 52], [0, 0, 40, 40]],
  [[0, 0, 96, 64], [70, 40, 96, 64], [1, 1, 30, 9], [20, 20, 60, 50], [50, 20, 80, 50]],
  [[10, 10, 40, 60]] * 5,
])  # fmt: skip
LABELS = np.int32([[1, 3, 2, 1, 0], [2, 1, 3, 0, 0], [0] * 5])


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def iou(a, b):
  """Of boxes x, y, w, h around their middle."""
  w, h = (min(a[k] + a[k + 2] / 2, b[k] + b[k + 2] / 2) - max(a[k] - a[k + 2] / 2, b[k] - b[k + 2] / 2) for k in (0, 1))
  both = max(w, 0) * max(h, 0)
  return both / (a[2] * a[3] + b[2] * b[3] - both)


def truths(image):
  """[(x, y, w, h), as shares of the image, and class]"""
  found = []
  for (x1, y1, x2, y2), label in zip(TRUTH[image].astype(float), LABELS[image]):
    if label:
      middle = (x1 + x2) / 2 / SIZE[1], (y1 + y2) / 2 / SIZE[0]
      found.append(((*middle, (x2 - x1) / SIZE[1], (y2 - y1) / SIZE[0]), label - 1))
  return found


def box_of(out, anchor, i, j, columns, rows):
  w, h = np.exp(out[2]) * anchor[0] / SIZE[1], np.exp(out[3]) * anchor[1] / SIZE[0]
  return (i + out[0]) / columns, (j + out[1]) / rows, w, h


def box_delta(t, out, anchor, i, j, columns, rows):
  wanted = t[0] * columns - i, t[1] * rows - j, np.log(t[2] * SIZE[1] / anchor[0]), np.log(t[3] * SIZE[0] / anchor[1])
  return (2 - t[2] * t[3]) * (np.array(wanted) - out[:4])


def region_deltas(logits, image):
  """[2, 3, 5, 5 + C] of darknet's region layer, the loss that has this gradient, and boxes spared."""
  out = logits.reshape(2, 3, 5, 5 + C).astype(float)
  out[..., [0, 1, 4]] = sigmoid(out[..., [0, 1, 4]])
  out[..., 5:] = np.exp(out[..., 5:]) / np.exp(out[..., 5:]).sum(-1, keepdims=True)
  delta, weights, spared = np.zeros_like(out), np.ones_like(out), 0
  for j, i, n in np.ndindex(2, 3, 5):
    best = max([iou(box_of(out[j, i, n], V2[n], i, j, 3, 2), t) for t, _ in truths(image)], default=0)
    delta[j, i, n, 4] = 0 if best > 0.6 else 0 - out[j, i, n, 4]
    spared += best > 0.6
  for t, label in truths(image):
    i, j = int(t[0] * 3), int(t[1] * 2)
    shapes = [iou((0, 0, w / SIZE[1], h / SIZE[0]), (0, 0, *t[2:])) for w, h in V2]
    n = int(np.argmax(shapes))
    delta[j, i, n, :4] = box_delta(t, out[j, i, n], V2[n], i, j, 3, 2)
    weights[j, i, n, :5] = *[2 - t[2] * t[3]] * 4, 5
    delta[j, i, n, 4] = 5 * (iou(box_of(out[j, i, n], V2[n], i, j, 3, 2), t) - out[j, i, n, 4])
    delta[j, i, n, 5:] = (np.arange(C) == label) - out[j, i, n, 5:]
  cost = (delta[..., :5] ** 2 / weights[..., :5]).sum() / 2 - np.log(1 - delta[..., 5:].max(-1)).sum()
  logistic = out[..., [0, 1, 4]] * (1 - out[..., [0, 1, 4]])
  back = delta.copy()
  back[..., [0, 1, 4]] *= logistic
  return back.reshape(-1, 5 + C), cost, spared


def yolo_deltas(logits, image, ignore):
  """The same of darknet's three yolo layers, the finest first."""
  deltas, start, spared = [], 0, 0
  for level, stride in enumerate((8, 16, 32)):
    rows, columns = SIZE[0] // stride, SIZE[1] // stride
    out = logits[start : start + rows * columns * 3].reshape(rows, columns, 3, 5 + C).astype(float)
    start += rows * columns * 3
    out[..., [0, 1, 4, 5, 6, 7]] = sigmoid(out[..., [0, 1, 4, 5, 6, 7]])
    delta = np.zeros_like(out)
    for j, i, n in np.ndindex(rows, columns, 3):
      best = max([iou(box_of(out[j, i, n], V3[level][n], i, j, columns, rows), t) for t, _ in truths(image)], default=0)
      delta[j, i, n, 4] = 0 if best > ignore else 0 - out[j, i, n, 4]
      spared += best > ignore
    for t, label in truths(image):
      i, j = int(t[0] * columns), int(t[1] * rows)
      shapes = [iou((0, 0, w / SIZE[1], h / SIZE[0]), (0, 0, *t[2:])) for each in V3 for w, h in each]
      best = int(np.argmax(shapes))
      if best // 3 != level:
        continue
      n = best % 3
      delta[j, i, n, :4] = box_delta(t, out[j, i, n], V3[level][n], i, j, columns, rows)
      delta[j, i, n, 4] = 1 - out[j, i, n, 4]
      if delta[j, i, n, 5]:  # another object has been here
        delta[j, i, n, 5 + label] = 1 - out[j, i, n, 5 + label]
      else:
        delta[j, i, n, 5:] = (np.arange(C) == label) - out[j, i, n, 5:]
    deltas.append(delta.reshape(-1, 5 + C))
  return np.concatenate(deltas), spared


def drawn(sides, strides):
  """(priors, logits [3, N, 5 + C]); half the predictions in an object's cell are right about it, whoever answers."""
  priors, rng = cells.priors(sides, strides, SIZE), np.random.default_rng(0)
  boxes, corners, steps = map(np.asarray, priors)
  logits = rng.normal(size=(3, len(boxes), 5 + C))
  for image, n, t in np.ndindex(3, len(boxes), 5):
    (x1, y1, x2, y2), side = TRUTH[image, t], boxes[n, 2:] - boxes[n, :2]
    place = np.array([x1 + x2, y1 + y2]) / 2 / steps[n] - corners[n]
    if rng.random() < 1 / 2 and (place > 0.05).all() and (place < 0.95).all():
      logits[image, n, :2] = np.log(place / (1 - place))
      logits[image, n, 2:4] = np.log([(x2 - x1) / side[0], (y2 - y1) / side[1]])
  return priors, np.float32(logits)


def gradients(loss, logits):
  def total(logits):
    terms = loss(logits)
    return sum(terms.values()), terms

  (_, terms), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
  return terms, np.asarray(grads)


def test_version_2_learns_as_darknet_does():
  priors, logits = drawn((tuple(V2),), (32,))
  terms, grads = gradients(lambda x: yolo_v2.region(x, priors, TRUTH, LABELS, SIZE), logits)
  deltas, costs, spared = zip(*(region_deltas(logits[image], image) for image in range(3)))
  assert sum(spared) > 3
  np.testing.assert_allclose(grads, -np.stack(deltas), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(sum(terms.values()), sum(costs), rtol=1e-5)


@pytest.mark.parametrize("ignore", [0.5, 0.7])
def test_version_3_learns_as_darknet_does(ignore):
  """Objects of three maps, two of which share a prior."""
  priors, logits = drawn(tuple(V3), (8, 16, 32))
  _, grads = gradients(lambda x: yolo_v3.logistic(x, priors, TRUTH, LABELS, SIZE, ignore), logits)
  deltas, spared = zip(*(yolo_deltas(logits[image], image, ignore) for image in range(3)))
  assert sum(spared) > 10
  np.testing.assert_allclose(grads, -np.stack(deltas), rtol=1e-4, atol=1e-5)


def test_version_1_is_equation_3(request):
  """Torch's five sums; its boxes are sides, ours their roots."""
  with np.load(request.config.rootpath / "tests/goldens/yolo_v1.npz") as case:
    given = {name.partition("yolo_")[2]: case[name] for name in case.files if name != "meta"}
  logits = given["pred"].copy()
  logits[..., [2, 3, 7, 8]] **= 0.5
  measure = jax.jit(yolo_v1.equation, static_argnums=4)
  found = measure(logits, given["obj"] > 0, given["box"], given["cls"], 2)
  factors = {"places": 5, "sizes": 5, "objects": 1, "background": 0.5, "classes": 1}
  np.testing.assert_allclose([found[name] / factors[name] for name in yolo_v1.TERMS], given["terms"], rtol=1e-5)
  np.testing.assert_allclose(sum(found.values()), given["total"], rtol=1e-5)


def detection_deltas(logits, image, rows, columns):
  """[rows, columns, 10 + C] of darknet's detection layer, with its first of several objects in a cell."""
  out, seen = logits.astype(float), set()
  delta = np.zeros_like(out)
  delta[..., [4, 9]] = -0.5 * out[..., [4, 9]]
  for (x, y, w, h), label in truths(image):
    i, j = min(int(x * columns), columns - 1), min(int(y * rows), rows - 1)
    if (j, i) in seen:
      continue
    seen.add((j, i))
    cell, truth = out[j, i], (x * columns - i, y * rows - j, w, h)
    delta[j, i, 10:] = (np.arange(C) == label) - cell[10:]
    best, best_iou, best_apart, found = -1, 0, 20, []
    for n in range(2):
      px, py, pw, ph = cell[5 * n : 5 * n + 4]
      box, placed = (px / columns, py / rows, pw**2, ph**2), (truth[0] / columns, truth[1] / rows, w, h)
      overlap, apart = iou(box, placed), np.sqrt(sum((a - b) ** 2 for a, b in zip(box, placed)))
      found.append(overlap)
      if best_iou > 0 or overlap > 0:
        if overlap > best_iou:
          best, best_iou = n, overlap
      elif apart < best_apart:
        best, best_apart = n, apart
    delta[j, i, 5 * best : 5 * best + 4] = 5 * (np.array([*truth[:2], w**0.5, h**0.5]) - cell[5 * best : 5 * best + 4])
    delta[j, i, 5 * best + 4] = found[best] - cell[5 * best + 4]
  return delta, [max(found) > 0, best] if seen else None


def test_version_1_learns_as_darknet_does():
  """Half of equation 3 has its gradient; where no box overlaps the object, the nearest one answers."""
  rng = np.random.default_rng(1)
  logits = np.float32(rng.normal(size=(3, 2, 3, 10 + C)))
  logits[1, ..., 2:4] = logits[1, ..., 7:9] = 0.01  # boxes of the second image are tiny, and outside their cells:
  logits[1, ..., :2], logits[1, ..., 5:7] = -9, -8
  objects = jax.jit(lambda: yolo_v1.on_grid(TRUTH, LABELS, SIZE, (2, 3)))()
  _, grads = gradients(lambda x: {k: v / 2 for k, v in yolo_v1.equation(x, *objects, 2).items()}, logits)
  deltas, told = zip(*(detection_deltas(logits[image], image, 2, 3) for image in range(3)))
  assert told[1] == [False, 1]
  np.testing.assert_allclose(grads, -np.stack(deltas), rtol=1e-4, atol=1e-5)


FIELDS = {"yolo_v1": {"shrink": 32, "batch_norm": True}, "yolo_v2": {"shrink": 16}, "yolo_v3": {"shrink": 32}}


@pytest.mark.parametrize("name", FIELDS)
def test_detectors_are_built(name):
  """Shapes alone: the contract of `Detector`, and images that fit no grid."""
  config = Config(task="detection", model=Model(name, FIELDS[name]), train=Train(sync_batchnorm=False))
  detector = detection.build(config, (64, 64, 3), C)
  batch = {
    "image": jnp.zeros((2, 64, 64, 3)), "boxes": jnp.zeros((2, 5, 4)), "labels": jnp.zeros((2, 5), jnp.int32),
  }  # fmt: skip
  variables = jax.eval_shape(detector.init, jax.random.PRNGKey(0))
  terms, collections = jax.eval_shape(detector.loss, variables, batch, jax.random.PRNGKey(0))
  assert all(x.shape == count.shape == () for x, count in terms.values())
  assert jax.tree.structure(collections) == jax.tree.structure({"batch_stats": variables["batch_stats"]})
  found = jax.eval_shape(lambda v: detector.detect(v, batch, detection.Limits(most=7)), variables)
  assert {key: x.shape for key, x in found.items()} == {
    "boxes": (2, 7, 4), "scores": (2, 7), "labels": (2, 7), "valid": (2, 7),
  }  # fmt: skip
  with pytest.raises(UserError, match="multiples of"):
    detection.build(config, (72, 64, 3), C)
