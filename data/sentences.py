"""Sentences on their way to the devices, each batch with others of about its length.

A split is encoded once. Its examples are sequences of tokens with a label, or pairs of sequences (pairs.py). An example
belongs to the least of `data.text.buckets` that holds its longest sequence; a batch is of one bucket and has its width,
so that there are as many shapes as buckets. Sequences end in padding, whose id is 0.

The order of training is a pure function of (seed, step): an epoch shuffles each bucket, cuts it into whole batches,
leaves out what remains of each, and shuffles the batches. All epochs have equally many, so the data position is the
step. An evaluation scores every example once, bucket by bucket, that of the first example first.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jax.sharding import PartitionSpec as P

from flaxonomy.data import corpora, pipeline, text
from flaxonomy.data.pipeline import Feed, Info
from flaxonomy.data.sources import Source
from flaxonomy.errors import UserError, first_line, shown, warn

SPECIALS = ("<pad>", "<s>", "</s>", "<unk>")  # the first ones of every vocabulary that is made here
PAD = 0


class Ragged(NamedTuple):
  """Sequences behind one another: tokens [total] int32, and where each begins [N + 1]."""

  tokens: np.ndarray
  begin: np.ndarray

  @property
  def lengths(self) -> np.ndarray:
    """[N]"""
    return np.diff(self.begin)

  def padded(self, index: np.ndarray, width: int) -> np.ndarray:
    """Rows [B, width] int32 of an index [B]; -1 is a row of padding."""
    place = np.arange(width)
    lengths = np.where(index < 0, 0, self.lengths[index])
    at = np.minimum(self.begin[index][:, None] + place, len(self.tokens) - 1)
    return np.where(place < lengths[:, None], self.tokens[at], PAD).astype(np.int32)


@dataclass(frozen=True)
class Examples:
  """The examples of a split, encoded.

  Attributes:
    columns: sequences by the batch's key.
    widths: of the buckets, rising; the last one holds every example.
    training: whether this split is trained on.
    values: what else an example has, arrays [N] by the batch's key.
    told: a warning.
    texts: the examples as text, of pairs.
  """

  columns: dict[str, Ragged]
  widths: tuple[int, ...]
  training: bool
  values: dict[str, np.ndarray] = field(default_factory=dict)
  told: str = ""
  texts: list[dict] = field(default_factory=list)

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """Of each example's longest sequence, [N]."""
    return functools.reduce(np.maximum, (column.lengths for column in self.columns.values()))

  @functools.cached_property
  def buckets(self) -> np.ndarray:
    """Of each example, [N]."""
    return np.searchsorted(self.widths, self.lengths)

  def __len__(self):
    return len(self.lengths)

  def width(self, key: str, most: int) -> int:
    """Of a column in batches of the bucket `most`: of pairs, no more than it needs there or in narrower buckets."""
    if len(self.columns) == 1:
      return most
    return int(self.columns[key].lengths[self.lengths <= most].max(initial=1))

  def batch(self, index: np.ndarray, width: int) -> dict:
    """The batch of an index [B], -1 for padding."""
    found = {key: column.padded(index, self.width(key, width)) for key, column in self.columns.items()}
    found |= {key: np.where(index < 0, 0, value[index]).astype(value.dtype) for key, value in self.values.items()}
    return found | {"index": index.astype(np.int32), "mask": (index >= 0).astype(np.float32)}


