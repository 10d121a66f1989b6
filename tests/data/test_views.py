"""Parts of test images that the model sees, against NumPy's slices and Pillow's resizing; fields that do not fit."""

import jax
import numpy as np
import pytest
from PIL import Image

from flaxonomy.configs import base
from flaxonomy.configs.base import Augment, Data
from flaxonomy.data import augment, images, pipeline, views
from flaxonomy.errors import UserError
from flaxonomy.train import figures, inference

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
BATCH = np.random.default_rng(0).integers(0, 256, (3, 9, 12, 3), dtype=np.uint8)


def normalised(x):
  return (x.astype(np.float64) / 255 - MEAN) / STD


def resized(batch, size):
  """Pillow's bilinear resizing with antialiasing, unrounded."""
  planes = [[Image.fromarray(c.astype(np.float32)) for c in np.moveaxis(image, -1, 0)] for image in batch]
  resize = lambda plane: np.asarray(plane.resize(size[::-1], Image.Resampling.BILINEAR))
  return np.stack([np.stack([resize(plane) for plane in image], -1) for image in planes])


def of(**fields):
  config = Data(mean=MEAN, std=STD, **fields)
  found = views.views(BATCH, config)
  assert len(found) == views.count(config)
  assert {x.dtype.name for x in found} == {"float32"}
  return [np.asarray(x) for x in found]


def test_the_whole_image_is_what_it_was():
  (x,) = of()
  np.testing.assert_array_equal(x, augment.normalise(BATCH, MEAN, STD))
  (x,) = of(crop_size=(9, 12))
  np.testing.assert_array_equal(x, augment.normalise(BATCH, MEAN, STD))


@pytest.mark.parametrize(
  "size, top, left",
  [((5, 6), 2, 3), ((8, 11), 0, 0), ((6, 9), 2, 2), ((9, 1), 0, 6)],  # halves to the even number, as torchvision does
  ids=str,
)
def test_the_centre(size, top, left):
  (x,) = of(crop_size=size)
  part = BATCH[:, top : top + size[0], left : left + size[1]]
  np.testing.assert_array_equal(x, augment.normalise(part, MEAN, STD))


def five(x, h, w):
  """Top left, top right, bottom left, bottom right, centre."""
  height, width = x.shape[1:3]
  top, left = round((height - h) / 2), round((width - w) / 2)
  return [x[:, :h, :w], x[:, :h, -w:], x[:, -h:, :w], x[:, -h:, -w:], x[:, top : top + h, left : left + w]]


def test_ten_are_corners_and_centre_and_their_mirror_images():
  found = of(crop_size=(5, 8), eval_crops=10)
  expected = five(BATCH, 5, 8)
  expected += [np.flip(x, 2) for x in expected]
  for x, part in zip(found, expected, strict=True):
    np.testing.assert_allclose(x, normalised(part), atol=1e-6)
  assert len({x.tobytes() for x in found}) == 10


def test_scales_are_cropped_or_seen_whole():
  scaled = {0.75: resized(BATCH, (7, 9)), 1.0: BATCH, 1.5: resized(BATCH, (14, 18))}  # 6.75 and 13.5 are rounded
  for x, image in zip(of(eval_scales=tuple(scaled)), scaled.values(), strict=True):
    np.testing.assert_allclose(x, normalised(image), atol=2e-5)
  found = of(eval_scales=tuple(scaled), crop_size=(5, 7), eval_crops=10)
  expected = [x for image in scaled.values() for x in (*five(image, 5, 7), *(np.flip(x, 2) for x in five(image, 5, 7)))]
  for i, (x, part) in enumerate(zip(found, expected, strict=True)):
    np.testing.assert_allclose(x, normalised(part), atol=2e-5, err_msg=f"view {i}")


def test_what_a_crop_has_more_than_the_image_is_black():
  (x,) = of(crop_size=(13, 12), augment=Augment(crop_padding=2))
  np.testing.assert_allclose(x, normalised(np.pad(BATCH, ((0, 0), (2, 2), (0, 0), (0, 0)))), atol=1e-6)


def test_views_are_exported_for_any_batch_size():
  config = Data(crop_size=(5, 7), eval_crops=10, eval_scales=(1.0, 1.25))
  (b,) = jax.export.symbolic_shape("b")
  function = jax.jit(lambda images: views.views(images, config))
  exported = jax.export.export(function)(jax.ShapeDtypeStruct((b, 9, 12, 3), np.uint8))
  assert [str(x.shape) for x in exported.out_avals] == ["(b, 5, 7, 3)"] * 20


