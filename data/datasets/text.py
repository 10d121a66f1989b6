"""Any file or folder of text: a corpus for a language model.

The split stands in a file's name (ptb.train.txt, wap.valid.txt.gz, wiki.test.tokens) or in that of its folder. Where no
name tells of one, each file is cut at line ends into 90, 5 and 5 in a hundred of its characters.
"""

import tensorflow_datasets as tfds

from flaxonomy.data.datasets import files
from flaxonomy.errors import DataError


class Text(tfds.core.GeneratorBasedBuilder):
  """`text`, one example for each file."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  @staticmethod
  def variant(config) -> files.FilesConfig:
    """The builder's config for configs.base.Data."""
    return files.variant(config)

  def _info(self) -> tfds.core.DatasetInfo:
    return files.info(self, __doc__, {"text": tfds.features.Text()})

  def _split_generators(self, dl_manager):
    found = files.find(files.Path(self.builder_config.root))
    parts = {}
    if named := [file for file in found if files.split_of(file.name)]:
      for file, text in files.read(named):
        if text:
          parts.setdefault(files.split_of(file.name), []).append((file.name, text))
    else:
      for file, text in files.read(found):
        for split, part in cut(text).items():
          parts.setdefault(split, []).append((file.name, part))
    if not parts:
      raise DataError(f"{self.builder_config.root!r} holds no text")
    return {split: self._generate_examples(texts) for split, texts in parts.items()}

  def _generate_examples(self, texts):
    for name, text in texts:
      yield name, {"text": text}


def cut(text: str) -> dict[str, str]:
  """{split: part} of a text, those that are empty left out."""
  first = text.find("\n", len(text) * 90 // 100) + 1 or len(text)
  second = text.find("\n", max(first, len(text) * 95 // 100)) + 1 or len(text)
  parts = {"train": text[:first], "validation": text[first:second], "test": text[second:]}
  return {split: part for split, part in parts.items() if part}
