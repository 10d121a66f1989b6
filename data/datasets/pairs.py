"""Pairs of sentences: SPLIT.LANG and SPLIT.LANG line by line, or one table of them.

Multi30k has train.en beside train.de; whatever stands before the language is the split. Tatoeba's kor-eng.txt has an
English sentence, a tab, a Korean one; such a table is dealt out 90, 5 and 5 in a hundred by a hash of the source.
"""

import re

import tensorflow_datasets as tfds

from flaxonomy.data.datasets import files
from flaxonomy.errors import DataError, UserError


class Pairs(tfds.core.GeneratorBasedBuilder):
  """`source` and `target`, in the two languages of the config."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  @staticmethod
  def variant(config) -> files.FilesConfig:
    """The builder's config for configs.base.Data, whose text.languages are source and target."""
    return files.variant(config, config.text.languages)

  def _info(self) -> tfds.core.DatasetInfo:
    features = {"source": tfds.features.Text(), "target": tfds.features.Text()}
    return files.info(self, __doc__, features, ("source", "target"))

  def _split_generators(self, dl_manager):
    root, languages = self.builder_config.root, self.builder_config.languages
    found = files.find(files.Path(root))
    sides = [{f.name[: -len(lang) - 1]: f for f in found if f.name.endswith(f".{lang}")} for lang in languages]
    tables = [f for f in found if f.name.lower().endswith((".txt", ".tsv"))]
    if shared := sorted(sides[0].keys() & sides[1].keys()):
      parts = {re.sub(r"\W", "_", name): _aligned(sides[0][name], sides[1][name]) for name in shared}
    elif len(tables) == 1:
      parts = _table(tables[0], languages)
    else:
      endings = sorted({f.name.rsplit(".", 1)[1] for f in found if "." in f.name})
      raise UserError(
        f"{root!r} has no files of the same name ending in .{languages[0]} and .{languages[1]} (config field "
        f"'data.text.languages'), nor a single .txt or .tsv; its files end in {', '.join(endings[:20]) or 'nothing'}"
      )
    parts = {split: pairs for split, pairs in parts.items() if pairs}
    if not parts:
      raise DataError(f"{root!r} holds no pairs of sentences")
    return {split: self._generate_examples(pairs) for split, pairs in parts.items()}

  def _generate_examples(self, pairs):
    for i, (source, target) in enumerate(pairs):
      yield i, {"source": source, "target": target}


def _aligned(*both: files.File) -> list[tuple[str, str]]:
  source, target = (files.lines(text) for _, text in files.read(both))
  if len(source) != len(target):
    counts = f"{len(source)} and {len(target)} lines"
    raise DataError(f"{files.where(both[0])} and {files.where(both[1])} are not aligned: they have {counts}")
  return list(zip(source, target))


def _table(file: files.File, languages) -> dict[str, list[tuple[str, str]]]:
  """{split: pairs} of a table, the first column being the source unless the file's name tells otherwise."""
  ((_, text),) = files.read([file])
  parts = {}
  for i, line in enumerate(files.lines(text), 1):
    if line.strip():
      cells = line.split("\t")
      if len(cells) < 2:
        raise DataError(f"{files.where(file)}: line {i} has no tab between two sentences")
      source, target = cells[1::-1] if _is_reversed(file.name, languages) else cells[:2]
      parts.setdefault(files.share_of(source), []).append((source, target))
  return parts


def _is_reversed(name: str, languages) -> bool:
  """Whether the second column is the source: of XXX-YYY.txt, Tatoeba's, the first column is in YYY."""
  found = re.search(r"(?:^|/)([a-z]{2,3})-([a-z]{2,3})\.\w+$", name.lower())
  source, target = (language.lower() for language in languages)
  return bool(found) and source != target and (found[1].startswith(source) or found[2].startswith(target))
