"""One truth written as files in several formats, and what is read of them."""

import json
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from flaxonomy.configs.base import Data, Scenes
from flaxonomy.data import scenes
from flaxonomy.train import loop

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


def config_of(root: Path, name: str, **fields) -> Data:
  """The config of a folder in a format, written on first use; scenes__FIELD is of Scenes."""
  if not (root / name).exists():
    FORMATS[name](root / name)
  of = {key.removeprefix("scenes__"): fields.pop(key) for key in list(fields) if key.startswith("scenes__")}
  of = Scenes(**{"objects": 4, "masks": True} | of)
  return Data(name, data_dir=str(root / name), **{"image_size": SIZE, "scenes": of} | fields)


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
