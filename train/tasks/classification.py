"""Image classification: softmax cross-entropy, with label smoothing (Szegedy et al. 2015, section 7) and mixup.

Or, with `train.loss`, a sigmoid for each class with its binary cross-entropy ("bce") or squared error ("mse"), averaged
over the classes; its probabilities are then the sigmoids divided by their sum.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from flaxonomy.data import augment, images, views
from flaxonomy.train import figures, losses, step, tasks
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import Given, Serve, Task


def build(config, info, devices: int) -> Task:
  """The task of telling `info.class_names` apart; see `tasks.build`."""
  num_classes = len(info.class_names)
  model = tasks.module(config, num_classes=num_classes)
  tasks.require(config, hasattr(model, "num_classes") and not hasattr(model, "detect"))
  shape = views.input_shape(config.data, info.image_shape)
  learner = tasks.learner(config, lambda rng: model.init(rng, jnp.zeros((1, *shape)), train=False), devices)

  def loss(params, collections, batch, rng):
    out, collections = model.apply(
      {"params": params, **collections}, batch["image"], train=True, rngs={"dropout": rng}, mutable=list(collections)
    )
    logits, mask = out["logits"].astype(jnp.float32), batch["mask"]
    entropy = objective(model, out, targets(batch, num_classes, config.train.label_smoothing), config.train.loss)
    right = (logits.argmax(-1) == batch["label"]).astype(jnp.float32)
    count = mask.sum()
    sums = {"loss": ((entropy * mask).sum(), count), "accuracy": ((right * mask).sum(), count)}
    return step.Made(sums, collections)

  def classify(variables, images):
    _, probabilities = LOSSES[config.train.loss]
    seen = views.views(images, config.data)
    logits = [model.apply(variables, x, train=False)["logits"].astype(jnp.float32) for x in seen]
    return {"probs": sum(map(probabilities, logits)) / len(logits)}

  change = augment.build(config.data, DATA)
  return Task(
    init=learner.init,
    train_step=learner.step(loss, change),
    predict_step=lambda state, batch: classify(state.variables(), batch["image"]),
    score=score,
    metrics=metrics,
    measures=("accuracy", "loss", "top5_accuracy") if num_classes > 10 else ("accuracy", "loss"),
    best="accuracy",
    pictures=lambda batch, outputs, sums: pictures(info.class_names, batch, outputs, sums),
    augment=change,
    specs=learner.specs,
    serve=Serve(classify, info.image_shape, jnp.uint8, _example(info.image_shape)),
    table=table,
    given=lambda inputs: given(inputs, info.image_shape, config.data.fit),
    tiles=functools.partial(views.tiles, config.data),
    averaged=True,
  )


def _example(shape):
  return lambda rng, b: jax.random.randint(rng, (b, *shape), 0, 256).astype(jnp.uint8)


def targets(batch: dict, num_classes: int, smoothing: float) -> jax.Array:
  """Target distributions [B, num_classes]: one-hot labels, mixed with the partner's where mixup ran, then smoothed.

  Smoothing spreads its share over all classes, the right one included, as torch and optax do.
  """
  target = jax.nn.one_hot(batch["label"], num_classes)
  if "mix" in batch:
    share = batch["mix"][:, None]
    target = share * target + (1 - share) * jax.nn.one_hot(batch["label2"], num_classes)
  return optax.smooth_labels(target, smoothing)


def _sigmoids(logits):
  """Sigmoids divided by their sum."""
  return jax.nn.softmax(jax.nn.log_sigmoid(logits))


LOSSES = {  # by name: (the loss of logits against targets, [B, C] both, to [B]; probabilities of the classes)
  "softmax": (losses.cross_entropy, jax.nn.softmax),
  "bce": (lambda logits, targets: losses.binary_cross_entropy_with_logits(logits, targets).mean(-1), _sigmoids),
  "mse": (lambda logits, targets: losses.squared_error(jax.nn.sigmoid(logits), targets).mean(-1), _sigmoids),
}


def objective(model, stages: dict, targets: jax.Array, loss: str = "softmax") -> jax.Array:
  """The loss of each example, [B]: the classifier's, and where there are auxiliary ones, theirs times `aux_weight`.

  Args:
    model: with `aux_weight` if it has auxiliary classifiers (Szegedy et al. 2014, section 5).
    stages: what it returned: "logits" [B, C] and in training perhaps "aux", "aux1", "aux2".
    targets: [B, C].
    loss: a key of `LOSSES`.
  """
  of, _ = LOSSES[loss]
  total = of(stages["logits"], targets)
  for name in sorted(stages.keys() & {"aux", "aux1", "aux2"}):
    total += model.aux_weight * of(stages[name], targets)
  return total


def score(outputs: dict, batch: dict) -> dict:
  """Sums over a batch: "loss", "correct", "top5" and "count" [], "confusion" [C, C] with rows for the true class.

  Args:
    outputs: {"probs": [B, C]}, of one model or the mean of several.
    batch: with "label" and "mask".
  """
  probs, label, mask = outputs["probs"], batch["label"], batch["mask"]
  own = jnp.take_along_axis(probs, label[:, None], 1)[:, 0]
  num_classes = probs.shape[-1]
  predicted = probs.argmax(-1)
  truth = jax.nn.one_hot(label, num_classes) * mask[:, None]
  rank = num_classes - (probs <= own[:, None]).sum(-1)  # so written, a NaN is never among the best five
  return {
    "loss": -(jnp.log(jnp.maximum(own, 1e-37)) * mask).sum(),
    "correct": ((predicted == label) * mask).sum(),
    "top5": ((rank < 5) * mask).sum(),
    "count": mask.sum(),
    "confusion": truth.T @ jax.nn.one_hot(predicted, num_classes),
  }


def metrics(sums: dict) -> dict[str, float]:
  """Accuracy and mean loss in nats; from eleven classes on also top-5 accuracy."""
  n = sums["count"]
  found = {"accuracy": sums["correct"] / n, "loss": sums["loss"] / n}
  return found | ({"top5_accuracy": sums["top5"] / n} if len(sums["confusion"]) > 10 else {})


def pictures(names, batch: dict, outputs: dict, sums: dict) -> dict:
  """confusion.png and predictions.png; see `Task.pictures`."""
  predicted = outputs["probs"].argmax(-1)
  wrong = predicted != batch["label"]
  titles = [f"{names[p]} (true {names[t]})" for p, t in zip(predicted, batch["label"])]
  return {
    "confusion.png": figures.confusion(np.asarray(sums["confusion"], int), names),
    "predictions.png": figures.gallery(batch["image"], titles, wrong, "predictions; wrong ones in red"),
  }


def table(outputs: dict, names) -> tuple[list[str], list[list], list[str]]:
  """Rows and captions for `predict`: the label, its probability, and those of every class."""
  probs = outputs["probs"]
  best = probs.argmax(-1)
  rows = [[names[b], f"{p[b]:.4f}", *(f"{v:.4f}" for v in p)] for b, p in zip(best, probs)]
  captions = [f"{names[b]} {p[b]:.0%}" for b, p in zip(best, probs)]
  return ["label", "probability", *names], rows, captions


def given(inputs: list[str], shape: tuple[int, int, int], fit: str) -> Given:
  """Image files for `predict`.

  Args:
    inputs: files and folders.
    shape: [H, W, C] to which they are decoded.
    fit: how, see `images.decode`.
  """
  files = images.find(inputs)
  *size, channels = shape

  def batch(first, end):
    return {"image": np.stack([images.decode(file, channels, tuple(size), fit) for file in files[first:end]])}

  def draw(i, caption):
    return f"{i:05d}_{files[i].stem}.png", figures.captioned(images.decode(files[i]), caption)

  return Given("file", [str(file) for file in files], batch, draw)
