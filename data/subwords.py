"""Parts of words: byte-level BPE and WordPiece, through the library `tokenizers`. See text.py for the interface."""

import dataclasses
import functools
import json
from collections.abc import Iterable

import numpy as np

from flaxonomy.data.vocabulary import MOST_TOKENS, UNKNOWN, VISIBLE, check_size
from flaxonomy.errors import UserError, first_line, missing_extra

KINDS = ("bpe", "wordpiece")
SIZE = 8192  # where none is asked for


@dataclasses.dataclass(frozen=True)
class Subwords:
  """Byte-level BPE or WordPiece, a Tokenizer, through the library `tokenizers`.

  Attributes:
    kind: "bpe" or "wordpiece".
    json: the public tokenizer.json.
  """

  kind: str
  json: str

  def __getstate__(self):
    return {"kind": self.kind, "json": self.json}

  @property
  def size(self) -> int:
    """V; ids that are no token, which some public files have, count."""
    return len(self._tokens)

  @property
  def unit(self) -> str:
    """What bits are counted by."""
    return "byte"

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, [n] int32."""
    return self.encode_all([text])[0]

  def encode_all(self, texts: Iterable[str]) -> list[np.ndarray]:
    """The ids of each text, by several threads."""
    texts = [_sound(text) for text in texts]
    return [np.array(e.ids, np.int32) for e in self._model.encode_batch_fast(texts, add_special_tokens=False)]

  def decode(self, ids) -> str:
    """The text of ids, special tokens and ids of no token left out."""
    ids = np.asarray(ids, np.int64).reshape(-1)
    return self._model.decode(ids[(ids >= 0) & (ids < self.size)].tolist(), skip_special_tokens=True)

  def piece(self, i: int) -> str:
    """A token to be shown."""
    token = self._tokens[i] if 0 <= i < self.size else ""
    if self.kind == "bpe" and i not in self._added:
      token = self._model.decoder.decode([token])
    return token.translate(VISIBLE)

  def id(self, token: str) -> int | None:
    """The id of a token as the file has it: byte-level BPE writes a blank as "Ġ"."""
    return self._model.token_to_id(token)

  def weights(self) -> np.ndarray:
    """[V] int32: UTF-8 bytes each token stands for; 0 for special tokens. WordPiece counts no blanks."""
    if self.kind == "bpe":
      found = [len(token) for token in self._tokens]  # a character for each byte
    else:
      found = [len(token.removeprefix("##").encode()) for token in self._tokens]
    for i, added in self._added.items():
      found[i] = 0 if added.special else len(added.content.encode())
    return np.array(found, np.int32)

  @functools.cached_property
  def _model(self):
    return _plain(_library().Tokenizer.from_str(self.json))

  @functools.cached_property
  def _added(self) -> dict:
    return self._model.get_added_tokens_decoder()

  @functools.cached_property
  def _tokens(self) -> list[str]:
    vocabulary = self._model.get_vocab(with_added_tokens=True)
    found = [""] * (max(vocabulary.values()) + 1)
    for token, i in vocabulary.items():
      found[i] = token
    return found


def _library():
  try:
    import tokenizers
  except ImportError:
    raise missing_extra("tokenizers", "text", "a tokenizer 'bpe' or 'wordpiece'") from None
  return tokenizers


def _sound(text: str) -> str:
  """A text without lone surrogates, which are no text to the library."""
  return text.encode("utf-8", "replace").decode()


def _plain(model):
  """The library's tokenizer without what would cut or add tokens behind our back."""
  model.no_truncation()
  model.no_padding()
  model.encode_special_tokens = True  # as text, where they are written in a text
  return model


def train(kind: str, texts: Iterable[str], size: int | None, lowercase: bool, specials: list[str]) -> Subwords:
  """The merges that texts ask for; see `text.train`."""
  size = SIZE if size is None else size
  texts = [_sound(text.lower() if lowercase else text) for text in texts]
  for token in specials:  # or merges might end in it, and a text that holds it be taken for it
    texts = [text.replace(token, " ") for text in texts]
  model = (_train_bpe if kind == "bpe" else _train_wordpiece)(_library(), texts, size, lowercase, specials)
  check_size(kind, size, model.get_vocab_size())  # no room for all characters
  return Subwords(kind, _plain(model).to_str())


def _train_bpe(library, texts, size, lowercase, specials):
  check_size("bpe", size, 256 + len(specials))
  model = library.Tokenizer(library.models.BPE())
  if lowercase:
    model.normalizer = library.normalizers.Lowercase()
  model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = library.decoders.ByteLevel()
  every_byte = library.pre_tokenizers.ByteLevel.alphabet()  # so that nothing is unknown
  trainer = library.trainers.BpeTrainer(
    vocab_size=size, special_tokens=specials, initial_alphabet=every_byte, show_progress=False
  )
  model.train_from_iterator(texts, trainer)
  return model


def _train_wordpiece(library, texts, size, lowercase, specials):
  unknown = "[UNK]" if "[UNK]" in specials else UNKNOWN
  specials = [*dict.fromkeys([*specials, unknown])]
  check_size("wordpiece", size, len(specials) + 1)

  def make(**vocabulary):
    model = library.Tokenizer(library.models.WordPiece(unk_token=unknown, **vocabulary))
    model.normalizer = library.normalizers.BertNormalizer(lowercase=lowercase)
    model.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
    model.decoder = library.decoders.WordPiece()
    return model

  model, inner = make(), set()
  for text in texts:
    for word, _ in model.pre_tokenizer.pre_tokenize_str(model.normalizer.normalize_str(text)):
      inner.update(word[1:])
  # The library would give the inner characters their ids, and so break ties, in the order of a hash that is never the
  # same. Named in advance they have one; the model is made anew for them not to be special.
  named = [*specials, *(f"##{character}" for character in sorted(inner))]
  trainer = library.trainers.WordPieceTrainer(vocab_size=size, special_tokens=named, show_progress=False)
  model.train_from_iterator(texts, trainer)
  model = make(vocab=model.get_vocab())
  model.add_special_tokens(specials)
  return model


def from_public(values: dict, content: str) -> Subwords:
  """A public tokenizer.json.

  Args:
    values: its JSON.
    content: its text.

  Raises:
    ValueError: it is none, or one that is not supported.
    UserError: the library is missing.
  """
  model = values.get("model")
  kind = {"BPE": "bpe", "WordPiece": "wordpiece"}.get(str(model.get("type")) if isinstance(model, dict) else None)
  if kind is None:
    raise ValueError("it is neither ours nor a tokenizer.json of BPE or WordPiece")
  if kind == "bpe" and '"ByteLevel"' not in json.dumps(values.get("decoder")):
    raise ValueError("its BPE is not byte-level")
  vocabulary, added = model.get("vocab"), values.get("added_tokens") or []
  if not isinstance(vocabulary, dict) or not isinstance(added, list) or not all(isinstance(t, dict) for t in added):
    raise ValueError("its vocabulary cannot be read")
  ids = [*vocabulary.values(), *(token.get("id") for token in added)]
  if not ids or not all(type(i) is int and 0 <= i < MOST_TOKENS for i in ids):
    raise ValueError(f"its ids must be from 0 to {MOST_TOKENS - 1}")
  try:
    return Subwords(kind, _plain(_library().Tokenizer.from_str(content)).to_str())
  except UserError:
    raise
  except BaseException as error:  # the library's panics are no Exceptions
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
      raise
    raise ValueError(first_line(error)) from None
