"""Crops to the size that the model sees, in training: exact parts, resampled regions, and how they go with the rest."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from jax.sharding import PartitionSpec as P

from flaxonomy.configs.base import Augment, Data
from flaxonomy.data import augment
from flaxonomy.train import loop, step
from flaxonomy.train.sharding import DATA

KEY = jax.random.PRNGKey(3)
MANY = 2000
SIZE, CROP = (12, 15), (7, 10)
OTHERS = {"scale": (0.8, 1.3), "rotate": 20.0, "translate": 0.1, "flip_horizontal": True}  # in the order of the maps


def batch_of(count=8, size=SIZE, channels=3):
  r = np.random.default_rng(0)
  return {
    "image": r.integers(0, 256, (count, *size, channels), dtype=np.uint8),
    "label": r.integers(0, 10, count, dtype=np.int32),
    "index": r.permutation(count).astype(np.int32) + 100,
    "mask": np.ones(count, np.float32),
  }


def run(batch, crop_size, devices=1, **settings):
  function = augment.build(Data(crop_size=crop_size, augment=Augment(**settings)), DATA)
  mapped = step.pmapped(function, loop.make_mesh(devices), (P(), P(DATA)), P(DATA))
  return jax.device_get(mapped(KEY, batch))


def matrices(settings, index, size=SIZE, crop_size=CROP):
  """The affine maps [n, 3, 3] drawn for some examples."""
  one = lambda i: augment._matrix(Augment(**settings), jax.random.fold_in(KEY, i), size, crop_size)
  drawn = np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(index)), np.float64)
  return np.concatenate([drawn, np.broadcast_to([[[0.0, 0.0, 1.0]]], (len(drawn), 1, 3))], 1)


def resampled(image, matrix, size):
  """SciPy's bilinear resampling of an image [H, W, C] to a size, through a map between the centres, zeros outside."""
  inner, outer = (np.array(image.shape[:2]) - 1) / 2, (np.array(size) - 1) / 2
  offset = inner + matrix[:2, 2] - matrix[:2, :2] @ outer
  channels = [
    scipy.ndimage.affine_transform(c, matrix[:2, :2], offset, size, order=1, mode="grid-constant", prefilter=False)
    for c in np.moveaxis(image, -1, 0)
  ]
  return np.stack(channels, -1)


@pytest.mark.parametrize(
  "size, crop_size, padding, flips",
  [((6, 7), (4, 4), 0, True), ((6, 5), (3, 5), 0, False), ((4, 5), (4, 5), 1, False), ((4, 5), (6, 6), 1, False)],
  ids=str,
)
def test_parts_are_exact_and_every_one_as_likely(size, crop_size, padding, flips):
  """Brute force: np.pad, every slice, reversals."""
  batch = batch_of(MANY, size, 1)
  batch["image"][:] = batch["image"][:1]
  out = run(batch, crop_size, crop_padding=padding, flip_horizontal=flips)["image"]
  assert out.shape == (MANY, *crop_size, 1)
  levels = np.rint(out * 255)
  np.testing.assert_allclose(out, levels / 255, atol=1e-7)
  padded = np.pad(batch["image"][0], ((padding, padding), (padding, padding), (0, 0)))
  rooms = [range(n - c + 1) for n, c in zip(padded.shape, crop_size)]
  places = list(itertools.product(*rooms, (1, -1) if flips else (1,)))
  known = {padded[y : y + crop_size[0], x : x + crop_size[1]][:, ::h].tobytes(): (y, x, h) for y, x, h in places}
  assert len(known) == len(places), "the places cannot be told apart"
  drawn = [known[image.astype(np.uint8).tobytes()] for image in levels]
  counts = np.unique(drawn, axis=0, return_counts=True)[1]
  assert len(counts) == len(places)
  assert scipy.stats.chisquare(counts).pvalue > 1e-3


def test_the_whole_image_is_left_alone():
  batch = batch_of()
  np.testing.assert_array_equal(run(batch, SIZE)["image"], run(batch, None)["image"])


