"""Losses of detectors against NumPy, box by box."""

import jax
import numpy as np

from flaxonomy.train.detection import ssd as training_of_ssd

RNG = np.random.default_rng(0)
DEFAULTS = np.float32([[x, y, x + side, y + side] for side in (24, 28) for y in (0, 20, 40) for x in (0, 20, 40)])
A, C, G = len(DEFAULTS), 4, 3


def overlap(a, b):
  w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
  both = max(w, 0) * max(h, 0)
  return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def multibox(offsets, logits, truth, labels):
  """(classification, boxes, objects) of one image."""
  table = np.array([[overlap(t, d) for d in DEFAULTS] for t in truth]).reshape(len(truth), A)
  owner = [-1] * A
  for d in range(A):
    if len(truth) and table[:, d].max() >= 0.5:
      owner[d] = int(table[:, d].argmax())
  for t in range(len(truth)):
    owner[int(table[t].argmax())] = t
  entropy = np.array([
    np.log(np.exp(logits[d]).sum()) - logits[d][labels[owner[d]] if owner[d] >= 0 else 0] for d in range(A)
  ])  # fmt: skip
  objects = [d for d in range(A) if owner[d] >= 0]
  hard = sorted((d for d in range(A) if owner[d] < 0), key=lambda d: -entropy[d])[: 3 * len(objects)]
  apart = 0.0
  for d in objects:
    (x1, y1, x2, y2), t = DEFAULTS[d], truth[owner[d]]
    w, h = x2 - x1, y2 - y1
    moves = (
      10 * ((t[0] + t[2]) / 2 - (x1 + x2) / 2) / w, 10 * ((t[1] + t[3]) / 2 - (y1 + y2) / 2) / h,
      5 * np.log((t[2] - t[0]) / w), 5 * np.log((t[3] - t[1]) / h),
    )  # fmt: skip
    for move, offset in zip(moves, offsets[d]):
      far = abs(move - offset)
      apart += far - 0.5 if far >= 1 else far**2 / 2
  return entropy[objects + hard].sum(), apart, len(objects)


def test_multibox():
  """Two, no and three boxes of truth; what fills up counts for nothing, whatever stands there."""
  corners = RNG.choice([0, 20, 40], (3, G, 2)) + RNG.uniform(0, 4, (3, G, 2))
  truth = np.float32(np.concatenate([corners, corners + RNG.uniform(22, 30, (3, G, 2))], -1))
  labels, counts = RNG.integers(1, C, (3, G)), (2, 0, 3)
  valid = np.arange(G)[None] < np.array(counts)[:, None]
  truth[~valid] = DEFAULTS[4]
  offsets, logits = np.float32(RNG.normal(size=(3, A, 4))), np.float32(3 * RNG.normal(size=(3, A, C)))
  stages = {"boxes": offsets, "logits": logits}
  found = jax.jit(training_of_ssd.multibox)(stages, DEFAULTS, truth, labels, valid)
  each = [multibox(*given[:2], given[2][:n], given[3]) for *given, n in zip(offsets, logits, truth, labels, counts)]
  classification, boxes, objects = np.sum(each, 0)
  assert each[1][2] == 0
  assert objects > 5
  np.testing.assert_allclose(found["classification"], (classification, objects), rtol=1e-5)
  np.testing.assert_allclose(found["boxes"], (boxes, objects), rtol=1e-5)
