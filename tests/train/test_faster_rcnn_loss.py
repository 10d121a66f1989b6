"""Faster and Mask R-CNN in training: losses against NumPy, box by box, and what is drawn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.configs.base import Config, Model, Train
from flaxonomy.train import detection
from flaxonomy.train.detection import faster_rcnn, mask_rcnn

RNG = np.random.default_rng(0)
KEY = jax.random.PRNGKey(0)
PLACES = [(x, y) for y in range(0, 50, 10) for x in range(0, 50, 10)]
PRIORS = np.float32([[x, y, x + side, y + side] for side in (20, 28) for x, y in PLACES])
N, G, C = len(PRIORS), 3, 4
SMALL = {
  "depths": (1, 1), "bottleneck": False, "width": 4, "features": 8, "hidden_size": 8, "sizes": ((8,), (16,), (32,)),
  "before": (30, 20), "after": (40, 20), "sampled_regions": 16,
}  # fmt: skip
VGG = {"features": (2,) * 5, "hidden_size": 4, "before": (30, 20), "after": (8, 8)}


def overlap(a, b):
  w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
  both = max(w, 0) * max(h, 0)
  return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def apart(box, truth, offsets, weights, beta):
  """Smooth L1 of one box's offsets."""
  (w, h), (v, z) = box[2:] - box[:2], truth[2:] - truth[:2]
  x, y = (truth[:2] + truth[2:] - box[:2] - box[2:]) / 2 / (w, h)
  far = np.abs(np.array([x, y, np.log(v / w), np.log(z / h)]) * weights - offsets)
  return np.where(far < beta, far**2 / 2 / beta, far - beta / 2).sum()


def scene():
  """(truth [3, G, 4], labels [3, G]) of two, no and three boxes; what fills up lies upon an anchor."""
  corners = RNG.uniform(0, 40, (3, G, 2))
  truth = np.float32(np.concatenate([corners, corners + RNG.uniform(16, 34, (3, G, 2))], -1))
  labels = np.where(np.arange(G)[None] < np.array([[2], [0], [3]]), RNG.integers(1, C, (3, G)), 0)
  truth[labels == 0] = PRIORS[7]
  return truth, labels


def test_the_first_stage():
  """Anchors that learn: objects from .7 on or where they overlap an object most, background below .3; all are drawn."""
  truth, labels = scene()
  logits, deltas = np.float32(RNG.normal(size=(3, N))), np.float32(RNG.normal(size=(3, N, 4)))
  learns = RNG.random((3, N)) < 0.8
  wanted = np.zeros(3)
  for i in range(3):
    mine = truth[i][labels[i] > 0]
    table = np.array([[overlap(t, p) if ok else 0 for p, ok in zip(PRIORS, learns[i])] for t in mine]).reshape(-1, N)
    for j in np.flatnonzero(learns[i]):
      best = table[:, j].max(initial=0)
      if best >= 0.7 or any(best and table[g, j] == table[g].max() for g in range(len(mine))):
        target = mine[table[:, j].argmax()]
        wanted += np.log1p(np.exp(-logits[i, j])), apart(PRIORS[j], target, deltas[i, j], 1, 1 / 9), 1
      elif best < 0.3:
        wanted += np.log1p(np.exp(logits[i, j])), 0, 1
  stages = {"anchors": PRIORS, "objectness": logits, "deltas": deltas}
  found = jax.jit(lambda *given: faster_rcnn.proposing(stages, *given, KEY, 2 * N))(learns, truth, labels > 0)
  np.testing.assert_allclose(found["objectness"], wanted[[0, 2]], rtol=1e-5)
  np.testing.assert_allclose(found["proposals"], wanted[[1, 2]], rtol=1e-5)
  assert wanted[1] > 0


