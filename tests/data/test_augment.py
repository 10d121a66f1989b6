"""Augmentation: each kind against NumPy and SciPy, and draws that depend on the example's index alone."""

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

KEY = jax.random.PRNGKey(7)
MANY = 2000  # draws
SIZE = (20, 30)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)

EVERY = {
  "random_resized_crop": (0.5, 1.0),
  "crop_padding": 2,
  "rotate": 20.0,
  "translate": 0.1,
  "scale": (0.8, 1.3),
  "flip_horizontal": True,
  "flip_vertical": True,
  "brightness": 0.1,
  "contrast": 0.3,
  "cutout": 5,
  "mixup": 0.4,
}
GEOMETRIC = ["random_resized_crop", "crop_padding", "scale", "rotate", "translate", "flips"]  # in the documented order


def only(*kinds):
  """EVERY's settings of some kinds, "flips" being both."""
  named = {"flips": ("flip_horizontal", "flip_vertical")}
  return {field: EVERY[field] for kind in kinds for field in named.get(kind, (kind,))}


def batch_of(count=8, size=(11, 14), channels=3, low=0, high=256, seed=0):
  """A batch of random examples whose indices are neither sorted nor their positions."""
  r = np.random.default_rng(seed)
  return {
    "image": r.integers(low, high, (count, *size, channels), dtype=np.uint8),
    "label": r.integers(0, 10, count, dtype=np.int32),
    "index": r.permutation(count).astype(np.int32) + 100,
    "mask": np.ones(count, np.float32),
  }


@functools.lru_cache
def compiled(settings, mean, std, devices):
  function = augment.build(Data(augment=Augment(**dict(settings)), mean=mean, std=std), DATA)
  return step.pmapped(function, loop.make_mesh(devices), (P(), P(DATA)), P(DATA))


def run(batch, settings, mean=(0.0,), std=(1.0,), devices=1, rng=KEY):
  return jax.device_get(compiled(tuple(settings.items()), mean, std, devices)(rng, batch))


@functools.lru_cache
def compiled_matrices(settings, size):
  return jax.jit(jax.vmap(lambda i: augment._matrix(Augment(**dict(settings)), jax.random.fold_in(KEY, i), size)))


def matrices(settings, index, size):
  """The affine maps [n, 3, 3] drawn for some examples."""
  drawn = np.asarray(compiled_matrices(tuple(settings.items()), size)(jnp.asarray(index)), np.float64)
  return np.concatenate([drawn, np.broadcast_to([[[0.0, 0.0, 1.0]]], (len(drawn), 1, 3))], 1)


def resampled(image, matrix):
  """SciPy's bilinear resampling of one image [H, W, C] through a map about the centre, zeros outside."""
  centre = (np.array(image.shape[:2]) - 1) / 2
  offset = centre + matrix[:2, 2] - matrix[:2, :2] @ centre
  channels = [
    scipy.ndimage.affine_transform(c, matrix[:2, :2], offset, order=1, mode="grid-constant", prefilter=False)
    for c in np.moveaxis(image, -1, 0)
  ]
  return np.stack(channels, -1)


def scaled(batch):
  return batch["image"].astype(np.float64) / 255


# What each kind does to the pixels.


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


# How the kinds go together.


def test_affine_maps_compose_in_the_documented_order():
  """One map for all is the product of the single ones, so switching one on leaves the others' draws alone."""
  every = matrices(only(*GEOMETRIC), range(8), (11, 14))
  singles = [matrices(only(kind), range(8), (11, 14)) for kind in GEOMETRIC]
  np.testing.assert_allclose(every, functools.reduce(np.matmul, singles), atol=1e-4)
  assert np.abs(every - functools.reduce(np.matmul, singles[::-1])).max() > 0.1, "the order is not seen"


def test_one_map_is_the_single_ones_one_after_another():
  """On a ramp, which bilinear resampling keeps, away from the borders."""
  y, x = np.meshgrid(np.linspace(0, 1, 60), np.linspace(0, 1, 70), indexing="ij")
  ramp = np.broadcast_to(np.stack([y, x, (y + x) / 2], -1).astype(np.float32), (8, 60, 70, 3))
  small = {"random_resized_crop": (0.7, 1.0), "crop_padding": 3, "rotate": 15.0, "translate": 0.05, "scale": (0.9, 1.2)}
  small |= only("flips")
  of = lambda *kinds: {f: small[f] for k in kinds for f in only(k)}
  at_once = augment.affine(ramp, matrices(of(*GEOMETRIC), range(8), (60, 70))[:, :2].astype(np.float32))
  after = ramp
  for kind in GEOMETRIC:
    after = augment.affine(after, matrices(of(kind), range(8), (60, 70))[:, :2].astype(np.float32))
  inside = (slice(None), slice(22, 38), slice(26, 44))
  np.testing.assert_allclose(np.asarray(at_once)[inside], np.asarray(after)[inside], atol=1e-4)
  assert np.abs(np.asarray(after)[inside] - ramp[inside]).max() > 0.1


