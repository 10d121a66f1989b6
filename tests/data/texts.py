"""Files of text, what is read of them, and the one line that a mistake ends in."""

import gzip
from pathlib import Path

import pytest

from flaxonomy.configs.base import Data, Text
from flaxonomy.data import corpora
from flaxonomy.errors import UserError


def put(root: Path, contents: dict) -> Path:
  """Files by name; text as UTF-8, what ends in .gz compressed."""
  for name, content in contents.items():
    content = content.encode() if isinstance(content, str) else content
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
  return root


def corpus(root, split="train") -> list[str]:
  return sorted(record["text"] for record in corpora.open_corpus(Data("text", data_dir=str(root)), split).records)


def sentences(root, split="train") -> tuple[set, tuple]:
  source = corpora.open_labelled(Data("labelled", data_dir=str(root)), split)
  return {(r["text"], source.class_names[r["label"]]) for r in source.records}, source.class_names


def translations(root, split="train", languages=("en", "de")) -> set:
  config = Data("pairs", data_dir=str(root), text=Text(languages=languages))
  return {(r["source"], r["target"]) for r in corpora.open_pairs(config, split).records}


def mistake(function, *arguments, kind=UserError) -> str:
  """The one line that a mistake ends in."""
  with pytest.raises(UserError) as error:
    function(*arguments)
  message = str(error.value)
  assert type(error.value) is kind, message
  assert len(message.splitlines()) == 1, message
  return message
