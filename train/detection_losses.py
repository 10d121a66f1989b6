"""Losses of the detectors, in the order of their papers: sums over images, and what to divide them by."""

import jax
import jax.numpy as jnp

from flaxonomy.models.detection import ssd
from flaxonomy.models.detection.boxes import encode, hard_negatives, iou, match_ssd
from flaxonomy.train import losses


def multibox(
  stages: dict, defaults: jax.Array, truth: jax.Array, labels: jax.Array, valid: jax.Array, ratio: float = 3
) -> dict[str, tuple[jax.Array, jax.Array]]:
  """SSD's (Liu et al. 2016, section 2.2, equation 1), with hard negative mining.

  Args:
    stages: of `ssd.SSD`.
    defaults: [A, 4] default boxes.
    truth: [B, G, 4] boxes in the same pixels, G >= 1.
    labels: [B, G] int, from 1 on.
    valid: bool [B, G].
    ratio: of background that counts to objects, in each image.

  Returns:
    {"classification": ..., "boxes": ...}: (sum over the batch, default boxes that are objects) each, [] float32.
  """

  def one(offsets, logits, truth, labels, valid):
    matched = match_ssd(iou(truth, defaults), valid)
    objects, of = matched >= 0, jnp.maximum(matched, 0)
    apart = losses.smooth_l1(offsets, encode(truth[of], defaults, ssd.WEIGHTS)).sum(-1)
    entropy = losses.nll(jax.nn.log_softmax(logits), jnp.where(objects, labels[of], 0))
    counted = objects | hard_negatives(entropy, matched, ratio)
    return (entropy * counted).sum(), (apart * objects).sum(), objects.sum().astype(jnp.float32)

  classification, boxes, count = map(jnp.sum, jax.vmap(one)(stages["boxes"], stages["logits"], truth, labels, valid))
  return {"classification": (classification, count), "boxes": (boxes, count)}
