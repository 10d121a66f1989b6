"""YOLO's first version in training (Redmon et al. 2016, section 2.2, equation 3).

Deviation: of several objects in a cell the first of the batch counts; the released code shuffles them.
"""

import jax
import jax.numpy as jnp

from flaxonomy.models.detection import yolo_v1
from flaxonomy.models.detection.boxes import iou
from flaxonomy.train import losses, tasks
from flaxonomy.train.detection import Detector

COORD, BACKGROUND = 5.0, 0.5  # lambda coord, lambda noobj
TERMS = ("places", "sizes", "objects", "background", "classes")


def build(config, shape: tuple[int, int, int], classes: int) -> Detector:
  """See `detection.build`. The loss is half of equation 3: the gradient to which the paper's learning rates belong."""
  model = tasks.module(config, num_classes=classes)
  init = lambda rng: model.init(rng, jnp.zeros((1, *shape)), train=False)
  jax.eval_shape(init, jnp.zeros(2, jnp.uint32))  # images that it cannot see are told of here

  def loss(variables, batch, rng):
    stages, collections = model.apply(
      variables, batch["image"], train=True, rngs={"dropout": rng}, mutable=["batch_stats"]
    )
    logits = stages["logits"]
    objects = on_grid(batch["boxes"], batch["labels"], shape[:2], logits.shape[1:3])
    images = jnp.float32(logits.shape[0])
    return {name: (x / 2, images) for name, x in equation(logits, *objects, model.boxes).items()}, dict(collections)

  def detect(variables, batch, limits):
    stages = model.apply(variables, batch["image"], train=False)
    return model.detect(stages, shape[:2], **limits.given())._asdict()

  return Detector(init, loss, detect)


def on_grid(truth: jax.Array, labels: jax.Array, size: tuple[int, int], shape: tuple[int, int]):
  """Objects by the cell that holds their middle.

  Args:
    truth: [B, G, 4] pixels.
    labels: [B, G] int, from 1 on; 0 for what does not count.
    size: (height, width) of the images.
    shape: (H, W) of the grid.

  Returns:
    (bool [B, H, W], is there an object; [B, H, W, 4], x and y in the cell, width and height as shares of the image;
    [B, H, W] int, its class from 0 on)
  """
  (height, width), (rows, columns) = size, shape

  def one(truth, labels):
    x1, y1, x2, y2 = truth.T
    x, y = (x1 + x2) / 2 * (columns / width), (y1 + y2) / 2 * (rows / height)
    column, row = (jnp.clip(jnp.floor(v), 0, n - 1).astype(jnp.int32) for v, n in ((x, columns), (y, rows)))
    g = jnp.arange(truth.shape[0], dtype=jnp.int32)
    cell = jnp.where(labels > 0, row * columns + column, rows * columns)
    first = jnp.full(rows * columns, len(g), jnp.int32).at[cell].min(g, mode="drop")
    there, of = first < len(g), jnp.minimum(first, len(g) - 1)
    boxes = jnp.stack([x - column, y - row, (x2 - x1) / width, (y2 - y1) / height], -1)
    return there.reshape(shape), boxes[of].reshape(*shape, 4), (labels[of] - 1).reshape(shape)

  return jax.vmap(one)(truth, labels)


def equation(logits: jax.Array, there: jax.Array, truth: jax.Array, labels: jax.Array, count: int) -> dict:
  """Equation 3, all five sums of it.

  The box that overlaps the object most answers for it; if none does, as in the released code, the one whose middle
  and sides are nearest. Its confidence is to be its IoU, that of all others 0.

  Args:
    logits: [B, H, W, 5 count + C] of `YOLOv1`.
    there: bool [B, H, W], as are the next two from `on_grid`.
    truth: [B, H, W, 4].
    labels: [B, H, W].
    count: boxes of a cell.

  Returns:
    {name: sum over the batch, [] float32} for `TERMS`, lambda coord and lambda noobj in them
  """
  found, confidence, classes = yolo_v1.split(logits, count)
  place, side = truth[..., None, :2], truth[..., None, 2:]
  placed = yolo_v1.corners(place, side)
  overlap = jax.vmap(iou)(found.reshape(-1, count, 4), placed.reshape(-1, 1, 4)).reshape(confidence.shape)
  overlap, apart = jax.lax.stop_gradient((overlap, _apart(found, placed)))
  best = jnp.where(overlap.max(-1) > 0, overlap.argmax(-1), apart.argmin(-1))
  answers = (jax.nn.one_hot(best, count) > 0) & there[..., None]
  raw = logits[..., : 5 * count].reshape(*confidence.shape, 5)
  sums = (
    COORD * losses.squared_error(raw[..., :2], place).sum(-1) * answers,
    COORD * losses.squared_error(raw[..., 2:4], jnp.sqrt(side)).sum(-1) * answers,
    losses.squared_error(confidence, overlap) * answers,
    BACKGROUND * jnp.square(confidence) * ~answers,
    losses.squared_error(classes, jax.nn.one_hot(labels, classes.shape[-1])).sum(-1) * there,
  )
  return dict(zip(TERMS, map(jnp.sum, sums)))


def _apart(a, b):
  """Squared distance of the boxes' middles and sides."""
  middles = losses.squared_error((a[..., :2] + a[..., 2:]) / 2, (b[..., :2] + b[..., 2:]) / 2)
  return (middles + losses.squared_error(a[..., 2:] - a[..., :2], b[..., 2:] - b[..., :2])).sum(-1)
