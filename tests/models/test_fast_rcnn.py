"""Fast R-CNN: sizes, fewer stages, and what it reports against NumPy, box by box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.errors import UserError
from flaxonomy.models.detection import fast_rcnn

RNG = np.random.default_rng(0)


def shapes_of(side=64, **fields):
  """(shapes of the variables, shapes of the stages)"""
  model, x, boxes = fast_rcnn.FastRCNN(**fields), jnp.zeros((2, side, side, 3)), jnp.zeros((2, 5, 4))
  variables = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), x, boxes, train=False))
  return variables, jax.eval_shape(lambda v: model.apply(v, x, boxes, train=False), variables)


def test_sizes_are_the_published_ones():
  variables, stages = shapes_of(num_classes=21)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 134_690_729
  assert {name: x.shape for name, x in stages.items()} == {
    "conv1_2": (2, 64, 64, 64), "conv2_2": (2, 32, 32, 128), "conv3_3": (2, 16, 16, 256), "conv4_3": (2, 8, 8, 512),
    "conv5_3": (2, 4, 4, 512), "regions": (2, 5, 7, 7, 512), "fc6": (2, 5, 4096), "fc7": (2, 5, 4096),
    "boxes": (2, 5, 21, 4), "logits": (2, 5, 21),
  }  # fmt: skip


def test_fewer_stages_narrower_maps():
  variables, stages = shapes_of(num_classes=11, stages=3, shrink=4, hidden_size=32, pool=3)
  assert set(stages) == {"conv1_2", "conv2_2", "conv3_3", "regions", "fc6", "fc7", "boxes", "logits"}
  assert {name[:5] for name in variables["params"] if name.startswith("conv")} == {"conv1", "conv2", "conv3"}
  assert stages["conv3_3"].shape == (2, 16, 16, 64)
  assert stages["regions"].shape == (2, 5, 3, 3, 64)
  with pytest.raises(UserError, match="has 5 stages, not 6"):
    shapes_of(stages=6)


def test_regions_are_maxima_of_their_part_of_the_map():
  """At stride 4 a box on whole cells, both ends included, as the released code counts."""
  model = fast_rcnn.FastRCNN(num_classes=3, stages=3, shrink=16, hidden_size=4, pool=2)
  x, boxes = jnp.float32(RNG.normal(size=(2, 32, 32, 3))), jnp.float32([[[8, 4, 20, 16]], [[0, 0, 28, 28]]])
  variables = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), x, boxes, train=False))
  variables = jax.tree.map(lambda leaf: jnp.float32(RNG.normal(size=leaf.shape) / 10), variables)
  stages = jax.jit(lambda variables: model.apply(variables, x, boxes, train=False))(variables)
  seen, found = np.asarray(stages["conv3_3"]), np.asarray(stages["regions"])
  np.testing.assert_array_equal(found[0, 0, 0, 1], seen[0, 1:3, 4:6].max((0, 1)))
  np.testing.assert_array_equal(found[1, 0, 1, 0], seen[1, 4:8, 0:4].max((0, 1)))
  assert seen.any()


def overlap(a, b):
  w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
  both = max(w, 0) * max(h, 0)
  return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def detections(offsets, logits, boxes, size, score, threshold, most):
  """[(score, label, box)] of one image, the likeliest first."""
  found = []
  for move, logit, (x1, y1, x2, y2) in zip(offsets, logits, boxes):
    if x2 <= x1:
      continue
    w, h, probs = x2 - x1, y2 - y1, np.exp(logit) / np.exp(logit).sum()
    for c in range(1, len(logit)):
      x, y = (x1 + x2) / 2 + move[c, 0] / 10 * w, (y1 + y2) / 2 + move[c, 1] / 10 * h
      half_w, half_h = w * np.exp(move[c, 2] / 5) / 2, h * np.exp(move[c, 3] / 5) / 2
      box = np.clip([x - half_w, y - half_h, x + half_w, y + half_h], 0, [size[1], size[0]] * 2)
      if probs[c] > score and min(box[2:] - box[:2]) >= 0.01:
        found.append((probs[c], c, box))
  kept = []
  for each in sorted(found, key=lambda each: -each[0]):
    if all(other[1] != each[1] or overlap(other[2], each[2]) <= threshold for other in kept):
      kept.append(each)
  return kept[:most]


def test_detect():
  """Each class moves a box its own way; pictures end before the canvas; rows of zeros find nothing."""
  r, c = 12, 4
  corner = RNG.uniform(0, 40, (2, r, 2))
  boxes = np.float32(np.concatenate([corner, corner + RNG.uniform(8, 24, (2, r, 2))], -1))
  boxes[1, 7:] = 0
  stages = {
    "boxes": np.float32(RNG.normal(size=(2, r, c, 4))),
    "logits": np.float32(2 * RNG.normal(size=(2, r, c))),
  }
  size = np.int32([[64, 50], [40, 64]])
  model = fast_rcnn.FastRCNN(num_classes=c)
  for limits in ((0.05, 0.3, 20), (0.2, 0.1, 3)):
    found = jax.jit(model.detect, static_argnums=(3, 4, 5))(stages, boxes, size, *limits)
    assert found.boxes.shape == (2, limits[2], 4)
    for i in range(2):
      expected = detections(stages["boxes"][i], stages["logits"][i], boxes[i], size[i], *limits)
      n = int(found.valid[i].sum())
      assert n == len(expected) > 2
      assert found.valid[i, :n].all()
      np.testing.assert_allclose(found.scores[i, :n], [e[0] for e in expected], rtol=1e-5)
      np.testing.assert_array_equal(found.labels[i, :n], [e[1] for e in expected])
      np.testing.assert_allclose(found.boxes[i, :n], [e[2] for e in expected], rtol=1e-4, atol=1e-4)
