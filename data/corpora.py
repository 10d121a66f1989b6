"""Texts by name: the examples of a split as text, whether of our own builders or of a TFDS dataset prepared on disk."""

import re
from collections.abc import Sequence

from flaxonomy.data import sources
from flaxonomy.data.sources import Source
from flaxonomy.errors import DataError, UserError, first_line

_ALIKE = ("validation", "valid", "val", "dev")  # names of one split


def open_corpus(config, split: str) -> Source:
  """The texts of a corpus.

  Args:
    config: configs.base.Data; `name` and `data_dir` are used: "python_source", "text", or a TFDS dataset with one text.
    split: a TFDS split; "validation", "valid", "val" and "dev" are names of the one that there is.

  Returns:
    Source whose records[i] is {"text": str}, which raises a DataError if it cannot be read.

  Raises:
    UserError: unknown dataset or split, no single text; see `sources.open_source`.
    DataError: what lies on disk cannot be opened.
  """
  with sources.told(config):
    builder = sources.open_builder(config)
    return _source(config, builder, split, {"text": (_text(builder, config.name),)})


def open_labelled(config, split: str) -> Source:
  """Sentences with their classes.

  Args:
    config: as for `open_corpus`: "labelled", or a TFDS dataset with one text and one class label.
    split: likewise.

  Returns:
    Source whose records[i] is {"text": str, "label": int}.

  Raises:
    UserError, DataError: as for `open_corpus`.
  """
  import tensorflow_datasets as tfds

  with sources.told(config):
    builder = sources.open_builder(config)
    label = sources.feature(builder, "label", tfds.features.ClassLabel)
    if label is None:
      raise UserError(f"dataset {config.name!r} has no single class label; {sources.features_of(builder)}")
    keys = {"text": (_text(builder, config.name),), "label": (label,)}
    return _source(config, builder, split, keys, tuple(builder.info.features[label].names))


def open_pairs(config, split: str) -> Source:
  """Sentences with what each is to become.

  Args:
    config: as for `open_corpus`, and `text.languages`: "pairs", "dates", or a TFDS dataset of translations in these
      languages or with two texts.
    split: likewise.

  Returns:
    Source whose records[i] is {"source": str, "target": str}.

  Raises:
    UserError, DataError: as for `open_corpus`.
  """
  with sources.told(config):
    builder = sources.open_builder(config)
    source, target = _both(builder, config)
    return _source(config, builder, split, {"source": source, "target": target})


def _text(builder, name) -> str:
  """The one text."""
  import tensorflow_datasets as tfds

  found = sources.feature(builder, "text", tfds.features.Text)
  if found is None:
    raise UserError(f"dataset {name!r} has no single text; {sources.features_of(builder)}")
  return found


def _both(builder, config) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """Where in a record source and target are: by language, by our names, or the only two texts as they come."""
  import tensorflow_datasets as tfds

  paths = {}
  for name, feature in builder.info.features.items():
    if isinstance(feature, tfds.features.Text):
      paths[name] = (name,)
    elif isinstance(feature, tfds.features.Translation):
      paths |= {language: (name, language) for language in feature}
  languages = tuple(config.text.languages)
  for wanted in (languages, ("source", "target"), tuple(builder.info.supervised_keys or ())):
    if len(wanted) == 2 and set(wanted) <= paths.keys():
      return paths[wanted[0]], paths[wanted[1]]
  translated = isinstance(builder.info.features, tfds.features.Translation) or any(len(p) > 1 for p in paths.values())
  if len(paths) == 2 and not translated:
    return tuple(paths.values())
  raise UserError(
    f"dataset {config.name!r} has no texts {languages[0]!r} and {languages[1]!r} (config field 'data.text.languages'), "
    f"nor two texts alone; it has {', '.join(map(repr, paths)) or 'none'}"
  )


def _source(config, builder, split, keys, class_names=()) -> Source:
  known = builder.info.splits

  def meant(name):
    others = [other for other in _ALIKE if other in known] if name[0] in _ALIKE and name[0] not in known else []
    return others[0] if others else name[0]

  records = sources.open_records(builder, re.sub(r"[A-Za-z_]\w*", meant, split), config.name)
  return Source(_Texts(records, keys, f"split {split!r} of dataset {config.name!r}"), class_names, None, split)


class _Texts(Sequence):
  """A TFDS data source of texts under our names. Importable and picklable: Grain's worker processes get a copy."""

  def __init__(self, records, keys, where):
    self.records, self.keys, self.where = records, keys, where

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    i = range(len(self))[i]
    try:
      record = self.records[i]
      return {ours: _plain(record, path) for ours, path in self.keys.items()}
    except Exception as error:  # damaged files make TFDS raise nearly anything
      raise DataError(f"example {i} of {self.where}: {first_line(error)}") from None


def _plain(record, path):
  """A text as str, a label as int."""
  for key in path:
    record = record[key]
  if isinstance(record, bytes):
    return record.decode("utf-8")
  return record if isinstance(record, str) else int(record)
