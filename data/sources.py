"""Datasets by name: random access to the encoded examples of a split, with the names of the classes.

Three kinds: our own TFDS builders, prepared on first use; any TFDS dataset prepared on disk as ArrayRecord; a folder of
images with a sub-folder for each class. Here are the images; corpora.py has the texts.
"""

import contextlib
import difflib
import fcntl
import importlib
import io
import json
import re
import shlex
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from absl import logging

from flaxonomy.data import images
from flaxonomy.data.datasets import BUILDERS, OF_FILES, cache_folder
from flaxonomy.errors import DataError, UserError, first_line, shown, unknown


class Source(NamedTuple):
  """The examples of one split.

  Attributes:
    records: random access; records[i] is {"image": encoded bytes or a path, "label": int}; corpora.py and annotated.py
      have others.
    class_names: of the labels 0, 1, ...
    shape: [H, W, C] of the stored images, None where they differ or there are none.
    split: what was asked for.
    categories: see `pipeline.Info`.
  """

  records: Sequence
  class_names: tuple[str, ...]
  shape: tuple | None
  split: str
  categories: tuple[int, ...] = ()


def open_source(config, split: str) -> Source:
  """The source that a config names.

  Args:
    config: configs.base.Data; `name` and `data_dir` are used.
    split: a TFDS split such as "train[:90%]".

  Raises:
    UserError: unknown dataset or split; not prepared, or prepared as TFRecord, with the line to type.
    DataError: what lies on disk cannot be opened.
  """
  with told(config):
    if config.name == "folder":
      return _folder(config, split)
    return _images(open_builder(config), split, config.name)


@contextlib.contextmanager
def told(config):
  """Whatever goes wrong while a dataset is opened, as one line.

  Raises:
    DataError: what TFDS raised; a UserError stays what it is.
  """
  try:
    yield
  except UserError:
    raise
  except Exception as error:  # damaged files make TFDS raise nearly anything
    where = f"in {str(config.data_dir)!r} " if config.data_dir else ""
    what = f"{type(error).__name__}: {first_line(error)}"
    raise DataError(f"dataset {config.name!r} {where}cannot be opened: {what}") from error


def open_builder(config, folders: tuple[str, ...] = ("folder",)):
  """The TFDS builder of a config's dataset, whose examples lie prepared.

  Args:
    config: configs.base.Data.
    folders: other names that may have been meant.

  Raises:
    UserError: see `open_source`.
  """
  import tensorflow_datasets as tfds

  return _own(config, tfds) if config.name.split("/")[0] in BUILDERS else _prepared(config, tfds, folders)


def _own(config, tfds):
  """One of our own builders, prepared on first use; "NAME/VARIANT" is one that it lists or makes."""
  name, _, asked = config.name.partition("/")
  module, symbol = BUILDERS[name].split(":")
  kind, folder, variant = getattr(importlib.import_module(module), symbol), config.data_dir, {}
  if config.name != name:
    variant = {"config": getattr(kind, "asked", kind.builder_configs.get)(asked)}
    if variant["config"] is None:
      known = [name, *(f"{name}/{other}" for other in kind.builder_configs)]
      raise unknown("dataset", config.name, known, "(config field 'data.name')")
  elif name in OF_FILES:
    folder, variant = None, {"config": kind.variant(config)}
  where = "config field 'data.data_dir'" if folder else "environment variable FLAXONOMY_CACHE"
  folder = Path(folder or cache_folder() / "tfds")
  make = lambda: kind(data_dir=str(folder), file_format="array_record", **variant)
  with _quiet():
    builder = make()
    if not builder.is_prepared():
      tfds.disable_progress_bar()
      try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f".{name}.lock").open("w") as one_at_a_time, contextlib.redirect_stdout(io.StringIO()):
          fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
          builder = make()  # another process may have prepared it meanwhile
          builder.download_and_prepare()  # which does nothing then
      except OSError as error:
        raise UserError(f"cannot prepare dataset {config.name!r} in {str(folder)!r} ({where}): {error}") from None
    # Of files, what lies prepared is enough: in other processes, too, which need not know the files.
    return tfds.builder_from_directory(builder.data_dir) if name in OF_FILES else builder


@contextlib.contextmanager
def _quiet():
  """Without TFDS's warnings, such as that a folder not yet prepared is not."""
  level = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    yield
  finally:
    logging.set_verbosity(level)


