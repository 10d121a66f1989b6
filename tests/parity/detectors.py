"""Detectors against torchvision: what the net sees, its maps and heads, detections, losses, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import rcnn
import seeded
import training

from flaxonomy.models import interop, resize
from flaxonomy.models.detection import anchors, ssd
from flaxonomy.train.detection import ssd as training_of_ssd

MEAN = np.float32([0.48235, 0.45882, 0.40784])  # SSD's; it divides by 1 / 255
SIDE = 300


def model_of(case: dict) -> str | None:
  """The model of a file; None if it is of another kind."""
  name = case["meta"].get("model", "").rpartition(".")[2]
  return name if name in COMPARE else None


def compare(case: dict, stem: str) -> dict:
  """{key: (ours, theirs, tolerance)} for all that a golden file holds.

  Args:
    case: from seeded.load.
    stem: the file's name.
  """
  theirs = {f"{group}/{key}": value for group in ("out", "mid") for key, value in case[group].items()}
  ours, gradients = COMPARE[model_of(case)](case)
  within = lambda key: max(1e-5, 3 * case["meta"]["float32_error"].get(key, 0.0))  # three times the reference's own
  found = {key: (_as(ours[key], theirs[key]), theirs[key], within(key)) for key in ours if "detections" not in key}
  for i in range(_count(case)):
    found |= _detections(i, ours, theirs)
  errors = case["meta"]["float32_error"]
  norms = training.gradients(gradients, case["grad"])
  return found | {key: (*pair, min(max(1e-3, 10 * errors["grad_norms"]), 1e-2)) for key, pair in norms.items()}


def _as(ours, theirs):
  """An array as it is stored: channels first if it is a map, whole or sampled."""
  ours = np.asarray(ours)
  ours = ours.transpose(0, 3, 1, 2) if ours.ndim == 4 else ours
  return ours if ours.shape == theirs.shape else seeded.sample(ours)


def _count(case):
  return sum(key.startswith("images/") for key in case["in"])


def _detections(i, ours, theirs) -> dict:
  """Those of one image as sets: each of theirs beside the nearest of ours of its label, which counts once."""
  kinds = ("boxes", "scores", "labels", "masks")
  kinds = [kind for kind in kinds if f"out/detections/{i}/{kind}" in theirs]
  mine, true = ([np.asarray(every[f"out/detections/{i}/{kind}"]) for kind in kinds] for every in (ours, theirs))
  left, order = set(range(len(mine[1]))), []
  for box, label in zip(true[0], true[2]):
    near = min((j for j in left if mine[2][j] == label), key=lambda j: np.abs(mine[0][j] - box).max(), default=None)
    order.append(len(mine[1]) if near is None else near)
    left -= {near}
  padded = [np.concatenate([x, np.full_like(x[:1], -1)])[order] for x in mine]
  padded = [x if x.shape == y.shape else seeded.sample(x) for x, y in zip(padded, true)]
  same_number = len(mine[1]) == len(true[1])
  return {
    f"out/detections/{i}/{kind}": (x if same_number else x[:0], y, 1e-4 if kind != "labels" else 0.0)
    for kind, x, y in zip(kinds, padded, true)
  }


def _ssd300(case) -> tuple[dict, dict]:
  """(all outputs and intermediates by key, gradients by public name)."""
  name, tensors = "ssd300_vgg16", seeded.weights(case["meta"])
  variables = interop.from_torch(name, tensors)
  model, defaults = interop.model_of(name, tensors), anchors.default_boxes()
  pictures = [case["in"][f"images/{i}"].transpose(1, 2, 0) for i in range(_count(case))]
  scales = [np.float32([x.shape[1], x.shape[0]] * 2) / SIDE for x in pictures]
  x = jnp.concatenate([resize.bilinear(jnp.asarray((x - MEAN) * 255)[None], (SIDE, SIDE)) for x in pictures])
  truth, labels, valid = _truth(case, scales)

  @jax.jit
  @functools.partial(jax.grad, has_aux=True)
  def run(params):
    stages = model.apply({"params": params}, x, train=True)  # which changes nothing
    sums = training_of_ssd.multibox(stages, defaults, truth, labels, valid)
    losses = {key: total / count for key, (total, count) in sums.items()}
    return sum(losses.values()), (stages, model.detect(stages, defaults, (SIDE, SIDE)), losses)

  slopes, (stages, found, losses) = run(variables["params"])
  ours = {"mid/batched": x, "mid/anchors": defaults, "mid/cls_logits": stages["logits"]}
  ours |= {"mid/bbox_regression": stages["boxes"]}
  ours |= {f"mid/features/{i}": stages[source] for i, source in enumerate(ssd.SOURCES)}
  for key, public in (("classification", "classification"), ("boxes", "bbox_regression")):
    ours[f"out/losses/{public}"] = losses[key]
  for i, scale in enumerate(scales):
    there = np.asarray(found.valid[i])
    ours[f"out/detections/{i}/boxes"] = np.asarray(found.boxes[i])[there] * scale
    ours[f"out/detections/{i}/scores"] = np.asarray(found.scores[i])[there]
    ours[f"out/detections/{i}/labels"] = np.asarray(found.labels[i])[there]
  return ours, interop.to_torch(name, {"params": slopes})


def _truth(case, scales):
  """(boxes [B, G, 4] in what the net sees, labels [B, G], valid [B, G]), with a row that only fills up."""
  rows = max(len(case["in"][f"targets/{i}/labels"]) for i in range(len(scales))) + 1
  truth, labels = np.zeros((len(scales), rows, 4), np.float32), np.zeros((len(scales), rows), np.int32)
  for i, scale in enumerate(scales):
    boxes = case["in"][f"targets/{i}/boxes"]
    truth[i, : len(boxes)], labels[i, : len(boxes)] = boxes / scale, case["in"][f"targets/{i}/labels"]
  return truth, labels, labels > 0


COMPARE = {"ssd300_vgg16": _ssd300} | dict.fromkeys(rcnn.MODELS, rcnn.compute)