def test_everything_is_the_kinds_one_after_another():
  """Geometry, contrast, brightness, clipping, normalisation, cutout, mixup; each draw is read from a run of its own."""
  size = (11, 14)
  batch = batch_of(size=size)
  grey = batch_of(size=size, low=100, high=150) | {
    "index": batch["index"]
  }  # nothing is clipped here, so that the draws can be read
  x, centre = scaled(grey), scaled(grey).mean((1, 2, 3), keepdims=True)
  offset = (run(grey, only("brightness"))["image"] - x).mean((1, 2, 3), keepdims=True)
  factor = ((run(grey, only("contrast"))["image"] - centre) / (x - centre)).mean((1, 2, 3), keepdims=True)
  hole = (run(grey, only("cutout"))["image"] == 0).all(-1, keepdims=True)
  mix = run(grey, only("mixup"))["mix"][:, None, None, None]
  maps = functools.reduce(np.matmul, [matrices(only(kind), batch["index"], size) for kind in GEOMETRIC])

  x = np.stack([resampled(image, m) for image, m in zip(scaled(batch), maps)])
  x = np.clip((x - x.mean((1, 2, 3), keepdims=True)) * factor + x.mean((1, 2, 3), keepdims=True) + offset, 0, 1)
  x = np.where(hole, 0, (x - MEAN) / STD)
  x = mix * x + (1 - mix) * np.roll(x, -1, 0)
  np.testing.assert_allclose(run(batch, EVERY, MEAN, STD)["image"], x, atol=1e-3)


# What the draws depend on.


@pytest.mark.parametrize("settings", [EVERY, only("crop_padding", "flip_horizontal", "mixup")], ids=["every", "whole"])
def test_devices_do_not_change_the_batch(settings):
  batch = batch_of()
  one, two, four = (run(batch, settings, MEAN, STD, devices) for devices in (1, 2, 4))
  for other in (two, four):
    assert other.keys() == one.keys()
    for key in one:
      np.testing.assert_allclose(other[key], one[key], atol=1e-6, rtol=0)


@pytest.mark.parametrize("devices", [1, 4])
def test_position_in_the_batch_does_not_matter(devices):
  batch, order = batch_of(), np.array([3, 1, 7, 0, 6, 2, 5, 4])
  shuffled = {key: x[order] for key, x in batch.items()}
  settings = {k: v for k, v in EVERY.items() if k != "mixup"}
  one, other = (run(b, settings, devices=devices)["image"] for b in (batch, shuffled))
  np.testing.assert_allclose(other, one[order], atol=1e-6, rtol=0)
  one, other = (run(b, EVERY, devices=devices)["mix"] for b in (batch, shuffled))
  np.testing.assert_array_equal(other, one[order])  # the share stays; the partner is another


def test_index_and_key_both_matter():
  batch = batch_of()
  batch["image"][:], batch["index"][1] = batch["image"][0], batch["index"][0]
  settings = {k: v for k, v in EVERY.items() if k != "mixup"}
  x = run(batch, settings)["image"]
  np.testing.assert_array_equal(x[0], x[1])  # the same example twice
  assert all(np.abs(a - b).max() > 0.05 for a, b in itertools.combinations(x[1:], 2))
  y = run(batch, settings, rng=jax.random.PRNGKey(8))["image"]
  assert all(np.abs(a - b).max() > 0.05 for a, b in zip(x, y))
  np.testing.assert_array_equal(run(batch, settings)["image"], x)


def test_compiled_once():
  traces = []
  function = augment.build(Data(augment=Augment(**EVERY)), DATA)

  def counted(rng, batch):
    traces.append(batch["image"].dtype)
    return function(rng, batch)

  mapped = step.pmapped(counted, loop.make_mesh(2), (P(), P(DATA)), P(DATA))
  outs = [mapped(jax.random.PRNGKey(i), batch_of(seed=i)) for i in range(3)]
  assert traces == [np.uint8]
  assert {out["image"].dtype.name for out in outs} == {"float32"}
  assert all(np.isfinite(out["image"]).all() for out in outs)


def test_grey_images_too():
  out = run(batch_of(channels=1), EVERY)["image"]
  assert out.shape == (8, 11, 14, 1)
  assert out.std() > 0.05


def test_every_kind_has_a_key_of_its_own():
  known = ("crop", "area", "rotate", "translate", "scale", "flip", "brightness", "contrast", "cutout", "mixup")
  assert augment._KINDS[:10] == known, "the places of these are in every run that has been made"
  keys = [augment._key(KEY, kind) for kind in augment._KINDS]
  assert len({np.asarray(key).tobytes() for key in [KEY, *keys]}) == len(keys) + 1
