"""Fast R-CNN and R-CNN in training: which regions are drawn, and losses against NumPy."""

import functools

import jax
import numpy as np

from flaxonomy.models.detection import boxes as geometry
from flaxonomy.train.detection import fast_rcnn

RNG = np.random.default_rng(0)
TRUTH = np.float32([[[10, 10, 30, 30], [40, 20, 60, 50], [5, 40, 25, 60]], [[0] * 4] * 3])
LABELS, CROWD = np.int32([[3, 1, 2], [0, 0, 0]]), np.bool_([[False, False, True], [False] * 3])


DRAW = jax.jit(functools.partial(fast_rcnn.draw, count=16))


def candidates():
  """Truth moved a little and a lot, boxes far away, and zeros: [2, 60, 4]."""
  near = np.repeat(TRUTH[0], 8, 0) + RNG.uniform(-2, 2, (24, 4))
  apart = np.repeat(TRUTH[0], 8, 0) + np.tile(RNG.uniform(8, 12, (24, 1)), 4)
  far = np.tile([70, 70, 90, 90], (4, 1)) + RNG.uniform(0, 2, (4, 4))
  return np.float32(np.stack([np.concatenate([near, apart, far, np.zeros((8, 4))])] * 2))


def overlaps(a, b):
  return np.asarray(geometry.iou(a, b))  # compared with torchvision in its own tests


def test_regions_are_drawn_by_the_papers_rules():
  batch = {"boxes": TRUTH, "labels": LABELS, "crowd": CROWD, "proposals": candidates()}
  for seed in range(4):
    chosen = jax.tree.map(lambda x: x[0], DRAW(jax.random.PRNGKey(seed), batch, background=0.1))
    table = overlaps(TRUTH[0, :2], chosen.boxes)  # the third box of truth is of a crowd
    best, objects = table.max(0), np.asarray(chosen.labels) > 0
    assert objects.sum() == 4
    assert chosen.counts.all()
    np.testing.assert_array_equal(objects, best >= 0.5)
    assert (best[~objects] >= 0.1).all()
    of = table.argmax(0)[objects]
    np.testing.assert_array_equal(np.asarray(chosen.labels)[objects], LABELS[0, of])
    np.testing.assert_array_equal(np.asarray(chosen.truth)[objects], TRUTH[0, of])
  easy = DRAW(jax.random.PRNGKey(0), batch, background=0.0)
  assert (overlaps(TRUTH[0, :2], easy.boxes[0]).max(0) == 0).any()
  assert easy.counts.all()
  assert np.asarray(easy.boxes).any(-1).all()  # zeros fill up, and are no background
  assert not easy.labels[1].any()


def test_truth_is_a_proposal_and_the_rest_does_not_count():
  """Without any proposals the boxes of truth are all there is; an image without objects counts nothing."""
  batch = {"boxes": TRUTH, "labels": LABELS, "crowd": CROWD, "proposals": np.zeros((2, 60, 4), np.float32)}
  chosen = DRAW(jax.random.PRNGKey(0), batch, background=0.1)
  counts = np.asarray(chosen.counts)
  np.testing.assert_array_equal(counts.sum(1), [2, 0])
  np.testing.assert_array_equal(np.sort(np.asarray(chosen.labels[0])[counts[0]]), [1, 3])


def test_multitask():
  s, c = 7, 4
  chosen = fast_rcnn.Regions(
    np.float32([[[0, 0, 10, 20]] * s] * 2), RNG.integers(0, c, (2, s)).astype(np.int32),
    np.float32([[[1, 2, 13, 19]] * s] * 2), RNG.random((2, s)) < 0.7,
  )  # fmt: skip
  logits, offsets = np.float32(RNG.normal(size=(2, s, c))), np.float32(2 * RNG.normal(size=(2, s, c, 4)))
  targets = [10 * 2 / 10, 10 * 0.5 / 20, 5 * np.log(1.2), 5 * np.log(17 / 20)]
  entropy = apart = 0.0
  for i, j in zip(*np.nonzero(chosen.counts)):
    label = chosen.labels[i, j]
    entropy += np.log(np.exp(logits[i, j]).sum()) - logits[i, j, label]
    for move, target in zip(offsets[i, j, label], targets):
      far = abs(move - target)
      apart += (label > 0) * (far - 0.5 if far >= 1 else far**2 / 2)
  found = fast_rcnn.multitask(logits, offsets, chosen)
  count = chosen.counts.sum()
  assert (chosen.labels[chosen.counts] > 0).sum() > 3
  np.testing.assert_allclose(found["classification"], (entropy, count), rtol=1e-5)
  np.testing.assert_allclose(found["boxes"], (apart, count), rtol=1e-5)
