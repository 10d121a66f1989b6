"""YOLO: sizes, boxes of a grid as darknet decodes them, what is reported, the passthrough's order of memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models.detection import anchors, cells, yolo_v1, yolo_v2, yolo_v3

KEY = jax.random.PRNGKey(0)


def shapes_of(model, *image):
  """(shapes of the variables, shapes of the stages)"""
  x = jnp.zeros((2, *image, 3))
  stages, variables = jax.eval_shape(lambda: model.init_with_output(KEY, x, train=False))
  return variables, stages


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name, fields, parameters, statistics, logits", [
  ("yolo_v1", {}, 271_703_550, 0, (7, 7, 30)),
  ("yolo_v2", {}, 50_655_389, 20_672, (845, 25)),
  ("yolo_v2", {"num_classes": 80, "anchors": anchors.YOLO_V2_COCO}, 50_962_889, 20_672, (845, 85)),
  ("yolo_v3", {}, 61_949_149, 52_608, (10_647, 85)),
  ("yolo_v3", {"num_classes": 20}, 61_626_049, 52_608, (10_647, 25)),
])  # fmt: skip
def test_sizes_are_the_published_ones(name, fields, parameters, statistics, logits):
  side = 448 if name == "yolo_v1" else 416
  variables, stages = shapes_of(models.create(name, **fields), side, side)
  assert count(variables["params"]) == parameters
  assert count(variables.get("batch_stats", {})) == statistics
  assert stages["logits"].shape == (2, *logits)


def test_small_ones():
  """For images of 128 pixels, and for those that are not square."""
  variables, stages = shapes_of(yolo_v1.YOLOv1(10, shrink=16), 128, 192)
  assert stages["logits"].shape == (2, 2, 3, 20)
  assert variables["params"]["fc1"]["kernel"].shape == (2 * 3 * 64, 256)
  variables, stages = shapes_of(yolo_v1.YOLOv1(10, boxes=3, cell=32, shrink=16, batch_norm=True), 128, 128)
  assert stages["logits"].shape == (2, 4, 4, 25)
  assert "bias" not in variables["params"]["conv24"]["conv"]
  pair = ((0.5, 0.5), (1.5, 1.5))
  assert shapes_of(yolo_v2.YOLOv2(10, pair, shrink=16), 128, 160)[1]["logits"].shape == (2, 4 * 5 * 2, 15)
  with pytest.raises(UserError, match="multiples of 32 pixels, not 72 x 64"):
    shapes_of(yolo_v2.YOLOv2(10), 72, 64)
  with pytest.raises(UserError, match="multiples of 64 pixels, not 96 x 64"):
    shapes_of(yolo_v1.YOLOv1(10), 96, 64)
  with pytest.raises(UserError, match="must be one of 64, 32, 16, not 8"):
    shapes_of(yolo_v1.YOLOv1(10, cell=8), 64, 64)
  with pytest.raises(UserError, match="those of 3 maps, not 2"):
    yolo_v3.YOLOv3(10, anchors=(pair, pair)).priors((64, 64))


def test_boxes_are_darknets():
  """Its get_yolo_box, loop by loop, of maps that are not square."""
  size, strides, sides = (64, 96), (16, 32), (((10, 13), (33, 23)), ((90, 40), (20, 60), (5, 5)))
  priors = cells.priors(sides, strides, size)
  logits = np.float32(np.random.default_rng(0).normal(size=(2, len(priors.strides), 7)))
  wanted, n = [], 0
  for stride, level in zip(strides, sides):
    rows, columns = size[0] // stride, size[1] // stride
    for j, i, (w, h) in [(j, i, pair) for j in range(rows) for i in range(columns) for pair in level]:
      t = logits[:, n].astype(float)
      x, y = ((place + 1 / (1 + np.exp(-t[:, k]))) * stride for k, place in ((0, i), (1, j)))
      w, h = np.exp(t[:, 2]) * w, np.exp(t[:, 3]) * h
      wanted.append(np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1))
      n += 1
  assert n == logits.shape[1]
  found = jax.jit(lambda x: cells.decode(x, priors))(logits)
  np.testing.assert_allclose(found, np.stack(wanted, 1), rtol=1e-4, atol=1e-3)


def test_objectness_starts_around_the_prior():
  """Alone; .5 is darknet's start."""
  x = jnp.ones((1, 2, 2, 8))
  for prior, expected in ((0.01, np.log(0.01 / 0.99)), (0.5, 0)):
    head = cells.head(3, 4, prior, "conv1")
    bias = head.init(jax.random.PRNGKey(0), x, train=False)["params"]["conv"]["bias"].reshape(3, 9)
    np.testing.assert_allclose(bias[:, 4], expected, rtol=1e-5, atol=0)
    assert not np.delete(bias, 4, 1).any()
  with pytest.raises(UserError, match="^field 'prior' of YOLO must be above 0"):
    cells.head(3, 4, 0.0, "conv1")


def test_priors_answer_for_what_lies_in_their_cell():
  """A middle on the image's edge is the last cell's; the later of two objects with one prior counts."""
  priors = cells.priors((((10, 10), (30, 30)),), (32,), (64, 96))
  truth = np.float32([[0, 0, 9, 9], [80, 50, 112, 78], [2, 2, 9, 12], [2, 2, 9, 12], [30, 10, 60, 40]])
  valid = np.array([True, True, True, False, True])
  found = jax.jit(lambda: cells.match(jnp.asarray(priors.boxes), truth, valid, priors, (64, 96)))()
  np.testing.assert_array_equal(found.slots, [0, 11, 0, 0, 3])
  np.testing.assert_array_equal(found.counts, [False, True, True, False, True])
  np.testing.assert_array_equal(np.flatnonzero(found.objects), [0, 3, 11])
  np.testing.assert_array_equal(found.same[0], [True, False, True, False, False])
  np.testing.assert_allclose(found.targets[4], [45 / 32 - 1, 25 / 32, 0, 0], atol=1e-6)


