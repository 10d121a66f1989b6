"""YOLOv3 in training (Redmon and Farhadi 2018, section 2; darknet's yolo_layer.c, whose gradient this is).

As there, places and all probabilities have the binary cross-entropy, log sizes half the squared error, and boxes weigh
2 less their share of the image. Each object has one prior, the best of all nine by shape. Of several objects with one
prior the last has its box, and all have their classes.
"""

import functools

import jax
import jax.numpy as jnp

from flaxonomy.models.detection import cells
from flaxonomy.train import losses
from flaxonomy.train.detection import Detector, yolo_v2


def build(config, shape: tuple[int, int, int], classes: int) -> Detector:
  """See `detection.build`."""
  return yolo_v2.of_priors(config, shape, classes, lambda model: functools.partial(logistic, ignore=model.ignore))


def logistic(
  logits: jax.Array,
  priors: cells.Priors,
  truth: jax.Array,
  labels: jax.Array,
  size: tuple[int, int],
  ignore: float = 0.5,
) -> dict[str, jax.Array]:
  """The sums of the loss.

  Args:
    logits: [B, N, 5 + C] of `YOLOv3`.
    priors: of the images.
    truth: [B, G, 4] pixels, G >= 1.
    labels: [B, G] int, from 1 on; 0 for what does not count.
    size: (height, width) of the images.
    ignore: predictions that overlap an object by more, and answer for none, count as no background.

  Returns:
    {"boxes", "objects", "background", "classes": sum over the batch, [] float32}
  """
  entropy = losses.binary_cross_entropy_with_logits

  def one(logits, truth, labels):
    found = cells.decode(jax.lax.stop_gradient(logits), priors)
    matched = cells.match(found, truth, labels > 0, priors, size)
    mine, counts, targets = logits[matched.slots], matched.counts, matched.targets
    places = entropy(mine[:, :2], targets[:, :2]).sum(-1)
    sides = losses.squared_error(mine[:, 2:4], targets[:, 2:]).sum(-1) / 2
    named = jax.nn.one_hot(labels - 1, logits.shape[-1] - 5)
    named = (matched.same[:, :, None] & (named[None] > 0)).any(1).astype(jnp.float32)
    background = ~matched.objects & (matched.best <= ignore)
    return {
      "boxes": ((places + sides) * matched.weights * counts).sum(),
      "objects": (entropy(logits[:, 4], 1.0) * matched.objects).sum(),
      "background": (entropy(logits[:, 4], 0.0) * background).sum(),
      "classes": (entropy(mine[:, 5:], named).sum(-1) * counts).sum(),
    }

  return jax.tree.map(jnp.sum, jax.vmap(one)(logits, truth, labels))
