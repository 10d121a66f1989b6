"""R-CNN: sizes, the warp against NumPy pixel by pixel, and what scores are before and after the SVMs are learned."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.errors import UserError
from flaxonomy.models.detection import rcnn

RNG = np.random.default_rng(0)


def shapes_of(**fields):
  """(shapes of the variables, shapes of the stages)"""
  model = rcnn.RCNN(**fields)
  x = jnp.zeros((2, model.side, model.side, 3))
  variables = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), x, train=False))
  return variables, jax.eval_shape(lambda v: model.apply(v, x, train=False), variables)


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_sizes_are_the_published_ones():
  variables, stages = shapes_of()
  assert count(variables["params"]) == 56_954_261
  assert count(variables["svm"]) == 20 * 4097 + 1
  assert count(variables["regression"]) == 20 * 4 * 9217 + 1
  assert stages["pool5"].shape == (2, 6, 6, 256)
  assert stages["svm"].shape == (2, 20)
  assert stages["boxes"].shape == (2, 20, 4)
  assert stages["logits"].shape == (2, 21)


def test_smaller_crops_and_torchvisions_net():
  variables, stages = shapes_of(num_classes=11, side=67, shrink=4, hidden_size=32)
  assert stages["pool5"].shape == (2, 1, 1, 64)
  assert variables["svm"]["weights"].shape == (32, 10)
  variables, stages = shapes_of(body="alexnet", side=96, shrink=4)
  assert stages["pool5"].shape == (2, 2, 2, 64)
  assert variables["params"]["net"]["fc6"]["kernel"].shape == (2 * 2 * 64, 4096)
  with pytest.raises(UserError, match="did you mean 'alexnet'"):
    shapes_of(body="alexnett")
  with pytest.raises(UserError, match="67 pixels, not 66"):
    shapes_of(side=66)


def warped(image, box, size, side, context):
  """One crop, sample by sample."""
  out, (h, w) = np.zeros((side, side, image.shape[2])), size
  pad = context * side / 227
  x1, y1, x2, y2 = (float(edge) for edge in box)
  for i in range(side):
    for j in range(side):
      # The box fills the crop but for `pad` pixels on each side.
      y = y1 + (i + 0.5 - pad) / (side - 2 * pad) * (y2 - y1)
      x = x1 + (j + 0.5 - pad) / (side - 2 * pad) * (x2 - x1)
      if not (0 <= y < h and 0 <= x < w):
        continue
      y, x = np.clip(y - 0.5, 0, h - 1), np.clip(x - 0.5, 0, w - 1)
      top, left = int(y), int(x)
      bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
      above = image[top, left] * (1 - x + left) + image[top, right] * (x - left)
      below = image[bottom, left] * (1 - x + left) + image[bottom, right] * (x - left)
      out[i, j] = above * (1 - y + top) + below * (y - top)
  return out


def test_warp():
  """Small and large boxes, inside, across the edge of a picture that ends before its image, and none."""
  image = np.float32(RNG.normal(size=(30, 40, 2)))
  boxes = np.float32([[5, 6, 12, 20], [0, 0, 34, 30], [-6.5, 10.25, 9, 28], [30.5, 20, 31, 20.5], [0, 0, 0, 0]])
  size = np.int32([26, 34])
  for side, context in ((21, 16), (8, 0)):
    found = jax.jit(rcnn.warp, static_argnums=(3, 4))(image, boxes, size, side, context)
    for crop, box in zip(found, boxes):
      np.testing.assert_allclose(crop, warped(image, box, size, side, context), atol=1e-4)
  assert not np.asarray(found[2])[:, :3].any()  # the mean beyond the picture


def test_a_crop_of_the_whole_picture_at_its_own_size_is_the_picture():
  image = np.float32(RNG.normal(size=(16, 16, 3)))
  found = rcnn.warp(image, np.float32([[0, 0, 16, 16]]), np.int32([16, 16]), 16, 0)
  np.testing.assert_allclose(found[0], image, atol=1e-5)


def test_chunks_change_nothing():
  """Seven boxes, three at a time."""
  images, boxes = np.float32(RNG.normal(size=(2, 8, 8, 1))), np.float32(RNG.uniform(0, 8, (2, 7, 4)))
  size = np.int32([[8, 8], [6, 7]])

  def look(image, boxes, size):
    assert boxes.shape[0] <= 3
    return {"a": boxes * size.sum(), "b": image.sum() + boxes[:, 0]}

  found = rcnn.over_chunks(look, 3, images, boxes, size)
  np.testing.assert_allclose(found["a"], boxes * size.sum(1)[:, None, None], rtol=1e-6)
  np.testing.assert_allclose(found["b"], images.sum((1, 2, 3))[:, None] + boxes[:, :, 0], rtol=1e-5)


def test_scores_and_boxes_are_the_svms_once_they_are_learned():
  """The same net, before and after: first softmax and proposals as they are, then sigmoids and moved boxes."""
  model = rcnn.RCNN(num_classes=3, side=67, shrink=16, hidden_size=6, chunk=2)
  images = np.float32(RNG.normal(size=(1, 40, 40, 3)))
  boxes = np.float32([[[2, 2, 12, 12], [20, 20, 36, 38], [0, 0, 0, 0]]])
  size = np.int32([[40, 40]])
  variables = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), jnp.zeros((1, 67, 67, 3)), train=False))
  variables = jax.tree.map(lambda leaf: jnp.float32(RNG.normal(size=leaf.shape) / 5), variables)
  variables = variables | {name: jax.tree.map(lambda x: x / 20, variables[name]) for name in ("svm", "regression")}

  @jax.jit
  def run(variables):
    crops = rcnn.warp(images[0], boxes[0], size[0], 67)
    stages = model.apply(variables, crops, train=False)
    seen = {name: stages[name] for name in ("pool5", "fc7", "logits")}
    return seen, model.detect(variables, images, boxes, size, 0.0, 1.0, 6)

  def fitted(flag):
    return {name: dict(leaves, fitted=jnp.float32(flag)) if name != "params" else leaves
            for name, leaves in variables.items()}  # fmt: skip

  stages, found = run(fitted(0))
  probs = np.asarray(jax.nn.softmax(stages["logits"]))[:2, 1:]
  assert int(found.valid.sum()) == 4
  np.testing.assert_allclose(found.scores[0, :4], np.sort(probs.ravel())[::-1], rtol=1e-4)
  for box in np.asarray(found.boxes[0, :4]):
    assert min(np.abs(box - boxes[0, i]).max() for i in (0, 1)) < 1e-4
  stages, found = run(fitted(1))
  svm, regression = variables["svm"], variables["regression"]
  scores = 1 / (1 + np.exp(-(np.asarray(stages["fc7"]) @ svm["weights"] + svm["bias"][None])[:2]))
  np.testing.assert_allclose(found.scores[0, :4], np.sort(scores.ravel())[::-1], rtol=1e-4)
  best = np.unravel_index(scores.argmax(), scores.shape)
  moves = np.einsum("p,pk->k", np.asarray(stages["pool5"])[best[0]].ravel(), regression["weights"][:, best[1]])
  moves += regression["bias"][best[1]]
  x1, y1, x2, y2 = boxes[0, best[0]]
  w, h = x2 - x1, y2 - y1
  x, y = (x1 + x2) / 2 + moves[0] * w, (y1 + y2) / 2 + moves[1] * h
  half = np.exp(moves[2:]) * [w, h] / 2
  expected = np.clip([x - half[0], y - half[1], x + half[0], y + half[1]], 0, 40)
  np.testing.assert_allclose(found.boxes[0, 0], expected, rtol=1e-3, atol=1e-3)
  assert found.labels[0, 0] == best[1] + 1
