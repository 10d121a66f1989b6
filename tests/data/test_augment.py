"""Augmentation: what each kind does to the pixels, against NumPy and SciPy."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import scipy.stats
from augmenting import GEOMETRIC, MEAN, STD, batch_of, matrices, only, resampled, run, scaled

from flaxonomy.data import augment

MANY = 2000  # draws
SIZE = (20, 30)


def test_all_off_only_normalises():
  batch = batch_of()
  out = run(batch, {}, MEAN, STD)
  assert out["image"].dtype == np.float32
  np.testing.assert_allclose(out["image"], (scaled(batch) - MEAN) / STD, atol=1e-5)
  np.testing.assert_allclose(augment.normalise(batch["image"], MEAN, STD), (scaled(batch) - MEAN) / STD, atol=1e-5)
  assert out.keys() == batch.keys()
  for key in ("label", "index", "mask"):
    np.testing.assert_array_equal(out[key], batch[key])


def test_normalise_takes_one_mean_for_all_channels():
  batch = batch_of()
  np.testing.assert_allclose(
    augment.normalise(batch["image"], (0.5,), (0.25,)), (scaled(batch) - 0.5) / 0.25, atol=1e-5
  )


@pytest.mark.parametrize("kind, size", [*((kind, (11, 14)) for kind in GEOMETRIC), ("rotate", (8, 8))])
def test_geometry_is_bilinear_resampling(kind, size):
  batch = batch_of(size=size)
  out = run(batch, only(kind))["image"]
  maps = matrices(only(kind), batch["index"], size)
  expected = np.stack([resampled(image, m) for image, m in zip(scaled(batch), maps)])
  np.testing.assert_allclose(out, expected, atol=5e-5)
  assert np.abs(out - scaled(batch)).max() > 0.1, "nothing moved"


def test_affine_turns_shifts_and_enlarges():
  """Maps whose result is known without a resampler."""
  image = np.random.default_rng(0).random((8, 8, 2), np.float32)
  apply = lambda m: np.asarray(augment.affine(image[None], np.array([m], np.float32)))[0]
  np.testing.assert_allclose(apply([[1, 0, 0], [0, 1, 0]]), image, atol=1e-6)
  np.testing.assert_allclose(apply([[0, 1, 0], [-1, 0, 0]]), np.rot90(image, 1), atol=1e-6)  # out(y, x) = in(x, -y)
  np.testing.assert_allclose(apply([[-1, 0, 0], [0, 1, 0]]), image[::-1], atol=1e-6)
  np.testing.assert_allclose(apply([[1, 0, 2], [0, 1, -3]])[:6, 3:], image[2:, :5], atol=1e-6)
  assert not apply([[1, 0, 2], [0, 1, -3]])[6:].any()
  assert not apply([[1, 0, 2], [0, 1, -3]])[:, :3].any()
  half = apply([[1, 0, 0.5], [0, 1, 0]])
  np.testing.assert_allclose(half[:-1], (image[1:] + image[:-1]) / 2, atol=1e-6)
  np.testing.assert_allclose(half[-1], image[-1] / 2, atol=1e-6)  # half of it lies outside


def test_flips_and_crop_copy_pixels():
  """Each result is np.pad, a slice and reversals, exactly; every offset and flip occurs."""
  p, (height, width) = 2, (5, 7)
  batch = batch_of(MANY, (height, width), 1)
  batch["image"][:] = batch["image"][:1]
  out = run(batch, only("crop_padding", "flips"))["image"]
  levels = np.rint(out * 255)
  np.testing.assert_allclose(out, levels / 255, atol=1e-7)
  padded = np.pad(batch["image"][0], ((p, p), (p, p), (0, 0)))
  places = list(itertools.product(range(2 * p + 1), range(2 * p + 1), (1, -1), (1, -1)))
  known = {padded[y : y + height, x : x + width][::v, ::h].tobytes(): (y, x, v, h) for y, x, v, h in places}
  assert len(known) == 100, "the offsets cannot be told apart"
  drawn = np.array([known[image.astype(np.uint8).tobytes()] for image in levels])
  assert len(np.unique(drawn, axis=0)) == 100
  for column, values in zip(drawn.T, (5, 5, 2, 2)):
    assert scipy.stats.chisquare(np.unique(column, return_counts=True)[1]).pvalue > 1e-3
    assert len(np.unique(column)) == values
  assert abs(np.corrcoef(drawn.T) - np.eye(4)).max() < 0.1  # independent of each other


@pytest.mark.parametrize("kind, axis", [("flip_horizontal", 2), ("flip_vertical", 1)])
def test_one_flip_leaves_the_other_axis(kind, axis):
  batch = batch_of(64)
  out = run(batch, only(kind))["image"]
  as_is = np.isclose(out, scaled(batch), atol=1e-6).all((1, 2, 3))
  flipped = np.isclose(out, np.flip(scaled(batch), axis), atol=1e-6).all((1, 2, 3))
  assert (as_is ^ flipped).all()
  assert 16 < flipped.sum() < 48


def uniform(values, low, high):
  """Whether the values look drawn from [low, high] evenly."""
  assert low <= values.min() + 1e-5
  assert values.max() <= high + 1e-5
  return scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue > 1e-3


def test_rotation_is_uniform_and_keeps_distances():
  maps = matrices(only("rotate"), range(MANY), SIZE)
  np.testing.assert_allclose(maps[:, :2, :2] @ maps[:, :2, :2].mT, np.broadcast_to(np.eye(2), (MANY, 2, 2)), atol=1e-6)
  assert not maps[:, :2, 2].any()
  assert (np.linalg.det(maps) > 0).all()
  assert uniform(np.rad2deg(np.arctan2(maps[:, 1, 0], maps[:, 0, 0])), -20, 20)


def test_translation_is_a_share_of_each_side():
  maps = matrices(only("translate"), range(MANY), SIZE)
  np.testing.assert_array_equal(maps[:, :2, :2], np.broadcast_to(np.eye(2), (MANY, 2, 2)))
  assert uniform(maps[:, 0, 2], -2, 2)
  assert uniform(maps[:, 1, 2], -3, 3)
  assert abs(np.corrcoef(maps[:, 0, 2], maps[:, 1, 2])[0, 1]) < 0.1


def test_scale_enlarges_above_one():
  maps = matrices(only("scale"), range(MANY), SIZE)
  zoom = 1 / maps[:, 0, 0]
  np.testing.assert_allclose(maps, np.stack([np.diag([1 / z, 1 / z, 1]) for z in zoom]), atol=1e-6)
  assert uniform(zoom, 0.8, 1.3)
  batch = batch_of(8)
  batch["image"][:] = 0
  batch["image"][:, 4:7, 5:9] = 255
  grown = run(batch, {"scale": (1.5, 2.0)})["image"].sum((1, 2, 3)) / scaled(batch).sum((1, 2, 3))
  assert ((grown > 1.5) & (grown < 4.5)).all()


def test_random_resized_crop_has_the_area_and_aspect_of_the_paper():
  (height, width), (least, most) = SIZE, (0.08, 0.4)  # so small that no crop meets a border
  maps = matrices({"random_resized_crop": (least, most)}, range(MANY), SIZE)
  h, w, shift = maps[:, 0, 0] * height, maps[:, 1, 1] * width, maps[:, :2, 2]
  assert not maps[:, [0, 1], [1, 0]].any()
  assert uniform(h * w / (height * width), least, most)
  assert uniform(np.log(w / h), -np.log(4 / 3), np.log(4 / 3))
  assert uniform(shift[:, 0] / (height - h), -0.5, 0.5)
  assert uniform(shift[:, 1] / (width - w), -0.5, 0.5)


def test_random_resized_crop_stays_inside():
  maps = matrices({"random_resized_crop": (0.5, 1.0)}, range(MANY), SIZE)
  for side, scale, shift in ((20, maps[:, 0, 0], maps[:, 0, 2]), (30, maps[:, 1, 1], maps[:, 1, 2])):
    assert (np.abs(shift) + scale * side / 2 <= side / 2 + 1e-4).all()
    assert (scale <= 1).all()


def test_brightness_adds_and_contrast_stretches_about_the_mean():
  batch = batch_of(512, (4, 5), low=100, high=150)
  x = scaled(batch)
  offset = (run(batch, only("brightness"))["image"] - x).reshape(512, -1)
  assert np.ptp(offset, axis=1).max() < 1e-6
  assert uniform(offset[:, 0], -0.1, 0.1)
  centred = x - x.mean((1, 2, 3), keepdims=True)
  out = run(batch, only("contrast"))["image"]
  factor = ((out - x.mean((1, 2, 3), keepdims=True)) * centred).sum((1, 2, 3)) / (centred**2).sum((1, 2, 3))
  np.testing.assert_allclose(out, centred * factor[:, None, None, None] + x.mean((1, 2, 3), keepdims=True), atol=1e-6)
  assert uniform(factor, 0.7, 1.3)
  assert abs(np.corrcoef(offset[:, 0], factor)[0, 1]) < 0.15


def test_colour_is_clipped():
  batch = batch_of(64)
  out = run(batch, {"brightness": 0.3})["image"]
  assert out.min() == 0
  assert out.max() == 1
  offset = np.median(out - scaled(batch), (1, 2, 3), keepdims=True)
  np.testing.assert_allclose(out, np.clip(scaled(batch) + offset, 0, 1), atol=1e-6)


def test_saturation_blends_with_grey():
  batch = batch_of(512, (4, 5), low=100, high=150)
  x = scaled(batch)
  grey = (x @ [0.299, 0.587, 0.114])[..., None]
  out = run(batch, {"saturation": 0.4})["image"]
  factor = ((out - grey) * (x - grey)).sum((1, 2, 3)) / ((x - grey) ** 2).sum((1, 2, 3))
  np.testing.assert_allclose(out, grey + factor[:, None, None, None] * (x - grey), atol=1e-6)
  assert uniform(factor, 0.6, 1.4)


def test_colour_components_are_added_to_every_pixel():
  batch = batch_of(MANY, (2, 3), low=110, high=140)
  added = run(batch, {"color_pca": 0.1})["image"] - scaled(batch)
  assert np.ptp(added, axis=(1, 2)).max() < 1e-6
  components = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])
  drawn = np.linalg.solve(components, added[:, 0, 0].T).T / [0.2175, 0.0188, 0.0045]
  for column in drawn.T:
    assert scipy.stats.kstest(column, scipy.stats.norm(0, 0.1).cdf).pvalue > 1e-3
  assert abs(np.corrcoef(drawn.T) - np.eye(3)).max() < 0.1


def test_colours_are_changed_in_the_documented_order_and_clipped_once():
  settings = {"brightness": 0.3, "contrast": 0.5, "saturation": 0.9, "color_pca": 1.0}
  plain = batch_of(16, low=124, high=133)  # nothing is clipped here, so that the draws can be read
  batch = batch_of(16) | {"index": plain["index"]}
  x, mean = scaled(plain), scaled(plain).mean((1, 2, 3), keepdims=True)
  fit = lambda out, start, base: ((out - base) * (start - base)).sum((1, 2, 3)) / ((start - base) ** 2).sum((1, 2, 3))
  of = lambda **kind: run(plain, kind)["image"]
  column = lambda v: v[:, None, None, None]
  grey = lambda x: (x @ [0.299, 0.587, 0.114])[..., None]
  contrast, saturation = column(fit(of(contrast=0.5), x, mean)), column(fit(of(saturation=0.9), x, grey(x)))
  offset = (of(brightness=0.3) - x).mean((1, 2, 3), keepdims=True)
  colour = (of(color_pca=1.0) - x).mean((1, 2), keepdims=True)

  x, mean = scaled(batch), scaled(batch).mean((1, 2, 3), keepdims=True)
  x = (x - mean) * contrast + mean + offset
  x = np.clip((x - grey(x)) * saturation + grey(x) + colour, 0, 1)
  out = run(batch, settings)["image"]
  assert ((out == 0) | (out == 1)).mean() > 0.05
  np.testing.assert_allclose(out, x, atol=2e-4)


@pytest.mark.parametrize("side", [1, 4, 5, 99])
def test_cutout_is_a_square_of_zeros_after_normalisation(side):
  height, width = 8, 6
  batch = batch_of(MANY, (height, width), low=1, high=100)
  plain, out = (run(batch, settings, (0.5,), (0.25,))["image"] for settings in ({}, {"cutout": side}))
  hole = (out == 0).all(-1)
  np.testing.assert_array_equal(out, np.where(hole[..., None], 0, plain))
  assert (plain != 0).all()

  def intervals(n):
    """Every run of pixels that a square centred inside can cover, by its centre."""
    return [tuple(c - side // 2 <= i < c - side // 2 + side for i in range(n)) for c in range(n)]

  allowed = {np.outer(v, h).tobytes() for v in intervals(height) for h in intervals(width)}
  found = {x.tobytes() for x in hole}
  assert found == allowed
  if side <= 5:
    assert hole.sum((1, 2)).max() == side**2


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_shares_are_beta(alpha):
  mix = run(batch_of(MANY, (1, 1), 1), {"mixup": alpha})["mix"]
  assert ((mix >= 0) & (mix <= 1)).all()
  assert scipy.stats.kstest(mix, scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3
  assert abs(mix.mean() - 0.5) < 0.03
  assert abs(mix.var() * 4 * (2 * alpha + 1) - 1) < 0.1


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_mixup_mixes_with_the_next_example(devices):
  batch = batch_of()
  out = run(batch, only("mixup"), devices=devices)
  share = out["mix"][:, None, None, None]
  np.testing.assert_allclose(
    out["image"], share * scaled(batch) + (1 - share) * np.roll(scaled(batch), -1, 0), atol=1e-6
  )
  np.testing.assert_array_equal(out["label2"], np.roll(batch["label"], -1))
  np.testing.assert_array_equal(out["label"], batch["label"])
  assert len(np.unique(out["mix"])) == 8
