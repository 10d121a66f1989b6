"""Annotated images by name: our scenes, TFDS datasets of detection, and folders in the formats that are about.

  coco_json   ROOT/annotations/*SPLIT*.json, ROOT/SPLIT/_annotations.coco.json or ROOT/SPLIT.json, images anywhere below
  voc_xml     ROOT/Annotations, JPEGImages, ImageSets/Main/SPLIT.txt; or such folders below ROOT, taken together
  yolo_txt    ROOT/images/SPLIT, labels/SPLIT, data.yaml or another list of names; or ROOT/SPLIT/images, SPLIT/labels
  penn_fudan  ROOT/PedMasks, JPEGImages or PNGImages

Where a folder has no splits of its own a stable fifth of it is the test split. Examples come in an order that a hash of
the file's name gives, so that a slice holds some of each kind.
"""

import functools
import os
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from flaxonomy.data import images, masks, sources
from flaxonomy.data.datasets import annotations, coco, penn_fudan, voc, yolo
from flaxonomy.data.sources import Source
from flaxonomy.errors import DataError, UserError, unknown, warn

_CROWD = ("is_crowd", "is_difficult")


def open_source(config, split: str, class_names: tuple[str, ...] = ()) -> Source:
  """The annotated images that a config names.

  Args:
    config: configs.base.Data; `name`, `data_dir`, `on_error` and `scenes.masks` are used.
    split: a TFDS split, or of a folder such as "train[:90%]".
    class_names: of the training split, where this is another.

  Returns:
    Source whose records[i] is {"image": encoded bytes or a path, "objects": `annotations.Annotation`} and, where the
    image has a number, "image_id": int.

  Raises:
    UserError: unknown dataset or split, nothing there, or no masks where they are asked for.
    DataError: what lies on disk cannot be read.
  """
  with sources.told(config):
    if config.name not in FOLDERS:
      return _of_tfds(config, sources.open_builder(config, tuple(FOLDERS)), split)
    if config.data_dir is None or not Path(config.data_dir).is_dir():
      raise UserError(
        f"dataset {config.name!r} needs config field 'data.data_dir' to be a folder, not {config.data_dir!r}"
      )
    return FOLDERS[config.name](config, Path(config.data_dir), split, class_names)


class _Records(Sequence):
  """Records that are read when they are asked for. Importable and picklable: Grain's worker processes get a copy."""

  def __init__(self, entries: Sequence, read: Callable):
    self.entries, self.read = entries, read

  def __len__(self):
    return len(self.entries)

  def __getitem__(self, i):
    return self.read(self.entries[i])


# TFDS.


def _of_tfds(config, builder, split) -> Source:
  """A dataset with an image and a sequence of objects, each with a box and a class."""
  import tensorflow_datasets as tfds

  features = dict(builder.info.features.items())
  image = sources.feature(builder, "image", tfds.features.Image)
  found = [(n, *_parts(f.feature, tfds)) for n, f in features.items() if isinstance(f, tfds.features.Sequence)]
  found = [(name, box, label) for name, box, label in found if box and label]
  if image is None or len(found) != 1:
    raise UserError(
      f"dataset {config.name!r} has no single image with a sequence of objects that have a box and a class; "
      f"{sources.features_of(builder)}"
    )
  name, box, label = found[0]
  numbered = "instances" if isinstance(features.get("instances"), tfds.features.Image) else None
  if config.scenes.masks and not numbered:
    raise _maskless(config)
  skipped = {n: tfds.decode.SkipDecoding() for n, f in features.items() if isinstance(f, tfds.features.Image)}
  records = sources.open_records(builder, split, config.name, skipped)
  held = features[name].feature
  keys = {
    "image": image, "objects": name, "box": box, "label": label, "instances": numbered,
    "crowd": next((key for key in _CROWD if key in held), None), "area": "area" if "area" in held else None,
    "id": _number_of(features),
  }  # fmt: skip
  # The boxes of TFDS's VOC are VOC's own: counted from 1, with the last pixel in them.
  read = functools.partial(_tfds_record, keys, int(builder.name == "voc"), f"dataset {config.name!r}")
  shape, names = tuple(features[image].shape), tuple(held[label].names)
  return Source(_Records(records, read), names, None if None in shape else shape, split, _categories(names))


def _number_of(features) -> str | None:
  """The feature that numbers the images."""
  whole = lambda f: getattr(f, "shape", None) == () and np.issubdtype(f.np_dtype, np.integer)
  return next((key for key in ("image/id", "image_id", "id") if key in features and whole(features[key])), None)


