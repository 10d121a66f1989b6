"""What torchvision's R-CNNs are compared in: every stage of a test, and training under the goldens' fixed sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import seeded

from flaxonomy.configs.base import IMAGENET_MEAN, IMAGENET_STD
from flaxonomy.models import interop, resize
from flaxonomy.models.detection import boxes, roi
from flaxonomy.models.detection import mask_rcnn as mask_model
from flaxonomy.train.detection import faster_rcnn, mask_rcnn

MODELS = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn")
LOSSES = {
  "classification": "loss_classifier", "boxes": "loss_box_reg", "objectness": "loss_objectness",
  "proposals": "loss_rpn_box_reg", "masks": "loss_mask",
}  # fmt: skip


def compute(case: dict) -> tuple[dict, dict]:
  """(all outputs and intermediates by key, gradients by public name)."""
  name, tensors = case["meta"]["case"], seeded.weights(case["meta"])
  fields = {"padding": True} | _fields(case["meta"]["kwargs"])
  model, variables = interop.model_of(name, tensors, **fields), interop.from_torch(name, tensors, **fields)
  x, sizes, scales = canvas(case)
  batch, masks = {"image": x, "size": sizes} | truth(case, scales), name.startswith("mask")
  most = case["meta"]["kwargs"]["box_detections_per_img"]
  learn = faster_rcnn.learn
  if masks:
    batch, learn = batch | {"masks": drawn_truth(case, sizes, x.shape[1:3])}, mask_rcnn.learn

  @jax.jit
  def test(variables):
    if masks:
      stages = model.apply(variables, x, sizes, train=False, most=most)
      return stages, stages["found"]
    stages = model.apply(variables, x, sizes, train=False)
    return stages, model.detect(stages, sizes, most=most)

  @jax.jit
  def train(params):
    def total(params):
      terms, *_ = learn(model, variables | {"params": params}, batch, KEY, fixed)
      means = {key: total / count for key, (total, count) in terms.items()}
      return sum(means.values()), means

    return jax.grad(total, has_aux=True)(params)

  stages, found = test(variables)
  slopes, losses = train(variables["params"])
  ours = seen(stages, x, sizes) | detections(found, scales)
  ours |= drawn(case, stages, found, ours) if masks else {}
  ours |= {f"out/losses/{LOSSES[key]}": value for key, value in losses.items()}
  ours |= draws(model, stages, batch)
  return ours, interop.to_torch(name, {"params": slopes}, **fields)


KEY = jax.random.PRNGKey(0)


def _fields(given):
  """Our fields of torchvision's arguments."""
  pair = lambda when: tuple(given[f"rpn_{when}_nms_top_n_{mode}"] for mode in ("train", "test"))
  return {"before": pair("pre"), "after": pair("post")}