def logit(p):
  return np.log(p / (1 - p))


def test_version_3_reports_every_class_of_a_box():
  """Two of one box; a worse box of the class is suppressed, one that is not in the image left out."""
  model = yolo_v3.YOLOv3(3)
  priors = model.priors((64, 64))
  logits = np.full((1, len(priors.strides), 8), -20, np.float32)
  logits[0, :, :4] = 0
  middle, beside, outside = 100, 101, 0
  logits[0, middle, 4:] = [20, logit(0.9), -20, logit(0.6)]
  sides = priors.boxes[:, 2:] - priors.boxes[:, :2]
  logits[0, beside, 2:] = [*np.log(sides[middle] / sides[beside]), logit(0.5), 20, -20, -20]  # the same box, less sure
  logits[0, outside, :5] = [-20, -20, -20, -20, 20]
  logits[0, outside, 5] = 20
  found = jax.jit(lambda x: model.detect({"logits": x}, (64, 64), most=5))(logits)
  assert found.valid[0].tolist() == [True, True, False, False, False]
  assert found.labels[0, :2].tolist() == [1, 3]
  np.testing.assert_allclose(found.scores[0, :2], [0.9, 0.6], rtol=1e-5)
  np.testing.assert_allclose(found.boxes[0, 0], np.clip(priors.boxes[middle], 0, 64), atol=1e-4)


def test_version_2_shares_out_one_probability():
  model = yolo_v2.YOLOv2(3)
  logits = np.full((2, 2 * 2 * 5, 8), -20, np.float32)
  logits[1, 7, :] = [0, 0, np.log(0.5), 0, logit(0.8), np.log(0.6), np.log(0.3), np.log(0.1)]
  found = jax.jit(lambda x: model.detect({"logits": x}, (64, 64), 0.1, most=4))(logits)
  assert found.valid.tolist() == [[False] * 4, [True, True, False, False]]
  np.testing.assert_allclose(found.scores[1, :2], [0.48, 0.24], rtol=1e-5)
  w, h = 5.05587 * 32 / 2, 8.09892 * 32  # the third anchor, in the second cell: around (48, 16)
  np.testing.assert_allclose(found.boxes[1, 0], np.clip([48 - w / 2, 16 - h / 2, 48 + w / 2, 16 + h / 2], 0, 64))


def test_version_1_reports_a_cells_boxes():
  """Class probability times confidence; sides are squares; two negative numbers make no score."""
  model = yolo_v1.YOLOv1(2)
  logits = np.zeros((1, 2, 3, 12), np.float32)
  logits[0, 1, 2, :10] = [0.5, 0.25, 0.5, 0.25**0.5, 0.8, 0, 0, 0.1, 0.1, -1]
  logits[0, 1, 2, 10:] = [0.5, -0.5]
  found = jax.jit(lambda x: model.detect({"logits": x}, (128, 192), most=3))(logits)
  assert found.valid[0].tolist() == [True, False, False]
  assert int(found.labels[0, 0]) == 1
  np.testing.assert_allclose(found.scores[0, 0], 0.4, rtol=1e-6)
  np.testing.assert_allclose(found.boxes[0, 0], [160 - 24, 80 - 16, 160 + 24, 80 + 16], rtol=1e-6)


def test_the_passthrough_is_darknets():
  """Its reorg_cpu, loop by loop; on an image of one row of blocks it is the paper's."""
  b, h, w, c = 2, 6, 4, 8
  x = np.random.default_rng(0).normal(size=(b, h, w, c)).astype(np.float32)
  memory, wanted = x.transpose(0, 3, 1, 2).reshape(b, -1), np.zeros((b, c * h * w), np.float32)
  for k, j, i in np.ndindex(c, h, w):
    offset = k // (c // 4)
    w2, h2 = i * 2 + offset % 2, j * 2 + offset // 2
    wanted[:, i + w * (j + h * k)] = memory[:, w2 + w * 2 * (h2 + h * 2 * (k % (c // 4)))]
  wanted = wanted.reshape(b, 4 * c, h // 2, w // 2).transpose(0, 2, 3, 1)
  np.testing.assert_array_equal(yolo_v2.reorganise(jnp.asarray(x)), wanted)
  assert not np.array_equal(yolo_v2.stack(jnp.asarray(x)), wanted)
  blocks = np.concatenate([x[:, p::2, q::2] for p in (0, 1) for q in (0, 1)], -1)
  np.testing.assert_array_equal(yolo_v2.stack(jnp.asarray(x)), blocks)


def test_dropout_is_behind_the_first_dense_layer():
  """In training alone, where it asks for its rng."""
  model, x, called = yolo_v1.YOLOv1(2, shrink=32), jnp.zeros((2, 64, 64, 3)), []

  def note(call, given, named, context):
    called.append((context.module.name, getattr(context.module, "deterministic", None)))
    return call(*given, **named)

  variables, _ = shapes_of(model, 64, 64)
  look = lambda rngs: lambda v: model.apply(v, x, train=True, rngs=rngs)
  with nn.intercept_methods(note):
    jax.eval_shape(look({"dropout": KEY}), variables)
  assert called[-3:] == [("fc1", None), ("Dropout_0", False), ("fc2", None)]
  with pytest.raises(errors.InvalidRngError):
    jax.eval_shape(look({}), variables)
