"""Annotated images: one truth written in every format, and batches against loops over its objects."""

import json
import pickle
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow_datasets as tfds
from feeds import failure
from PIL import Image

from flaxonomy.configs.base import Data, Scenes
from flaxonomy.data import pipeline, scenes, sources
from flaxonomy.data.datasets import coco, digit_scenes, pictures
from flaxonomy.errors import DataError, UserError
from flaxonomy.train import loop, workdir

pytestmark = pytest.mark.usefixtures("timely")
CLASSES = ("bus", "cat", "dog")
PICTURES = {  # {name: ((height, width), [(class, x1, y1, x2, y2)])}, boxes that do not overlap
  "a": ((20, 30), [(1, 2, 3, 10, 15), (2, 12, 0, 30, 20)]),
  "b": ((40, 16), []),
  "c": ((24, 24), [(0, 0, 0, 24, 6), (1, 4, 8, 8, 24), (2, 10, 10, 22, 16)]),
  "d": ((9, 50), [(2, 1, 1, 49, 8)]),
}
SIZE = (32, 40)


def image_of(name) -> Image.Image:
  """Random pixels; they survive PNG."""
  size = PICTURES[name][0]
  return Image.fromarray(np.random.default_rng(ord(name)).integers(0, 256, (*size, 3), np.uint8))


def put(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text if isinstance(text, str) else json.dumps(text))
  return path


def pictures_in(folder):
  folder.mkdir(parents=True)
  for name in PICTURES:
    image_of(name).save(folder / f"{name}.png")


def numbered(name) -> Image.Image:
  """Each object's box, filled with its number."""
  size, objects = PICTURES[name]
  pixels = np.zeros(size, np.uint8)
  for i, (_, x1, y1, x2, y2) in enumerate(objects, 1):
    pixels[y1:y2, x1:x2] = i
  return Image.fromarray(pixels)


