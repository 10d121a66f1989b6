"""Mask R-CNN: size, and that a mask is its own box's and class's."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy import models
from flaxonomy.models.detection import mask_rcnn

RNG = np.random.default_rng(0)


def test_sizes_are_the_published_ones():
  for frozen, published in ((True, 44_401_393), (False, 44_454_513)):
    model = models.create("maskrcnn_resnet50_fpn", frozen=frozen)
    shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), jnp.zeros((1, 64, 64, 3)), train=False))  # noqa: B023
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == published


def test_the_head_against_numpy():
  """Convolutions, each pixel of the last as four of twice the size, then the classes; written as sums over taps."""
  head, x = mask_rcnn.MaskHead(num_classes=3, features=4), np.float32(RNG.normal(size=(2, 3, 3, 5)))
  params = jax.eval_shape(lambda: head.init(jax.random.PRNGKey(0), jnp.zeros(x.shape)))["params"]
  params = jax.tree.map(lambda leaf: np.float32(RNG.normal(size=leaf.shape)), params)
  found = jax.jit(head.apply)({"params": params}, x)
  for i in range(1, 5):
    kernel, padded = params[f"conv{i}"]["kernel"], np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    taps = [padded[:, a : a + 3, b : b + 3] @ kernel[a, b] for a in range(3) for b in range(3)]
    x = np.maximum(sum(taps) + params[f"conv{i}"]["bias"], 0)
  large = np.zeros((2, 6, 6, 4), np.float32)
  for a in range(2):
    for b in range(2):
      large[:, a::2, b::2] = x @ params["conv5"]["kernel"][a, b].T
  wanted = np.maximum(large + params["conv5"]["bias"], 0) @ params["logits"]["kernel"][0, 0] + params["logits"]["bias"]
  np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_masks_of_one_class_each():
  logits, labels = RNG.normal(size=(2, 3, 4, 4, 5)), RNG.integers(0, 5, (2, 3))
  found = mask_rcnn.of_class(jnp.asarray(logits, jnp.float32), labels)
  wanted = [[logits[b, r, :, :, labels[b, r]] for r in range(3)] for b in range(2)]
  np.testing.assert_allclose(found, wanted, rtol=1e-6)
