"""SSD in training (Liu et al. 2016, section 2.2): the loss, and its default boxes for images of a size."""

import jax
import jax.numpy as jnp

from flaxonomy.models.detection import ssd
from flaxonomy.models.detection.boxes import encode, hard_negatives, iou, match_ssd
from flaxonomy.train import losses, tasks
from flaxonomy.train.detection import Detector


def build(config, shape: tuple[int, int, int], classes: int) -> Detector:
  """See `detection.build`."""
  model = tasks.module(config, num_classes=classes + 1)
  init = lambda rng: model.init(rng, jnp.zeros((1, *shape)), train=False)
  look = lambda variables, batch, train: model.apply(variables, batch["image"], train=train)
  stages = jax.eval_shape(
    lambda rng: model.init_with_output(rng, jnp.zeros((1, *shape)), train=False)[0], jnp.zeros(2, jnp.uint32)
  )
  defaults = model.defaults(stages, shape[:2])

  def loss(variables, batch, rng):
    stages = look(variables, batch, True)
    return multibox(stages, defaults, batch["boxes"], batch["labels"], batch["labels"] > 0), {}

  def detect(variables, batch, limits):
    return model.detect(look(variables, batch, False), defaults, shape[:2], **limits.given())._asdict()

  return Detector(init, loss, detect)


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
