"""R-CNN: a classifier's net on every box that somebody proposes, warped to the one size that it sees.

Girshick et al. 2014, "Rich feature hierarchies for accurate object detection and semantic segmentation", on AlexNet:
56,954,261 parameters for VOC's 21 classes with the background, and what is learned afterwards from the net's features:
20 linear SVMs of 4,096 weights, and 20 x 4 ridge regressions on pool5, 9,216 weights each.

Deviations: corners of boxes are not rounded to pixels before the warp; AlexNet is the net of 2012, whose responses are
normalised before the pooling, where Caffe's does it behind; with `body` "alexnet" it is torchvision's.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxonomy.errors import UserError, unknown
from flaxonomy.models.detection.boxes import Detections, decode, large_enough
from flaxonomy.models.detection.fast_rcnn import SMALL, by_class
from flaxonomy.models.vision.alexnet import AlexNet, AlexNetOriginal

BODIES = {"alexnet_original": AlexNetOriginal, "alexnet": AlexNet}
COST = 1e-3  # of a violation, in the released code, for some thousand objects
SIDE, CONTEXT = 227, 16  # pixels of the crop, and of these what surrounds the box on each side: appendix A


class RCNN(nn.Module):
  """AlexNet on crops, and on its features linear SVMs and box regressions.

  Attributes:
    num_classes: with the background, class 0.
    side: of the crops, in pixels; at least 67.
    body: "alexnet_original", or "alexnet" as torchvision has it, which learns from scratch more easily.
    shrink: divides the channels of the convolutions.
    hidden_size: units of fc6 and fc7.
    dropout: rate at fc6 and fc7.
    regions: of an image, that are learned from; the paper's 128 of a batch come from two images with 64.
    chunk: crops that the net sees at once when it detects.
    cost: of a violation while the SVMs are learned.
    dtype: compute type; parameters, logits, scores and boxes are float32.
  """

  num_classes: int = 21
  side: int = SIDE
  body: str = "alexnet_original"
  shrink: int = 1
  hidden_size: int = 4096
  dropout: float = 0.5
  regions: int = 64
  chunk: int = 64
  cost: float = COST
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Looks at crops.

    Args:
      x: [N, side, side, 3], of `warp`.
      train: dropout on; needs the rng stream "dropout".

    Returns:
      The stages of AlexNet, "pool5" and "fc7" among them, "logits" [N, num_classes], which only the fine-tuning needs,
      and, all float32, zeros until they are learned: "svm" [N, num_classes - 1], the SVMs' scores, "boxes" [N,
      num_classes - 1, 4], the offsets to each class's box; of the collections "svm" and "regression".
    """
    classes = self.num_classes - 1
    stages = self._body()(x, train=train)
    fc7, pool5 = (stages[name].astype(jnp.float32).reshape(x.shape[0], -1) for name in ("fc7", "pool5"))
    zeros = lambda name, leaf, *shape: self.variable(name, leaf, jnp.zeros, shape, jnp.float32).value
    zeros("svm", "fitted"), zeros("regression", "fitted")
    svm = fc7 @ zeros("svm", "weights", fc7.shape[1], classes) + zeros("svm", "bias", classes)[None]
    weights = zeros("regression", "weights", pool5.shape[1], classes, 4)
    boxes = jnp.einsum("np,pck->nck", pool5, weights) + zeros("regression", "bias", classes, 4)[None]
    return stages | {"svm": svm, "boxes": boxes}

  def _body(self):
    if self.body not in BODIES:
      raise unknown("net", self.body, BODIES, "(config field 'model.fields.body')")
    if self.side < 67:
      raise UserError(f"AlexNet needs crops of 67 pixels, not {self.side} (config field 'model.fields.side')")
    kind = BODIES[self.body]
    features = tuple(n // self.shrink for n in kind.features)
    # Small crops have a small last map, which torchvision's net need not enlarge.
    more = {"pool": min(kind.pool, _last_map(self.side))} if kind is AlexNet else {}
    same = {"dropout": self.dropout, "dtype": self.dtype, "name": "net"}
    return kind(self.num_classes, features, self.hidden_size, **same, **more)

  @nn.nowrap
  def detect(
    self, variables: dict, images: jax.Array, boxes: jax.Array, size: jax.Array, score: float = 0.0,
    threshold: float = 0.3, most: int = 100,
  ) -> Detections:  # fmt: skip
    """What was found in a batch: every proposal is warped, scored, moved; then suppression within each class.

    Scores are softmax probabilities until the SVMs are learned, then sigmoid(s) of an SVM's score s. That is no
    probability, but rises with s, and is the same function for all classes: .5 on the plane between a class and the
    rest, .27 at the background's margin of -1. As in the released code all count in an evaluation; draw those above .5.

    Args:
      variables: of `RCNN`.
      images: [B, H, W, 3], normalised.
      boxes: [B, P, 4]; empty ones, which fill up, find nothing.
      size: [B, 2], (height, width) of the pictures.
      score: what a score must be above.
      threshold: IoU above which the less likely of two boxes of a class is left out.
      most: detections of an image.

    Returns:
      Detections in pixels of the images.
    """

    def look(image, boxes, size):
      stages = self.apply(variables, warp(image, boxes, size, self.side), train=False)
      return stages["logits"].astype(jnp.float32), stages["svm"], stages["boxes"]

    logits, svm, offsets = over_chunks(look, self.chunk, images, boxes, size)
    fitted = {name: variables[name]["fitted"] > 0 for name in ("svm", "regression")}
    scores = jnp.where(fitted["svm"], nn.sigmoid(svm), nn.softmax(logits)[..., 1:])
    moved = decode(jnp.where(fitted["regression"], offsets, 0), boxes[:, :, None])
    return by_class(scores, moved, large_enough(boxes, SMALL), size, score, threshold, most)


def _last_map(side):
  """Side of torchvision's AlexNet's last map: a convolution of stride 4, three poolings."""
  side = (side + 4 - 11) // 4 + 1
  for _ in range(3):
    side = (side - 3) // 2 + 1
  return side


def over_chunks(look, chunk: int, images: jax.Array, boxes: jax.Array, size: jax.Array):
  """`look` at a few boxes of an image at a time, so that memory is bounded.

  Args:
    look: (image [H, W, 3], boxes [chunk, 4], size [2]) -> tree of [chunk, ...].
    chunk: see above.
    images: [B, H, W, 3].
    boxes: [B, P, 4].
    size: [B, 2].

  Returns:
    tree of [B, P, ...].
  """
  count = boxes.shape[1]
  chunk = min(chunk, count)
  groups = jnp.pad(boxes, ((0, 0), (0, -count % chunk), (0, 0))).reshape(boxes.shape[0], -1, chunk, 4)

  def one(given):
    image, groups, size = given
    found = lax.map(lambda boxes: look(image, boxes, size), groups)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], found)

  return lax.map(one, (images, groups, size))


