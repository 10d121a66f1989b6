"""Damaged files of annotations: each is read, or refused by one line; what is read makes sense."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_up import damage, damaged, read
from PIL import Image

from flaxonomy.configs.base import Data, Scenes
from flaxonomy.data import scenes

PICTURE = {"id": 1, "file_name": "a.png", "height": 6, "width": 8}
BOX = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0}
OUTLINE = BOX | {"id": 2, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
RUNS = BOX | {"id": 3, "iscrowd": 1, "segmentation": {"counts": "742MO11200a0", "size": [6, 8]}}
XML = (
  "<annotation><size><width>8</width><height>6</height></size><object><name>cat</name><difficult>1</difficult><bndbox>"
  "<xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"
)
FILES = {  # what is damaged of each format, and what else is there
  "coco_json": {
    "train.json": json.dumps(
      {"images": [PICTURE], "annotations": [OUTLINE, RUNS], "categories": [{"id": 3, "name": "cat"}]}
    )
  },
  "voc_xml": {"Annotations/a.xml": XML, "ImageSets/Main/train.txt": "a\n"},
  "yolo_txt": {
    "labels/train/a.txt": "0 .5 .5 .5 .5\n1 .1 .1 .6 .1 .6 .6\n",
    "data.yaml": "train: images/train\nnames:\n  0: cat\n  1: 'dog'\n",
  },
}
IMAGES = {"coco_json": "a.png", "voc_xml": "JPEGImages/a.png", "yolo_txt": "images/train/a.png"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
  found = {}
  for name, files in FILES.items():
    found[name] = tmp_path_factory.mktemp(name)
    for path in (IMAGES[name], *files):
      (found[name] / path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(found[name] / IMAGES[name])
  return found


def example(config):
  """(row, truth) of the one image."""
  source, info = scenes.open_split(config, "train")
  reader = scenes.SceneReader(source, info, config)
  return reader.arrays(0), reader.truths([0])[0], info


@settings(
  max_examples=400, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)  # fmt: skip
@given(
  which=st.sampled_from([(name, path) for name, files in FILES.items() for path in files]),
  changes=st.lists(damage, max_size=3),
  with_masks=st.booleans(),
)
def test_damaged_files(folders, which, changes, with_masks):
  name, damaged_path = which
  for path, text in FILES[name].items():
    data = text.encode()
    (folders[name] / path).write_bytes(damaged(data, changes) if path == damaged_path else data)
  of = Scenes(objects=2, masks=with_masks and name == "coco_json")
  found = read(example, Data(name, data_dir=str(folders[name]), image_size=(12, 10), scenes=of))
  if not changes:
    assert found is not None
  if found is not None:
    row, truth, info = found
    for boxes, labels, (height, width) in (
      (row["boxes"], row["labels"], (12, 10)),
      (truth["boxes"], truth["labels"], (6, 8)),
    ):
      held = boxes[labels > 0]
      assert np.isfinite(boxes).all()
      assert (held[:, :2] >= 0).all()
      assert (held[:, 2:] > held[:, :2]).all()
      assert (held[:, 2:] <= [width, height]).all()
      assert (labels <= len(info.class_names)).all()
    assert np.isfinite(truth["area"]).all()