def _parts(feature, tfds) -> tuple[str | None, str | None]:
  """Names of the box and the class of an object; None where there are none."""
  inside = feature if isinstance(feature, tfds.features.FeaturesDict) else {}
  boxes = [name for name, f in inside.items() if isinstance(f, tfds.features.BBoxFeature)]
  labels = [name for name, f in inside.items() if isinstance(f, tfds.features.ClassLabel)]
  labels = [name for name in labels if name == "label"] or labels
  return boxes[0] if len(boxes) == 1 else None, labels[0] if len(labels) == 1 else None


def _tfds_record(keys, first, where, record) -> dict:
  objects = record[keys["objects"]]
  top, left, bottom, right = np.asarray(objects[keys["box"]], np.float64).reshape(-1, 4).T
  labels = np.asarray(objects[keys["label"]], np.int64) + 1
  crowd, area = (None if keys[key] is None else np.asarray(objects[keys[key]]) for key in ("crowd", "area"))
  told = annotations.annotation(where, np.stack([left, top, right, bottom], 1), labels, crowd, area)
  numbered = keys["instances"] and masks.Instances(record[keys["instances"]], tuple(range(1, len(labels) + 1)))
  found = {"image": record[keys["image"]], "objects": told._replace(relative=True, first=first, masks=numbered)}
  return found | ({"image_id": int(record[keys["id"]])} if keys["id"] else {})


def _categories(names: Sequence[str]) -> tuple[int, ...]:
  """COCO's ids, where the classes are COCO's 80."""
  return coco.IDS if (len(names), names[0], names[-1]) == (80, "person", "toothbrush") else ()


def _maskless(config) -> UserError:
  return UserError(
    f"dataset {config.name!r} has no masks of its objects; set config field 'data.scenes.masks' to False"
  )


# Folders.


def _files(root: Path, suffixes=images.SUFFIXES) -> list[Path]:
  """Files below a folder; folders that links lead to are entered once."""
  found, seen = [], set()
  for folder, inside, names in os.walk(root, followlinks=True):
    if (real := os.path.realpath(folder)) in seen:
      inside.clear()
      continue
    seen.add(real)
    for name in sorted(names):
      path = Path(folder, name)
      if path.suffix.lower() in suffixes and not name.startswith("."):
        found.append(path)
  return found


def _name(root: Path, path: Path) -> str:
  """A file's path below a folder, without suffix."""
  return path.relative_to(root).with_suffix("").as_posix()


def _by_name(root: Path, suffixes=images.SUFFIXES) -> dict[str, Path]:
  return {_name(root, path): path for path in _files(root, suffixes)}


def _hash(name: str) -> int:
  """Of a file's name without folders and suffix, the same in every format."""
  return zlib.crc32(name.rsplit("/", 1)[-1].encode())


def _source(config, split, entries: dict[str, tuple], read, names, categories=()) -> Source:
  """A part of entries by name, in the order of their hashes."""
  (_, begin, end), names = sources.part(split), tuple(names)
  chosen = [entry for _, _, entry in sorted((_hash(name), name, entry) for name, entry in entries.items())]
  chosen = chosen[round(begin * len(chosen)) : round(end * len(chosen))]
  if not chosen:
    raise UserError(f"split {split!r} of {config.data_dir!r} holds no images (looked for {' '.join(images.SUFFIXES)})")
  return Source(_Records(chosen, read), names, None, split, categories or _categories(names))


def _fifth(entries: dict, split: str, root: Path) -> dict:
  """The stable fifth that is the test split, or what is left for training."""
  name = sources.part(split)[0]
  if name not in ("train", "test"):
    raise unknown(f"split of folder {str(root)!r}:", name, ["train", "test"])
  return {key: entry for key, entry in entries.items() if (_hash(key) % 5 == 0) == (name == "test")}


def _missing(config, where: Path, wanted: Sequence[str], what: str) -> None:
  """Tells of annotations whose images are not there: the end, unless such examples are to be skipped."""
  if wanted:
    line = f"{str(where)!r}: {what} {wanted[0]!r} is not there" + (f", nor {len(wanted) - 1} more" * (len(wanted) > 1))
    if config.on_error == "raise":
      raise DataError(f"{line}; put it there, or leave such out with --config.data.on_error=skip")
    warn(f"{line}; left out")


