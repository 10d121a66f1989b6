"""Files of annotations by themselves: what is read of them, and what is refused in one line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from feeds import failure
from PIL import Image

from flaxonomy.configs.base import Data, Scenes
from flaxonomy.data import annotated, masks, scenes
from flaxonomy.data.datasets import annotations, penn_fudan, voc, yolo
from flaxonomy.errors import DataError, UserError

pytestmark = pytest.mark.usefixtures("timely")


# Boxes.


@pytest.mark.parametrize(
  "box, words",
  [
    ((2, 2, 2, 5), "is empty"),
    ((5, 2, 2, 5), "is empty"),
    ((2, 2, 30, 5), "lies outside"),
    ((-9, 2, 4, 5), "lies outside"),
    ((21, 2, 22, 5), "is empty"),
    ((math.nan, 2, 4, 5), "lies outside"),
    ((2, 2, math.inf, 5), "lies outside"),
  ],
)
def test_boxes_that_are_none(box, words):
  told = annotations.annotation("'x.json'", [(0, 0, 1, 1), box], [1, 1])
  message = failure(lambda: annotations.placed(told, 10, 20, 1))
  assert message.startswith("'x.json': the box (")
  assert "of object 2 " + words in message


def test_boxes_are_cut_at_the_edge():
  told = annotations.annotation("x", [(-1.5, 0, 20.5, 10)], [2])
  assert annotations.placed(told, 10, 20, 2).boxes.tolist() == [[0, 0, 20, 10]]
  assert "class is none of the 1" in failure(lambda: annotations.placed(told, 10, 20, 1))
  assert "10,001 objects" in failure(lambda: annotations.annotation("x", np.zeros((10_001, 4)), [1] * 10_001))


# COCO.

GOOD = {
  "images": [{"id": 1, "file_name": "a.png", "height": 8, "width": 8}],
  "annotations": [{"id": 5, "image_id": 1, "category_id": 1, "bbox": [1, 1, 3, 3], "area": 9, "iscrowd": 0}],
  "categories": [{"id": 1, "name": "thing"}],
}


def folder(root: Path, told, name="train.json", at="a.png") -> Data:
  (root / at).parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", (8, 8)).save(root / at)
  text = told if isinstance(told, bytes) else json.dumps(told).encode()
  (root / name).parent.mkdir(parents=True, exist_ok=True)
  (root / name).write_bytes(text)
  return Data("coco_json", data_dir=str(root), image_size=(8, 8))


def row_of(config, split="train"):
  """The first example as a reader makes it, or the line in which it ends."""
  source, info = scenes.open_split(config, split)
  return scenes.SceneReader(source, info, config).arrays(0)


def changed(**fields):
  return GOOD | {"annotations": [GOOD["annotations"][0] | fields]}


def pictured(**fields):
  return GOOD | {"images": [GOOD["images"][0] | fields]}


def test_a_good_file(tmp_path):
  row = row_of(folder(tmp_path, GOOD))
  assert (row["boxes"][0].tolist(), row["labels"][:2].tolist()) == ([1, 1, 4, 4], [1, 0])


@pytest.mark.parametrize(
  "told, words",
  [
    (b"", "is no JSON"),
    (b"{", "is no JSON"),
    (b"\xff\xfe\x00", "is no JSON"),
    (b"[" * 100_000, "is no JSON"),
    (b'{"images": ' + b"9" * 5000 + b"}", "is no JSON"),
    (b"[]", "has no lists"),
    (GOOD | {"annotations": {}}, "has no lists"),
    (GOOD | {"images": [3]}, "has no lists"),
    (GOOD | {"categories": []}, "categories must have names"),
    (GOOD | {"categories": GOOD["categories"] * 2}, "categories must have names"),
    (GOOD | {"categories": [{"id": 1, "name": 2}]}, "categories must have names"),
    (GOOD | {"categories": [{"id": "1", "name": "thing"}]}, "an id must be a whole number"),
    (GOOD | {"images": GOOD["images"] * 2}, "two images have one id"),
    (GOOD | {"images": [*GOOD["images"], GOOD["images"][0] | {"id": 2}]}, "lists an image more than once"),
    (pictured(id=2**80), "an id must be a whole number"),
    (pictured(file_name="../a.png"), "within the folder"),
    (pictured(file_name="x/../../a.png"), "within the folder"),
    (pictured(file_name="..\\a.png"), "within the folder"),
    (pictured(file_name="/etc/a.png"), "within the folder"),
    (pictured(file_name="C:\\a.png"), "within the folder"),
    (pictured(file_name="a\0.png"), "within the folder"),
    (pictured(file_name=None), "within the folder"),
    (pictured(file_name="b.png"), "image 'b.png' is not there"),
    (pictured(height=9), "the image is 8 x 8 pixels, not 8 x 9"),
    (changed(image_id=7), "annotation 5 is of image 7"),
    (changed(image_id=[1]), "annotation 5 is of image [1]"),
    (changed(category_id=2), "category_id 2 is none"),
    (changed(category_id=[]), "category_id [] is none"),
    (changed(bbox=[1, 1, 3]), "bbox must be 4 numbers"),
    (changed(bbox=[1, 1, 3, "3"]), "bbox must be 4 numbers"),
    (changed(bbox=[1, 1, 3, math.nan]), "bbox must be 4 numbers"),
    (changed(bbox=[1, 1, 3, 10**400]), "bbox must be 4 numbers"),
    (changed(bbox=None), "bbox must be 4 numbers"),
    (changed(bbox=[1, 1, 0, 3]), "is empty"),
    (changed(bbox=[1, 1, 30, 3]), "lies outside"),
    (changed(area=-math.inf), "area must be 1 numbers"),
  ],
)
def test_damaged_coco(told, words, tmp_path):
  message = failure(lambda: row_of(folder(tmp_path, told)))
  assert words in message
  assert "train.json" in message


def test_which_of_several_images_and_files(tmp_path):
  """The image below a folder called as the split; the objects rather than the captions."""
  for split in ("train", "val"):
    folder(tmp_path, GOOD, f"annotations/instances_{split}2017.json", f"{split}2017/a.png")
    folder(tmp_path, GOOD, f"annotations/person_keypoints_{split}2017.json", f"{split}2017/a.png")
  config = folder(tmp_path, GOOD, "other.json", "other/b.png")
  for split in ("train", "val", "val2017"):
    source = annotated.open_source(config, split)
    assert source.records[0]["image"].parent.name == split.removesuffix("2017") + "2017"
  message = failure(lambda: annotated.open_source(config, "other"))
  assert "has image 'a.png' more than once" in message
  assert "did you mean" in failure(lambda: annotated.open_source(config, "instances_vol"), UserError, 2)


def test_roboflow(tmp_path):
  for split in ("train", "valid"):
    config = folder(tmp_path, GOOD, f"{split}/_annotations.coco.json", f"{split}/a.png")
  assert annotated.open_source(config, "valid").records[0]["image"] == tmp_path / "valid/a.png"


def test_links_that_lead_in_circles(tmp_path):
  config = folder(tmp_path / "root", GOOD, at="elsewhere/a.png")
  (tmp_path / "root/loop").symlink_to(tmp_path / "root")
  (tmp_path / "root/elsewhere").rename(tmp_path / "elsewhere")
  (tmp_path / "root/link").symlink_to(tmp_path / "elsewhere")
  assert annotated.open_source(config, "train").records[0]["image"] == tmp_path / "root/link/a.png"


def test_images_that_are_missing_can_be_skipped(tmp_path, capsys):
  config = folder(tmp_path, GOOD | {"images": [*GOOD["images"], {"id": 2, "file_name": "b.png"}]})
  config.on_error = "skip"
  assert len(annotated.open_source(config, "train").records) == 1
  assert "image 'b.png' is not there; left out" in capsys.readouterr().err


def test_masks_of_coco(tmp_path):
  config = folder(tmp_path, GOOD)
  config.scenes = Scenes(masks=True)
  assert "has no masks" in failure(lambda: row_of(config), UserError, 2)
  two = [changed(segmentation=one)["annotations"][0] for one in ([[1, 1, 4, 1, 4, 4, 1, 4]], [])]
  folder(tmp_path, GOOD | {"annotations": two})
  assert "an object has no mask, but []" in failure(lambda: row_of(config))
  whole = {"counts": [9, 3, 5, 3, 5, 3, 36], "size": [8, 8]}
  folder(tmp_path, changed(segmentation=whole))
  assert np.unpackbits(row_of(config)["masks"][0], axis=-1).sum() == 9


# VOC.

OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>{}</object>"


def test_voc(tmp_path):
  path, size = tmp_path / "a.xml", "<size><width>9</width><height>8</height></size>"
  hard = "<difficult>1</difficult><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
  path.write_text(f"<annotation>{size}{OBJECT.format('cat', '1.0', hard)}{OBJECT.format('dog', 2, '')}</annotation>")
  assert voc.names(voc.read(path)) == {"cat", "dog"}
  told = voc.objects(path, None, {"cat": 1, "dog": 2})
  assert (told.crowd.tolist(), told.labels.tolist(), told.size) == ([True, False], [1, 2], (8, 9))
  assert annotations.placed(told, 8, 9, 2).boxes.tolist() == [[0, 1, 5, 5], [1, 1, 5, 5]]


LAUGHS = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))


@pytest.mark.parametrize(
  "text, words",
  [
    ("", "no element found"),
    ("<annotation>", "no element found"),
    ("<other/>", "not of <annotation>"),
    ("<annotation>&x;</annotation>", "undefined entity"),
    ('<!DOCTYPE annotation SYSTEM "file:///etc/passwd"><annotation/>', "<!DOCTYPE"),
    (f'<!DOCTYPE a [<!ENTITY a0 "ha">{LAUGHS}]><annotation>&a9;</annotation>', "<!DOCTYPE"),
    (f"<annotation>{OBJECT.format('cow', 1, '')}</annotation>", "class 'cow' is none"),
    (f"<annotation>{OBJECT.format('cat', 'nan', '')}</annotation>", "bndbox of 'cat' must be 4 numbers"),
    (f"<annotation>{OBJECT.format('cat', '9' * 400, '')}</annotation>", "bndbox of 'cat' must be 4 numbers"),
    ("<annotation><object><name>cat</name></object></annotation>", "bndbox of 'cat' must be 4 numbers"),
    ("<annotation><object/></annotation>", "class '' is none"),
  ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_damaged_voc(text, words, encoding, tmp_path):
  path = tmp_path / "a.xml"
  path.write_bytes(text.encode(encoding))
  message = failure(lambda: voc.objects(path, None, {"cat": 1}))
  assert words in message
  assert "a.xml" in message


def voc_folder(root: Path, years) -> Data:
  for year, splits in years.items():
    for split, ids in splits.items():
      for item in ids:
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
          (root / year / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / year / f"JPEGImages/{item}.jpg")
        (root / year / f"Annotations/{item}.xml").write_text(f"<annotation>{OBJECT.format('cat', 1, '')}</annotation>")
      (root / year / f"ImageSets/Main/{split}.txt").write_text("".join(f"{item}  1\n" for item in ids))
  return Data("voc_xml", data_dir=str(root), image_size=(8, 8))


def test_years_of_voc_together(tmp_path):
  config = voc_folder(
    tmp_path, {"VOC2007": {"trainval": ["1", "2"], "test": ["3"]}, "VOC2012": {"trainval": ["2012_1"]}}
  )
  held = lambda split: sorted(r["image"].stem for r in annotated.open_source(config, split).records)
  assert (held("trainval"), held("test")) == (["1", "2", "2012_1"], ["3"])
  source = annotated.open_source(config, "test")
  assert source.class_names == voc.CLASSES
  assert source.records[0]["objects"].labels.tolist() == [1 + voc.CLASSES.index("cat")]
  assert "did you mean 'trainval'" in failure(lambda: annotated.open_source(config, "trainvl"), UserError, 2)
  (tmp_path / "VOC2007/ImageSets/Main/test.txt").write_text("../x\n")
  assert "must list names of images, not '../x'" in failure(lambda: annotated.open_source(config, "test"))
  (tmp_path / "VOC2007/ImageSets/Main/test.txt").write_text("9\n")
  assert "image '9' is not there" in failure(lambda: annotated.open_source(config, "test"))


def test_voc_of_other_classes_without_lists(tmp_path):
  """The classes are those of all annotations; a fifth of the images is the test split."""
  config = voc_folder(tmp_path, {"x": {"all": [str(i) for i in range(40)]}})
  (tmp_path / "x/ImageSets/Main/all.txt").unlink()
  (tmp_path / "x/Annotations/7.xml").write_text(f"<annotation>{OBJECT.format('yak', 1, '')}</annotation>")
  parts = [annotated.open_source(config, split) for split in ("train", "test")]
  assert [source.class_names for source in parts] == [("cat", "yak")] * 2
  assert sum(len(source.records) for source in parts) == 40
  assert 2 < len(parts[1].records) < 16


# YOLO.


@pytest.mark.parametrize(
  "text, want",
  [
    ("names: [cat, 'big dog', \"x\"]  # three", ["cat", "big dog", "x"]),
    ("names: ['a, b',\n  c]\nnc: 2", ["a, b", "c"]),
    ("names:\n- cat\n- dog\ntrain: x", ["cat", "dog"]),
    ("nc: 2\nnames:\n    - cat\n    - 'dog'", ["cat", "dog"]),
    ("names:\n  0: cat # of any kind\n\n  1: traffic light\nval: y", ["cat", "traffic light"]),
    ("names: {0: cat, 1: dog}", ["cat", "dog"]),
    ("\ufeffnames:\r\n  1: dog\r\n  0: cat", ["cat", "dog"]),
  ],
)
def test_names_of_yaml(text, want, tmp_path):
  (tmp_path / "x.yaml").write_bytes(text.encode())
  names, folders = yolo.names(tmp_path / "x.yaml")
  assert list(names.items()) == list(enumerate(want))
  assert folders == {
    key: value for key, value in (("nc", "2"), ("train", "x"), ("val", "y")) if f"{key}: {value}" in text
  }


def test_other_names(tmp_path):
  (tmp_path / "classes.txt").write_text("cat\nbig dog\n\n")
  assert yolo.names(tmp_path / "classes.txt") == ({0: "cat", 1: "big dog"}, {})
  for text in ("", "names:", "names: 5", "name: [a]", "names: {0: a, 0: b}"):
    (tmp_path / "x.yaml").write_text(text)
    assert "names no classes" in failure(lambda: yolo.names(tmp_path / "x.yaml"))


@pytest.mark.parametrize(
  "text, words",
  [
    ("0 0.5 0.5 0.2", "line 1 must be"),
    ("0 0.5 0.5 0.2 0.2 0.9", "line 1 must be"),
    ("0 0.5 0.5 0.2 0.2\n0 0.5 0.5 x 0.2", "line 2 must be"),
    ("0 0.5 0.5 nan 0.2", "line 1 must be"),
    ("0 0.5 0.5 inf 0.2", "line 1 must be"),
    ("2 0.5 0.5 0.2 0.2", "class '2' is none of the 2"),
    ("-1 0.5 0.5 0.2 0.2", "class '-1' is none of the 2"),
    ("0.5 0.5 0.5 0.2 0.2", "class '0.5' is none of the 2"),
    ("1e300 0.5 0.5 0.2 0.2", "class '1e300' is none of the 2"),
    ("0 40 30 20 20", "lies outside"),
    ("0 0.5 0.5 0 0.2", "is empty"),
  ],
)
def test_damaged_yolo(text, words, tmp_path):
  path = tmp_path / "a.txt"
  path.write_text(text)
  message = failure(lambda: annotations.placed(yolo.objects(path, {0: 1, 1: 2}), 80, 80, 2))
  assert words in message
  assert "a.txt" in message


def test_folders_of_yolo(tmp_path):
  """Those that data.yaml names, or a folder for each split; classes whose numbers have holes."""
  for split in ("train", "valid"):
    for kind in ("images", "labels"):
      (tmp_path / split / kind).mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / split / "images" / "a.jpg")
    (tmp_path / split / "labels" / "a.txt").write_text("7 0.5 0.5 0.25 0.5\n")
  (tmp_path / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: {2: cat, 7: dog}\n")
  config = Data("yolo_txt", data_dir=str(tmp_path), image_size=(8, 8))
  for split, folder in (("train", "train"), ("val", "valid"), ("valid", "valid"), ("validation", "valid")):
    source = annotated.open_source(config, split)
    assert source.records[0]["image"] == tmp_path / folder / "images/a.jpg"
    assert (source.class_names, source.categories) == (("cat", "dog"), (2, 7))
  row = row_of(config)
  assert (row["boxes"][0].tolist(), row["labels"][0]) == ([3, 2, 5, 6], 2)
  config.scenes = Scenes(masks=True)
  assert "has no masks" in failure(lambda: annotated.open_source(config, "train"), UserError, 2)
  config.scenes = Scenes()
  assert "did you mean 'train'" in failure(lambda: annotated.open_source(config, "trin"), UserError, 2)
  (tmp_path / "train/labels/b.txt").write_text("")
  assert "the image of annotation 'b' is not there" in failure(lambda: annotated.open_source(config, "train"))
  (tmp_path / "train/labels/b.txt").rename(tmp_path / "train/labels/c.txt")
  (tmp_path / "train/labels/a.txt").unlink()
  assert "no image in" in failure(lambda: annotated.open_source(config, "train"), UserError, 2)
  (tmp_path / "data.yaml").unlink()
  assert "names no classes" in failure(lambda: annotated.open_source(config, "train"), UserError, 2)


# Penn-Fudan, and none of all.


def test_people_that_are_numbered(tmp_path):
  pixels = np.zeros((6, 7), np.uint8)
  pixels[1:4, 2:5] = 3
  pixels[5, 6] = 1
  Image.fromarray(pixels).save(tmp_path / "a.png")
  told = penn_fudan.objects(tmp_path / "a.png")
  assert told.boxes.tolist() == [[6, 5, 7, 6], [2, 1, 5, 4]]
  assert masks.arrays(told.masks, 6, 7).sum((1, 2)).tolist() == [1, 9]


@pytest.mark.parametrize("name", annotated.FOLDERS)
def test_empty_folders(name, tmp_path):
  failure(lambda: annotated.open_source(Data(name, data_dir=str(tmp_path)), "train"), UserError, 2)


def test_what_cannot_be_a_file(tmp_path, monkeypatch):
  (tmp_path / "folder").mkdir()
  (tmp_path / "large").write_bytes(bytes(100))
  monkeypatch.setattr(annotations, "MOST_BYTES", 99)
  for name, words in (("none", "is no file"), ("folder", "is no file")):
    assert words in failure(lambda name=name: annotations.content(tmp_path / name))
  assert "100 bytes, and 99 are the most" in failure(lambda: annotations.content(tmp_path / "large", 99))


def test_images_of_scenes_that_are_damaged(tmp_path):
  config = folder(tmp_path, GOOD)
  (tmp_path / "a.png").write_bytes(b"no image")
  source, info = scenes.open_split(config, "train")
  read = scenes.SceneReader(source, info, config)
  assert "cannot read image" in failure(lambda: read.checked({k: np.array([x]) for k, x in read(0).items()}))
  assert "example 0 of split 'train'" in failure(lambda: read.truths([0]), DataError, 3)
