"""Faster R-CNN: sizes, what the stages propose and report against NumPy, where both look, public names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models import interop
from flaxonomy.models.detection import faster_rcnn, proposals
from flaxonomy.models.vision import resnet

RNG = np.random.default_rng(0)
SMALL = {
  "num_classes": 3, "depths": (1, 1), "bottleneck": False, "width": 4, "features": 8, "hidden_size": 8,
  "sizes": ((8,), (16,), (32,)), "before": (30, 20), "after": (40, 20),
}  # fmt: skip


def sizes_of(name, **fields):
  """{collection: numbers in it}"""
  model, x = models.create(name, **fields), jnp.zeros((1, 64, 64, 3))
  shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), x, train=False))
  return {key: sum(leaf.size for leaf in jax.tree.leaves(tree)) for key, tree in shapes.items()}


@pytest.mark.parametrize(
  "name, fields, published",
  [
    ("fasterrcnn_resnet50_fpn", {}, {"params": 41_755_286, "frozen": 4 * 26_560}),
    ("fasterrcnn_resnet50_fpn", {"frozen": False}, {"params": 41_808_406, "batch_stats": 2 * 26_560}),
    (
      "fasterrcnn_resnet50_fpn",
      {"frozen": False, "num_classes": 21},
      {"params": 41_449_656, "batch_stats": 2 * 26_560},
    ),
    ("fasterrcnn_vgg16", {}, {"params": 137_078_239}),
  ],
)
def test_sizes_are_the_published_ones(name, fields, published):
  assert sizes_of(name, **fields) == published


def test_anchor_sizes_must_fit():
  with pytest.raises(UserError, match="2 stages needs 3 tuples"):
    sizes_of("fasterrcnn_resnet50_fpn", depths=(1, 1))
  with pytest.raises(UserError, match="multiples of 16"):
    sizes_of("fasterrcnn_vgg16", sizes=(20, 40))


def boxes(*shape, side=60):
  corners = RNG.uniform(-8, side, (*shape, 2))
  return np.float32(np.concatenate([corners, corners + RNG.uniform(4, 30, (*shape, 2))], -1))


def moved(box, deltas, weights, size):
  """One box decoded and clipped."""
  w, h = box[2] - box[0], box[3] - box[1]
  dx, dy, dw, dh = deltas / weights
  x, y, w, h = box[0] + w / 2 + dx * w, box[1] + h / 2 + dy * h, w * np.exp(dw), h * np.exp(dh)
  corners = np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
  return np.clip(corners, 0, [size[1], size[0]] * 2)


def overlap(a, b):
  w, h = (min(a[i + 2], b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
  both = max(w, 0) * max(h, 0)
  return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def suppressed(found, threshold, most):
  """Of (score, kind, box), the greedy choice."""
  stays = []
  for score, kind, box in sorted(found, key=lambda each: -each[0]):
    if all(kind != other or overlap(box, mine) <= threshold for _, other, mine in stays):
      stays.append((score, kind, box))
  return stays[:most]


def test_proposals():
  """Each level's best, suppressed within the level; unusable anchors and empty boxes go."""
  counts, before, after = (30, 20, 4), 12, 14
  priors, logits = boxes(54), np.float32(RNG.normal(size=(2, 54)))
  deltas, usable = np.float32(0.3 * RNG.normal(size=(2, 54, 4))), RNG.random((2, 54)) < 0.8
  priors[3] = (90, 90, 99, 99)
  logits[:, 3], usable[:, 3] = 9.0, True  # the best of its level lies outside the picture
  size = np.array([[50, 64], [64, 40]])
  run = jax.jit(lambda *given: proposals.propose(*given[:3], counts, *given[3:], before, after))
  found, there = run(logits, deltas, priors, usable, size)
  assert found.shape == (2, after, 4)
  for i in range(2):
    candidates, start = [], 0
    for level, count in enumerate(counts):
      mine = [j for j in range(start, start + count) if usable[i, j]]
      for j in sorted(mine, key=lambda j: -logits[i, j])[:before]:
        box = moved(priors[j], deltas[i, j], np.ones(4), size[i])
        if min(box[2] - box[0], box[3] - box[1]) >= 1e-3:
          candidates.append((logits[i, j], level, box))
      start += count
    wanted = [box for *_, box in suppressed(candidates, 0.7, after)]
    assert len(wanted) > 10
    np.testing.assert_allclose(found[i][there[i]], wanted, rtol=1e-4, atol=1e-3)
    assert not np.asarray(found[i][~there[i]]).any()


def test_detections():
  """Each class's own box of each proposal that is there, above the score, suppressed within the class."""
  logits, offsets = 2 * RNG.normal(size=(2, 20, 4)), RNG.normal(size=(2, 20, 4, 4))
  given, valid, size = boxes(2, 20), RNG.random((2, 20)) < 0.8, np.array([[50, 64], [64, 40]])
  run = jax.jit(lambda *given: proposals.classified(*given, score=0.2, threshold=0.3, most=12))
  found = run(np.float32(logits), np.float32(offsets), given, valid, size)
  for i in range(2):
    candidates = []
    for j in np.flatnonzero(valid[i]):
      scores = np.exp(logits[i, j]) / np.exp(logits[i, j]).sum()
      for label in (1, 2, 3):
        box = moved(given[i, j], offsets[i, j, label], np.array([10, 10, 5, 5]), size[i])
        if scores[label] > 0.2 and min(box[2] - box[0], box[3] - box[1]) >= 1e-2:
          candidates.append((scores[label], label, box))
    wanted = suppressed(candidates, 0.3, 12)
    there = found.valid[i]
    assert there.sum() == len(wanted) > 8
    for mine, true in zip((found.scores, found.labels, found.boxes), zip(*wanted)):
      np.testing.assert_allclose(mine[i][there], true, rtol=1e-4, atol=1e-3)


