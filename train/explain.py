"""What a trained classifier has learnt, what it looks at, and where it errs: pictures from a workdir.

Saliency: Simonyan, Vedaldi, Zisserman 2013, "Deep Inside Convolutional Networks", section 3. Grad-CAM: Selvaraju et al.
2017, "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization", section 3. Both are about the
logit of the predicted class, of the central view of an image (data/views.py) and in its normalised pixels; the
prediction itself is the mean over all views, as in evaluation.
"""

import dataclasses
import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from matplotlib import colormaps

from flaxonomy.data import images, pipeline, views
from flaxonomy.errors import DataError, UserError, warn
from flaxonomy.models import layers, resize
from flaxonomy.train import evaluation, figures, inference, loop, report, step, tasks, workdir
from flaxonomy.train.inference import Trained
from flaxonomy.train.sharding import DATA

PICTURES = ("filters.png", "activations.png", "saliency.png", "gradcam.png", "mistakes.png")
FILTERS, CHANNELS, MISTAKES = 64, 8, 40  # kernels, channels of a stage and mistakes that are shown at most
EXPLAINED, RIGHT, ENOUGH = 16, 12, 8  # images explained at most, and how `choose` divides them
BATCH = 8  # images in a dispatch: a gradient needs every layer of each


def explain(path: str | Path, inputs: list[str] = (), which: str = "latest", changes: dict | None = None) -> dict:
  """Writes pictures into the folder `explain` of a classifier's workdir, and the list of its mistakes, explain.json.

  Args:
    path: workdir.
    inputs: image files and folders to explain; none: images of the evaluation split, see `choose`.
    which: checkpoint, as in `inference.load`.
    changes: config fields to override, likewise.

  Returns:
    {"step": int, "examples": int, "count": int, "mistakes": [{"index": int, "label": str, "prediction": str,
    "probability": float}, ...], "files": [str, ...]}, the most confident mistake first, also in explain.json. Where the
    data cannot be opened but there are inputs, the second to fourth are None.

  Raises:
    UserError: no run, none of a classifier, no such image; data that cannot be opened, without inputs.
  """
  files = images.find(inputs)
  folder = workdir.absolute(path)
  if (task := workdir.load_config(folder).task) != "classification":
    raise UserError(
      f"--mode=explain is for classifiers of images, and the run in {str(folder)!r} is of task {task!r}; see "
      "--mode=eval for its pictures"
    )
  mesh = loop.make_mesh()
  run = inference.load(folder, mesh, which, changes)
  try:
    feed = loop.open_test(run.config, mesh, run.info)
    found = predictions(run, feed, mesh)
  except UserError as error:
    if not files:
      raise
    warn(f"mistakes.png is left out: {error}")
    feed = found = None
  made = _explained(run, mesh, *(_given(run, files) if files else _chosen(run, feed, found)))
  result = {"step": run.step, "examples": None, "count": None, "mistakes": None}
  if found is not None:
    made["mistakes.png"] = _mistakes(run, feed, found)
    result |= _listed(run, found)
  _write(folder / "explain", made, result | {"files": list(made)})
  return result | {"files": list(made)}


class Predictions(NamedTuple):
  """What a split is taken for, in its order: [N] arrays; examples that could not be read are not there."""

  index: np.ndarray
  label: np.ndarray
  prediction: np.ndarray
  probability: np.ndarray  # of the prediction

  def mistakes(self) -> np.ndarray:
    """Rows of the wrong ones, the most confident first; of equals the one with the smaller index."""
    wrong = np.flatnonzero(self.prediction != self.label)
    return wrong[np.argsort(-self.probability[wrong], kind="stable")]


def predictions(run: Trained, feed: pipeline.Feed, mesh: Mesh) -> Predictions:
  """What the evaluation, by its own compiled function, takes every example of a split for."""
  function = evaluation.eval_function([run.task], feed, mesh)

  def described(resident, item):
    batch = feed.fetch(resident, item)
    return {key: batch[key] for key in ("index", "label", "mask")}

  describe = step.pmapped(described, mesh, (P(), P(DATA)), P(DATA))
  state, rows = run.state.replace(opt_state=None), []
  for item in feed.eval_items():
    _, outputs, _ = function([state], [None], feed.resident, item)
    probs, batch = np.asarray(outputs["probs"]), jax.device_get(describe(feed.resident, item))
    row = np.stack([batch["index"], batch["label"], probs.argmax(-1)]), probs.max(-1)
    rows.append([x[..., batch["mask"] > 0] for x in row])
  numbers, probability = (np.concatenate(x, -1) for x in zip(*rows))
  if not probability.size:
    raise DataError(f"no example of split {run.config.data.eval_split!r} can be read")
  return Predictions(*numbers, probability)


