"""Augmentation of scenes: pictures against PIL, boxes and masks against pictures, rules against loops in NumPy."""

import colorsys
import functools
import itertools

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from PIL import Image

from flaxonomy.configs.base import Augment, Data
from flaxonomy.data import augment, scene_augment
from flaxonomy.errors import UserError
from flaxonomy.train import loop, step
from flaxonomy.train.sharding import DATA

KEY = jax.random.PRNGKey(7)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
SIZE = (40, 45)  # not divisible by 8
MOVED = {"zoom_out": 2.0, "scale": (0.7, 1.6), "translate": 0.1, "flip_horizontal": True}
EVERY = MOVED | {
  "iou_crop": True, "mosaic": 0.5, "brightness": 0.1, "contrast": 0.3, "saturation": 0.3, "hue": 0.1
}  # fmt: skip


def scenes(count=16, size=SIZE, seed=0, least=6):
  """Three rectangles each, one in each channel at 250 on 50, in pictures that fill a part of their canvases."""
  r = np.random.default_rng(seed)
  sizes = np.stack([r.integers(2 * n // 3, n + 1, count) for n in size], 1).astype(np.int32)
  image, masks = np.zeros((count, *size, 3), np.uint8), np.zeros((count, 4, *size), bool)
  boxes, labels = np.zeros((count, 4, 4), np.float32), np.zeros((count, 4), np.int32)
  for b, (height, width) in enumerate(sizes):
    image[b, :height, :width] = 50
    for k in range(3):
      h, w = r.integers(least, height // 2), r.integers(least, width // 2)
      y, x = r.integers(0, height - h + 1), r.integers(0, width - w + 1)
      image[b, y : y + h, x : x + w, k] = 250
      masks[b, k, y : y + h, x : x + w] = True
      boxes[b, k], labels[b, k] = (x, y, x + w, y + h), 1 + k
  return {
    "image": image, "size": sizes, "boxes": boxes, "labels": labels, "crowd": np.zeros((count, 4), bool),
    "masks": np.packbits(masks, axis=-1), "proposals": boxes[:, ::-1].copy(), "scale": np.ones((count, 2), np.float32),
    "index": r.permutation(count).astype(np.int32) + 100, "mask": np.ones(count, np.float32),
  }  # fmt: skip


@functools.lru_cache
def compiled(settings, mean, std, devices):
  """The augmentation and, where there is no mosaic, the maps: together, for one compilation."""
  aug = Augment(**dict(settings))
  change = scene_augment.build(Data(augment=aug, mean=mean, std=std), DATA)

  def both(rng, batch):
    examples = batch["size"].astype(np.float32), batch["boxes"], (batch["labels"] > 0) & ~batch["crowd"]
    drawn = jax.vmap(functools.partial(scene_augment._map, aug))(augment.keys_of(rng, batch["index"]), *examples)
    return change(rng, batch), None if aug.mosaic else drawn

  return step.pmapped(both, loop.make_mesh(devices), (P(), P(DATA)), P(DATA))


def run(batch, settings, mean=(0.0,), std=(1.0,), devices=1, rng=KEY):
  return jax.device_get(compiled(tuple(settings.items()), mean, std, devices)(rng, batch)[0])


def maps(batch, settings, mean=(0.0,), std=(1.0,)):
  """The Map of each example, in NumPy: (slope, offset, low, high), (y, x) each."""
  return list(zip(*jax.device_get(compiled(tuple(settings.items()), mean, std, 1)(KEY, batch)[1])))


def extent(inside):
  """x1 y1 x2 y2 around the pixels of [H, W] bool."""
  rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
  return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def beside(batch):
  """[B, H, W] bool, what no picture covers."""
  y, x = np.indices(batch["image"].shape[1:3])
  return (y >= batch["size"][:, 0, None, None]) | (x >= batch["size"][:, 1, None, None])


def within(size, low, high, by=0):
  """[H, W] bool, pixels whose centres are between two corners (y, x), and so far from their borders."""
  centres = np.indices(size) + 0.5
  return ((centres >= low[:, None, None] + by) & (centres < high[:, None, None] - by)).all(0)


@pytest.mark.parametrize("change", [scene_augment.prepared, None], ids=["prepared", "augment"])
def test_nothing_but_normalisation(change):
  batch = scenes()
  batch["crowd"][:, 1] = True
  config = Data(mean=MEAN, std=STD)
  out = jax.device_get(jax.jit(functools.partial(change, config))(batch)) if change else run(batch, {}, MEAN, STD)
  normal = (batch["image"] / 255 - MEAN) / STD
  normal[beside(batch)] = 0
  assert out["image"].dtype == np.float32
  np.testing.assert_allclose(out["image"], normal, atol=1e-5)
  np.testing.assert_array_equal(out["masks"], np.unpackbits(batch["masks"], axis=-1)[..., : SIZE[1]])
  learned = batch["labels"] if change else np.where(batch["crowd"], 0, batch["labels"])
  np.testing.assert_array_equal(out["labels"], learned)
  assert out.keys() == batch.keys()
  for name in ("boxes", "crowd", "proposals", "size", "scale", "index", "mask"):
    np.testing.assert_array_equal(out[name], batch[name])


# Where pictures, boxes and masks go.


def shown(picture, slope, offset, size):
  """PIL's picture [H, W, 3] of what a map without a flip shows, averaged where it shrinks."""
  margin = 90
  padded = np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
  y, x = offset + margin
  box = (x, y, x + slope[1] * size[1], y + slope[0] * size[0])
  resized = lambda channel: Image.fromarray(channel).resize((size[1], size[0]), Image.Resampling.BILINEAR, box=box)
  return np.stack([np.asarray(resized(padded[..., c].astype(np.float32))) for c in range(3)], -1)


def test_pictures_are_resized_as_pil_does():
  batch = scenes(32, seed=1)
  batch["image"] = np.random.default_rng(1).integers(0, 256, batch["image"].shape, dtype=np.uint8)
  settings = {"scale": (0.3, 3.0), "flip_horizontal": True}
  out = run(batch, settings, MEAN, STD)["image"]
  assert not out[beside(batch)].any()
  flipped = smaller = 0
  found = maps(batch, settings, MEAN, STD)
  for image, picture, (height, width), (slope, offset, low, high) in zip(out, batch["image"], batch["size"], found):
    image = image[:height, :width]
    if slope[1] < 0:
      image, flipped = image[:, ::-1], flipped + 1
      slope, offset = np.abs(slope), np.array([offset[0], offset[1] + slope[1] * width])
      low, high = np.array([low[0], width - high[1]]), np.array([high[0], width - low[1]])
    assert abs(slope[0] - slope[1]) < 1e-5
    normal = (picture[:height, :width] / 255 - MEAN) / STD
    expected = shown(normal, slope, offset, (height, width))
    inside = within((height, width), low, high, 3 if slope[0] > 1 else 0)  # PIL averages over what is put around
    np.testing.assert_allclose(image[inside], expected[inside], atol=1e-4)
    assert not image[~within((height, width), low, high)].any()
    smaller += slope[0] > 1 and inside.sum() > 20
  assert 8 < flipped < 24
  assert 4 < smaller < 20


@pytest.mark.parametrize("crop", [False, True])
def test_boxes_and_masks_move_with_their_objects(crop):
  batch = scenes(64, seed=2)
  out = run(batch, MOVED | {"iou_crop": crop})
  high = (out["image"] - 50 / 255) / (200 / 255) > 0.5
  kept = out["labels"] > 0
  assert 60 < kept.sum() < 3 * 64, "some are left, some are not"
  for b, k in zip(*np.nonzero(kept)):
    box, mask = out["boxes"][b, k], out["masks"][b, k]
    assert out["labels"][b, k] == 1 + k
    assert box.min() >= 0
    assert (box[2:] <= batch["size"][b, ::-1] + 1e-4).all()
    if (box[2:] - box[:2]).min() < 3:
      continue
    np.testing.assert_allclose(extent(high[b, ..., k]), box, atol=1.01)
    np.testing.assert_allclose(extent(mask), box, atol=1.01)
    assert (high[b, ..., k] ^ mask).sum() <= 2 * (box[2:] - box[:2]).sum()  # but for the border
    np.testing.assert_allclose(out["proposals"][b, 3 - k], box, atol=1e-4)  # the same boxes, from last to first
  assert not out["boxes"][~kept].any()
  assert not out["masks"][~kept].any()
  sides = out["proposals"][..., 2:] - out["proposals"][..., :2]
  assert ((sides > 0).all(-1) | ~out["proposals"].any(-1)).all()


@pytest.mark.parametrize("crop", [False, True])
def test_objects_go_by_the_documented_rule(crop):
  """Centre seen, a pixel seen, and without a crop a quarter; boxes much longer than what is seen, and thin ones."""
  batch = scenes(64, seed=3)
  r = np.random.default_rng(3)
  centres, sides = r.uniform(0, 27, (64, 4, 2)), np.exp(r.uniform(np.log(0.7), np.log(300), (64, 4, 2)))
  batch["boxes"] = np.concatenate([centres - sides / 2, centres + sides / 2], -1).astype(np.float32)
  batch["labels"][:], batch["crowd"][:, 2] = 5, True
  settings = MOVED | {"iou_crop": crop}
  out = run(batch, settings)
  told = {"centre": 0, "pixel": 0, "quarter": 0}
  for b, (slope, offset, low, high) in enumerate(maps(batch, settings)):
    for k, (x1, y1, x2, y2) in enumerate(batch["boxes"][b].astype(np.float64)):
      near, far = np.sort((np.array([[y1, x1], [y2, x2]]) - offset) / slope, axis=0)
      seen_near, seen_far = np.clip(near, low, high), np.clip(far, low, high)
      seen, centre = seen_far - seen_near, (near + far) / 2
      margins = np.concatenate([centre - low, high - centre, seen - 1, [seen.prod() / (far - near).prod() - 0.25]])
      if np.abs(margins[: None if not crop else -1]).min() < 1e-3:
        continue  # rounding decides
      stays = {"centre": margins[:4].min() > 0, "pixel": seen.min() >= 1, "quarter": crop or margins[-1] > 0}
      for name in told:
        told[name] += not stays[name] and all(good for other, good in stays.items() if other != name)
      box = np.concatenate([seen_near[::-1], seen_far[::-1]]) if all(stays.values()) else np.zeros(4)
      np.testing.assert_allclose(out["boxes"][b, k], box, atol=2e-4)
      assert out["labels"][b, k] == (5 if all(stays.values()) and k != 2 else 0)
      assert out["crowd"][b, k] == (all(stays.values()) and k == 2)
  assert min(told["centre"], told["pixel"]) > 5
  assert crop or told["quarter"] > 5


def test_flips_copy_pixels():
  batch = scenes(64, seed=4)
  out = run(batch | {"other": batch["index"]}, {"flip_horizontal": True})
  np.testing.assert_array_equal(out["other"], batch["index"])  # no key of scenes
  whole = jax.device_get(scene_augment.prepared(Data(), batch))
  flipped = 0
  for b, width in enumerate(batch["size"][:, 1]):
    image, masks, boxes = (whole[name][b].copy() for name in ("image", "masks", "boxes"))
    if not np.array_equal(out["boxes"][b], boxes):
      flipped += 1
      image[:, :width], masks[..., :width] = image[:, :width][:, ::-1], masks[..., :width][..., ::-1]
      boxes[:3] = boxes[:3][:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [width, 0, width, 0]
    np.testing.assert_allclose(out["image"][b], image, atol=1e-6)
    np.testing.assert_array_equal(out["masks"][b], masks)
    np.testing.assert_array_equal(out["boxes"][b], boxes)
  assert 16 < flipped < 48


def test_zoom_out_shows_all_on_the_mean_colour():
  batch = scenes(256, (24, 27), seed=5, least=5)
  settings = {"zoom_out": 4.0}
  out = run(batch, settings, MEAN, STD)
  ratios = []
  for b, (slope, offset, low, high) in enumerate(maps(batch, settings, MEAN, STD)):
    size = batch["size"][b]
    assert ((offset <= 1e-5) & (offset + slope * size >= size - 1e-3)).all(), "the picture lies within"
    np.testing.assert_allclose((high - low) * slope, size, atol=1e-3)
    ratios.append(slope[0])
    seen = within(out["image"].shape[1:3], low, high)
    assert not out["image"][b][~seen].any()
    assert (out["image"][b][seen] != 0).all()
    expected = (batch["boxes"][b, :3] - np.tile(offset[::-1], 2)) / slope[0]
    np.testing.assert_allclose(out["boxes"][b, :3], expected, atol=1e-3)
  ratios = np.array(ratios)
  assert 96 < (ratios == 1).sum() < 160
  assert abs(ratios[ratios > 1].mean() - 2.5) < 0.3
  assert (out["labels"] == batch["labels"]).all()


def iou(a, b):
  sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
  common = sides.clip(0).prod()
  return common / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - common)


def test_crops_overlap_an_object_as_promised():
  """Trial after trial in NumPy, with the same draws, as torchvision has it; what is cut off is not seen again."""
  batch = scenes(300, (24, 30), seed=6, least=5)
  batch["labels"][:, 0], batch["crowd"][:, 1] = 0, True  # one object is left
  batch["labels"][:20] = 0
  draws = jax.vmap(lambda i: augment.uniform(jax.random.fold_in(KEY, i), "iou_crop", (161,)))(batch["index"])
  taken = []
  for b, (slope, offset, low, high) in enumerate(maps(batch, {"iou_crop": True, "scale": (0.5, 0.5)})):
    size, box = batch["size"][b].astype(np.float64), batch["boxes"][b, 2]
    least = [0, 0.1, 0.3, 0.5, 0.7, 0.9, None][int(draws[b][0] * 7)]
    part, trial = np.array([0, 0, *size]), None
    for i, (share, place) in enumerate(np.asarray(draws[b], np.float64)[1:].reshape(40, 2, 2)):
      sides = (0.3 + 0.7 * share) * size
      start = place * (size - sides)
      inside = (start < (box[1::-1] + box[:1:-1]) / 2).all() and ((box[1::-1] + box[:1:-1]) / 2 < start + sides).all()
      found = np.concatenate([start, start + sides])
      if b < 20 or least is None or not 0.5 <= sides[0] / sides[1] <= 2 or not inside:
        continue
      if iou(box[[1, 0, 3, 2]], found) >= least:
        part, trial = found, i
        break
    taken.append(trial)
    np.testing.assert_allclose(slope * size, 2 * (part[2:] - part[:2]), atol=1e-3)
    np.testing.assert_allclose(np.concatenate([low, high]) * np.tile(slope, 2) + np.tile(offset, 2), part, atol=1e-3)
  assert taken[:20] == [None] * 20
  assert 50 < taken[20:].count(None) < 250
  assert len(set(taken)) > 8


# Colour.


def turned(pixel, by):
  h, s, v = colorsys.rgb_to_hsv(*pixel.astype(float))
  return colorsys.hsv_to_rgb((h + by) % 1, s, v)


def test_hue_is_that_of_hsv():
  r = np.random.default_rng(8)
  images, turns = r.random((4, 5, 6, 3), np.float32), r.uniform(-0.5, 0.5, 4).astype(np.float32)
  images[0, 0], images[0, 1, :, 1], images[1, 0] = 0.3, images[0, 1, :, 0], [1, 0, 0]  # grey, two alike, pure
  expected = [[[turned(pixel, by) for pixel in row] for row in image] for image, by in zip(images, turns)]
  np.testing.assert_allclose(jax.jit(scene_augment.hue)(images, turns), expected, atol=1e-5)


def test_colours_are_those_of_the_picture():
  """Contrast about the picture's mean, not the canvas's, then saturation, then hue; the canvas stays zero."""
  batch = {name: x for name, x in scenes(8, seed=9).items() if name not in ("masks", "proposals")}
  settings = {"brightness": 0.1, "contrast": 0.4, "saturation": 0.4, "hue": 0.2}
  out = run(batch, settings, MEAN, STD)["image"]
  assert not out[beside(batch)].any()
  kinds = ("brightness", "contrast", "saturation", "hue")
  one = lambda i: {kind: augment.uniform(jax.random.fold_in(KEY, i), kind, (), -1, 1) for kind in kinds}
  drawn = jax.device_get(jax.jit(jax.vmap(one))(batch["index"]))
  for b, (height, width) in enumerate(batch["size"]):
    brightness, contrast, saturation, turn = (drawn[kind][b] for kind in kinds)
    x = batch["image"][b, :height, :width] / 255
    x = (x - x.mean()) * (1 + 0.4 * contrast) + x.mean() + 0.1 * brightness
    grey = (x @ [0.299, 0.587, 0.114])[..., None]
    x = np.clip((x - grey) * (1 + 0.4 * saturation) + grey, 0, 1)
    x = np.reshape([turned(pixel, 0.2 * turn) for pixel in x.reshape(-1, 3)], x.shape)
    np.testing.assert_allclose(out[b, :height, :width], (x - np.array(MEAN)) / STD, atol=1e-4)


# Mosaic.


def test_mosaics_are_of_the_next_three():
  """Each picture is of a colour of its own with a brighter object, so that all is told from the picture."""
  count = 32
  batch = scenes(count, seed=10)
  batch["labels"][:, 0] = 1 + np.arange(count)
  batch["labels"][:, 1:] = 0
  y, x = np.indices(SIZE)
  objects = np.unpackbits(batch["masks"][:, 0], axis=-1)[..., : SIZE[1]].astype(bool)
  shade = 5 * np.arange(count)[:, None, None] + 20
  batch["image"][:] = np.where(beside(batch), 0, shade + 50 * objects)[..., None]
  out = run(batch, {"mosaic": 0.5})
  assert out["labels"].shape == out["crowd"].shape == (count, 16)
  assert out["boxes"].shape == out["proposals"].shape == (count, 16, 4)
  assert out["masks"].shape == (count, 16, *SIZE)
  image, made = np.rint(out["image"][..., 0] * 255).astype(int), []
  for b, (height, width) in enumerate(batch["size"]):
    partners = [(b + k) % count for k in range(4)]
    whole = np.array_equal(out["masks"][b, 0], objects[b]) and not out["labels"][b, 1:].any()
    made.append(not whole)
    if whole:
      np.testing.assert_array_equal(image[b], batch["image"][b, ..., 0])
      np.testing.assert_array_equal(out["boxes"][b, 0], batch["boxes"][b, 0])
      continue
    for (y, x), i in zip(itertools.product((0, height - 1), (0, width - 1)), partners):
      assert 0 <= image[b, y, x] - shade[i, 0, 0] <= 50
    assert (image[b][~beside(batch)[b]] > 0).all(), "the quarters are covered"
    for k in np.flatnonzero(out["labels"][b]):
      i, box, mask = partners[k // 4], out["boxes"][b, k], out["masks"][b, k]
      assert (k % 4, out["labels"][b, k]) == (0, 1 + i)
      np.testing.assert_allclose(extent(mask), box, atol=1.01)
      x1, y1, x2, y2 = np.rint(box).astype(int)
      core = image[b, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2]
      assert (core == shade[i, 0, 0] + 50).all(), "bright where the box is"
  assert 8 < sum(made) < 24
  assert ((out["labels"] > 0).sum(1)[made] > 1).all()


# What the draws depend on.


def alike(one, other):
  assert one.keys() == other.keys()
  for name in one:
    if name == "masks":  # a pixel on the border between two may round either way
      assert (one[name] ^ other[name]).mean() < 1e-4
    else:
      np.testing.assert_allclose(other[name], one[name], atol=2e-4, rtol=0)


def test_devices_do_not_change_the_batch():
  batch = scenes(4, seed=11)
  alike(*(run(batch, EVERY, MEAN, STD, devices) for devices in (1, 4)))  # four of one each: partners from three others


def test_position_in_the_batch_does_not_matter():
  """With all kinds if the neighbours stay, for mosaics; without those in any order."""
  batch = scenes(4, seed=11)
  moved = lambda batch, order: {name: x[order] for name, x in batch.items()}
  alike(moved(run(batch, EVERY, MEAN, STD), [3, 0, 1, 2]), run(moved(batch, [3, 0, 1, 2]), EVERY, MEAN, STD))
  batch, order = scenes(64, seed=12), np.random.default_rng(0).permutation(64)
  settings = MOVED | {"iou_crop": True}
  one = run(batch, settings)
  alike(moved(one, order), run(moved(batch, order), settings))
  batch = {name: x if name == "index" else np.broadcast_to(x[:1], x.shape) for name, x in batch.items()}
  batch["index"][1] = batch["index"][0]
  one, again = (run(batch, settings, rng=jax.random.PRNGKey(i))["image"] for i in (8, 9))
  np.testing.assert_array_equal(one[0], one[1])  # the same example twice
  assert np.mean([np.abs(a - b).max() > 0.01 for a, b in zip(one, again)]) > 0.95


@pytest.mark.parametrize(
  "settings, line",
  [
    ({"rotate": 5.0}, r"data\.augment\.rotate.* not for scenes.*iou_crop"),
    ({"mixup": 0.2}, r"data\.augment\.mixup"),
    ({"random_resized_crop": (0.5, 1.0)}, r"data\.augment\.random_resized_crop"),
    ({"zoom_out": 0.5}, r"data\.augment\.zoom_out.* at least 1"),
  ],
)
def test_what_scenes_do_not_have_is_an_error(settings, line):
  with pytest.raises(UserError, match=line):
    scene_augment.build(Data(augment=Augment(**settings)), DATA)


def test_every_field_is_either_for_scenes_or_refused():
  assert set(scene_augment.KINDS) | set(scene_augment.OTHERS) == set(vars(Augment()))
