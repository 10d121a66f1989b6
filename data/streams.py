"""A corpus on its way to the devices: windows of one long line of tokens.

Two orders, both pure functions of the step. By default each window of a batch starts anywhere, drawn anew. With
`data.text.streams` the corpus is cut into as many streams as a batch has rows, which are read window behind window, so
that a recurrent model can carry its state over (Mikolov et al. 2010; Zaremba et al. 2014, section 4.1). What is left at
the end of a stream, less than a window, is not trained on.

An evaluation predicts every token but the first exactly once: window behind window, each on its own, or in streams.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from flaxonomy.data import corpora, pipeline, text
from flaxonomy.data.pipeline import Feed, Info
from flaxonomy.data.sources import Source
from flaxonomy.errors import UserError

BOUNDARIES = ("</s>", "<|endoftext|>")  # what stands between two documents, if the tokenizer knows it


def open_split(config, split: str, trained: Info | None = None) -> tuple[Source, Info]:
  """Reads a split and cuts it into tokens.

  Args:
    config: configs.base.Data.
    split: a TFDS split.
    trained: what is known of the training split, whose tokens are used; None: this is it, and they are made.

  Returns:
    (its tokens [N] as records, what a task must know of them)

  Raises:
    UserError: see `corpora.open_corpus` and `text.create`; or a split that is shorter than a window.
  """
  source = corpora.open_corpus(config, split)
  documents = [source.records[i]["text"] for i in range(len(source.records))]
  tokenizer = text.create(config.text, documents) if trained is None else trained.tokenizers["text"]
  tokens = joined(tokenizer, documents)
  windows = (len(tokens) - 1) // config.text.length
  if windows < 1:
    raise UserError(
      f"split {split!r} of dataset {config.name!r} has {len(tokens)} tokens, too few for windows of "
      f"{config.text.length}; set config field 'data.text.length'"
    )
  return source._replace(records=tokens), Info(config.name, size=windows, tokenizers={"text": tokenizer})


def joined(tokenizer, documents: list[str]) -> np.ndarray:
  """All documents as one line of tokens, of the smallest unsigned type that holds them."""
  boundary = next((i for i in map(tokenizer.id, BOUNDARIES) if i is not None), None)
  parts = []
  for tokens in tokenizer.encode_all(documents):
    parts += [tokens] if boundary is None else [tokens, np.array([boundary])]
  kind = next(t for t in (np.uint8, np.uint16, np.int32) if tokenizer.size - 1 <= np.iinfo(t).max)
  return np.concatenate(parts).astype(kind)


def open_feed(config, source: Source, info: Info, seed: int, batch_size: int, mesh) -> Feed:
  """Readies a split for training and evaluation; if it fits on the devices, it lies there.

  Args:
    config: configs.base.Data.
    source: from `open_split`.
    info: likewise.
    seed: of where windows start.
    batch_size: windows of a batch, over all devices; divisible by them.
    mesh: the devices, one axis.

  Raises:
    UserError: streams too short for a window.
  """
  tokens, length = source.records, config.text.length
  on_device = config.on_device
  if on_device is None:
    on_device = tokens.nbytes <= config.on_device_limit * 2**20
  order = _streams if config.text.streams else _anywhere
  drawn = functools.partial(order, len(tokens), length, batch_size, seed)
  every = evaluated(len(tokens), length, batch_size, config.text.streams)
  resident = pipeline.place({"tokens": tokens}, mesh, P()) if on_device else {}

  def item(rows, spec):
    own = {name: pipeline.own_rows(x) for name, x in rows.items()}
    return pipeline.place(own if on_device else _windows(np, tokens, own, length), mesh, spec)

  def train_items(spans, most):
    def make(first, count):
      steps = [drawn(first + min(i, count - 1)) for i in range(most)]  # the compiled loop stops before what is repeated
      return item({name: np.stack([step[name] for step in steps]) for name in steps[0]}, P(None, *mesh.axis_names))

    return pipeline.ahead(make(first, count) for first, count in spans)

  def eval_items():
    return pipeline.ahead(item(rows, P(*mesh.axis_names)) for rows in every)

  def fetch(resident, item):
    return _windows(jnp, resident["tokens"], item, length) if on_device else item

  def read(indices):
    start = np.array(list(indices), np.int32)
    return _windows(np, tokens, _rows(start, np.minimum(length, len(tokens) - 1 - start), True), length)

  return Feed(info.size, resident, fetch, train_items, eval_items, read)


def _windows(xp, tokens, rows, length) -> dict:
  """The batch of rows [..., B]; xp is NumPy or its namesake of JAX."""
  places = xp.arange(length + 1).reshape(*(1,) * rows["index"].ndim, -1)
  at = rows["index"][..., None] + places
  mask = (places[..., :-1] < rows["count"][..., None]).astype(xp.float32)
  found = tokens[xp.clip(at, 0, len(tokens) - 1)].astype(xp.int32)
  return {"tokens": found, "mask": mask, "fresh": rows["fresh"], "index": rows["index"]}


def _rows(start, count, fresh) -> dict:
  """Where windows start, -1 for none; how many tokens they predict; whether no state is carried over to them."""
  start, count = start.astype(np.int32), np.maximum(count, 0).astype(np.int32)
  fresh = np.broadcast_to(np.float32(fresh), start.shape).copy()
  return {"index": np.where(count > 0, start, -1).astype(np.int32), "count": count, "fresh": fresh}


def _anywhere(size, length, batch_size, seed, step) -> dict:
  start = np.random.PCG64([seed, step]).random_raw(batch_size) % np.uint64(size - length)
  return _rows(start, np.full(batch_size, length), True)


def _streams(size, length, batch_size, seed, step) -> dict:
  each = (size - 1) // batch_size
  if each < length:
    raise UserError(
      f"{size} tokens in {batch_size} streams have no window of {length}; set data.batch_size or data.text.length"
    )
  window = step % (each // length)
  start = np.arange(batch_size) * each + window * length
  return _rows(start, np.full(batch_size, length), window == 0)


def evaluated(size: int, length: int, batch_size: int, streams: bool) -> list[dict]:
  """Batches of windows that predict each token but the first once; see `_rows`.

  Args:
    size: tokens of the split.
    length: of a window.
    batch_size: B.
    streams: B streams, or windows dealt out one by one.
  """
  each = -(-(size - 1) // batch_size) if streams else length
  windows = -(-each // length) if streams else -(-(size - 1) // (batch_size * length))
  found = []
  for window in range(windows):
    row = np.arange(batch_size)
    start = row * each + window * length if streams else (window * batch_size + row) * length
    count = np.minimum(each - window * length if streams else length, size - 1 - start)
    found.append(_rows(start, np.minimum(count, length), window == 0 or not streams))
  return found
