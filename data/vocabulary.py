"""Plain vocabularies: characters, bytes, words. See text.py for what every tokenizer offers."""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable

import numpy as np

from flaxonomy.errors import UserError, shown

UNKNOWN, LINE_END = "<unk>", "<eos>"
UNITS = {"chars": "character", "bytes": "byte", "words": "word", "wordpunct": "word"}
MOST_TOKENS = 2**20
VISIBLE = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥", "\r": "␍"})

_LEADING = {"<pad>", "<s>", "</s>", UNKNOWN}  # special at the top of a vocabulary file


@dataclasses.dataclass(frozen=True)
class Vocabulary:
  """A plain vocabulary, a Tokenizer.

  Words are split at white space; "wordpunct" also parts punctuation from words. Where "<eos>" is a token it is the line
  end, as for the Penn Treebank; where it is not, line ends are blanks.

  Attributes:
    kind: "chars", "bytes", "words" or "wordpunct".
    tokens: by id; of "bytes", those of code points 0 to 255.
    specials: the first so many are special.
    lowercase: texts are lower-cased first.
  """

  kind: str
  tokens: tuple[str, ...]
  specials: int = 0
  lowercase: bool = False

  def __getstate__(self):
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # without the tables

  @property
  def size(self) -> int:
    """V."""
    return len(self.tokens)

  @property
  def unit(self) -> str:
    """What bits are counted by."""
    return UNITS[self.kind]

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, [n] int32.

    Raises:
      UserError: something unknown, and there is no "<unk>".
    """
    text = text.lower() if self.lowercase else text
    if self.kind == "bytes":
      return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int32) + np.int32(self.specials)
    if self.kind == "chars":
      ids = self._table[np.minimum(_code_points(text), len(self._table) - 1)]
    else:
      words = _words(self.kind, text, LINE_END in self._ids)
      ids = np.fromiter(map(self._ids.get, words, itertools.repeat(self._unknown)), np.int32, len(words))
    if self._unknown < 0 and (ids < 0).any():
      part = (text if self.kind == "chars" else words)[int(np.argmax(ids < 0))]
      raise UserError(f"{shown(part)} is not in the vocabulary, which has no {UNKNOWN!r} to stand for it")
    return ids

  def encode_all(self, texts: Iterable[str]) -> list[np.ndarray]:
    """The ids of each text."""
    return [self.encode(text) for text in texts]

  def decode(self, ids) -> str:
    """The text of ids, special tokens and ids of no token left out."""
    ids = np.asarray(ids, np.int64).reshape(-1)
    ids = ids[(ids >= self.specials) & (ids < self.size)]
    if self.kind == "bytes":
      return (ids - self.specials).astype(np.uint8).tobytes().decode("utf-8", "replace")
    tokens = [self.tokens[i] for i in ids.tolist()]
    if self.kind == "chars":
      return "".join(tokens)
    text = " ".join("\n" if token == LINE_END else token for token in tokens)
    return re.sub(" ?\n ?", "\n", text if self.kind == "words" else _joined(text))

  def piece(self, i: int) -> str:
    """A token to be shown."""
    if not 0 <= i < self.size:
      return ""
    token = self.tokens[i]
    if self.kind == "bytes" and i >= self.specials and not " " <= token <= "~" and token not in "\n\t\r":
      return f"\\x{ord(token):02x}"
    return token.translate(VISIBLE)

  def id(self, token: str) -> int | None:
    """The id of a token."""
    return self._every.get(token)

  def weights(self) -> np.ndarray:
    """[V] int32: characters each token stands for, a line end being one, or bytes; 0 for special tokens.

    But the unknown character is a character.
    """
    counts = [1 if token == LINE_END else len(token) for token in self.tokens]
    known = lambda token: int(token == UNKNOWN and self.kind == "chars")
    return np.array([*map(known, self.tokens[: self.specials]), *counts[self.specials :]], np.int32)

  @functools.cached_property
  def _every(self) -> dict[str, int]:
    return {token: i for i, token in enumerate(self.tokens)}

  @functools.cached_property
  def _ids(self) -> dict[str, int]:
    """Of what a text may hold: of the special tokens, the unknown word and the line end alone."""
    return {t: i for t, i in self._every.items() if i >= self.specials or t in (UNKNOWN, LINE_END)}

  @functools.cached_property
  def _unknown(self) -> int:
    return self._every.get(UNKNOWN, -1)

  @functools.cached_property
  def _table(self) -> np.ndarray:
    """Ids by code point, up to the last known one; one more entry for all beyond."""
    points = np.array([ord(token) for token in self.tokens[self.specials :]], np.int64)
    table = np.full(points.max(initial=-1) + 2, self._unknown, np.int32)
    table[points] = np.arange(self.specials, self.size)
    return table


def train(kind: str, texts: Iterable[str], size: int | None, lowercase: bool, specials: list[str]) -> Vocabulary:
  """The most frequent tokens of texts; see `text.train`."""
  texts = (text.lower() for text in texts) if lowercase else texts
  literal = False  # "<unk>" is a word of the texts rather than a special token
  if kind == "bytes":
    tokens, least = list(map(chr, range(256))), 256
  elif kind == "chars":
    tokens, least = _frequent_characters(texts), 1
  else:
    counts = collections.Counter()
    for text in texts:
      counts.update(_words(kind, text, True))
    literal = UNKNOWN in counts and UNKNOWN not in specials
    tokens, least = sorted(counts.keys() - set(specials), key=lambda word: (-counts[word], word)), 1
  if kind != "bytes" and not literal:
    specials = [*dict.fromkeys([*specials, UNKNOWN])]
  room = check_size(kind, size, len(specials) + least) - len(specials)
  if literal and UNKNOWN not in tokens[:room]:
    tokens[room - 1] = UNKNOWN
  return Vocabulary(kind, (*specials, *tokens[:room]), len(specials), lowercase)


def check_size(kind: str, size: int | None, least: int) -> int:
  """The most tokens that there may be.

  Raises:
    UserError: fewer than the least, or more than anyone needs.
  """
  if size is not None and not least <= size <= MOST_TOKENS:
    raise UserError(f"a vocabulary of {kind!r} must have from {least} to {MOST_TOKENS} tokens, not {shown(size)}")
  return MOST_TOKENS if size is None else size


def _code_points(text: str) -> np.ndarray:
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _frequent_characters(texts) -> list[str]:
  counts = np.bincount(_code_points("".join(texts)), minlength=1)
  found = np.flatnonzero(counts)
  return [chr(point) for point in found[np.argsort(-counts[found], kind="stable")].tolist()]


def _words(kind: str, text: str, line_ends: bool) -> list[str]:
  """A text in words; with `line_ends`, a line end is a word, too."""
  if kind == "words":
    return (text.replace("\n", f" {LINE_END} ") if line_ends else text).split()
  found = re.findall(r"<unk>|\n|\w+|[^\w\s]" if line_ends else r"<unk>|\w+|[^\w\s]", text)
  return [LINE_END if word == "\n" else word for word in found] if line_ends else found


def _joined(text: str) -> str:
  """Words and punctuation with blanks between all, as one writes them."""
  text = re.sub(r" (?=[.,;:!?)\]%'’])|(?<=[(\[]) ", "", text)
  return re.sub(r"(?<=\w['’]) (?=(?:s|t|d|m|re|ve|ll)\b)", "", text)  # what English contracts


def from_lines(content: str) -> Vocabulary:
  """The words of a vocabulary file, one a line; "<pad>", "<s>", "</s>" and "<unk>" at its top are special.

  Raises:
    ValueError: it is none.
  """
  lines = content.split("\n")
  tokens = [line.removesuffix("\r") for line in lines[: -1 if not lines[-1] else None]]
  if "[UNK]" in tokens:
    raise ValueError("it is a vocabulary of word pieces, which lacks how they are split; give its tokenizer.json")
  specials = len(list(itertools.takewhile(_LEADING.__contains__, tokens)))
  return from_values({"kind": "words", "tokens": tokens, "specials": specials, "lowercase": False})


def from_values(values: dict) -> Vocabulary:
  """The vocabulary whose fields a JSON object holds.

  Raises:
    ValueError: it is none.
  """
  kind, tokens, specials, lowercase = map(values.get, ("kind", "tokens", "specials", "lowercase"))
  if not isinstance(kind, str) or kind not in UNITS:
    raise ValueError(f"it is of kind {shown(kind)}")
  if not isinstance(tokens, list) or not 0 < len(tokens) <= MOST_TOKENS:
    raise ValueError(f"it must have from 1 to {MOST_TOKENS} tokens")
  if not all(isinstance(token, str) and token for token in tokens) or len(set(tokens)) < len(tokens):
    raise ValueError("its tokens must be text, none of them empty or there twice")
  if type(specials) is not int or not 0 <= specials <= len(tokens) or type(lowercase) is not bool:
    raise ValueError("'specials' must be how many tokens are special, and 'lowercase' true or false")
  plain = tokens[specials:]
  if kind == "chars" and any(len(token) > 1 for token in plain):
    raise ValueError("a token of kind 'chars' must be one character")
  if kind == "bytes" and plain != list(map(chr, range(256))):
    raise ValueError("the tokens of kind 'bytes' must be the 256 bytes")
  if "word" in kind and any(token.split() != [token] for token in plain):
    raise ValueError("a word must not hold blanks")
  return Vocabulary(kind, tuple(tokens), specials, lowercase)