def canvas(case) -> tuple[jax.Array, np.ndarray, np.ndarray]:
  """(pictures [B, H, W, 3] as torchvision batches them, sizes [B, 2], scales [B, 2] of y and x)."""
  low, high = (case["meta"]["kwargs"][key] for key in ("min_size", "max_size"))
  pictures, sizes, scales = [], [], []
  for i in range(sum(key.startswith("images/") for key in case["in"])):
    picture = case["in"][f"images/{i}"].transpose(1, 2, 0)
    picture = (picture - np.float32(IMAGENET_MEAN)) / np.float32(IMAGENET_STD)
    old = picture.shape[:2]
    scale = min(low / min(old), high / max(old))
    sizes.append([int(side * scale) for side in old])
    scales.append([new / side for new, side in zip(sizes[-1], old)])
    pictures.append(resize.bilinear(jnp.asarray(picture)[None], tuple(sizes[-1]))[0])
  high, wide = (-(-max(sides) // 32) * 32 for sides in zip(*sizes))
  padded = [jnp.pad(x, ((0, high - x.shape[0]), (0, wide - x.shape[1]), (0, 0))) for x in pictures]
  return jnp.stack(padded), np.array(sizes), np.array(scales, np.float32)


def truth(case, scales) -> dict:
  """Boxes and labels on the canvas, with a row that only fills up."""
  rows = max(len(case["in"][f"targets/{i}/labels"]) for i in range(len(scales))) + 1
  found, labels = np.zeros((len(scales), rows, 4), np.float32), np.zeros((len(scales), rows), np.int32)
  for i, scale in enumerate(scales):
    mine = case["in"][f"targets/{i}/boxes"]
    found[i, : len(mine)], labels[i, : len(mine)] = mine * np.tile(scale[::-1], 2), case["in"][f"targets/{i}/labels"]
  return {"boxes": jnp.asarray(found), "labels": jnp.asarray(labels)}


def drawn_truth(case, sizes, shape) -> jax.Array:
  """The goldens' masks [B, G, H, W], ellipses in their boxes, resized as torchvision does."""
  rows = max(len(case["in"][f"targets/{i}/labels"]) for i in range(len(sizes))) + 1
  found = np.zeros((len(sizes), rows, *shape), bool)
  for i, size in enumerate(sizes):
    mine, old = case["in"][f"targets/{i}/boxes"].astype(np.float64), case["in"][f"images/{i}"].shape[1:]
    x1, y1, x2, y2 = mine.T[:, :, None, None]
    y, x = np.mgrid[: old[0], : old[1]][:, None]
    masks = (2 * x - x1 - x2) ** 2 / (x2 - x1) ** 2 + (2 * y - y1 - y2) ** 2 / (y2 - y1) ** 2 <= 1
    np.testing.assert_array_equal(seeded.sample(masks), case["in"][f"targets/{i}/masks"])  # made again as they were
    resized = resize.nearest(jnp.asarray(masks[..., None]), tuple(size))[..., 0]
    found[i, : len(mine), : size[0], : size[1]] = resized
  return jnp.asarray(found)


def drawn(case, stages, found, ours) -> dict:
  """Keys of masks; those of detections are pasted into the picture."""
  more = {f"mid/mask_boxes/{i}": found.boxes[i][found.valid[i]] for i in range(len(found.boxes))}
  for key in ("mask_pooled", "mask_logits"):
    more[f"mid/{key}"] = jnp.concatenate([x[there] for x, there in zip(stages[key], found.valid)])
  logits = mask_model.of_class(stages["mask_logits"], found.labels)
  for i, there in enumerate(np.asarray(found.valid)):
    boxes, shape = ours[f"out/detections/{i}/boxes"], case["in"][f"images/{i}"].shape[1:]
    more[f"out/detections/{i}/masks"] = roi.paste(jax.nn.sigmoid(logits[i][there]), boxes, shape)[:, None]
  return more


def fixed(rng, matched, count, fraction):
  """The goldens' sampler: of the candidates' ranks r the smallest (r 2654435761) mod 2^32."""

  def first(among, most):
    mixed = (jnp.cumsum(among) - 1).astype(jnp.uint32) * jnp.uint32(2654435761)
    place = jnp.argsort(jnp.argsort(jnp.where(among, mixed, jnp.uint32(2**32 - 1)), stable=True))
    return among & (place < most)

  objects = first(matched >= 0, int(count * fraction))
  return objects, first(matched == boxes.BACKGROUND, count - objects.sum())


def seen(stages, x, sizes) -> dict:
  """Keys "mid/" of a test but those of masks."""
  ours = {"mid/batched": x, "mid/image_sizes": sizes, "mid/anchors": stages["anchors"]}
  start = 0
  for i in range(5):
    level = stages[f"p{i + 2}"]
    ours[f"mid/features/{i if i < 4 else 'pool'}"] = level
    end = start + 3 * level.shape[1] * level.shape[2]
    for key, name in (("rpn_logits", "objectness"), ("rpn_deltas", "deltas")):
      ours[f"mid/{key}/{i}"] = stages[name][:, start:end].reshape(*level.shape[:3], -1)
    start = end
  ours |= {f"mid/proposals/{i}": stages["proposals"][i][stages["valid"][i]] for i in range(len(x))}
  pooled = stages["pooled"]
  ours["mid/box_pooled"] = pooled.reshape(-1, *pooled.shape[2:])
  for key, name in (("box_feat", "features"), ("class_logits", "logits"), ("box_reg", "offsets")):
    ours[f"mid/{key}"] = stages[name].reshape(ours["mid/box_pooled"].shape[0], -1)
  return ours


def detections(found, scales) -> dict:
  """Keys "out/detections/"."""
  ours = {}
  for i, scale in enumerate(scales):
    there = np.asarray(found.valid[i])
    for kind in ("boxes", "scores", "labels"):
      ours[f"out/detections/{i}/{kind}"] = np.asarray(getattr(found, kind)[i])[there]
    ours[f"out/detections/{i}/boxes"] /= np.tile(scale[::-1], 2)
  return ours


def draws(model, stages, batch) -> dict:
  """Which anchors and regions the losses are of, image by image."""
  found = {}

  def noting(stage):
    def choose(rng, matched, count, fraction):
      both = fixed(rng, matched, count, fraction)
      jax.debug.callback(lambda *both: found.__setitem__(stage, both), *both)
      return both

    return choose

  @jax.jit
  def one(stages, batch, proposals, valid):
    there, learns = batch["labels"] > 0, model.learns(stages["anchors"], batch["size"])
    faster_rcnn.proposing(stages, learns, batch["boxes"], there, KEY, model.sampled_anchors, noting("rpn"))
    return faster_rcnn.sampled(proposals, valid, batch["boxes"], there, KEY, model.sampled_regions, noting("roi"))

  ours, (proposals, valid) = {}, model.propose(stages, batch["size"], train=True)
  for i in range(len(valid)):
    cut = lambda tree, i=i: {key: x if key == "anchors" else x[i : i + 1] for key, x in tree.items()}
    first = {key: stages[key] for key in ("anchors", "objectness", "deltas")}
    jax.block_until_ready(one(cut(first), cut(batch), proposals[i : i + 1], valid[i : i + 1]))
    jax.effects_barrier()
    for stage, both in found.items():
      for kind, drawn in zip(("positive", "negative"), both):
        ours[f"mid/{stage}_sampled/{i}/{kind}"] = np.flatnonzero(drawn)
  return ours
