"""Annotated images by name: our scenes, datasets of TFDS, Penn-Fudan, and real files where they are."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from feeds import failure
from scene_files import PICTURES, SIZE, image_of, numbered, opened, pictures_in

from flaxonomy.configs.base import Data, Scenes
from flaxonomy.data import pipeline, scenes, sources
from flaxonomy.data.datasets import coco, digit_scenes, pictures
from flaxonomy.errors import UserError

pytestmark = pytest.mark.usefixtures("timely")


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
