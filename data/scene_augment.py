"""Augmentation of scenes on the device: pure functions of (rng, batch) that move pictures, boxes and masks together.

The order is mosaic, colour, zoom-out, crop by overlap, scale, translation, flip; draws are keyed as in augment.py. All
that moves after the mosaic is one map for each image: a part of the picture, which may go beyond it, is put on the
`size` pixels that the picture had. What lies beyond the picture is of the mean colour: zeros, once normalised.

An object goes where its box's centre is no longer seen, where less than a pixel of its box is, and without a crop by
overlap where less than a quarter of it is: label 0, a box and a mask of zeros. Others' boxes are mapped and clipped,
not drawn anew around what is seen of a mask. Crowds move along, too, with label 0.

Deviations: SSD's photometric distortion changes contrast before or after saturation and hue, at random; here it always
comes before. Crops by overlap that find no part in 40 trials keep the whole picture; torchvision draws another least
overlap then. Where a picture shrinks, pixels are averaged (antialias), as when images are read; SSD's code draws one of
OpenCV's ways. A mosaic's pictures cover their quarters and keep their aspect; YOLOv4's code crops and distorts them.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxonomy.data import augment
from flaxonomy.errors import UserError

KINDS = (
  "mosaic", "brightness", "contrast", "saturation", "hue", "zoom_out", "iou_crop", "scale", "translate",
  "flip_horizontal",
)  # fmt: skip
OTHERS = (
  "random_resized_crop", "crop_padding", "rotate", "flip_vertical", "color_pca", "cutout", "mixup",
)  # fmt: skip
LEAST_IOU = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, math.inf)  # of a crop and an object; inf: the whole picture (torchvision)
TRIALS = 40  # parts drawn for a crop by overlap, as torchvision
VISIBLE = 0.25  # least share of an object's box that is seen


class Map(NamedTuple):
  """Where an image's pixels come from: slope x output + offset, (y, x), edges at whole numbers; and which are seen.

  Attributes:
    slope, offset: [..., 2] float32; a negative slope mirrors.
    low, high: [..., 2] float32, the part of the output that shows the picture.
  """

  slope: jax.Array
  offset: jax.Array
  low: jax.Array
  high: jax.Array


def check(config) -> None:
  """Refuses what would change images without their boxes.

  Args:
    config: configs.base.Data.

  Raises:
    UserError: names the field.
  """
  for name in OTHERS:
    if getattr(config.augment, name):
      raise UserError(f"config field 'data.augment.{name}' is not for scenes; those have {', '.join(KINDS)}")
  if 0 < config.augment.zoom_out < 1:
    raise UserError(f"config field 'data.augment.zoom_out' must be 0 or at least 1, not {config.augment.zoom_out}")


def prepared(config, batch: dict) -> dict:
  """A batch of scenes as a model sees it in evaluation: normalised, with zeros beside the pictures, masks unpacked.

  Args:
    config: configs.base.Data, of which `mean` and `std` are used.
    batch: see data/__init__.py.
  """
  x = batch["image"]
  normal = augment.normalise(x, config.mean, config.std)
  return batch | _readable(batch) | {"image": jnp.where(_inside(batch, x), normal, 0)}


def build(config, axis: str):
  """The augmentation of scenes that a config lists.

  Args:
    config: configs.base.Data, of which `augment`, `mean` and `std` are used.
    axis: name of the mapped axis over which a batch is split.

  Returns:
    augment(rng, batch) -> batch, per device: `image`, `boxes`, `labels`, `crowd`, `masks` and `proposals` are changed,
    other keys left as they are. With mosaic, all that lists objects, and proposals, are four times as many.

  Raises:
    UserError: as `check`.
  """
  check(config)
  aug = config.augment

  def change(rng, batch):
    keys = augment.keys_of(rng, batch["index"])
    if aug.mosaic:
      batch = _mosaic(aug, keys, batch, axis)
    else:
      batch = batch | _readable(batch)
    inside = _inside(batch, batch["image"])
    x = _coloured(aug, keys, batch["image"], inside)
    x = augment.standardise(x, config.mean, config.std)
    batch = batch | {"image": jnp.where(inside, x, 0)}
    learned = batch["labels"] * ~batch["crowd"]
    if aug.zoom_out or aug.iou_crop or aug.scale or aug.translate or aug.flip_horizontal:
      size = batch["size"].astype(jnp.float32)
      maps = jax.vmap(lambda *example: _map(aug, *example))(keys, size, batch["boxes"], learned > 0)
      one = lambda x: x[:, None]
      batch = batch | _moved(jax.tree.map(one, _movable(batch)), jax.tree.map(one, maps), not aug.iou_crop)
    return batch | {"labels": batch["labels"] * ~batch["crowd"]}

  return change


def _inside(batch, x):
  """[B, H, W, 1] bool, the pixels that pictures have on their canvases."""
  rows, columns = (jnp.arange(n)[None] < batch["size"][:, k, None] for k, n in enumerate(x.shape[1:3]))
  return (rows[:, :, None] & columns[:, None])[..., None]


def _readable(batch):
  """Images in [0, 1] and masks, if there are some, [..., G, H, W] bool."""
  found = {"image": batch["image"].astype(jnp.float32) / 255}
  if "masks" in batch:
    masks = jnp.unpackbits(batch["masks"], axis=-1, count=batch["image"].shape[-2])
    found["masks"] = lax.optimization_barrier(masks.astype(bool))
  return found


def _coloured(aug, keys, x, inside):
  """Images [B, H, W, 3] in [0, 1] in other colours; contrast is about the picture's mean, not the canvas's."""
  if aug.brightness or aug.contrast or aug.saturation:
    x = jax.vmap(lambda *example: augment.colour(aug, *example))(keys, x, inside)
  if aug.hue:
    x = hue(x, jax.vmap(lambda key: augment.uniform(key, "hue", low=-aug.hue, high=aug.hue))(keys))
  return x


def hue(images: jax.Array, turns: jax.Array) -> jax.Array:
  """Turns the hue of HSV, as torchvision's adjust_hue.

  Args:
    images: [B, H, W, 3], red, green and blue.
    turns: [B], shares of the circle.

  Returns:
    [B, H, W, 3]; each pixel's greatest and least channel stay as they are.
  """
  r, g, b = jnp.moveaxis(images, -1, 0)
  most, least = jnp.maximum(jnp.maximum(r, g), b), jnp.minimum(jnp.minimum(r, g), b)
  chroma = most - least
  per = 1 / jnp.where(chroma > 0, chroma, 1)
  sixth = jnp.where(most == r, (g - b) * per, jnp.where(most == g, 2 + (b - r) * per, 4 + (r - g) * per))
  sixth += 6 * turns[:, None, None]

  def channel(n):
    k = (n + sixth) % 6
    return most - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

  return jnp.stack([channel(5), channel(3), channel(1)], -1)


# The map of an image.


def _map(aug, key, size, boxes, learned):
  """The Map of one image: size [2] of the picture, boxes [G, 4] and which of them, bool [G], are learned from."""
  start, extent = jnp.zeros(2), size  # the part that is shown
  low, high = start, size  # what of it is picture
  if aug.zoom_out:
    start, extent = _zoom_out(aug.zoom_out, key, size)
  if aug.iou_crop:
    start, extent = _iou_crop(key, start, extent, boxes, learned)
    low, high = jnp.maximum(low, start), jnp.minimum(high, start + extent)
  if aug.scale:
    zoom = augment.uniform(key, "scale", (), *aug.scale)
    place = augment.uniform(jax.random.fold_in(key, 1), "scale", (2,))
    start, extent = start + place * (extent - extent / zoom), extent / zoom
  if aug.translate:
    start -= extent * augment.uniform(key, "translate", (2,), -aug.translate, aug.translate)
  slope = extent / jnp.maximum(size, 1)
  low, high = (jnp.clip((edge - start) / slope, 0, size) for edge in (low, high))
  if aug.flip_horizontal:
    flip = jnp.array([False, True]) & (augment.uniform(key, "flip") < 0.5)
    start, slope = jnp.where(flip, start + extent, start), jnp.where(flip, -slope, slope)
    low, high = jnp.where(flip, size - high, low), jnp.where(flip, size - low, high)
  return Map(slope, start, low, high)


def _zoom_out(most, key, size):
  """Start and extent [2] of a canvas up to `most` times as large around the picture, every other time (Liu et al.)."""
  coin, ratio, *place = augment.uniform(key, "zoom_out", (4,))
  ratio = jnp.where(coin < 0.5, 1 + (most - 1) * ratio, 1)
  return -jnp.stack(place) * (ratio - 1) * size, ratio * size


def _iou_crop(key, start, extent, boxes, learned):
  """Start and extent [2] of a part that an object overlaps by a drawn least IoU (Liu et al. 2016, section 2.2).

  As torchvision's RandomIoUCrop: sides of .3 to 1, aspects of .5 to 2, the object's centre in the part.
  """
  drawn = augment.uniform(key, "iou_crop", (1 + 4 * TRIALS,))
  least = jnp.array(LEAST_IOU)[(drawn[0] * len(LEAST_IOU)).astype(jnp.int32)]
  drawn = drawn[1:].reshape(TRIALS, 2, 2)
  sides = (0.3 + 0.7 * drawn[:, 0]) * extent[None]
  starts = start[None] + drawn[:, 1] * (extent[None] - sides)
  corners = boxes.reshape(-1, 2, 2)[None, :, :, ::-1]  # [1, G, 2, 2]: near and far, y and x
  near, far, ends = corners[:, :, 0], corners[:, :, 1], starts + sides
  centre = (near + far) / 2
  inside = ((centre > starts[:, None]) & (centre < ends[:, None])).all(-1) & learned[None]  # [TRIALS, G]
  common = jnp.maximum(jnp.minimum(far, ends[:, None]) - jnp.maximum(near, starts[:, None]), 0).prod(-1)
  union = (far - near).prod(-1) + sides.prod(-1)[:, None] - common
  enough = (inside & (common >= least * union)).any(-1)
  good = enough & (sides.max(-1) <= 2 * sides.min(-1))
  first = jnp.argmax(good)
  return jnp.where(good[first], starts[first], start), jnp.where(good[first], sides[first], extent)


# Mosaic.


def _mosaic(aug, keys, batch, axis):
  """Four pictures in one for some of the batch (Bochkovskiy et al. 2020, section 3.3), with the next three's."""
  sources = [_movable(batch)]
  for _ in range(3):
    sources.append({name: augment.following(x, axis) for name, x in sources[-1].items()})
  sources = {name: jnp.stack([source[name] for source in sources], 1) for name in sources[0]}
  sources |= _readable(sources)
  maps = jax.vmap(lambda key, sizes: _quarters(aug.mosaic, key, sizes))(keys, sources["size"].astype(jnp.float32))
  return batch | _moved(sources, maps, True)


