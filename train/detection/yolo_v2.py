"""YOLOv2 in training: the loss of the released code, since the paper gives none (darknet's region_layer.c).

Its gradient is darknet's to the last factor, so learning rates mean the same: squared errors are halved, and classes,
whose softmax darknet's backward pass leaves out, have the cross-entropy.

Deviation: for the first 12,800 images darknet also pulls every box towards its anchor, with factor .01.
"""

import jax
import jax.numpy as jnp

from flaxonomy.models.detection import cells
from flaxonomy.train import losses, tasks
from flaxonomy.train.detection import Detector

OBJECTS, BACKGROUND, COORD, CLASSES = 5.0, 1.0, 1.0, 1.0  # object_scale, noobject_scale, coord_scale, class_scale
IGNORE = 0.6  # thresh: predictions that overlap an object by more count as no background


def build(config, shape: tuple[int, int, int], classes: int) -> Detector:
  """See `detection.build`."""
  return of_priors(config, shape, classes, lambda model: region)


def of_priors(config, shape: tuple[int, int, int], classes: int, choose) -> Detector:
  """The detector of a model that has priors.

  Args:
    config: configs.base.Config.
    shape: [H, W, C] of the images that the net sees.
    classes: without the background.
    choose: model -> its loss, with the arguments and the result of `region`.
  """
  model = tasks.module(config, num_classes=classes)
  init = lambda rng: model.init(rng, jnp.zeros((1, *shape)), train=False)
  jax.eval_shape(init, jnp.zeros(2, jnp.uint32))  # images that it cannot see are told of here
  priors, measure = model.priors(shape[:2]), choose(model)

  def loss(variables, batch, rng):
    stages, collections = model.apply(variables, batch["image"], train=True, mutable=["batch_stats"])
    terms = measure(stages["logits"], priors, batch["boxes"], batch["labels"], shape[:2])
    images = jnp.float32(batch["labels"].shape[0])
    return {name: (x, images) for name, x in terms.items()}, dict(collections)

  def detect(variables, batch, limits):
    stages = model.apply(variables, batch["image"], train=False)
    return model.detect(stages, shape[:2], **limits.given())._asdict()

  return Detector(init, loss, detect)


def region(
  logits: jax.Array, priors: cells.Priors, truth: jax.Array, labels: jax.Array, size: tuple[int, int]
) -> dict[str, jax.Array]:
  """The sums of the loss. Objectness is to be the IoU of the prediction with its object ("rescore").

  Args:
    logits: [B, N, 5 + C] of `YOLOv2`.
    priors: of the images.
    truth: [B, G, 4] pixels, G >= 1.
    labels: [B, G] int, from 1 on; 0 for what does not count.
    size: (height, width) of the images.

  Returns:
    {"boxes", "objects", "background", "classes": sum over the batch, [] float32}
  """

  def one(logits, truth, labels):
    found = cells.decode(jax.lax.stop_gradient(logits), priors)
    matched = cells.match(found, truth, labels > 0, priors, size)
    mine, counts = logits[matched.slots], matched.counts
    raw = jnp.concatenate([jax.nn.sigmoid(mine[:, :2]), mine[:, 2:4]], -1)
    apart = losses.squared_error(raw, matched.targets).sum(-1) * matched.weights
    rescored = losses.squared_error(jax.nn.sigmoid(mine[:, 4]), matched.own)
    background = ~matched.objects & (matched.best <= IGNORE)
    entropy = losses.nll(jax.nn.log_softmax(mine[:, 5:]), labels - 1)
    return {
      "boxes": COORD / 2 * (apart * counts).sum(),
      "objects": OBJECTS / 2 * (rescored * counts).sum(),
      "background": BACKGROUND / 2 * (jnp.square(jax.nn.sigmoid(logits[:, 4])) * background).sum(),
      "classes": CLASSES * (entropy * counts).sum(),
    }

  return jax.tree.map(jnp.sum, jax.vmap(one)(logits, truth, labels))
