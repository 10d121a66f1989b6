"""Tokenizers: text to rows of integers and back.

The kinds "chars", "bytes", "words" and "wordpunct" are plain vocabularies of our own; "bpe" (byte-level, GPT-2's) and
"wordpiece" (BERT's) are learnt by the library `tokenizers` and kept as its tokenizer.json, the public form. Special
tokens come first and never come out of a text: one that is written there is text like any other.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np

from flaxonomy.data import subwords, vocabulary
from flaxonomy.errors import UserError, first_line, shown, unknown

KINDS = (*vocabulary.UNITS, *subwords.KINDS)

_MOST_BYTES = 2**26  # of a file
_FORMAT = "flaxonomy.vocabulary"


class Tokenizer(Protocol):
  """What both kinds of tokenizer offer. They cannot be changed, are compared by content, and can be pickled.

  Attributes:
    kind: one of KINDS.
    size: V, one more than the largest id.
    unit: "character", "byte" or "word": what bits are counted by.
  """

  kind: str
  size: int
  unit: str

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, [n] int32, nothing added."""

  def encode_all(self, texts: Iterable[str]) -> list[np.ndarray]:
    """The ids of each text."""

  def decode(self, ids) -> str:
    """The text of ids, special tokens and ids of no token left out."""

  def piece(self, i: int) -> str:
    """A token to be shown, blanks and line ends made visible."""

  def id(self, token: str) -> int | None:
    """The id of a token as the vocabulary has it, such as "<pad>"."""

  def weights(self) -> np.ndarray:
    """What each token stands for, [V] int32: characters, or bytes where `unit` is "byte"; 0 for special tokens."""


def train(
  kind: str, texts: Iterable[str], *, size: int | None = None, lowercase: bool = False, specials: Iterable[str] = ()
) -> Tokenizer:
  """A tokenizer made from texts: special tokens first, then the most frequent ones, equal ones by code point.

  Of "chars", "words" and "wordpunct", what is left over becomes "<unk>", a special token; but where the texts hold the
  literal word "<unk>", as the Penn Treebank does, it is that word, and comes out of `decode`. Words get the line end
  "<eos>" if any of the texts holds a line end.

  Args:
    kind: one of KINDS.
    texts: what the tokenizer is to know.
    size: the most tokens, special ones included; None: all there are, and 8,192 for "bpe" and "wordpiece".
    lowercase: lower-case all texts; "wordpiece" then drops accents too, as BERT's does.
    specials: special tokens in the order of their ids.

  Raises:
    UserError: unknown kind, impossible size or special token; the library is missing.
  """
  specials = list(specials)
  if kind not in KINDS:
    raise unknown("tokenizer", kind, KINDS)
  for token in specials:
    if not isinstance(token, str) or len(token) < 2 or token.split() != [token] or specials.count(token) > 1:
      raise UserError(f"special token {shown(token)} must be there once, of two characters or more and no blank")
  train_kind = subwords.train if kind in subwords.KINDS else vocabulary.train
  return train_kind(kind, texts, size, lowercase, specials)


def create(config, texts: Iterable[str], specials: Iterable[str] = ()) -> Tokenizer:
  """The tokenizer that a config names: a kind, made from texts, or a file.

  Args:
    config: configs.base.Text.
    texts: of the training split.
    specials: tokens that it must have, the first ones of what is made here.

  Raises:
    UserError: as `train` and `load`; neither kind nor file; a file without one of the special tokens.
  """
  if config.tokenizer in KINDS:
    return train(config.tokenizer, texts, size=config.vocab_size, lowercase=config.lowercase, specials=specials)
  if not Path(config.tokenizer).is_file():
    raise unknown("tokenizer", config.tokenizer, KINDS, "(config field 'data.text.tokenizer'; no file has that name)")
  found = load(config.tokenizer)
  if lacking := [token for token in specials if found.id(token) is None]:
    raise UserError(f"tokenizer {config.tokenizer!r} lacks the token {lacking[0]!r}, which this task needs")
  return found


def save(tokenizer: Tokenizer, path) -> None:
  """Writes a tokenizer as JSON: a learnt one in the public form, a plain vocabulary in our own."""
  if isinstance(tokenizer, subwords.Subwords):
    content = tokenizer.json
  else:
    content = json.dumps({"format": _FORMAT, **dataclasses.asdict(tokenizer)}, indent=1)
  try:
    Path(path).write_text(content, encoding="utf-8")
  except OSError as error:
    raise UserError(f"cannot write tokenizer {str(path)!r}: {error.strerror}") from None


def load(path) -> Tokenizer:
  """A tokenizer from a file: what `save` wrote, a public tokenizer.json, or words, one a line.

  Raises:
    UserError: the file cannot be read, is too large, or is none of these.
  """
  try:
    with Path(path).open("rb") as file:
      content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
      raise ValueError(f"it is larger than {_MOST_BYTES >> 20} MiB")
    content = content.decode("utf-8-sig")
    if Path(path).suffix.lower() != ".json":
      return vocabulary.from_lines(content)
    values = json.loads(content)
    if not isinstance(values, dict):
      raise ValueError("it is not a JSON object")
    if values.get("format") == _FORMAT:
      return vocabulary.from_values(values)
    return subwords.from_public(values, content)
  except OSError as error:
    raise UserError(f"cannot read tokenizer {str(path)!r}: {error.strerror}") from None
  except RecursionError:
    raise UserError(f"cannot use tokenizer {str(path)!r}: its JSON is nested too deeply") from None
  except ValueError as error:  # bad UTF-8 and bad JSON are ones, too
    raise UserError(f"cannot use tokenizer {str(path)!r}: {first_line(error)}") from None
