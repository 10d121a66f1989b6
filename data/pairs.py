"""Pairs of sentences on their way to the devices, such as a text and its translation; batches as in sentences.py.

A source ends in "</s>"; a target stands between "<s>" and "</s>". The bucket of a pair is that of its longer sequence:
by each of the two there would be as many shapes as pairs of buckets, each to be compiled, and the two lengths go
together. In a bucket both sides are padded to the longest that it or a narrower one holds, dates of ten figures not to
the width of dates in words.
"""

import functools

import numpy as np

from flaxonomy.data import corpora, sentences, text
from flaxonomy.data.pipeline import Info
from flaxonomy.data.sentences import Examples, Ragged
from flaxonomy.data.sources import Source
from flaxonomy.errors import UserError

COLUMNS = {"source": ("", "</s>"), "target": ("<s>", "</s>")}  # what stands before and behind

open_feed = sentences.open_feed


def open_split(config, split: str, trained: Info | None = None) -> tuple[Source, Info]:
  """Reads a split and encodes it.

  Pairs that are too long are left out of training, for half a sentence is no translation of a whole one. In evaluation
  none is: they have a bucket of their own.

  Args:
    config: configs.base.Data.
    split: a TFDS split.
    trained: what is known of the training split, whose tokens are used; None: this is it, and they are made.

  Returns:
    (its `sentences.Examples` as records, what a task must know of them)

  Raises:
    UserError: see `corpora.open_pairs`, `sentences.tokenizer_of` and `sentences.widths`; or all pairs are too long.
  """
  widths = sentences.widths(config.text)
  source = corpora.open_pairs(config, split)
  rows = [source.records[i] for i in range(len(source.records))]
  texts = {key: [row[key] for row in rows] for key in COLUMNS}
  tokenizers = _tokenizers(config.text, texts) if trained is None else trained.tokenizers
  columns = {
    key: sentences.encoded(tokenizers[key], texts[key], None, before, behind)[0]
    for key, (before, behind) in COLUMNS.items()
  }
  longest = functools.reduce(np.maximum, (column.lengths for column in columns.values()))
  told = ""
  if trained is not None:
    widths = tuple(sorted({*widths, max(widths[-1], int(longest.max()))}))
  elif (longest > widths[-1]).any():
    kept = np.flatnonzero(longest <= widths[-1])
    told = (
      f"{len(rows) - len(kept)} of {len(rows)} pairs of split {split!r} are left out: they have more than {widths[-1]} "
      "tokens"
    )
    if not len(kept):
      raise UserError(f"{told}; set config field 'data.text.length' or 'data.text.buckets'")
    columns, rows = {key: _taken(column, kept) for key, column in columns.items()}, [rows[i] for i in kept]
  examples = Examples(columns, widths, trained is None, told=told, texts=rows)
  return source._replace(records=examples), Info(config.name, size=len(examples), tokenizers=tokenizers)


def _tokenizers(config, texts) -> dict:
  """One for each column, or one for both: a file's, or where `shared` asks for it."""
  if config.shared or config.tokenizer not in text.KINDS:
    return dict.fromkeys(COLUMNS, sentences.tokenizer_of(config, [*texts["source"], *texts["target"]]))
  return {key: sentences.tokenizer_of(config, texts[key]) for key in COLUMNS}


def _taken(column: Ragged, index) -> Ragged:
  """The sequences of an index alone."""
  keep = np.zeros(len(column.lengths), bool)
  keep[index] = True
  return Ragged(column.tokens[np.repeat(keep, column.lengths)], np.append(0, np.cumsum(column.lengths[index])))