def test_shape_that_the_model_sees():
  assert views.input_shape(Data(), (9, 12, 3)) == (9, 12, 3)
  assert views.input_shape(Data(crop_size=(5, 7), eval_scales=(2.0,)), (9, 12, 3)) == (5, 7, 3)


MISTAKES = {
  "too large": ({"crop_size": (8, 9)}, ("data.crop_size", "(8, 9)", "(8, 8)", "data.image_size")),
  "with padding": (
    {"crop_size": (13, 9), "augment": Augment(crop_padding=2)},
    ("data.crop_size", "data.image_size", "data.augment.crop_padding 2"),
  ),
  "empty": ({"crop_size": (0, 8)}, ("data.crop_size", "positive")),
  "no parts": ({"eval_crops": 10}, ("data.eval_crops", "set 'data.crop_size'")),
  "small scale": ({"crop_size": (6, 6), "eval_scales": (1.0, 0.5)}, ("data.eval_scales", "(4, 4)", "data.crop_size")),
  "grey saturation": ({"augment": Augment(saturation=0.1)}, ("data.augment.saturation", "3 channels")),
  "grey components": ({"augment": Augment(color_pca=0.1)}, ("data.augment.color_pca", "3 channels")),
}


@pytest.mark.parametrize("fields, words", MISTAKES.values(), ids=MISTAKES)
def test_what_does_not_fit_is_told_when_the_data_is_opened(fields, words):
  with pytest.raises(UserError) as error:
    pipeline.open_split(Data("digits", **fields), "test")
  assert all(word in str(error.value) for word in words)
  assert "\n" not in str(error.value)


def test_what_just_fits():
  for fields in (
    {"crop_size": (8, 8), "eval_crops": 10, "eval_scales": (1.0, 1.1)},
    {"crop_size": (12, 12), "augment": Augment(crop_padding=2)},
    {"crop_size": (4, 4), "eval_scales": (0.5,)},
    {"channels": 3, "augment": Augment(saturation=0.1, color_pca=0.1)},
  ):
    pipeline.open_split(Data("digits", **fields), "test")


@pytest.mark.parametrize("on_device", [True, False])
def test_feeds_fit_as_the_config_says(tmp_path, on_device):
  for i in range(4):
    path = tmp_path / f"test/{'ab'[i % 2]}/{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (9, 14 + i, 3), dtype=np.uint8)).save(path)
  config = Data("folder", str(tmp_path), image_size=(6, 6), fit="cover", on_device=on_device)
  source, info = pipeline.open_split(config, "test")
  mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
  feed = pipeline.open_feed(config, source, info, 0, 4, mesh)
  expected = [
    images.decode(record["image"], 3, (6, 6), "cover") for record in map(source.records.__getitem__, range(4))
  ]
  np.testing.assert_array_equal(feed.read(range(4))["image"], expected)
  assert (
    expected != np.stack([images.decode(r["image"], 3, (6, 6)) for r in map(source.records.__getitem__, range(4))])
  ).any()


def test_preview_shows_what_the_model_sees(tiny, tmp_path, monkeypatch):
  """The first column is the stored images' middle, the others are parts of them, all of one size."""
  sheets = []
  gallery = figures.gallery
  monkeypatch.setattr(figures, "gallery", lambda tiles, *rest: sheets.append(tiles) or gallery(tiles, *rest))
  config = tiny(data__image_size=(20, 20), data__crop_size=(16, 14), data__mean=(0.5,), data__std=(0.5,))
  assert inference.preview(config, tmp_path / "run").is_file()
  source, info = pipeline.open_split(config.data, "train")
  stored = [pipeline.Reader(source, info).example(i)[0] for i in range(8)]
  (tiles,) = sheets
  assert tiles.shape == (64, 16, 14, 1)
  for image, row in zip(stored, tiles.reshape(8, 8, 16, 14, 1)):
    np.testing.assert_array_equal(row[0], image[2:18, 3:17])
    parts = [image[y : y + 16, x : x + 14].astype(int) for y in range(5) for x in range(7)]
    for seen in row[1:]:
      assert min(np.abs(part - seen).max() for part in parts) <= 1  # the picture's levels are cut off
  assert base.validate(config) == config