def warp(image: jax.Array, boxes: jax.Array, size: jax.Array, side: int = SIDE, context: int = CONTEXT) -> jax.Array:
  """Each box with some of what surrounds it, stretched to a square (appendix A, figure 7 D): bilinear samples.

  Pixels beyond the picture are 0, the mean of normalised images. Two matrices for each box, one for its rows and one
  for its columns, do it.

  Args:
    image: [H, W, C], normalised.
    boxes: [R, 4], x1 y1 x2 y2 in pixels.
    size: [2], (height, width) of the picture, which may end before the image does.
    side: of the squares.
    context: pixels of a square of 227 between its edge and the box; larger and smaller squares have as large a share.

  Returns:
    [R, side, side, C] of the image's type.
  """
  x1, y1, x2, y2 = lax.stop_gradient(boxes).T
  grown = SIDE / (SIDE - 2 * context)
  rows = _samples(y1, y2, grown, side, size[0], image.shape[0]).astype(image.dtype)
  columns = _samples(x1, x2, grown, side, size[1], image.shape[1]).astype(image.dtype)
  exact = {"precision": lax.Precision.HIGHEST}
  return jnp.einsum("rqw,rpwc->rpqc", columns, jnp.einsum("rph,hwc->rpwc", rows, image, **exact), **exact)


def _samples(low, high, grown, side, length, pixels):
  """Matrices [R, side, pixels] that sample an axis at the middle of `side` equal parts of a box grown by a factor."""
  extent = (high - low) * grown
  part = (jnp.arange(side, dtype=jnp.float32) + 0.5) / side - 0.5
  place = ((low + high) / 2)[:, None] + part[None] * extent[:, None]  # of pixels' edges: the first's middle is at .5
  inside = (place >= 0) & (place < length)
  centre = jnp.clip(place - 0.5, 0, length - 1)
  hats = jnp.maximum(0, 1 - jnp.abs(centre[:, :, None] - jnp.arange(pixels, dtype=jnp.float32)[None, None]))
  return jnp.where(inside[:, :, None], hats, 0)