@pytest.mark.parametrize("settings", [{}, {"random_resized_crop": (0.3, 1.0), "rotate": 9.0}], ids=["part", "area"])
def test_devices_and_places_in_the_batch_do_not_matter(settings):
  batch, order = batch_of(), np.array([3, 1, 7, 0, 6, 2, 5, 4])
  one = run(batch, CROP, **settings)["image"]
  assert one.shape == (8, *CROP, 3)
  for devices in (2, 4):
    np.testing.assert_allclose(run(batch, CROP, devices, **settings)["image"], one, atol=1e-6 if settings else 0)
  shuffled = run({key: x[order] for key, x in batch.items()}, CROP, 2, **settings)["image"]
  np.testing.assert_allclose(shuffled, one[order], atol=1e-6 if settings else 0)


def test_a_random_area_is_resampled_to_the_size():
  batch, settings = batch_of(), {"random_resized_crop": (0.2, 0.8), "flip_horizontal": True}
  maps = matrices(settings, batch["index"])
  expected = np.stack([resampled(image / 255, m, CROP) for image, m in zip(batch["image"], maps)])
  np.testing.assert_allclose(run(batch, CROP, **settings)["image"], expected, atol=5e-5)


def test_a_random_area_is_one_of_the_stored_image():
  """Its area is a share of the stored image's, whatever the size that the model sees."""
  least, most, (height, width) = 0.08, 0.4, (20, 30)  # so small that no region meets a border
  maps = matrices({"random_resized_crop": (least, most)}, range(MANY), (height, width), CROP)
  h, w, shift = maps[:, 0, 0] * CROP[0], maps[:, 1, 1] * CROP[1], np.abs(maps[:, :2, 2])
  assert scipy.stats.kstest(h * w / (height * width), scipy.stats.uniform(least, most - least).cdf).pvalue > 1e-3
  assert scipy.stats.kstest(np.log(w / h), scipy.stats.uniform(-np.log(4 / 3), 2 * np.log(4 / 3)).cdf).pvalue > 1e-3
  assert (shift[:, 0] + h / 2 <= height / 2 + 1e-4).all()
  assert (shift[:, 1] + w / 2 <= width / 2 + 1e-4).all()
  assert shift[:, 0].max() > 0.6 * height / 2
  np.testing.assert_allclose(  # the same region at another size
    matrices({"random_resized_crop": (least, most)}, range(8), (height, width), None)[:, :2, 2], maps[:8, :2, 2]
  )


def test_other_changes_act_on_a_random_part():
  """One map is the part's and then the others', each with the draw that it has alone."""
  index = batch_of()["index"]
  part = matrices({}, index)
  np.testing.assert_array_equal(part[:, :2, :2], np.broadcast_to(np.eye(2), (8, 2, 2)))
  assert len(np.unique(part[:, :2, 2], axis=0)) > 4
  assert (np.abs(part[:, :2, 2]) <= (np.array(SIZE) - CROP) / 2).all()
  alone = [matrices({kind: value}, index, CROP, None) for kind, value in OTHERS.items()]
  maps = matrices(OTHERS, index)
  np.testing.assert_allclose(maps, functools.reduce(np.matmul, [part, *alone]), atol=1e-4)
  batch = batch_of()
  expected = np.stack([resampled(image / 255, m, CROP) for image, m in zip(batch["image"], maps)])
  np.testing.assert_allclose(run(batch, CROP, **OTHERS)["image"], expected, atol=5e-5)


def test_mixup_and_cutout_of_parts():
  batch = batch_of()
  out = run(batch, CROP, 2, cutout=3, mixup=0.4)
  plain, share = run(batch, CROP, cutout=3)["image"], out["mix"][:, None, None, None]
  assert ((plain == 0).all(-1).sum((1, 2)) >= 4).all()
  np.testing.assert_allclose(out["image"], share * plain + (1 - share) * np.roll(plain, -1, 0), atol=1e-6)


def test_affine_to_another_size_keeps_the_centre():
  image = np.random.default_rng(0).random((1, 6, 9, 2), np.float32)
  same = np.eye(3, dtype=np.float32)[None, :2]
  of = lambda size, **how: np.asarray(augment.affine(image, same, size=size, **how))
  np.testing.assert_allclose(of((4, 5)), image[:, 1:5, 2:7], atol=1e-6)
  np.testing.assert_array_equal(of((4, 5), interpolate=False), image[:, 1:5, 2:7])
  np.testing.assert_array_equal(of((8, 11), interpolate=False), np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0))))
  np.testing.assert_allclose(of((5, 9)), (image[:, :5] + image[:, 1:]) / 2, atol=1e-6)  # the centre is between rows