def open_split(config, split: str, trained: Info | None = None) -> tuple[Source, Info]:
  """Reads a split of texts with labels and encodes it: "<s>" and the text, cut where it is too long.

  Args:
    config: configs.base.Data.
    split: a TFDS split.
    trained: what is known of the training split, whose tokens are used; None: this is it, and they are made.

  Returns:
    (its `Examples` as records, what a task must know of them)

  Raises:
    UserError: see `corpora.open_labelled`, `tokenizer_of` and `widths`.
  """
  most = widths(config.text)
  source = corpora.open_labelled(config, split)
  rows = [source.records[i] for i in range(len(source.records))]
  texts = [row["text"] for row in rows]
  tokenizer = tokenizer_of(config.text, texts) if trained is None else trained.tokenizers["text"]
  column, cut = encoded(tokenizer, texts, most[-1])
  labels = np.array([row["label"] for row in rows], np.int32)
  told = f"{cut} of {len(rows)} texts of split {split!r} are cut to {most[-1]} tokens" if cut else ""
  examples = Examples({"text": column}, most, trained is None, {"label": labels}, told)
  return source._replace(records=examples), Info(
    config.name, source.class_names, size=len(examples), tokenizers={"text": tokenizer}
  )


def lines(inputs: list[str]) -> list[str]:
  """The lines of text files, without those that are blank.

  Raises:
    UserError: no such file, no text, or none at all.
  """
  found = []
  for path in inputs:
    try:
      found += Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
      raise UserError(f"cannot read {str(path)!r} as text: {first_line(error)}") from None
  found = [line for line in found if line.strip()]
  if not found:
    raise UserError(f"no line of text in {', '.join(map(repr, inputs))}")
  return found


def widths(config) -> tuple[int, ...]:
  """The widths of batches, rising.

  Args:
    config: configs.base.Text.

  Raises:
    UserError: buckets that are not rising, or too narrow for a token and its "</s>".
  """
  found = config.buckets or (config.length,)
  if found[0] < 2 or any(a >= b for a, b in zip(found, found[1:])):
    raise UserError(f"config field 'data.text.buckets' must be rising lengths from 2 on, not {shown(found)}")
  return found


def tokenizer_of(config, texts: Iterable[str]) -> text.Tokenizer:
  """The tokenizer that a config names, for sequences that are padded with 0.

  Args:
    config: configs.base.Text.
    texts: of the training split.

  Raises:
    UserError: as `text.create`, or a file in which 0 is another token than "<pad>".
  """
  found = text.create(config, texts, SPECIALS)
  if found.id("<pad>") != PAD:
    raise UserError(f"tokenizer {config.tokenizer!r} must have '<pad>' as its first token, id 0")
  return found


def encoded(tokenizer, texts, most: int | None = None, before: str = "<s>", behind: str = "") -> tuple[Ragged, int]:
  """Texts as sequences, with a special token before and perhaps one behind each.

  Args:
    tokenizer: a text.Tokenizer.
    texts: a list of them.
    most: tokens, where longer ones are cut; None: they are not.
    before: a special token, or nothing.
    behind: likewise, not cut off.

  Returns:
    (the sequences, how many were cut)
  """
  first, last = ([np.array([tokenizer.id(token)], np.int32)] if token else [] for token in (before, behind))
  room = None if most is None else most - len(first) - len(last)
  rows = tokenizer.encode_all(texts)
  cut = 0 if room is None else sum(len(row) > room for row in rows)
  lengths = [min(len(row), len(row) if room is None else room) + len(first) + len(last) for row in rows]
  parts = [part for row in rows for part in (*first, row[:room], *last)]
  return Ragged(np.concatenate(parts).astype(np.int32), np.append(0, np.cumsum(lengths)).astype(np.int64)), cut


