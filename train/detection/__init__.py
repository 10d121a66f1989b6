"""Detectors made ready to learn: a file for each paper, with its loss in the paper's order and what its net is told.

All share one contract, `Detector`: batches are those of data/scenes.py, after augmentation.
"""

import importlib
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxonomy import models
from flaxonomy.train.sharding import DATA

MODULES = {  # by the class of the model: the file here that trains it
  "FastRCNN": "fast_rcnn",
  "FasterRCNN": "faster_rcnn",
  "FasterRCNNVGG16": "faster_rcnn",
  "MaskRCNN": "mask_rcnn",
  "RCNN": "rcnn",
  "SSD": "ssd",
  "YOLOv1": "yolo_v1",
  "YOLOv2": "yolo_v2",
  "YOLOv3": "yolo_v3",
}


class Limits(NamedTuple):
  """What is reported of an image. None: what the model's paper or public code has.

  Attributes:
    score: what a probability must be above.
    threshold: IoU above which the less likely of two boxes of a class is left out.
    most: detections.
  """

  score: float | None = None
  threshold: float | None = None
  most: int | None = None

  def given(self) -> dict:
    """Those that are set, by name."""
    return {name: value for name, value in self._asdict().items() if value is not None}


class Detector(NamedTuple):
  """A detector for images of one size.

  Attributes:
    init: rng [2] -> variables.
    loss: (variables, batch, rng) -> ({term: (sum, count)}, collections): the loss is the sum over the terms of sum /
      count, both [] float32 over the local batch; factors of terms are in their sums. In training.
    detect: (variables, batch, Limits) -> {"boxes": [B, K, 4], "scores": [B, K], "labels": [B, K] int32, from 1 on,
      "valid": bool [B, K]}, the likeliest first, in pixels of the batch's images; "masks" [B, K, M, M], probabilities
      within each box, where the model has them.
    masks: whether it learns from "masks".
    proposals: whether it needs "proposals".
    finish: (variables, batches, seed) -> variables: what is learned in another way once training has ended, such as
      R-CNN's SVMs; batches is an iterable of NumPy batches of the training split, each example once, "image" uint8, not
      augmented; None: nothing. No leaf changes its shape.
  """

  init: Callable[[jax.Array], Any]
  loss: Callable[[Any, dict, jax.Array], tuple[dict, Any]]
  detect: Callable[[Any, dict, Limits], dict]
  masks: bool = False
  proposals: bool = False
  finish: Callable[[Any, Iterable[dict], int], Any] | None = None


def build(config, shape: tuple[int, int, int], classes: int) -> Detector | None:
  """The detector that a config names; None if its model is none.

  Args:
    config: configs.base.Config.
    shape: [H, W, C] of the images that the net sees.
    classes: without the background.

  Raises:
    UserError: unknown model or field, or images that it cannot see.
  """
  kind, _ = models.lookup(config.model.name)
  name = getattr(kind, "func", kind).__name__
  if name not in MODULES:
    return None
  return importlib.import_module(f"flaxonomy.train.detection.{MODULES[name]}").build(config, shape, classes)


def sums(terms: dict, images: int) -> dict:
  """A detector's terms as `step.Made` wants them: "loss" first, then each term.

  Counts are those of all devices, so that a term weighs the same on any number of them.

  Args:
    terms: from `Detector.loss`.
    images: of the local batch.
  """
  everywhere = images * lax.axis_size(DATA)
  total = sum(x * (everywhere / jnp.maximum(lax.psum(count, DATA), 1)) for x, count in terms.values())
  return {"loss": (total, jnp.float32(images))} | terms
