"""Detection: boxes around objects, their classes and, where the model has them, their masks.

One task for all detectors; what differs between them is in train/detection. An evaluation keeps what was found in every
image, in pixels of the original, and gives COCO's average precision and recall of the whole split, and VOC's.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy.data import augment, images, scene_augment, scenes
from flaxonomy.errors import UserError
from flaxonomy.models.detection import boxes as geometry
from flaxonomy.models.detection import roi
from flaxonomy.train import box_figures, coco, detection, step, tasks, voc
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import Given, Review, Serve, Task

MEASURES = ("AP", "AP50", "AP75", "AR100")  # of boxes, and with "mask_" before of masks
PASTED = 64  # pictures' sides are rounded up to multiples of it, so that few sizes are compiled


def build(config, info, devices: int) -> Task:
  """The task of finding objects of `info.class_names`; see `tasks.build`.

  Raises:
    UserError: a model that is no detector, or one that needs what the data is not told to give.
  """
  coco.require()
  shape = info.image_shape
  detector = detection.build(config, shape, len(info.class_names))
  tasks.require(config, detector is not None)
  _needs(config, detector)
  learner = tasks.learner(config, detector.init, devices)
  limits = detection.Limits(config.detect.score, config.detect.threshold, config.detect.most)

  def loss(params, collections, batch, rng):
    terms, collections = detector.loss({"params": params, **collections}, batch, rng)
    return step.Made(detection.sums(terms, batch["image"].shape[0]), collections)

  def detect(variables, batch):
    found = detector.detect(variables, scene_augment.prepared(config.data, batch), limits)
    return found | {"boxes": _original(found["boxes"], batch)}

  def serve(variables, x):
    whole = jnp.broadcast_to(jnp.array([shape[:2]], jnp.int32), (x.shape[0], 2))
    return detect(variables, {"image": x, "size": whole, "scale": jnp.ones_like(whole, jnp.float32)})

  example = lambda rng, b: jax.random.randint(rng, (b, *shape), 0, 256).astype(jnp.uint8)
  change = scene_augment.build(config.data, DATA)
  shown = functools.partial(_shown, config.detect)
  measures = (*MEASURES, *(f"mask_{name}" for name in MEASURES if detector.masks), "VOC07", "VOC10")
  return Task(
    init=learner.init,
    train_step=learner.step(loss, change, accumulate=config.train.accumulate or 1),
    predict_step=lambda state, batch: detect(state.variables(), batch),
    score=lambda outputs, batch: {"count": batch["mask"].sum()},
    metrics=lambda sums: {},
    measures=measures,
    best="mask_AP" if detector.masks else "AP",
    pictures=lambda batch, outputs, sums: pictures(info.class_names, shown, batch, outputs),
    augment=change,
    specs=learner.specs,
    serve=None if detector.proposals else Serve(serve, shape, jnp.uint8, example),  # which is given images alone
    table=functools.partial(table, shown),
    given=lambda inputs: given(config.data, shape, info.class_names, inputs),
    tiles=functools.partial(tiles, config.data, info.class_names),
    told=functools.partial(told, info),
    review=Review(
      ("boxes", "scores", "labels", "valid", *(("masks",) if detector.masks else ())),
      keep,
      functools.partial(report, info, detector.masks),
    ),
    finish=detector.finish and functools.partial(finish, detector, config.seed),
  )


def _needs(config, detector):
  """Raises UserError where the model needs what `data.scenes` does not ask for."""
  if detector.masks and not config.data.scenes.masks:
    raise UserError(f"model {config.model.name!r} learns from masks; set config field 'data.scenes.masks' to True")
  if detector.proposals and not config.data.scenes.proposals:
    raise UserError(
      f"model {config.model.name!r} is given boxes that may hold objects; set config field 'data.scenes.proposals', "
      "such as to 2000"
    )


def _original(boxes, batch):
  """Boxes [B, K, 4] of the canvas in pixels of the original images, clipped to them."""
  size, scale = batch["size"][:, None, ::-1], batch["scale"][:, None, ::-1]
  inside = jnp.clip(boxes, 0, jnp.concatenate([size, size], -1))
  return inside / jnp.maximum(jnp.concatenate([scale, scale], -1), 1e-6)  # rows that only fill up have a scale of 0


def _shown(detect, found: dict) -> list[dict]:
  """What pictures show of each image: what is above `detect.draw_score` and not covered at `detect.draw_threshold`.

  Args:
    detect: configs.base.Detect.
    found: outputs [B, K, ...], NumPy.

  Returns:
    For each image {"boxes": [k, 4], "scores": [k], "labels": [k]}, and perhaps "masks": [k, M, M].
  """
  likely = found["valid"] & (found["scores"] > detect.draw_score)
  kept, there = _suppress(found["boxes"], found["scores"], found["labels"], likely, detect.draw_threshold)
  kept, there = np.asarray(kept), np.asarray(there)
  keys = [key for key in ("boxes", "scores", "labels", "masks") if key in found]
  return [{key: found[key][i][kept[i][there[i]]] for key in keys} for i in range(len(kept))]


@functools.partial(jax.jit, static_argnums=4)
def _suppress(boxes, scores, labels, valid, threshold):
  suppress = functools.partial(geometry.nms_by_class, threshold=threshold, most=scores.shape[1])
  return jax.vmap(suppress)(boxes, scores, labels, valid)


def pasted(found: dict, height: int, width: int) -> dict:
  """Detections of one image with their masks as [k, height, width] bool: probabilities of a half and more."""
  if "masks" not in found:
    return found
  masks, boxes = found["masks"], found["boxes"]
  rows = -len(masks) % 16  # so that few numbers of them are compiled
  padded = [np.pad(x, ((0, rows), *[(0, 0)] * (x.ndim - 1))) for x in (masks, boxes)]
  size = tuple(-(-n // PASTED) * PASTED for n in (height, width))
  whole = _paste(*padded, size)
  return found | {"masks": np.asarray(whole)[: len(masks), :height, :width] >= 0.5}


@functools.partial(jax.jit, static_argnums=2)
def _paste(masks, boxes, size):
  return roi.paste(masks, boxes, size)


def keep(truths: list[dict], outputs: dict) -> list[tuple[dict, dict]]:
  """(truth, found) of each image in pixels of the original, masks as run lengths; see `Review`."""
  kept = []
  for i, truth in enumerate(truths):
    if not truth["height"]:  # an example that could not be read
      continue
    there = outputs["valid"][i]
    found = {key: x[i][there] for key, x in outputs.items() if key != "valid"}
    found = pasted(found, truth["height"], truth["width"])
    kept.append((coco.packed(truth), coco.packed(found)))
  return kept


def report(info, masks: bool, kept: list[tuple[dict, dict]]) -> tuple[dict, dict]:
  """COCO's and VOC's figures of a split, and curves of precision over recall; see `Review`.

  Args:
    info: data.pipeline.Info.
    masks: whether there are masks.
    kept: from `keep`, of every image.
  """
  truths, found = zip(*kept)
  names, metrics, files = info.class_names, {}, {}
  for kind, prefix in (("bbox", ""), ("segm", "mask_")) if masks else (("bbox", ""),):
    counted = coco.scores(truths, found, kind, len(names))
    scored = coco.summary(counted, names)
    metrics |= {prefix + name: scored[name] for name in MEASURES}
    files[f"{prefix}precision_recall.png"] = box_figures.precision_recall(coco.precisions(counted, names))
    rows = "".join(f"{name},{value:.4f}\n" for name, value in scored.items())
    files[f"{prefix}average_precision.csv"] = f"measure,value\n{rows}"
  metrics |= {name: voc.evaluate(truths, found, eleven=name == "VOC07")["mAP"] for name in ("VOC07", "VOC10")}
  return metrics, files


def pictures(names, shown, batch: dict, outputs: dict) -> dict:
  """detections.png: what was found, beside the truth; see `Task.pictures`."""
  scale = np.concatenate([batch["scale"][:, None, ::-1]] * 2, -1)
  height, width = batch["image"].shape[1:3]
  found = [pasted(each, height, width) for each in shown(outputs | {"boxes": outputs["boxes"] * scale})]
  truths = [_truth(batch, i) for i in range(len(found))]
  return {"detections.png": box_figures.gallery(batch["image"], truths, found, names)}


def _truth(batch, i) -> dict:
  """The truth of an example of a batch in pixels of its canvas, as `box_figures` draws it."""
  there = batch["labels"][i] > 0
  found = {"boxes": batch["boxes"][i][there], "labels": batch["labels"][i][there]}
  if "masks" in batch:
    masks, width = batch["masks"][i][there], batch["image"].shape[2]
    found["masks"] = masks if masks.dtype == bool else np.unpackbits(masks, axis=-1, count=width).astype(bool)
  return found


def tiles(config, names, batch: dict, augmented: bool) -> np.ndarray:
  """Images with their boxes for a preview, [B, h, w, 3] uint8; see `Task.tiles`."""
  whole = augment.pixels(batch["image"], config.mean, config.std) if augmented else batch["image"]
  truths = [_truth(batch, i) for i in range(len(whole))]
  return np.stack([np.asarray(box_figures.drawn(image, truth, names)) for image, truth in zip(whole, truths)])


def table(shown, outputs: dict, names) -> tuple[list[str], list[list], list[dict]]:
  """Rows for `predict`, a line each, and what was found in place of captions; see `Task.table`."""
  found = shown(outputs)
  said = ["; ".join(f"{names[k - 1]} {p:.2f}" for k, p in zip(one["labels"], one["scores"])) for one in found]
  return ["objects", "found"], [[len(one["scores"]), words] for one, words in zip(found, said)], found


def given(config, shape, names, inputs: list[str]) -> Given:
  """Image files for `predict`.

  Args:
    config: configs.base.Data.
    shape: [H, W, 3] of the canvas.
    names: of the classes.
    inputs: files and folders.
  """
  files = images.find(inputs)

  def batch(first, end):
    rows = [scenes.canvas(images.decode(file, 3), shape, config.fit, config.scenes) for file in files[first:end]]
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}

  def draw(i, found):
    image = images.decode(files[i], 3)
    return f"{i:05d}_{files[i].stem}.png", box_figures.drawn(image, pasted(found, *image.shape[:2]), names)

  return Given("file", [str(file) for file in files], batch, draw)


def told(info, files: list[str], found: list[dict]) -> dict:
  """predictions.json: what was found, as a COCO dataset whose annotations have scores; see `Task.told`."""
  sizes = [images.decode(file, 3).shape[:2] for file in files]
  truths = [{"image_id": i, "height": h, "width": w} for i, (h, w) in enumerate(sizes)]
  whole = [pasted(each, *size) for each, size in zip(found, sizes)]
  return {"predictions.json": json.dumps(coco.predictions(files, truths, whole, info.class_names, info.categories))}


def finish(detector, seed: int, state, feed):
  """The state once what is no gradient descent has been fitted to the training split; see `Task.finish`."""
  size = 16
  batches = (feed.read(range(i, min(i + size, feed.size))) for i in range(0, feed.size, size))
  variables = detector.finish({"params": state.params, **state.collections}, batches, seed)
  return state.replace(collections={key: x for key, x in variables.items() if key != "params"})
