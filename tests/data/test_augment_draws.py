"""Augmentation: how the kinds go together, and draws that depend on the example's index alone."""

import functools
import itertools

import jax
import numpy as np
import pytest
from augmenting import EVERY, GEOMETRIC, KEY, MEAN, STD, batch_of, matrices, only, resampled, run, scaled
from jax.sharding import PartitionSpec as P

from flaxonomy.configs.base import Augment, Data
from flaxonomy.data import augment
from flaxonomy.train import loop, step
from flaxonomy.train.sharding import DATA

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
