"""Sentences with labels, from tables: SPLIT.tsv or SPLIT.csv with a header, or SPLIT.jsonl.

The columns are `label` and `sentence`, `text` or `content`, in any order, among others. A split stands in a file's
name (train, dev, test); where none does, sentences are dealt out 90, 5 and 5 in a hundred by a hash of each. TSV knows
no quotes.
"""

import csv
import io
import json
from collections.abc import Iterator

import tensorflow_datasets as tfds

from flaxonomy.data.datasets import files
from flaxonomy.errors import DataError, first_line, shown

MOST_CLASSES = 10_000
_SUFFIXES = (".tsv", ".csv", ".jsonl")
_TEXTS = ("sentence", "text", "content")  # what the column may be called


class Labelled(tfds.core.GeneratorBasedBuilder):
  """`text` and `label`; classes are named as in the files, in the order of numbers or of the alphabet."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  @staticmethod
  def variant(config) -> files.FilesConfig:
    """The builder's config for configs.base.Data."""
    return files.variant(config)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {"text": tfds.features.Text(), "label": tfds.features.ClassLabel()}
    return files.info(self, __doc__, features, ("text", "label"))

  def _split_generators(self, dl_manager):
    root = self.builder_config.root
    tables = [file for file in files.find(files.Path(root)) if file.name.lower().endswith(_SUFFIXES)]
    named = [file for file in tables if files.split_of(file.name)]
    parts = {}
    for file, content in files.read(named or tables):
      split = files.split_of(file.name)
      for text, label in rows(file, content):
        parts.setdefault(split or files.share_of(text), []).append((text, label))
    if not parts:
      raise DataError(f"{root!r} holds no sentences with labels (looked for {' '.join(_SUFFIXES)}, .gz of them)")
    names = {label for part in parts.values() for _, label in part}
    if len(names) > MOST_CLASSES:
      raise DataError(f"{root!r} has more than {MOST_CLASSES} different labels")
    whole = all(name.lstrip("-").isdecimal() for name in names)
    self.info.features["label"].names = sorted(names, key=lambda name: (int(name), name) if whole else name)
    return {split: self._generate_examples(part) for split, part in parts.items()}

  def _generate_examples(self, part):
    for i, (text, label) in enumerate(part):
      yield i, {"text": text, "label": label}


def rows(file: files.File, content: str) -> Iterator[tuple[str, str]]:
  """(text, label) of each row of a table.

  Raises:
    DataError: it lacks a column, or a row is not as it should be.
  """
  suffix = file.name.lower().rsplit(".", 1)[1]
  try:
    if suffix == "jsonl":
      yield from _objects(content)
    else:
      cells = (line.split("\t") for line in files.lines(content))
      yield from _cells(csv.reader(io.StringIO(content, newline=""), strict=True) if suffix == "csv" else cells)
  except (ValueError, csv.Error, RecursionError) as error:
    raise DataError(f"{files.where(file)}: {first_line(error)}") from None


def _cells(table) -> Iterator[tuple[str, str]]:
  header = [name.strip().lower() for name in next(iter(table), [])]
  text = next((name for name in _TEXTS if name in header), None)
  if text is None or "label" not in header:
    raise ValueError(f"its first line must name the columns 'label' and 'text'; it is {shown(header)}")
  for i, row in enumerate(table, 2):
    if row and any(row):
      if len(row) != len(header):
        raise ValueError(f"row {i} has {len(row)} columns, the first one {len(header)}")
      yield row[header.index(text)], _label(row[header.index("label")], i)


def _objects(content: str) -> Iterator[tuple[str, str]]:
  for i, line in enumerate(files.lines(content), 1):
    if not line.strip():
      continue
    try:
      values = json.loads(line)
    except ValueError as error:
      raise ValueError(f"line {i}: {first_line(error)}") from None
    values = values if isinstance(values, dict) else {}
    text, label = next((values[name] for name in _TEXTS if name in values), None), values.get("label")
    if not isinstance(text, str) or type(label) not in (int, str):
      raise ValueError(f"line {i} must have a 'text' and, as a whole number or text, a 'label'")
    text.encode()  # JSON can write what is no text; that is a ValueError
    yield text, _label(str(label), i)


def _label(name: str, i: int) -> str:
  name = name.strip()
  if not name or len(name.splitlines()) > 1:
    raise ValueError(f"row {i} has the label {shown(name)}")
  return name