def _prepared(config, tfds, folders):
  """A TFDS dataset that lies prepared on disk."""
  if not re.fullmatch(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?", config.name, re.ASCII):  # TFDS imports "module:name"
    raise unknown("dataset", config.name, _names(config, tfds, folders), "(config field 'data.name')")
  held = Path(config.data_dir or "~/tensorflow_datasets").expanduser() / re.split("[/:]", config.name)[0]
  for path in held.rglob("features.json"):
    _only_tfds_features(path)
  try:
    builder = tfds.builder(config.name, data_dir=config.data_dir)
  except tfds.core.DatasetNotFoundError:
    if held.is_dir():
      raise DataError(f"dataset {config.name!r} in {str(held)!r} is not whole; it may lack features.json") from None
    raise unknown("dataset", config.name, _names(config, tfds, folders), "(config field 'data.name')") from None
  except (AssertionError, ValueError, ImportError) as error:
    if "Parsing builder name" in str(error):  # "cifar-10" is no name that TFDS could know
      raise unknown("dataset", config.name, _names(config, tfds, folders), "(config field 'data.name')") from None
    raise UserError(f"dataset {config.name!r}: {first_line(error)}") from None
  folder = Path(builder.data_dir)
  if not builder.is_prepared():
    where = config.data_dir or "~/tensorflow_datasets"
    make = f"tfds.builder({config.name!r}, data_dir={where!r}, file_format='array_record').download_and_prepare()"
    raise UserError(
      f"dataset {config.name!r} is not prepared in {where!r} (config field 'data.data_dir'); where there is a network, "
      f'type: python -c "import tensorflow_datasets as tfds; {make}"'
    )
  if {f.value for f in builder.info.available_file_formats()} == {"tfrecord"}:
    raise UserError(
      f"dataset {config.name!r} in {str(folder)!r} is in TFRecord format, which has no random access; to add "
      f"ArrayRecord files beside it type (once, where tensorflow is installed): "
      f"tfds convert_format --dataset_version_dir={shlex.quote(str(folder))} --out_file_format=array_record"
    )
  return builder


def _only_tfds_features(path: Path) -> None:
  """Refuses a features.json that names classes of other packages: TFDS would import them, and so run their code."""

  def check(entry):
    for key in ("pythonClassName", "python_class_name", "type"):
      if isinstance(kind := entry.get(key), str) and "." in kind and not kind.startswith("tensorflow_datasets."):
        raise DataError(f"{str(path)!r} has features of class {shown(kind)}, which is not TFDS's own and not trusted")
    return entry

  with contextlib.suppress(ValueError):  # what is no JSON, TFDS tells
    json.loads(path.read_text(), object_hook=check)


def _names(config, tfds, folders) -> list[str]:
  """Names near enough to be meant: ours, those in the data folder, and TFDS's that resemble it."""
  folder = Path(config.data_dir) if config.data_dir else None
  local = [p.name for p in folder.iterdir() if p.is_dir()] if folder and folder.is_dir() else []
  near = difflib.get_close_matches(config.name, tfds.list_builders(with_community_datasets=False), n=3)
  return sorted({*BUILDERS, *folders, *local, *near})


def _images(builder, split, name) -> Source:
  import tensorflow_datasets as tfds

  features = builder.info.features
  keys = {
    "image": feature(builder, "image", tfds.features.Image),
    "label": feature(builder, "label", tfds.features.ClassLabel),
  }
  if None in keys.values():
    raise UserError(f"dataset {name!r} has no single image with a single class label; {features_of(builder)}")
  records = open_records(builder, split, name, {keys["image"]: tfds.decode.SkipDecoding()})
  shape = tuple(features[keys["image"]].shape)
  shape = None if None in shape else shape
  return Source(_Renamed(records, keys), tuple(features[keys["label"]].names), shape, split)


def open_records(builder, split: str, name: str, decoders=None) -> Sequence:
  """The examples of a split, under TFDS's names.

  Args:
    builder: from `open_builder`.
    split: a TFDS split.
    name: of the dataset, for messages.
    decoders: TFDS's.

  Raises:
    UserError: unknown or empty split.
  """
  try:
    records = builder.as_data_source(split, decoders=decoders)
    size = builder.info.splits[split].num_examples
  except ValueError as error:
    if "split" in str(error).lower():
      raise unknown(f"split of dataset {name!r}:", split, builder.info.splits, "(train_split, eval_split)") from None
    raise UserError(f"dataset {name!r}, split {split!r}: {first_line(error)}") from None
  except NotImplementedError as error:
    raise UserError(f"dataset {name!r}: {first_line(error)}") from None
  if size < 1:  # below zero for [9:5]
    raise UserError(f"split {split!r} of dataset {name!r} is empty; set data.train_split or data.eval_split")
  return records


def features_of(builder) -> str:
  """What a dataset has, for a message."""
  return "its features are " + ", ".join(f"{k} ({type(f).__name__})" for k, f in builder.info.features.items())


def feature(builder, ours: str, kind) -> str | None:
  """The feature to use: the one the dataset says it is supervised by, else the one of our name, else the only one."""
  found = [name for name, feature in builder.info.features.items() if isinstance(feature, kind)]
  supervised = builder.info.supervised_keys or ()
  chosen = [name for name in found if name in supervised] or [name for name in found if name == ours] or found
  return chosen[0] if len(chosen) == 1 else None


class _Renamed(Sequence):
  """A TFDS data source under our names. Importable and picklable: Grain's worker processes get a copy."""

  def __init__(self, records, keys):
    self.records, self.keys = records, keys

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    record = self.records[i]
    return {ours: record[theirs] for ours, theirs in self.keys.items()}


class _Files(Sequence):
  """Image files with their labels."""

  def __init__(self, files, labels):
    self.files, self.labels = files, labels

  def __len__(self):
    return len(self.files)

  def __getitem__(self, i):
    return {"image": self.files[i], "label": self.labels[i]}


def _folder(config, split) -> Source:
  """A folder of images: ROOT/SPLIT/CLASS/*.png, or ROOT/CLASS/*.png, of which a stable tenth is the test split.

  The first is taken where a sub-folder called train, validation, val or test has sub-folders of its own.
  """
  if config.data_dir is None or not Path(config.data_dir).is_dir():
    raise UserError(f"dataset 'folder' needs config field 'data.data_dir' to be a folder, not {config.data_dir!r}")
  root = Path(config.data_dir)
  name, begin, end = part(split)
  subfolders = sorted(p.name for p in root.iterdir() if p.is_dir())
  named = {"train", "test", "validation", "val"} & set(subfolders)
  if any(path.is_dir() for name in named for path in (root / name).iterdir()):
    if name not in subfolders:
      raise unknown(f"split of folder {config.data_dir!r}:", name, subfolders)
    root, keep = root / name, lambda path: True
  else:
    if name not in ("train", "test"):
      raise unknown(f"split of folder {config.data_dir!r}:", name, ["train", "test"])
    keep = lambda path: (zlib.crc32(path.relative_to(root).as_posix().encode()) % 10 == 0) == (name == "test")
  classes = sorted(p.name for p in root.iterdir() if p.is_dir())
  if not classes:
    raise UserError(f"folder {str(root)!r} has no sub-folder; put the images of each class in one of its own")
  pairs = [
    (path, label)
    for label, name in enumerate(classes)
    for path in sorted((root / name).rglob("*"))
    if path.suffix.lower() in images.SUFFIXES and keep(path)
  ]
  # As in TFDS, in a stable order that mixes the classes, so that a slice holds some of each.
  pairs.sort(key=lambda pair: zlib.crc32(pair[0].relative_to(root).as_posix().encode()))
  pairs = pairs[round(begin * len(pairs)) : round(end * len(pairs))]
  if not pairs:
    raise UserError(f"split {split!r} of folder {str(root)!r} holds no images (looked for {' '.join(images.SUFFIXES)})")
  return Source(_Files(*zip(*pairs)), tuple(classes), None, split)


def part(split: str) -> tuple[str, float, float]:
  """The splits that are not TFDS's: "train[10%:90%]" to ("train", .1, .9)."""
  found = re.fullmatch(r"(\w+)(?:\[(?:(\d+)%)?:(?:(\d+)%)?\])?", split)
  if not found:
    raise UserError(f"split {split!r} must look like 'train' or 'train[10%:90%]'")
  return found[1], int(found[2] or 0) / 100, int(found[3] or 100) / 100
