"""Batches of annotated images against loops over their objects, and the truth that detections are judged by."""

import functools
import json
import pickle
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from feeds import failure
from PIL import Image
from scene_files import (
  CLASSES,
  FORMATS,
  PICTURES,
  SIZE,
  as_coco,
  assert_same,
  by_name,
  config_of,
  evaluated,
  image_of,
  opened,
  put,
)

from flaxonomy.configs.base import Data, Scenes
from flaxonomy.data import pipeline, scenes
from flaxonomy.errors import DataError, UserError
from flaxonomy.train import workdir

pytestmark = pytest.mark.usefixtures("timely")


@pytest.fixture(autouse=True)
def voc_classes(monkeypatch):
  """VOC's own classes would be all twenty."""
  monkeypatch.setattr("flaxonomy.data.datasets.voc.CLASSES", ())


@pytest.fixture
def written(tmp_path):
  """A function: format -> the config of a folder in it."""
  return functools.partial(config_of, tmp_path)


# What a batch holds.


@pytest.mark.parametrize("fit, short", [("stretch", None), ("contain", None), ("contain", 12)])
def test_batches_are_what_was_written(fit, short, written):
  config = written("coco_json", fit=fit, scenes__short_side=short)
  info, feed = opened(config)
  assert info == pipeline.Info("coco_json", CLASSES, (*SIZE, 3), 4, categories=(3, 7, 9))
  for name, row in by_name(feed.read(range(4)), feed.texts(range(4))).items():
    (height, width), objects = PICTURES[name]
    scale = min(SIZE[0] / height, SIZE[1] / width, *([short / min(height, width)] if short else []))
    tall, wide = SIZE if fit == "stretch" else (int(height * scale + 1e-9), int(width * scale + 1e-9))
    assert row["size"].tolist() == [tall, wide]
    np.testing.assert_allclose(row["scale"], [tall / height, wide / width], rtol=1e-6)
    want = np.zeros((*SIZE, 3), np.uint8)
    want[:tall, :wide] = image_of(name).resize((wide, tall), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(row["image"], want)
    count = len(objects)
    assert row["labels"].tolist() == [1 + thing[0] for thing in objects] + [0] * (4 - count)
    assert row["mask"] == 1
    assert not row["crowd"].any()
    ratio = np.array([wide / width, tall / height] * 2)
    boxes = np.array([thing[1:] for thing in objects]).reshape(-1, 4) * ratio
    np.testing.assert_allclose(row["boxes"][:count], boxes, rtol=1e-6)
    assert not row["boxes"][count:].any()
    masks = np.unpackbits(row["masks"], axis=-1)[..., : SIZE[1]]
    y, x = (np.arange(tall) + 0.5) / tall * height, (np.arange(wide) + 0.5) / wide * width
    for mask, (_, x1, y1, x2, y2) in zip(masks, objects):
      inside = (y[:, None] >= y1) & (y[:, None] < y2) & (x >= x1) & (x < x2)
      np.testing.assert_array_equal(mask[:tall, :wide], inside)
      assert not mask[tall:].any()
      assert not mask[:, wide:].any()
    assert not masks[count:].any()


@pytest.mark.parametrize("name", ["voc_xml", "yolo_txt"])
def test_all_formats_give_the_same(name, written):
  (_, want), (info, feed) = opened(written("coco_json")), opened(written(name))
  assert info.class_names == CLASSES
  one, other = want.read(range(4)), feed.read(range(4))
  np.testing.assert_allclose(one.pop("boxes"), other.pop("boxes"), rtol=1e-6, atol=1e-5)
  assert_same(one, other)
  for one, other in zip(want.texts(range(4)), feed.texts(range(4)), strict=True):
    assert (one["height"], one["width"]) == (other["height"], other["width"])
    np.testing.assert_allclose(one["boxes"], other["boxes"], rtol=1e-6, atol=1e-5)
    for key in ("labels", "area", "masks"):
      np.testing.assert_array_equal(one[key], other[key])


def test_resident_and_streamed_batches_are_the_same(written):
  fields = {"fit": "contain", "scenes__objects": 2}
  (_, one), (_, other) = (
    opened(written("coco_json", on_device=held, **fields), batch_size=3) for held in (True, False)
  )
  assert one.resident
  assert not other.resident
  assert_same(evaluated(one), evaluated(other))
  take = lambda feed: [
    jax.device_get(feed.fetch(feed.resident, jax.tree.map(lambda x: x[0], item)))
    for item in feed.train_items(((i, 1) for i in range(3)), 1)
  ]
  for a, b in zip(take(one), take(other), strict=True):
    assert_same(a, b)


def test_readers_go_to_other_processes(written):
  config = written("yolo_txt")
  source, info = scenes.open_split(config, "train")
  reader = scenes.SceneReader(source, info, config)
  assert_same(pickle.loads(pickle.dumps(reader))(1), reader(1))


def test_the_largest_are_kept(written, capsys):
  _, feed = opened(written("coco_json", scenes__objects=2))
  row = by_name(feed.read(range(4)), feed.texts(range(4)))["c"]
  assert row["labels"].tolist() == [1, 3]
  assert [len(truth["labels"]) for truth in feed.texts(range(4)) if truth["height"] == 24] == [3]
  feed.read(range(4))
  lines = [line for line in capsys.readouterr().err.splitlines() if "data.scenes.objects" in line]
  assert len(lines) == 1
  assert "1 of 4 images have 1 objects more than data.scenes.objects, 2" in lines[0]


def test_proposals(written, monkeypatch):
  told = lambda image, most: np.array([[0, 0, *image.shape[1::-1]], [1, 2, 3, 4], [5, 5, 6, 6]], np.float32)[:most]
  monkeypatch.setitem(sys.modules, "flaxonomy.data.proposals", types.SimpleNamespace(proposals=told))
  monkeypatch.setattr("flaxonomy.data.proposals", types.SimpleNamespace(proposals=told), raising=False)
  _, feed = opened(written("coco_json", fit="contain", scenes__proposals=4))
  for row in (feed.read([i]) for i in range(4)):
    (tall, wide), (y, x) = row["size"][0], row["scale"][0]
    np.testing.assert_allclose(row["proposals"][0, 0], [0, 0, wide, tall], rtol=1e-6)
    np.testing.assert_allclose(row["proposals"][0, 1], [x, 2 * y, 3 * x, 4 * y], rtol=1e-6)
    assert row["proposals"][0, 2].any()
    assert not row["proposals"][0, 3].any()


def test_slices_share_no_image(written):
  config = written("coco_json")
  held = [
    {truth["image_id"] for truth in opened(config, split)[1].texts(range(2))}
    for split in ("train[:50%]", "train[50%:]")
  ]
  assert held[0] | held[1] == {100, 101, 102, 103}


# Truth.


def test_truth(written, tmp_path):
  config = written("coco_json", scenes__objects=1)
  info, feed = opened(config)
  truth = {t["image_id"]: t for t in feed.texts(range(4))}
  assert truth.keys() == {100, 101, 102, 103}
  c = truth[102]
  assert (c["height"], c["width"]) == (24, 24)
  assert c["boxes"].tolist() == [[0, 0, 24, 6], [4, 8, 8, 24], [10, 10, 22, 16]]
  assert c["labels"].tolist() == [1, 2, 3]
  assert c["area"].tolist() == [144, 64, 72]
  assert [mask.sum() for mask in c["masks"]] == [144, 64, 72]
  assert c["masks"][1][8:24, 4:8].all()
  assert truth[101]["boxes"].shape == (0, 4)
  assert truth[101]["masks"] == []
  kinds = {key: x.dtype for key, x in c.items() if isinstance(x, np.ndarray)}
  assert kinds == {"boxes": np.float32, "labels": np.int32, "crowd": bool, "area": np.float32}


def test_given_areas_and_crowds(tmp_path):
  as_coco(tmp_path / "x", area=5.5, iscrowd=1)
  config = Data("coco_json", data_dir=str(tmp_path / "x"), image_size=SIZE, scenes=Scenes(objects=4))
  _, feed = opened(config)
  truth = next(t for t in feed.texts(range(4)) if t["image_id"] == 102)
  assert truth["area"].tolist() == [5.5] * 3
  assert truth["crowd"].all()
  assert truth["masks"] is None
  assert by_name(feed.read(range(4)), feed.texts(range(4)))["c"]["crowd"].tolist() == [True] * 3 + [False]


def test_photos_that_lie_on_their_side(tmp_path):
  """The header tells the same size as the pixels."""
  exif = Image.Exif()
  for turned in (1, 3, 6, 8):
    exif[0x0112] = turned
    path = tmp_path / f"{turned}.jpg"
    Image.fromarray(np.zeros((8, 20, 3), np.uint8)).save(path, exif=exif)
    assert scenes._extent(path) == scenes._extent(path.read_bytes()) == ((20, 8) if turned in (6, 8) else (8, 20))


# What cannot be.


@pytest.mark.parametrize(
  "fields, words",
  [
    ({"fit": "cover"}, "'data.fit' must be 'stretch' or 'contain'"),
    ({"image_size": None}, "set config field 'data.image_size'"),
    ({"image_size": (0, 4)}, "'data.image_size' must be positive"),
    ({"channels": 1}, "'data.channels' must be 3"),
    ({"mean": (1.0, 2.0)}, "'data.mean' has 2 entries"),
    ({"crop_size": (4, 4)}, "'data.crop_size'"),
    ({"scenes__objects": 0}, "'data.scenes.objects' must be 1 or more"),
    ({"scenes__short_side": 8}, "needs data.fit 'contain'"),
  ],
)
def test_fields_that_cannot_be(fields, words, written):
  assert words in failure(lambda: scenes.open_split(written("yolo_txt", **fields), "train"), UserError, 2)


def test_other_classes_than_in_training(written):
  trained = pipeline.Info("x", ("bus", "cat"), (*SIZE, 3), 4)
  message = failure(lambda: scenes.open_split(written("coco_json"), "train", trained), UserError, 2)
  assert "has other classes than that of training: 3 (bus, cat, dog), not 2 (bus, cat)" in message


def test_names_that_are_not_there(tmp_path):
  near = failure(lambda: scenes.open_split(Data("coco_jsn", data_dir=str(tmp_path)), "train"), UserError, 2)
  assert "unknown dataset 'coco_jsn'; did you mean 'coco_json'" in near
  assert "'folder'" not in near
  assert "no single image with a sequence of objects" in failure(
    lambda: scenes.open_split(Data("digits"), "train"), UserError, 2
  )
  for name in FORMATS:
    for folder in (None, str(tmp_path / "none")):
      failure(lambda name=name, folder=folder: scenes.open_split(Data(name, data_dir=folder), "train"), UserError, 2)


def test_skipping(written, capsys):
  """A scene that cannot be read: another stands in for it, and its truth is empty."""
  config = written("yolo_txt")
  info, feed = opened(config)
  sizes = [(t["height"], t["width"]) for t in feed.texts(range(4))]
  bad = sizes.index(PICTURES["c"][0])
  path = put(Path(config.data_dir) / "labels/train/c.txt", "0 nan 0.5 0.1 0.1")
  message = failure(lambda: opened(config))
  assert message.startswith(f"example {bad} of split 'train' of dataset 'yolo_txt': {str(path)!r}: line 1 must be")
  config.on_error = "skip"
  for held in (True, False):
    config.on_device = held
    _, feed = opened(config)
    whole = evaluated(feed)
    assert np.flatnonzero(whole["mask"] == 0).tolist() == [bad]
    assert not whole["labels"][bad].any()
    (item,) = feed.train_items([(0, 1)], 1)
    batch = jax.device_get(feed.fetch(feed.resident, jax.tree.map(lambda x: x[0], item)))
    assert batch["mask"].all()
    assert bad not in batch["index"]
    truth = feed.texts(range(4))
    assert (truth[bad]["height"], len(truth[bad]["boxes"])) == (0, 0)
    assert sum(t["height"] > 0 for t in truth) == 3
  assert "of at most 1)" in capsys.readouterr().err


def test_workdirs_keep_the_categories(tmp_path, tiny):
  info = pipeline.Info("x", CLASSES, (*SIZE, 3), 4, categories=(3, 7, 9))
  workdir.create(tmp_path, tiny(), info)
  assert workdir.load_info(tmp_path) == info
  saved = json.loads((tmp_path / "data.json").read_text())
  put(tmp_path / "data.json", {key: x for key, x in saved.items() if key != "categories"})
  assert workdir.load_info(tmp_path) == info._replace(categories=())
  for wrong in ([1, 2], ["1", "2", "3"], 5, [1.5, 2, 3]):
    put(tmp_path / "data.json", saved | {"categories": wrong})
    failure(lambda: workdir.load_info(tmp_path), UserError, 2)


def test_images_of_another_size_than_is_said(written):
  config = written("coco_json")
  Image.new("RGB", (9, 9)).save(Path(config.data_dir) / "train2020/c.png")
  message = failure(lambda: opened(config), DataError, 3)
  assert "the image is 9 x 9 pixels, not 24 x 24, as is said there" in message
