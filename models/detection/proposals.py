"""Two stages: where there may be an object, and what is there; all that needs no parameters.

Ren, He, Girshick, Sun 2015, "Faster R-CNN", sections 3.1 and 3.3; Girshick 2015, "Fast R-CNN", section 2.2. Numbers and
order are torchvision's.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxonomy.models.detection.boxes import Detections, clip, decode, large_enough, nms_by_class

WEIGHTS = (10, 10, 5, 5)  # of the second stage's offsets: the targets' deviations turned over
STRIDE = 32  # what torchvision pads pictures to multiples of


def seen(anchors: jax.Array, size: jax.Array) -> jax.Array:
  """Which anchors are centred on the picture, rounded up to a multiple of 32, and not on what is beside it.

  Args:
    anchors: [N, 4].
    size: [B, 2], (height, width) of each picture.

  Returns:
    bool [B, N]
  """
  high, wide = (-(-size // STRIDE) * STRIDE * 2).T[:, :, None]
  return (anchors[None, :, 0] + anchors[None, :, 2] < wide) & (anchors[None, :, 1] + anchors[None, :, 3] < high)


def inside(anchors: jax.Array, size: jax.Array) -> jax.Array:
  """Which anchors lie wholly within the picture: arguments and result as of `seen`."""
  high, wide = size.T[:, :, None]
  within = (anchors[:, :2] >= 0).all(-1)[None]
  return within & (anchors[None, :, 2] <= wide) & (anchors[None, :, 3] <= high)


def propose(
  objectness: jax.Array, deltas: jax.Array, anchors: jax.Array, counts: tuple[int, ...], usable: jax.Array,
  size: jax.Array, before: int, after: int, threshold: float = 0.7, least: float = 1e-3,
) -> tuple[jax.Array, jax.Array]:  # fmt: skip
  """The likeliest boxes of any class: the best of each level, suppressed within it, then the best of all.

  Args:
    objectness: [B, N] logits.
    deltas: [B, N, 4] offsets of the anchors.
    anchors: [N, 4].
    counts: anchors of each level, N in all.
    usable: bool [B, N], anchors that may propose.
    size: [B, 2], (height, width) of each picture, to which boxes are clipped.
    before: of each level, before the suppression.
    after: of all levels, behind it.
    threshold: IoU above which the less likely of two boxes of a level is left out.
    least: sides of a box, in pixels.

  Returns:
    (boxes [B, P, 4] by falling score, zeros where there is none; bool [B, P]: is there one?), P <= `after`, as many as
    there can be. No gradient goes through them.
  """
  ends = [sum(counts[: i + 1]) for i in range(len(counts))]
  most = [min(before, count) for count in counts]
  level = jnp.concatenate([jnp.full(n, i, jnp.int32) for i, n in enumerate(most)])

  def one(objectness, deltas, usable, size):
    logits = jnp.where(usable, objectness, -jnp.inf)
    best = [lax.top_k(logits[end - count : end], n) for end, count, n in zip(ends, counts, most)]
    places = jnp.concatenate([places + end - count for (_, places), end, count in zip(best, ends, counts)])
    logits = jnp.concatenate([logits for logits, _ in best])
    boxes = clip(decode(deltas[places], anchors[places]), *size)
    good = large_enough(boxes, least) & (logits > -jnp.inf)
    kept, there = nms_by_class(boxes, nn.sigmoid(logits), level, good, threshold, min(after, len(places)))
    return jnp.where(there[:, None], boxes[kept], 0), there

  return jax.vmap(one)(*lax.stop_gradient((objectness, deltas)), usable, size.astype(jnp.float32))


def classified(
  logits: jax.Array, offsets: jax.Array, boxes: jax.Array, valid: jax.Array, size: jax.Array, score: float,
  threshold: float, most: int, least: float = 1e-2,
) -> Detections:  # fmt: skip
  """What the second stage has found: each class's own box of each proposal, suppressed within the class.

  Args:
    logits: [B, P, C], class 0 is the background.
    offsets: [B, P, C, 4] of the proposals.
    boxes: [B, P, 4], the proposals.
    valid: bool [B, P].
    size: [B, 2], (height, width) of each picture, to which boxes are clipped.
    score: what a probability must be above.
    threshold: IoU above which the less likely of two boxes of a class is left out.
    most: detections of an image.
    least: sides of a box, in pixels.

  Returns:
    Detections in the proposals' pixels.
  """
  classes = logits.shape[2] - 1
  labels = jnp.tile(jnp.arange(1, classes + 1, dtype=jnp.int32), boxes.shape[1])

  def one(logits, offsets, boxes, valid, size):
    found = clip(decode(offsets[:, 1:], boxes[:, None], WEIGHTS), *size).reshape(-1, 4)
    scores = nn.softmax(logits)[:, 1:].ravel()
    good = jnp.repeat(valid, classes) & (scores > score) & large_enough(found, least)
    kept, there = nms_by_class(found, scores, labels, good, threshold, most)
    return Detections(found[kept], scores[kept], labels[kept], there)

  return jax.vmap(one)(logits, offsets, boxes, valid, size.astype(jnp.float32))