def as_coco(root, **changes):
  pictures_in(root / "train2020")
  things, ids = [], {name: 100 + i for i, name in enumerate(PICTURES)}
  for name, (_, objects) in PICTURES.items():
    for label, x1, y1, x2, y2 in objects:
      outline = [[x1, y1, x2, y1, x2, y2, x1, y2]]
      thing = {"id": len(things), "image_id": ids[name], "category_id": (3, 7, 9)[label], "segmentation": outline}
      things.append(thing | {"bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0} | changes)
  listed = [
    {"id": ids[name], "file_name": f"{name}.png", "height": size[0], "width": size[1]}
    for name, (size, _) in PICTURES.items()
  ]
  categories = [{"id": 9, "name": "dog"}, {"id": 3, "name": "bus"}, {"id": 7, "name": "cat"}]
  put(root / "annotations/captions_train2020.json", {})
  put(root / "annotations/instances_train2020.json",
      {"images": listed[::-1], "annotations": things, "categories": categories})  # fmt: skip


def as_voc(root):
  pictures_in(root / "JPEGImages")
  (root / "SegmentationObject").mkdir()
  for name, ((height, width), objects) in PICTURES.items():
    numbered(name).save(root / "SegmentationObject" / f"{name}.png")
    told = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    for label, x1, y1, x2, y2 in objects:
      edges = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
      told += f"<object><name>{CLASSES[label]}</name><difficult>0</difficult><bndbox>{edges}</bndbox></object>"
    put(root / "Annotations" / f"{name}.xml", f"<annotation><filename>x.jpg</filename>{told}</annotation>")
  put(root / "ImageSets/Main/train.txt", "\n".join(PICTURES))


def as_yolo(root, outlines=True):
  pictures_in(root / "images/train")
  for name, ((height, width), objects) in PICTURES.items():
    lines = []
    for label, x1, y1, x2, y2 in objects:
      x1, x2, y1, y2 = x1 / width, x2 / width, y1 / height, y2 / height
      box, outline = ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), (x1, y1, x2, y1, x2, y2, x1, y2)
      lines.append(" ".join(map(repr, (label, *(outline if outlines else box)))))
    if lines:
      put(root / "labels/train" / f"{name}.txt", "\n".join(lines))
  put(root / "data.yaml", "train: images/train\nnames:\n  0: bus\n  1: cat  # of any kind\n  2: 'dog'\n")


FORMATS = {"coco_json": as_coco, "voc_xml": as_voc, "yolo_txt": as_yolo}


@pytest.fixture(autouse=True)
def voc_classes(monkeypatch):
  """VOC's own classes would be all twenty."""
  monkeypatch.setattr("flaxonomy.data.datasets.voc.CLASSES", ())


@pytest.fixture
def written(tmp_path):
  """A function: format -> the config of a folder in it."""

  def make(name, **fields) -> Data:
    if not (tmp_path / name).exists():
      FORMATS[name](tmp_path / name)
    of = {key.removeprefix("scenes__"): fields.pop(key) for key in list(fields) if key.startswith("scenes__")}
    of = Scenes(**{"objects": 4, "masks": True} | of)
    return Data(name, data_dir=str(tmp_path / name), **{"image_size": SIZE, "scenes": of} | fields)

  return make


def opened(config, split="train", batch_size=4, trained=None):
  source, info = scenes.open_split(config, split, trained)
  return info, scenes.open_feed(config, source, info, 3, batch_size, loop.make_mesh(1))


def evaluated(feed) -> dict:
  batches = [jax.device_get(feed.fetch(feed.resident, item)) for item in feed.eval_items()]
  return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def assert_same(one, other):
  assert one.keys() == other.keys()
  for key in one:
    assert one[key].dtype == other[key].dtype, key
    np.testing.assert_array_equal(one[key], other[key], err_msg=key)


def by_name(batch, truths) -> dict:
  """Rows of a batch by the picture that they are of, told by its size."""
  sizes = {size: name for name, (size, _) in PICTURES.items()}
  rows = {sizes[truth["height"], truth["width"]]: i for i, truth in enumerate(truths)}
  return {name: {key: x[i] for key, x in batch.items()} for name, i in rows.items()}


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


# Sources.


@pytest.fixture
def digits(tmp_path, monkeypatch) -> dict:
  monkeypatch.setattr(digit_scenes, "COUNTS", {"train": 5, "test": 3})
  return {"name": "digit_scenes/64", "data_dir": str(tmp_path / "tfds")}


def test_digit_scenes(digits):
  """As they are drawn, without a size to be named."""
  info, feed = opened(Data(**digits, scenes=Scenes(objects=8, masks=True)), "test")
  assert info == pipeline.Info("digit_scenes/64", digit_scenes.NAMES, (64, 64, 3), 3)
  batch = feed.read(range(3))
  assert sorted(truth["image_id"] for truth in feed.texts(range(3))) == [0, 1, 2]
  for row, truth in enumerate(feed.texts(range(3))):
    found = digit_scenes.scene("test", truth["image_id"], 64)
    count = len(found.objects)
    boxes = np.array([thing.box for thing in found.objects])[:, [1, 0, 3, 2]]
    np.testing.assert_array_equal(batch["image"][row], found.image)
    np.testing.assert_array_equal(batch["boxes"][row, :count], boxes)
    np.testing.assert_array_equal(truth["boxes"], boxes)
    assert batch["labels"][row, :count].tolist() == [1 + thing.label for thing in found.objects]
    assert truth["area"].tolist() == [thing.area for thing in found.objects]
    for k in range(count):
      np.testing.assert_array_equal(np.unpackbits(batch["masks"][row, k], axis=-1), found.instances == k + 1)
  assert batch["size"].tolist() == [[64, 64]] * 3
  assert batch["scale"].tolist() == [[1, 1]] * 3


class LikeCoco(tfds.core.GeneratorBasedBuilder):
  """The features of TFDS's COCO and VOC."""

  VERSION = tfds.core.Version("1.0.0")
  NAMES = ["person", *map(str, range(78)), "toothbrush"]

  def _info(self):
    label = tfds.features.ClassLabel(names=self.NAMES)
    one = {"bbox": tfds.features.BBoxFeature(), "label": label, "is_difficult": np.bool_, "is_truncated": np.bool_}
    features = {"image": tfds.features.Image(), "image/id": np.int64, "objects": tfds.features.Sequence(one)}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for name, ((height, width), objects) in PICTURES.items():
      things = [
        {"bbox": tfds.features.BBox(y1 / height, x1 / width, y2 / height, x2 / width), "label": 9 * label,
         "is_difficult": label == 2, "is_truncated": True}
        for label, x1, y1, x2, y2 in objects
      ]  # fmt: skip
      yield name, {"image": pictures.png(np.asarray(image_of(name))), "image/id": 1000 + ord(name), "objects": things}


def test_tfds_datasets_like_coco_and_voc(tmp_path, monkeypatch):
  """COCO's classes keep COCO's ids; boxes of TFDS's VOC are counted from 1."""
  builder = LikeCoco(data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare()
  monkeypatch.setattr(sources, "open_builder", lambda *_: builder)
  for name, first in (("coco", 0), ("voc", 1)):
    monkeypatch.setattr(builder, "name", name)
    info, feed = opened(Data(name, image_size=SIZE, scenes=Scenes(objects=4)))
    assert info.categories == coco.IDS
    truths = {truth["image_id"]: truth for truth in feed.texts(range(4))}
    for letter, (size, objects) in PICTURES.items():
      truth = truths[1000 + ord(letter)]
      want = np.array([thing[1:] for thing in objects]).reshape(-1, 4)
      assert (truth["height"], truth["width"]) == size
      np.testing.assert_allclose(truth["boxes"], np.maximum(want - [first, first, 0, 0], 0), atol=1e-5)
      assert truth["labels"].tolist() == [1 + 9 * thing[0] for thing in objects]
      assert truth["crowd"].tolist() == [thing[0] == 2 for thing in objects]
  assert (len(coco.IDS), coco.IDS[0], coco.IDS[11], coco.IDS[-1]) == (80, 1, 13, 90)
  asked = Data("coco", image_size=SIZE, scenes=Scenes(masks=True))
  assert "has no masks" in failure(lambda: scenes.open_split(asked, "train"), UserError, 2)


def test_penn_fudan(tmp_path):
  root = tmp_path / "ped"
  pictures_in(root / "PNGImages")
  (root / "PedMasks").mkdir()
  for name in PICTURES:
    numbered(name).save(root / f"PedMasks/{name}_mask.png")
  config = Data("penn_fudan", data_dir=str(root), image_size=SIZE, scenes=Scenes(objects=4, masks=True))
  truths = []
  for split in ("train", "test"):
    try:
      info, feed = opened(config, split)
    except UserError:
      continue
    assert info.class_names == ("pedestrian",)
    truths += feed.texts(range(info.size))
  held = {(t["height"], t["width"]): t["boxes"].tolist() for t in truths}
  assert held == {size: [list(map(float, thing[1:])) for thing in objects] for size, objects in PICTURES.values()}


def test_real_files(shared_data):
  """COCO's photographs and Penn-Fudan's, whose own text files tell their boxes."""
  root, fields = shared_data / "raw/coco128", {"image_size": (64, 64), "fit": "contain"}
  info, feed = opened(Data("yolo_txt", data_dir=str(root / "object_detection"), **fields), "train[:5%]")
  assert (info.size, len(info.class_names), info.categories) == (5, 80, coco.IDS)
  assert feed.read(range(5))["mask"].all()
  outlined = Data("yolo_txt", data_dir=str(root / "instance_segmentation"), **fields, scenes=Scenes(masks=True))
  info, feed = opened(outlined, "val2017[:5%]")
  assert info.categories == coco.IDS
  batch = feed.read(range(5))
  assert np.unpackbits(batch["masks"], axis=-1).any((2, 3)).sum() >= 0.8 * (batch["labels"] > 0).sum() > 0
  root = shared_data / "raw/penn_fudan"
  source, info = scenes.open_split(Data("penn_fudan", data_dir=str(root), **fields), "test")
  assert 20 < info.size < 50
  for record in (source.records[i] for i in range(5)):
    text = (root / "Annotation" / f"{record['image'].stem}.txt").read_text()
    lines = [line.split(" : ")[1] for line in text.splitlines() if line.startswith("Bounding box")]
    told = [
      [int(x) for x in line.replace("(", " ").replace(")", " ").replace(",", " ").replace("-", " ").split()]
      for line in lines
    ]
    np.testing.assert_allclose(record["objects"].boxes, np.array(told) - [1, 1, 0, 0], atol=2)


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
  path = put(tmp_path_of(config) / "labels/train/c.txt", "0 nan 0.5 0.1 0.1")
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


def tmp_path_of(config):
  return Path(config.data_dir)


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
  Image.new("RGB", (9, 9)).save(tmp_path_of(config) / "train2020/c.png")
  message = failure(lambda: opened(config), DataError, 3)
  assert "the image is 9 x 9 pixels, not 24 x 24, as is said there" in message