def _quarters(probability, key, sizes):
  """Maps of four pictures with sizes [4, 2] onto the quarters of the first one's frame, or of the first onto itself.

  Each covers its quarter, one of its corners in the mosaic's centre.
  """
  coin, *centre = augment.uniform(key, "mosaic", (3,))
  size = sizes[:1]
  centre = (0.25 + 0.5 * jnp.stack(centre))[None] * size
  first = jnp.array([[True, True], [True, False], [False, True], [False, False]])  # before the centre, in y and x
  low, high = jnp.where(first, 0, centre), jnp.where(first, centre, size)
  slope = (sizes / jnp.maximum(high - low, 1e-3)).min(1, keepdims=True)
  found = Map(jnp.broadcast_to(slope, (4, 2)), jnp.where(first, sizes, 0) - centre * slope, low, high)
  own = jnp.array([[True], [False], [False], [False]])
  alone = Map(jnp.ones((4, 2)), jnp.zeros((4, 2)), jnp.zeros((4, 2)), jnp.where(own, size, 0))
  return jax.tree.map(lambda one, other: jnp.where(coin < probability, one, other), found, alone)


# Moving pictures and what is known of them.


def _movable(batch):
  """What `_moved` takes."""
  names = ("image", "size", "boxes", "labels", "crowd", "masks", "proposals")
  return {name: batch[name] for name in names if name in batch}