def _coco_json(config, root, split, class_names) -> Source:
  """A JSON file for each split."""
  name = sources.part(split)[0]
  path = _json_of(root, name)
  found = coco.read(path, config.scenes.masks)
  if config.scenes.masks and not found.has_masks:
    raise _maskless(config)
  near = {name, path.stem, path.parent.name, *re.split(r"[_.]", path.stem)}
  below, entries, missing = {}, {}, []
  for file in _files(root):
    below.setdefault(file.name, []).append(file)
  for number, wanted, size, packed in found.images:
    if file := _image_of(root, wanted, below, near):
      entries[_name(root, file)] = file, number, size, packed
    else:
      missing.append(wanted)
  _missing(config, path, missing, "image")
  if len(entries) + len(missing) < len(found.images):
    raise DataError(f"{str(path)!r} lists an image more than once")
  labels = {category: 1 + i for i, category in enumerate(found.classes)}
  read = functools.partial(_coco_record, repr(str(path)), labels)
  return _source(config, split, entries, read, found.classes.values(), tuple(found.classes))


def _json_of(root: Path, name: str) -> Path:
  """The file of a split."""
  here = [*sorted((root / "annotations").glob("*.json")), *sorted(root.glob("*/_annotations.coco.json"))]
  here += sorted(root.glob("*.json"))
  called = lambda p: p.parent.name if p.name == "_annotations.coco.json" else p.stem
  found = [p for p in here if name in called(p)]
  for better in (
    lambda p: name in re.split(r"[_.\d-]", called(p)) or called(p) == name,
    lambda p: "instances" in p.stem,
  ):
    found = [p for p in found if better(p)] or found
  if not found:
    raise unknown(f"split of folder {str(root)!r}:", name, map(called, here), "(its .json files, also in annotations/)")
  if len(found) > 1:
    raise UserError(f"split {name!r} of {str(root)!r} may be {' or '.join(repr(p.name) for p in found[:5])}; name one")
  return found[0]


def _image_of(root: Path, wanted: str, below: dict[str, list[Path]], near: set[str]) -> Path | None:
  """The file that ends in a path; of several the one below a folder called as the split or its file."""
  last = wanted.rsplit("/", 1)[-1]
  found = [p for p in below.get(last, ()) if f"/{p.relative_to(root).as_posix()}".endswith(f"/{wanted}")]
  if len(found) > 1:
    found = [p for p in found if near & set(p.relative_to(root).parts[:-1])] or found
  if len(found) > 1:
    raise DataError(f"{str(root)!r} has image {wanted!r} more than once, at {str(found[0])!r} and {str(found[1])!r}")
  return found[0] if found else None


def _coco_record(where, labels, entry) -> dict:
  file, number, size, packed = entry
  return {"image": file, "image_id": number, "objects": coco.objects(where, packed, size, labels)}


def _voc_xml(config, root, split, class_names) -> Source:
  """VOCdevkit, one year of it, or several that have the split."""
  roots = [root] if (root / "Annotations").is_dir() else sorted(p.parent for p in root.glob("*/Annotations"))
  roots = roots or sorted(p.parent for p in root.glob("VOCdevkit/*/Annotations"))
  if not roots:
    raise UserError(f"folder {str(root)!r} has no folder 'Annotations', here or in a folder of it")
  name, entries, missing, seen = sources.part(split)[0], {}, [], set(class_names)
  kind, lists = _lists(roots, config.scenes.masks)
  if lists and name not in {p.stem for p in lists}:
    raise unknown(f"split of folder {str(root)!r}:", name, {p.stem for p in lists}, f"(files in ImageSets/{kind})")
  for one in roots:
    pictures, numbered = _by_name(one / "JPEGImages"), _by_name(one / "SegmentationObject", (".png",))
    told = _by_name(one / "Annotations", (".xml",))
    held = _listed(one / "ImageSets" / kind / f"{name}.txt") if lists else told
    missing += [item for item in held if item not in pictures]
    for item in held:
      if item in pictures:
        path = told.get(item, one / "Annotations" / f"{item}.xml")
        entries[f"{one.name}/{item}"] = pictures[item], path, numbered.get(item)
    seen |= set() if class_names else _names(told.values())
  _missing(config, root, missing, "image")
  if config.scenes.masks and not any(entry[2] for entry in entries.values()):
    raise _maskless(config)
  names = class_names or (voc.CLASSES if seen <= set(voc.CLASSES) else sorted(seen))
  read = functools.partial(_voc_record, {name: 1 + i for i, name in enumerate(names)})
  return _source(config, split, entries if lists else _fifth(entries, split, root), read, names)


def _lists(roots, with_masks) -> tuple[str, list[Path]]:
  """The folder of lists, and all of them; with masks that of the images which have some."""
  for kind in ("Segmentation", "Main") if with_masks else ("Main",):
    if lists := [path for one in roots for path in (one / "ImageSets" / kind).glob("*.txt")]:
      return kind, lists
  return "Main", []