class Batches:
  """The endless stream of training batches, a pure function of (seed, step).

  Attributes:
    count: batches of an epoch.
  """

  def __init__(self, buckets: np.ndarray, batch_size: int, seed: int):
    """Args: buckets: of each example, [N] int. batch_size: B. seed: of the order."""
    self._members = [np.flatnonzero(buckets == k) for k in range(buckets.max(initial=-1) + 1)]
    self._size, self._seed = batch_size, seed
    self.count = sum(len(members) // batch_size for members in self._members)
    self._epoch = functools.lru_cache(2)(self._shuffle)

  def _shuffle(self, epoch):
    """(the bucket of each batch [count], its examples [count, B])."""
    kinds, rows = [], []
    for k, members in enumerate(self._members):
      whole = len(members) // self._size
      order = members[_shuffled(len(members), self._seed, epoch, k + 1)][: whole * self._size]
      rows.append(order.reshape(whole, self._size))
      kinds.append(np.full(whole, k))
    order = _shuffled(self.count, self._seed, epoch, len(self._members) + 1)
    return np.concatenate(kinds)[order], np.concatenate(rows)[order]

  def at(self, step: int) -> tuple[int, np.ndarray]:
    """(bucket, examples [B]) of a step."""
    epoch, place = divmod(step, self.count)
    kinds, rows = self._epoch(epoch)
    return int(kinds[place]), rows[place]

  def alike(self, first: int, count: int) -> int:
    """How many of these steps, from the first on, are of one bucket."""
    kind = self.at(first)[0]
    return next((i for i in range(1, count) if self.at(first + i)[0] != kind), count)


def _shuffled(size, *key) -> np.ndarray:
  """A permutation; as in `pipeline.Order`, by raw bits, which NumPy promises for ever."""
  return np.argsort(np.random.PCG64(key).random_raw(size), kind="stable")


def evaluated(buckets: np.ndarray, batch_size: int) -> list[tuple[int, np.ndarray]]:
  """(bucket, examples [B], then -1) of batches that hold each example once, the first of all in the first."""
  found = []
  for k in sorted(set(buckets.tolist()), key=lambda k: (k != buckets[0], k)):
    members = np.flatnonzero(buckets == k)
    found += [(k, np.where(rows < 0, -1, members[rows])) for rows in pipeline.padded(len(members), batch_size)]
  return found


def open_feed(config, source: Source, info: Info, seed: int, batch_size: int, mesh) -> Feed:
  """Readies a split for training and evaluation; batches are sent one by one.

  Args:
    config: configs.base.Data.
    source: from `open_split`, here or in pairs.py.
    info: likewise.
    seed: of the order of training examples.
    batch_size: examples of a batch, over all devices; divisible by them.
    mesh: the devices, one axis.

  Raises:
    UserError: no bucket of the training split fills a batch.
  """
  examples = source.records
  order = Batches(examples.buckets, batch_size, seed)
  if examples.told:
    warn(examples.told)
  if examples.training:
    _check(examples, batch_size, order)

  def make(first, count, most):
    steps = [order.at(first + min(i, count - 1)) for i in range(most)]  # what is repeated is not used
    width = examples.widths[steps[0][0]]
    batches = [examples.batch(pipeline.own_rows(rows), width) for _, rows in steps]
    return {key: np.stack([batch[key] for batch in batches]) for key in batches[0]}

  def train_items(spans, most):
    spec = P(None, *mesh.axis_names)
    return pipeline.ahead(pipeline.place(make(first, count, most), mesh, spec) for first, count in spans)

  def eval_items():
    for k, rows in evaluated(examples.buckets, batch_size):
      batch = examples.batch(pipeline.own_rows(rows), examples.widths[k])
      yield pipeline.place(batch, mesh, P(*mesh.axis_names))

  def read(indices):
    index = np.array(list(indices), int)
    return examples.batch(index, examples.widths[examples.buckets[index].max(initial=0)])

  texts = lambda indices: [examples.texts[i] for i in indices]
  whole = lambda resident, item: item
  return Feed(len(examples), {}, whole, train_items, lambda: pipeline.ahead(eval_items()), read, order.alike, texts)


def _check(examples, batch_size, order):
  """Refuses a split of which nothing can be trained on, and tells of buckets of which nothing is."""
  counts = np.bincount(examples.buckets, minlength=len(examples.widths))
  held = ", ".join(f"{n} of up to {w} tokens" for n, w in zip(counts, examples.widths))
  if not order.count:
    raise UserError(
      f"no bucket holds a batch of {batch_size} examples: {held}; set data.batch_size or data.text.buckets"
    )
  if (small := (counts > 0) & (counts < batch_size)).any():
    warn(f"{counts[small].sum()} examples are never trained on, for their buckets do not fill a batch: {held}")