def _moved(sources, maps, quarter):
  """K pictures each put together in one.

  Args:
    sources: "image" [B, K, H, W, 3] float32, pictures of "size" [B, K, 2]; "boxes" [B, K, G, 4] and all else that goes
      with them, as `_movable` has it.
    maps: a Map of [B, K, 2].
    quarter: whether of objects' boxes a quarter must be seen.

  Returns:
    {"image": [B, H, W, 3], "boxes": [B, K G, 4], ...} without "size".
  """
  joined = lambda x: x.reshape(x.shape[0], -1, *x.shape[3:])
  over = lambda f: jax.vmap(jax.vmap(f))
  boxes, kept = over(lambda m, boxes: _boxes(m, boxes, quarter))(maps, sources["boxes"])
  kept &= sources["labels"] > 0
  found = {"image": _images(sources["image"], maps, sources["size"]), "boxes": joined(boxes * kept[..., None])}
  found |= {name: joined(sources[name] * kept) for name in ("labels", "crowd")}
  if "masks" in sources:
    found["masks"] = joined(over(_masks)(sources["masks"], maps) & kept[..., None, None])
  if "proposals" in sources:
    moved = over(_boxes)(maps, sources["proposals"])[0]
    sides = moved[..., 2:] - moved[..., :2]
    found["proposals"] = joined(moved * (sides > 0).all(-1, keepdims=True))
  return found