def choose(found: Predictions) -> np.ndarray:
  """Which examples to explain: rows [n] of the predictions, n <= EXPLAINED.

  The first right one of each class, of RIGHT classes at most; the most confident mistakes; and if those are fewer than
  ENOUGH, the second right one of each class, and so on.
  """
  right = np.flatnonzero(found.prediction == found.label)
  nth, seen = np.zeros(len(right), int), {}  # how many right ones of its class come before each
  for i, label in enumerate(found.label[right].tolist()):
    nth[i] = seen[label] = seen.get(label, -1) + 1
  right = right[np.lexsort((found.label[right], nth))]
  first, others = np.split(right, [min(len(seen), RIGHT)])
  chosen = np.concatenate([first, found.mistakes()[: EXPLAINED - len(first)]])
  return np.concatenate([chosen, others[: max(0, ENOUGH - len(chosen))]])


class Anatomy(NamedTuple):
  """What of a model can be shown: its stages with maps, in order, [H, W, C] of each; its first convolution."""

  stages: dict[str, tuple[int, int, int]]
  first: tuple[str, ...] | None  # path of its parameters

  @property
  def last(self) -> str | None:
    """The last stage with maps."""
    return list(self.stages)[-1] if self.stages else None


def anatomy(model: nn.Module, variables, x: jax.Array | jax.ShapeDtypeStruct) -> Anatomy:
  """Looks at a model as it is applied to x [B, h, w, C]; nothing is computed."""
  paths, shapes = [], {}

  def note(call, args, kwargs, context):
    if context.method_name == "__call__" and isinstance(context.module, layers.Conv):
      paths.append(context.module.path)
    return call(*args, **kwargs)

  def apply(variables, x):
    with nn.intercept_methods(note):
      stages = model.apply(variables, x, train=False)
    shapes.update({name: stage.shape[1:] for name, stage in stages.items() if stage.ndim == 4})

  jax.eval_shape(apply, variables, x)
  return Anatomy(shapes, paths[0] if paths else None)


def explainer(model: nn.Module, classify, data, last: str | None):
  """A function that explains what a model makes of images.

  Args:
    model: applied to a view [B, h, w, C] it returns its stages, see models/stages.py.
    classify: (variables, images) -> {"probs": [B, classes]}.
    data: configs.base.Data, by which the view is made.
    last: the stage for Grad-CAM; None: no Grad-CAM.

  Returns:
    (variables, images [B, H, W, C] uint8) -> {"probs", "view": [B, h, w, C] the central one, "saliency": [B, h, w],
    "gradcam": [B, h, w], "stages": {name: (maps [B, h', w', k], their channels [B, k])}}
  """
  central = dataclasses.replace(data, eval_crops=1)

  def explain(variables, images):
    probs = classify(variables, images)["probs"]
    x = views.views(images, central)[0]

    def logit(x, offset):
      stages = model.apply({**variables, "perturbations": offset}, x, train=False)
      return jnp.take_along_axis(stages["logits"], probs.argmax(-1)[:, None], 1).sum(), stages

    shapes = jax.eval_shape(lambda x: logit(x, {})[1], x)
    offset = {name: jnp.zeros(shapes[name].shape, shapes[name].dtype) for name in ([last] if last else [])}
    (slope, slopes), stages = jax.grad(logit, (0, 1), has_aux=True)(x, offset)
    maps = {name: strongest(stage) for name, stage in stages.items() if stage.ndim == 4}
    found = {"probs": probs, "view": x, "saliency": saliency(slope), "stages": maps}
    return found | ({"gradcam": grad_cam(stages[last], slopes[last], x.shape[1:3])} if last else {})

  return explain


def saliency(gradient: jax.Array) -> jax.Array:
  """Section 3.1 of Simonyan et al.: the largest absolute slope over the channels, [B, H, W, C] to [B, H, W]."""
  return jnp.abs(gradient).max(-1)