def test_anchors_beside_the_picture():
  priors, size = (
    np.float32([[0, 0, 60, 60], [28, 0, 34, 8], [40, 0, 90, 8], [-1, 0, 9, 9]]),
    np.array([[40, 30], [60, 90]]),
  )
  np.testing.assert_array_equal(proposals.seen(priors, size), [[1, 1, 0, 1], [1, 1, 1, 1]])
  np.testing.assert_array_equal(proposals.inside(priors, size), [[0, 0, 0, 0], [1, 1, 1, 0]])


def variables_of(model, x):
  """Random variables, variances above 0; compiles nothing."""
  shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), x, train=False))
  low = lambda path: 0.1 if path[-1].key == "var" else -0.3
  draw = lambda path, leaf: jnp.asarray(RNG.uniform(low(path), 0.3, leaf.shape), leaf.dtype)
  return jax.tree_util.tree_map_with_path(draw, shapes)


def test_a_batch_of_pictures_of_two_sizes():
  """Nothing is found beside a picture; the batch's size is free in an exported function."""
  model, x = (
    models.create("fasterrcnn_resnet50_fpn", **SMALL),
    jnp.asarray(RNG.normal(size=(2, 64, 96, 3)), jnp.float32),
  )
  size, variables = jnp.array([[64, 96], [40, 50]]), variables_of(model, x)

  def run(x, size):
    stages = model.apply(variables, x, size, train=False)
    return stages["proposals"], stages["valid"], model.detect(stages, size, score=0.0)

  b = jax.export.symbolic_shape("b")[0]
  like = jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype), jax.ShapeDtypeStruct((b, 2), size.dtype)
  boxes, valid, found = jax.export.export(jax.jit(run))(*like).call(x, size)
  assert boxes.shape == (2, 20, 4)
  assert found.boxes.shape == (2, 100, 4)
  assert np.asarray(valid).any(1).all()
  for i, (h, w) in enumerate(np.asarray(size)):
    for every in (boxes[i][valid[i]], found.boxes[i][found.valid[i]]):
      assert len(every)
      assert (np.asarray(every) >= 0).all()
      assert (np.asarray(every) <= [w, h, w, h]).all()


def test_vgg_pools_whole_cells():
  """A box whose corners round to 7 x 7 cells of the map is these cells; its last pixel is that before x2."""
  model = faster_rcnn.FasterRCNNVGG16(num_classes=3, features=(2,) * 5, hidden_size=4, before=(30, 20), after=(8, 8))
  variables = variables_of(model, jnp.zeros((1, 64, 64, 3)))
  cells = jnp.asarray(RNG.normal(size=(1, 10, 12, 2)), jnp.float32)
  run = jax.jit(lambda boxes: model.apply(variables, {"map": cells}, boxes, train=False, method="judge"))
  seen = run(np.float32([[[32, 16, 136.5, 120.5]]]))
  np.testing.assert_array_equal(seen["pooled"][0, 0], cells[0, 1:8, 2:9])
  assert seen["offsets"].shape == (1, 1, 3, 4)


def test_frozen_batch_norm_learns_nothing():
  x, values = (
    np.float32(RNG.normal(size=(4, 5))),
    {key: np.float32(RNG.uniform(1, 2, 5)) for key in ("scale", "bias", "mean", "var")},
  )
  y, changed = resnet.FrozenBatchNorm(epsilon=0.5).apply({"frozen": values}, x, train=True, mutable=True)
  wanted = (x - values["mean"]) / np.sqrt(values["var"] + 0.5) * values["scale"] + values["bias"]
  np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, changed, {"frozen": values})


@pytest.mark.parametrize("name, frozen", [("fasterrcnn_resnet50_fpn", False), ("maskrcnn_resnet50_fpn", True)])
def test_public_names_of_all_ages(name, frozen):
  fields = {key: value for key, value in SMALL.items() if key != "num_classes"} | {"frozen": frozen}
  model = models.create(name, num_classes=3, **fields)
  variables = jax.device_get(variables_of(model, jnp.zeros((1, 64, 64, 3))))
  tensors = interop.to_torch(name, variables, num_classes=3, **fields)
  assert {"backbone.body.layer1.0.bn2.running_var", "backbone.fpn.inner_blocks.1.0.weight", "rpn.head.conv.0.0.bias",
          "rpn.head.cls_logits.weight", "roi_heads.box_head.fc6.weight", "roi_heads.box_predictor.cls_score.bias"
          } <= set(tensors)  # fmt: skip
  old = {key.replace("blocks.0.0.", "blocks.0.").replace("blocks.1.0.", "blocks.1.").replace("conv.0.0.", "conv.")
            .replace("mask_head.0.0", "mask_head.mask_fcn1").replace("mask_head.3.0", "mask_head.mask_fcn4"): value
         for key, value in tensors.items()}  # fmt: skip
  assert len(set(old) - set(tensors)) == (10 if name.startswith("faster") else 14)
  for every in (tensors, old):
    jax.tree.map(np.testing.assert_array_equal, interop.from_torch(name, every, **fields), variables)
