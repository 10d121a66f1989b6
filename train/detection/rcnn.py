"""R-CNN in training (Girshick et al. 2014, section 2.3, appendices B and C, and the numbers of the released code).

First the net is fine-tuned on crops. Then, in `finish`, its features of all proposals are computed once, and linear
SVMs and box regressions are learned from them.

Deviations: mining begins with random proposals rather than those of the first image, and goes on by blocks of
proposals rather than images; proposals that overlap one of a crowd are no negatives of its class.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy.data import augment
from flaxonomy.data.datasets import cache_folder
from flaxonomy.errors import DataError
from flaxonomy.models.detection import boxes
from flaxonomy.models.detection.fast_rcnn import SMALL
from flaxonomy.models.detection.rcnn import COST, over_chunks, warp
from flaxonomy.train import losses, tasks
from flaxonomy.train.detection import Detector, fast_rcnn

NORM = 20.0  # to which features are scaled, in the mean: "balances" C and lambda across nets
POSITIVE, INTERCEPT = 2.0, 10.0  # of the SVMs: how many times the cost of a violation that of objects is, bias's input
NEGATIVE = 0.3  # IoU below which a proposal is a negative of a class; the rest are ignored, truth is positive
HARD, EASY = -1.0001, -1.2  # scores above which a negative is added, and below which it is left out again
FIRST, AGAIN, BLOCK = 2_000, 2_000, 2_000  # proposals to start with; new negatives before the next fit; read at once
NEAR, RIDGE = 0.6, 1_000.0  # IoU above which a proposal teaches the regression; its lambda


class Features(NamedTuple):
  """What the last stage learns from: N proposals and boxes of truth, of which M are near some truth.

  Attributes:
    fc7: [N, F] float16, in a file.
    overlaps: [N, C] float16, the largest IoU with a box of truth of each class.
    truth: [N] int32, the label of those that are boxes of truth themselves, else 0.
    pool5: [M, P] float16, in a file.
    targets: [M, 4], what takes a box to its truth.
    labels: [M] int32, the truth's label.
    scales: of fc7 and pool5, by which they have norm 20 in the mean.
  """

  fc7: np.ndarray
  overlaps: np.ndarray
  truth: np.ndarray
  pool5: np.ndarray
  targets: np.ndarray
  labels: np.ndarray
  scales: tuple[float, float]


def build(config, shape: tuple[int, int, int], classes: int) -> Detector:
  """See `detection.build`."""
  model = tasks.module(config, num_classes=classes + 1)
  init = lambda rng: model.init(rng, jnp.zeros((1, model.side, model.side, shape[2])), train=False)

  def loss(variables, batch, rng):
    rng, dropout = jax.random.split(rng)
    chosen = fast_rcnn.draw(rng, batch, model.regions, 0.0)
    crops = jax.vmap(lambda *given: warp(*given, model.side))(batch["image"], chosen.boxes, batch["size"])
    crops = crops.reshape(-1, *crops.shape[2:])
    logits = model.apply(variables, crops, train=True, rngs={"dropout": dropout})["logits"]
    entropy = losses.nll(jax.nn.log_softmax(logits), chosen.labels.ravel()) * chosen.counts.ravel()
    terms = {"classification": (entropy.sum(), chosen.counts.sum().astype(jnp.float32))}
    return terms, {name: leaf for name, leaf in variables.items() if name != "params"}

  def detect(variables, batch, limits):
    given = batch["image"], batch["proposals"], batch["size"]
    return model.detect(variables, *given, **limits.given())._asdict()

  def finish(variables, batches, seed):
    look = jax.jit(lambda variables, batch: examples(model, config.data, variables, batch))
    with tempfile.TemporaryDirectory(dir=cache_folder(), prefix="features-") as folder:
      found = collect(lambda batch: look(variables, batch), batches, Path(folder))
      return {**variables, **learned(found, seed, model.cost)}

  return Detector(init, loss, detect, proposals=True, finish=finish)


def examples(model, data, variables: Any, batch: dict) -> dict[str, jax.Array]:
  """Features and truth of a batch's proposals, followed by its boxes of truth: [B, P + G, ...] each.

  Args:
    model: rcnn.RCNN.
    data: configs.base.Data, for the means of images.
    variables: of the model.
    batch: see data/__init__.py; "image" uint8.

  Returns:
    the attributes of `Features`, "there" bool for rows that are not only to fill up, "best" the IoU with the truth of
    `targets` and `labels`.
  """

  def crop(image, boxes, size):
    stages = model.apply(variables, warp(image, boxes, size, model.side), train=False)
    return {name: stages[name].reshape(boxes.shape[0], -1) for name in ("fc7", "pool5")}

  def one(truth, labels, crowd, proposals):
    every, valid = jnp.concatenate([proposals, truth]), (labels > 0) & ~crowd
    overlap = boxes.iou(truth, every)
    known = jnp.where(valid[:, None], overlap, 0)
    of = known.argmax(0)
    classes = labels[:, None] == jnp.arange(1, model.num_classes)[None]
    none = jnp.zeros(len(proposals), labels.dtype)
    return {
      "overlaps": jnp.where(classes[:, None], overlap[:, :, None], 0).max(0),
      "truth": jnp.concatenate([none, labels * valid]),
      "there": boxes.large_enough(every, SMALL) & jnp.concatenate([none == 0, valid]),
      "best": known.max(0), "targets": boxes.encode(truth[of], every), "labels": labels[of],
    }  # fmt: skip

  images = augment.normalise(batch["image"], data.mean, data.std)
  every = jnp.concatenate([batch["proposals"], batch["boxes"]], 1)
  seen = over_chunks(crop, model.chunk, images, every, batch["size"])
  return seen | jax.vmap(one)(*(batch[name] for name in ("boxes", "labels", "crowd", "proposals")))


NEEDED = ("image", "size", "boxes", "labels", "crowd", "proposals")


def collect(look, batches: Iterable[dict], folder: Path) -> Features:
  """Features of all batches; those of the net go to files as they come, for there may be more than memory holds.

  Args:
    look: batch -> see `examples`.
    batches: NumPy.
    folder: for the files.

  Raises:
    DataError: there is not one proposal or box of truth.
  """
  rows = {name: [] for name in ("overlaps", "truth", "targets", "labels")}
  widths, norms, count = {}, {"fc7": 0.0, "pool5": 0.0}, 0
  with (folder / "fc7").open("wb") as fc7, (folder / "pool5").open("wb") as pool5:
    files = {"fc7": fc7, "pool5": pool5}
    for batch in batches:
      found = jax.device_get(look({name: batch[name] for name in NEEDED}))
      there = found["there"] & (batch.get("mask", np.ones(len(found["there"])))[:, None] > 0)
      near = (found["best"][there] > NEAR).nonzero()[0]
      count += there.sum()
      for name, file in files.items():
        own = np.float32(found[name][there])
        norms[name] += np.linalg.norm(own, axis=1).sum(dtype=np.float64)
        widths[name] = own.shape[1]
        file.write(np.float16(np.minimum(own if name == "fc7" else own[near], np.finfo(np.float16).max)).tobytes())
      for name, kept in rows.items():
        own = found[name][there]
        kept.append(np.float16(own) if name == "overlaps" else own if name == "truth" else own[near])
  if not count:
    raise DataError("R-CNN's SVMs have nothing to learn from: the training split has no proposals and no objects")
  scales = tuple(float(NORM * count / max(norm, 1e-6)) for norm in norms.values())
  kept = {name: np.concatenate(parts) for name, parts in rows.items()}
  maps = {name: _mapped(folder / name, width) for name, width in widths.items()}
  return Features(**maps, **kept, scales=scales)


def _mapped(path, width):
  """A file of float16 as rows; an empty one cannot be mapped."""
  if not path.stat().st_size:
    return np.zeros((0, width), np.float16)
  return np.memmap(path, np.float16, "r").reshape(-1, width)


def learned(found: Features, seed: int, cost: float = COST) -> dict:
  """The collections "svm" and "regression" of `rcnn.RCNN`, for features as the net gives them; cost as for `svms`."""
  classes = found.overlaps.shape[1]
  weights, bias = svms(found.fc7, found.overlaps, found.truth, found.scales[0], seed, cost)
  slopes, starts = np.zeros((found.pool5.shape[1], classes, 4)), np.zeros((classes, 4))
  for k in range(classes):
    own = found.labels == k + 1
    if own.any():
      slopes[:, k], starts[k] = ridge(found.pool5[own], found.targets[own], found.scales[1])
  made = {"svm": {"weights": weights, "bias": bias}, "regression": {"weights": slopes, "bias": starts}}
  return jax.tree.map(jnp.float32, {name: leaves | {"fitted": 1.0} for name, leaves in made.items()})


def svms(
  features: np.ndarray, overlaps: np.ndarray, truth: np.ndarray, scale: float, seed: int, cost: float = COST
) -> tuple[np.ndarray, np.ndarray]:
  """A linear SVM for each class against the rest, with hard negatives mined in one pass (appendix B).

  A class without truth scores -1, as background does.

  Args:
    features: [N, F], may lie in a file.
    overlaps: [N, C], see `Features`.
    truth: [N], see `Features`.
    scale: of the features while the SVMs are learned.
    seed: of the proposals that mining starts with, and of the solver.
    cost: of a violation.

  Returns:
    (weights [F, C], bias [C]): scores are features @ weights + bias, without the scale.
  """
  n, classes = overlaps.shape
  weights, bias = np.zeros((features.shape[1], classes), np.float32), -np.ones(classes, np.float32)
  some = np.sort(np.random.default_rng(seed).choice(n, min(n, FIRST), replace=False))
  positives = [(truth == k + 1).nonzero()[0] for k in range(classes)]
  negatives = [some[overlaps[some, k] < NEGATIVE] for k in range(classes)]
  added = np.zeros(classes, int)

  def fit(k):
    if not (len(positives[k]) and len(negatives[k])):
      return
    x = np.float32(features[np.concatenate([positives[k], negatives[k]])]) * scale
    weights[:, k], bias[k] = svm(x, np.arange(len(x)) < len(positives[k]), seed, cost)
    scores = x[len(positives[k]) :] @ weights[:, k] + bias[k]
    negatives[k], added[k] = negatives[k][scores >= EASY], 0

  for k in range(classes):
    fit(k)
  for start in range(0, n, BLOCK):
    scores = np.float32(features[start : start + BLOCK]) * scale @ weights + bias
    hard = (scores > HARD) & (overlaps[start : start + BLOCK] < NEGATIVE)
    for k in range(classes):
      new = np.setdiff1d(start + hard[:, k].nonzero()[0], negatives[k], assume_unique=True)
      negatives[k], added[k] = np.concatenate([negatives[k], new]), added[k] + len(new)
      if added[k] >= AGAIN:
        fit(k)
  for k in range(classes):
    fit(k)
  return weights * np.float32(scale), bias


def svm(x: np.ndarray, positive: np.ndarray, seed: int, cost: float = COST) -> tuple[np.ndarray, float]:
  """One SVM, by default with the released code's cost: x [n, F] and bool [n] to (weights [F], bias)."""
  from sklearn.svm import LinearSVC

  solver = LinearSVC(
    C=cost, loss="hinge", class_weight={True: POSITIVE}, intercept_scaling=INTERCEPT, random_state=seed % 2**32,
    max_iter=10_000, tol=1e-3,
  )  # fmt: skip
  solver.fit(x, positive)
  return solver.coef_[0], solver.intercept_[0]


def ridge(features: np.ndarray, targets: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
  """Ridge regression of whitened targets (appendix C), the constant regularised, too, as in the released code.

  Args:
    features: [n, P], n >= 1.
    targets: [n, 4].
    scale: of the features while it is learned.

  Returns:
    (weights [P, 4], bias [4]): targets are about features @ weights + bias, without the scale.
  """
  y = np.float64(targets)
  mean = y.mean(0)
  values, vectors = np.linalg.eigh((y - mean).T @ (y - mean) / len(y))
  spread = np.sqrt(np.maximum(values, 0) + 1e-3)
  white = (y - mean) @ (vectors / spread[None]) @ vectors.T
  gram, moment = RIDGE * np.eye(features.shape[1] + 1), np.zeros((features.shape[1] + 1, 4))
  for start in range(0, len(y), BLOCK):
    x = np.float64(features[start : start + BLOCK]) * scale
    x = np.concatenate([x, np.ones((len(x), 1))], 1)
    gram += x.T @ x
    moment += x.T @ white[start : start + BLOCK]
  beta = np.linalg.solve(gram, moment)
  beta = beta @ (vectors * spread[None]) @ vectors.T
  return beta[:-1] * scale, beta[-1] + mean