def test_the_second_stage():
  """Proposals and truth, objects from .5 on; each class has its own offsets."""
  truth, labels = scene()
  proposals, valid = np.stack([RNG.permutation(PRIORS) for _ in range(3)]), RNG.random((3, N)) < 0.8
  regions = jax.jit(lambda *given: faster_rcnn.sampled(*given, KEY, 4 * N))(proposals, valid, truth, labels > 0)
  objects = np.asarray(regions.objects)
  logits, offsets = RNG.normal(size=(3, N + G, C)), RNG.normal(size=(3, N + G, C, 4))
  wanted = np.zeros(3)
  for i in range(3):
    mine, kinds = truth[i][labels[i] > 0], labels[i][labels[i] > 0]
    rows = [box for box, ok in zip([*proposals[i], *truth[i]], [*valid[i], *(labels[i] > 0)]) if ok]
    best = [max((overlap(t, box) for t in mine), default=0) for box in rows]
    order = [k for k in range(len(rows)) if best[k] >= 0.5] + [k for k in range(len(rows)) if best[k] < 0.5]
    np.testing.assert_array_equal(regions.boxes[i][: len(rows)], np.array(rows)[order])
    assert regions.counted[i].sum() == len(rows)
    assert objects[i].sum() == sum(share >= 0.5 for share in best) == objects[i][: objects[i].sum()].sum()
    for place, k in enumerate(order):
      near, label = None, 0
      if best[k] >= 0.5:
        near = int(np.argmax([overlap(t, rows[k]) for t in mine]))
        label = kinds[near]
        wanted[1] += apart(rows[k], mine[near], offsets[i, place, label], np.array([10, 10, 5, 5]), 0.5)
      wanted += np.log(np.exp(logits[i, place]).sum()) - logits[i, place, label], 0, 1
  given = np.float32(logits), np.float32(offsets), regions, truth, labels
  found = jax.jit(lambda *given: faster_rcnn.judging(*given, 0.5))(*given)
  np.testing.assert_allclose(found["classification"], wanted[[0, 2]], rtol=1e-5)
  np.testing.assert_allclose(found["boxes"], wanted[[1, 2]], rtol=1e-5)
  assert objects.sum() > 8


def test_at_most_a_quarter_are_objects():
  truth, valid = np.stack([PRIORS[:G]] * 2), np.ones((2, N), bool)
  run = jax.jit(lambda *given: faster_rcnn.sampled(*given, KEY, 12))
  regions = run(np.stack([PRIORS] * 2), valid, truth, np.array([[True] * 3, [False] * 3]))
  np.testing.assert_array_equal(regions.objects.sum(1), [3, 0])
  assert regions.counted.all()
  assert not np.array_equal(regions.boxes[0][3:], regions.boxes[1][3:])


def test_masks():
  """A box of 28 x 28 pixels has a sample between each four; background and other classes count for nothing."""
  masks, labels = RNG.random((1, 2, 40, 40)) < 0.5, np.array([[2, 1]])
  boxes = np.float32([[[3, 5, 31, 33], [0, 2, 28, 30], [7, 7, 35, 35], [0, 0, 9, 9]]])
  matched, counted = np.array([[1, 0, 1, -1]]), np.array([[True, True, False, True]])
  logits, wanted = RNG.normal(size=(1, 4, 28, 28, 3)), 0.0
  for i in range(2):
    x, y, mask = *boxes[0, i, :2].astype(int), masks[0, matched[0, i]].astype(float)
    aim = sum(mask[y + a : y + a + 28, x + b : x + b + 28] for a in (0, 1) for b in (0, 1)) / 4
    own = logits[0, i, :, :, labels[0, matched[0, i]]]
    wanted += (np.log1p(np.exp(own)) - aim * own).mean()
  regions = faster_rcnn.Regions(boxes, jnp.asarray(matched), counted)
  found = jax.jit(mask_rcnn.drawing)(np.float32(logits), regions, labels, masks)
  np.testing.assert_allclose(found, (wanted, 2), rtol=1e-5)


@pytest.mark.parametrize(
  "name, fields",
  [
    ("fasterrcnn_resnet50_fpn", SMALL),
    ("maskrcnn_resnet50_fpn", SMALL | {"frozen": False}),
    ("fasterrcnn_vgg16", VGG),
  ],
)
def test_detectors_keep_their_promise(name, fields):
  """Shapes alone: terms, other variables as they came, detections."""
  config = Config(task="detection", model=Model(name, fields), train=Train(sync_batchnorm=False))
  detector = detection.build(config, (64, 64, 3), C - 1)
  variables = jax.eval_shape(detector.init, KEY)
  batch = {
    "image": jnp.zeros((2, 64, 64, 3)), "size": jnp.full((2, 2), 64), "boxes": jnp.zeros((2, G, 4)),
    "labels": jnp.zeros((2, G), jnp.int32), "masks": jnp.zeros((2, G, 64, 64), bool),
  }  # fmt: skip
  terms, collections = jax.eval_shape(detector.loss, variables, batch, KEY)
  wanted = {"objectness", "proposals", "classification", "boxes"} | ({"masks"} if detector.masks else set())
  assert set(terms) == wanted
  assert all(leaf.shape == () and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(terms))
  same = {key: value for key, value in variables.items() if key != "params"}
  assert jax.tree.structure(collections) == jax.tree.structure(same)
  assert set(same) == ({"batch_stats"} if detector.masks else {"frozen"} if "depths" in fields else set())
  found = jax.eval_shape(lambda v: detector.detect(v, batch, detection.Limits(most=7)), variables)
  shapes = {key: leaf.shape for key, leaf in found.items()}
  more = {"masks": (2, 7, 28, 28)} if detector.masks else {}
  assert shapes == {"boxes": (2, 7, 4), "scores": (2, 7), "labels": (2, 7), "valid": (2, 7)} | more