def _boxes(m, boxes, quarter=False):
  """Boxes [N, 4] through a Map, clipped to what is seen; and which of them stay, bool [N]."""
  corners = (boxes.reshape(-1, 2, 2) - m.offset[None, None, ::-1]) / m.slope[None, None, ::-1]
  near, far, low, high = corners.min(1), corners.max(1), m.low[None, ::-1], m.high[None, ::-1]
  centre = (near + far) / 2
  sides = far - near
  near, far = jnp.clip(near, low, high), jnp.clip(far, low, high)
  seen = far - near
  kept = ((centre >= low) & (centre <= high) & (seen >= 1)).all(-1)
  if quarter:
    kept &= seen.prod(-1) >= VISIBLE * sides.prod(-1)
  return jnp.concatenate([near, far], -1), kept


def _images(images, maps, sizes):
  """Images [B, K, H, W, C] through maps, bilinear with antialias, summed over K: [B, H, W, C]."""
  weigh = lambda axis: jax.vmap(jax.vmap(lambda m, size: _weights(m, axis, images.shape[2 + axis], size)))(maps, sizes)
  b, k, h, w, c = images.shape
  rows = jnp.matmul(weigh(0), images.reshape(b, k, h, w * c), precision=lax.Precision.HIGHEST)
  return jnp.einsum("bkjx,bkixc->bijc", weigh(1), rows.reshape(b, k, h, w, c), precision=lax.Precision.HIGHEST)


def _weights(m, axis, n, size):
  """[n, n], what each output pixel takes of the source's `size` pixels along an axis; zeros where nothing is seen."""
  places, seen = _places(m, axis, n)
  pixels = jnp.arange(n, dtype=jnp.float32)
  apart = jnp.abs(places[:, None] - 0.5 - pixels[None]) / jnp.maximum(jnp.abs(m.slope[axis]), 1)
  hats = jnp.maximum(1 - apart, 0) * (pixels < size[axis])[None]
  return hats * (seen / jnp.maximum(hats.sum(1), 1e-6))[:, None]


def _places(m, axis, n):
  """Places in the source of the centres of n pixels along an axis, [n] float32; and which are seen, bool [n]."""
  centres = jnp.arange(n, dtype=jnp.float32) + 0.5
  return m.slope[axis] * centres + m.offset[axis], (centres >= m.low[axis]) & (centres < m.high[axis])


def _masks(masks, m):
  """Masks [G, H, W] bool through a Map, the nearest pixel."""
  index = lambda places, n: jnp.clip(places, 0, n - 1).astype(jnp.int32)
  (y, rows), (x, columns) = (_places(m, axis, n) for axis, n in enumerate(masks.shape[1:]))
  # Without the barrier XLA works the indices out anew for every pixel of every mask: 20 times as slow on CPUs.
  y, x, rows, columns = lax.optimization_barrier((index(y, masks.shape[1]), index(x, masks.shape[2]), rows, columns))
  found = masks.at[:, y[:, None], x[None]].get(mode="promise_in_bounds")
  return found & (rows[:, None] & columns[None])[None]