def grad_cam(maps: jax.Array, gradient: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Equations 1 and 2 of Selvaraju et al.: the positive part of the maps' sum, each weighted by its mean slope.

  Args:
    maps: [B, H, W, C], of the last stage that has any.
    gradient: of a class's logit with respect to them.
    size: (h, w) to which the result is enlarged.

  Returns:
    [B, h, w] float32, >= 0.
  """
  maps, weights = maps.astype(jnp.float32), gradient.astype(jnp.float32).mean((1, 2))
  seen = nn.relu(jnp.einsum("bhwc,bc->bhw", maps, weights, precision="highest"))
  return resize.bilinear(seen[..., None], size)[..., 0]


def strongest(maps: jax.Array, most: int = CHANNELS) -> tuple[jax.Array, jax.Array]:
  """The channels of the largest mean absolute value: maps [B, H, W, C] to ([B, H, W, k], their numbers [B, k])."""
  maps = maps.astype(jnp.float32)
  _, channels = jax.lax.top_k(jnp.abs(maps).mean((1, 2)), min(most, maps.shape[-1]))
  return jnp.take_along_axis(maps, channels[:, None, None, :], -1), channels


def _given(run, files) -> tuple:
  """(images, labels, file names) of image files."""
  if len(files) > EXPLAINED:
    warn(f"the first {EXPLAINED} of {len(files)} images are explained")
  *size, channels = run.info.image_shape
  pixels = [images.decode(file, channels, tuple(size), run.config.data.fit) for file in files[:EXPLAINED]]
  return np.stack(pixels), None, [file.name for file in files]


def _chosen(run, feed, found) -> tuple:
  """(images, labels, no file names) of the examples that `choose` chooses."""
  batch = feed.read(found.index[choose(found)].tolist())
  return batch["image"], batch["label"], None


def _explained(run, mesh, pixels, labels, names) -> dict:
  """{file name: figure} of all pictures but the mistakes."""
  data, classes, variables = run.config.data, run.info.class_names, run.state.variables()
  model = tasks.module(run.config, num_classes=len(classes))
  one = jax.ShapeDtypeStruct((mesh.size, *run.info.image_shape), jnp.uint8)
  body = anatomy(model, variables, jax.eval_shape(lambda x: views.views(x, data)[0], one))
  made = {}
  if body.first:
    kernel = variables["params"]
    for name in (*body.first, "kernel"):
      kernel = kernel[name]
    made["filters.png"] = _filters(np.asarray(kernel), "/".join(body.first))
  function = step.pmapped(explainer(model, run.task.serve.call, data, body.last), mesh, (P(), P(DATA)), P(DATA))
  seen = _batches(function, variables, pixels, mesh)
  shown = np.clip(np.round((seen["view"] * np.asarray(data.std) + np.asarray(data.mean)) * 255), 0, 255)
  shown, titles, wrong = shown.astype(np.uint8), *_told(seen["probs"], classes, labels, names)
  if body.last:
    made["activations.png"] = _activations(body, shown, titles, seen["stages"], 1 if names is None else 3)
  pairs = [[image, heat(slope)] for image, slope in zip(shown, seen["saliency"])]
  what = "saliency: the brighter a pixel, the more it moves the logit of the predicted class"
  made["saliency.png"] = figures.panels(pairs, titles, wrong, what)
  if body.last:
    pairs = [[image, overlay(image, seen)] for image, seen in zip(shown, seen["gradcam"])]
    what = f"Grad-CAM on {body.last}: the redder, the more it speaks for the predicted class"
    made["gradcam.png"] = figures.panels(pairs, titles, wrong, what)
  if left := [name for name in PICTURES[:-1] if name not in made]:
    warn(f"model {run.config.model.name!r} has no maps to show; left out: {', '.join(left)}")
  return made


def _batches(function, variables, pixels, mesh) -> dict:
  """The outputs of a mapped function for all images, some at a time, as NumPy arrays."""
  size, parts = -(-BATCH // mesh.size) * mesh.size, []
  for begin in range(0, len(pixels), size):
    part = pixels[begin : begin + size]
    padded = np.pad(part, ((0, size - len(part)), *[(0, 0)] * 3))
    parts.append(jax.device_get(function(variables, padded)))
  return jax.tree.map(lambda *x: np.concatenate(x)[: len(pixels)], *parts)


def _told(probs, classes, labels, names) -> tuple[list[str], list[bool]]:
  """A title for each image, of one line or two, and which are wrong."""
  best = probs.argmax(-1)
  said = [f"{classes[b]} ({p[b]:.1%})" for b, p in zip(best, probs)]
  if labels is None:
    return [f"{name}\n{text}" for name, text in zip(names, said)], [False] * len(said)
  wrong = (best != labels).tolist()
  return [f"{t}\ntrue: {classes[y]}" if bad else t for t, y, bad in zip(said, labels, wrong)], wrong


def _filters(kernel, name) -> figures.Figure:
  """Kernels [kh, kw, I, O] as pictures, each from its least to its most weight; in colour where I is 3, else grey."""
  high, wide, inputs, outputs = kernel.shape
  kernel = kernel if inputs == 3 else kernel.mean(2, keepdims=True)
  least, most = kernel.min((0, 1, 2)), kernel.max((0, 1, 2))
  pixels = np.round((kernel - least) / np.where(most > least, most - least, 1) * 255).astype(np.uint8)
  shown = min(FILTERS, outputs)
  heading = f"{name}: {f'{shown} of ' if shown < outputs else ''}{outputs} kernels of {high} x {wide} x {inputs}"
  return figures.panels([[pixels[..., o]] for o in range(shown)], heading=heading, columns=8)


def _activations(body, shown, titles, stages, most) -> figures.Figure:
  """The strongest channels of every stage, for the first `most` images; fewer of each where they are several."""
  shown = shown[:most]
  count = CHANNELS if len(shown) == 1 else CHANNELS // 2
  rows = {
    name: (shape, stages[name][0][: len(shown), ..., :count], stages[name][1][: len(shown), :count])
    for name, shape in body.stages.items()
  }
  heading = "the strongest channels of every stage, with their numbers"
  return figures.activations(shown, titles[: len(shown)], rows, heading)


def heat(strength: np.ndarray) -> np.ndarray:
  """A map [H, W] >= 0 as a picture [H, W, 3] uint8, from black for 0 to pale yellow for its most."""
  return np.round(colormaps["inferno"](strength / (strength.max() or 1))[..., :3] * 255).astype(np.uint8)


def overlay(image: np.ndarray, strength: np.ndarray) -> np.ndarray:
  """A map laid over an image turned grey, in colours from blue for 0 to red for its most.

  Args:
    image: [H, W, 1] or [H, W, 3] uint8.
    strength: [H, W] >= 0.

  Returns:
    [H, W, 3] uint8
  """
  share = strength / (strength.max() or 1)
  colour = colormaps["jet"](0.1 + 0.8 * share)[..., :3] * 255  # whose ends are too dark to be told from black
  return np.round(image.mean(-1, keepdims=True) * 0.45 + colour * 0.55).astype(np.uint8)


def _mistakes(run, feed, found) -> figures.Figure:
  """The most confident mistakes."""
  ranked, split = found.mistakes(), run.config.data.eval_split
  of = f"{len(found.index)} examples of {split}"
  if not len(ranked):
    return figures.message(f"no mistakes among {of}")
  shown, names = ranked[:MISTAKES], run.info.class_names
  titles = [
    f"{names[p]} ({share:.1%})\ntrue: {names[t]}"
    for p, share, t in zip(found.prediction[shown], found.probability[shown], found.label[shown])
  ]
  pixels = feed.read(found.index[shown].tolist())["image"]
  these = f"the {len(shown)} most confident of {len(ranked)}" if len(shown) < len(ranked) else f"all {len(ranked)}"
  return figures.panels([[image] for image in pixels], titles, heading=f"{these} mistakes among {of}", columns=8)


def _listed(run, found) -> dict:
  """What explain.json says of the split."""
  ranked, names = found.mistakes(), run.info.class_names
  rows = [
    {"index": int(i), "label": names[t], "prediction": names[p], "probability": float(share)}
    for i, t, p, share in zip(*(column[ranked] for column in found))
  ]
  return {"examples": len(found.index), "count": len(rows), "mistakes": rows}


def _write(folder: Path, made: dict, result: dict) -> None:
  """The files; pictures of an earlier call that this one does not make go."""
  folder.mkdir(exist_ok=True)
  for name in PICTURES:
    if name not in made:
      (folder / name).unlink(missing_ok=True)
  report.save_figures(folder, made)
  report.write_text(folder / "explain.json", json.dumps(result, indent=2) + "\n")