def _listed(path: Path) -> list[str]:
  """The first word of each line; nothing of a file that is not there."""
  if not path.exists():
    return []
  words = [
    line.split()[0] for line in annotations.content(path).decode("utf-8", "replace").splitlines() if line.split()
  ]
  for word in words:
    if "/" in word or "\\" in word or word.startswith("."):
      raise DataError(f"{str(path)!r} must list names of images, not {word[:80]!r}")
  return list(dict.fromkeys(words))


def _names(paths) -> set[str]:
  """The classes of all annotations that can be read: of the others the reader tells when it comes to them."""
  seen = set()
  for path in paths:
    try:
      seen |= voc.names(voc.read(path))
    except DataError:
      continue
  return seen


def _voc_record(labels, entry) -> dict:
  image, path, numbered = entry
  return {"image": image, "objects": voc.objects(path, numbered, labels)}


def _yolo_txt(config, root, split, class_names) -> Source:
  """A text for each image; an image without one shows nothing."""
  classes, folders = _yolo_classes(root)
  asked = sources.part(split)[0]
  named = "/".join(part for part in folders.get(asked, "").split("/") if part not in ("", ".", "..", "images"))
  calls = [name for name in (named, asked, *{"validation": ("val", "valid")}.get(asked, ())) if name]
  held = _first_folder(root, (p for x in calls for p in (f"images/{x}", f"{x}/images", f"../images/{x}")))
  told = _first_folder(root, (p for x in calls for p in (f"labels/{x}", f"{x}/labels")))
  if held is None or told is None:
    there = {p.name for p in (root / "labels").glob("*") if p.is_dir()} | {p.parent.name for p in root.glob("*/labels")}
    raise unknown(f"split of folder {str(root)!r}:", asked, there, "(folders of images/ and of labels/)")
  pictures, texts = _by_name(held), _by_name(told, (".txt",))
  if pictures and not pictures.keys() & texts.keys():
    raise UserError(f"no image in {str(held)!r} has a .txt file of its name in {str(told)!r}")
  _missing(config, told, sorted(texts.keys() - pictures.keys() - {"classes"}), "the image of annotation")
  labels = {number: 1 + i for i, number in enumerate(classes)}
  read = functools.partial(_yolo_record, labels)
  if config.scenes.masks and not any(yolo.has_outlines(text) for text in texts.values()):
    raise _maskless(config)
  categories = () if list(classes) == list(range(len(classes))) else tuple(classes)
  entries = {name: (path, texts.get(name)) for name, path in pictures.items()}
  return _source(config, split, entries, read, classes.values(), categories)


def _first_folder(root: Path, inside: Iterable[str]) -> Path | None:
  """The first of some folders that there is."""
  return next((root / path for path in inside if (root / path).is_dir()), None)


def _yolo_classes(root: Path) -> tuple[dict[int, str], dict[str, str]]:
  """See `yolo.names`; of the file that there is."""
  first = [root / name for name in ("data.yaml", "classes.yaml", "dataset.yaml")]
  more = [*sorted(root.glob("*.yaml")), *sorted(root.glob("*.yml")), *sorted(root.glob("*.names"))]
  for path in (*first, *more, root / "classes.txt", root / "labels" / "classes.txt"):
    if path.is_file():
      return yolo.names(path)
  raise UserError(f"folder {str(root)!r} names no classes: put data.yaml or classes.txt there")


def _yolo_record(labels, entry) -> dict:
  image, text = entry
  return {
    "image": image,
    "objects": annotations.annotation(str(image), (), ()) if text is None else yolo.objects(text, labels),
  }


def _penn_fudan(config, root, split, class_names) -> Source:
  """Pedestrians, by their masks."""
  numbered = {name.removesuffix("_mask"): path for name, path in _by_name(root / "PedMasks", (".png",)).items()}
  pictures = _by_name(root / "PNGImages") | _by_name(root / "JPEGImages")
  if not numbered:
    raise UserError(f"folder {str(root)!r} has no masks in 'PedMasks'")
  _missing(config, root, sorted(numbered.keys() - pictures.keys()), "image")
  entries = {name: (pictures[name], path) for name, path in numbered.items() if name in pictures}
  return _source(config, split, _fifth(entries, split, root), _penn_fudan_record, ("pedestrian",))


def _penn_fudan_record(entry) -> dict:
  image, mask = entry
  return {"image": image, "objects": penn_fudan.objects(mask)}


FOLDERS = {"coco_json": _coco_json, "voc_xml": _voc_xml, "yolo_txt": _yolo_txt, "penn_fudan": _penn_fudan}
