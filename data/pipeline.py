"""From a source to fixed-shape, masked batches on the devices.

The order of training examples is a pure function of (seed, position): epoch e is a permutation keyed by (seed, e), and
step s takes the positions s B .. (s + 1) B - 1 of the endless stream. So the data position is the step, for any number
of devices, processes and workers, and nothing else need be saved.

Small datasets are put on the devices once, and the compiled step gathers its examples by index; others are read by
Grain and sent two dispatches ahead. Both give the same batches, bit for bit.
"""

import collections
import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from flaxonomy.data import images, sources, views
from flaxonomy.data.reader import Reader
from flaxonomy.errors import DataError, UserError, first_line

AHEAD = 2  # dispatches whose items are on the devices before they are needed


class Info(NamedTuple):
  """What a task must know of its data; kept in the workdir."""

  name: str
  class_names: tuple[str, ...] = ()
  image_shape: tuple[int, int, int] | None = None
  size: int = 0  # examples of the split
  tokenizers: dict = {}  # of text, by what they are for: {"text": data.text.Tokenizer}
  series: dict | None = None  # of series: what data.series.Series holds
  categories: tuple[int, ...] = ()  # of scenes: the ids by which COCO's files call the classes; (): 1, 2, ...


class Feed(NamedTuple):
  """One split on its way to the devices.

  Attributes:
    size: examples in the split.
    resident: arrays that stay on the devices, replicated: the whole split, or nothing.
    fetch: (resident, item) -> batch, inside the compiled step, per device.
    train_items: (spans, most) -> items on the devices, one for each span (first step, count): trees with leading axes
      [most, B], of which the first `count` are used.
    eval_items: () -> items with a leading axis [B], every example once, the last batch padded.
    read: indices -> batch of NumPy arrays, on the host.
    alike: (first step, count) -> how many of these steps, from the first on, have items of one shape.
    texts: indices -> the examples as they were before they became tokens, dicts of str; of scenes the truth that
      detections are judged by, see scenes.py; of data that is read so.
  """

  size: int
  resident: dict
  fetch: Callable[[dict, dict], dict]
  train_items: Callable[[Iterable[tuple[int, int]], int], Iterator[dict]]
  eval_items: Callable[[], Iterator[dict]]
  read: Callable[[Iterable[int]], dict]
  alike: Callable[[int, int], int] = lambda first, count: count
  texts: Callable[[Iterable[int]], list[dict]] | None = None


class Order:
  """The endless stream of training examples: order[position] is an index."""

  def __init__(self, size: int, seed: int):
    self.size, self.seed = size, seed
    self._epoch = functools.lru_cache(2)(self._shuffle)

  def _shuffle(self, epoch):
    # Sorting raw bits: NumPy promises this stream for ever, and not that of its own shuffles.
    return np.argsort(np.random.PCG64([self.seed, epoch]).random_raw(self.size), kind="stable").astype(np.int32)

  def rows(self, first: int, count: int) -> np.ndarray:
    """Indices [count] at the positions from `first`."""
    positions = np.arange(first, first + count)
    epochs = positions // self.size
    return np.concatenate([self._epoch(int(e))[positions[epochs == e] % self.size] for e in np.unique(epochs)])

  def __getstate__(self):
    return self.size, self.seed

  def __setstate__(self, state):
    self.__init__(*state)


def image_shape(config, source: sources.Source) -> tuple[int, int, int]:
  """[H, W, C] of every decoded image.

  Args:
    config: configs.base.Data.
    source: an opened split.

  Raises:
    UserError: the images differ in size and no size is configured; size, channels, mean or std that cannot be, and as
      `views.check`.
  """
  if config.channels not in (None, 1, 3):
    raise UserError(f"config field 'data.channels' must be 1 (grey), 3 (colour) or None, not {config.channels}")
  if config.image_size and min(config.image_size) < 1:
    raise UserError(f"config field 'data.image_size' must be positive, not {config.image_size}")
  if config.fit == "contain":
    raise UserError("config field 'data.fit' can be 'contain' for images with boxes alone; type 'stretch' or 'cover'")
  shape = source.shape
  if shape is None:
    if config.image_size is None:
      raise UserError(f"the images of dataset {config.name!r} may differ in size; set config field 'data.image_size'")
    shape = _first_shape(config, source)
  channels = config.channels or shape[2]
  for name in ("mean", "std"):
    if (count := len(getattr(config, name))) not in (1, channels):
      raise UserError(f"config field 'data.{name}' has {count} entries, but the images have {channels} channels")
  shape = (*(config.image_size or shape[:2]), channels)
  views.check(config, shape)
  return shape


def _first_shape(config, source):
  """The shape of the first image that can be read, of the first hundred."""
  for i in range(min(100, len(source.records)) if config.on_error == "skip" else 1):
    try:
      return images.decode(source.records[i]["image"]).shape
    except Exception as error:  # as in Reader.example
      problem = first_line(error)
  raise DataError(f"dataset {config.name!r}: the first image settles the channels, but {problem}")


def open_split(config, split: str, trained: Info | None = None) -> tuple[sources.Source, Info]:
  """Opens a split, without reading more than its first example.

  Args:
    config: configs.base.Data.
    split: a TFDS split.
    trained: what is known of the training split, where this is another.

  Returns:
    (its examples, what a task must know of them)

  Raises:
    UserError: see `sources.open_source` and `image_shape`.
  """
  source = sources.open_source(config, split)
  return source, Info(config.name, source.class_names, image_shape(config, source), len(source.records))


def open_feed(config, source: sources.Source, info: Info, seed: int, batch_size: int, mesh) -> Feed:
  """Readies a split for training and evaluation; if it fits on the devices, all of it is read and put there.

  Args:
    config: configs.base.Data.
    source: from `open_split`.
    info: likewise.
    seed: of the order of training examples.
    batch_size: examples of a batch, over all devices; divisible by them.
    mesh: the devices, one axis.
  """
  reader = Reader(source, info, config.on_error, config.error_limit, config.fit)
  return of_reader(reader, config, int(np.prod(info.image_shape)), seed, batch_size, mesh)


def of_reader(reader: Reader, config, example_bytes: int, seed: int, batch_size: int, mesh) -> Feed:
  """A split that is read example by example, all of it at once if it fits on the devices.

  Args:
    reader: of the split.
    config: configs.base.Data.
    example_bytes: of an example's arrays.
    seed: of the order of training examples.
    batch_size: examples of a batch, over all devices; divisible by them.
    mesh: the devices, one axis.
  """
  on_device, size = config.on_device, len(reader.records)
  if on_device is None:
    on_device = size * example_bytes <= config.on_device_limit * 2**20
  make = _resident if on_device else _streamed
  return make(reader, size, Order(size, seed), batch_size, config.workers, mesh)


def _read(reader, indices) -> dict:
  """A batch of NumPy arrays."""
  rows = [reader(i) for i in indices]
  return reader.checked({key: np.stack([row[key] for row in rows]) for key in rows[0]})


def place(tree, mesh, spec):
  """This process's rows of a global batch, onto its devices."""
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(NamedSharding(mesh, spec), x), tree)


def ahead(items: Iterator, count: int = AHEAD) -> Iterator:
  """The same items, with `count` of them waiting while one is used, so that transfers overlap with computation."""
  queue = collections.deque(itertools.islice(items, count + 1))
  while queue:
    yield queue.popleft()
    queue.extend(itertools.islice(items, 1))


def own_rows(rows: np.ndarray) -> np.ndarray:
  """The part of the last axis that belongs to this process."""
  share = rows.shape[-1] // jax.process_count()
  return rows[..., jax.process_index() * share :][..., :share]


def padded(size: int, batch_size: int) -> np.ndarray:
  """[batches, B] every index once, then -1."""
  batches = -(-size // batch_size)
  return np.append(np.arange(size), np.full(batches * batch_size - size, -1)).reshape(batches, batch_size)


def _resident(reader, size, order, batch_size, workers, mesh) -> Feed:
  """The whole split on the devices; items are indices."""
  whole = _read(reader, range(size))
  arrays = {key: x for key, x in whole.items() if key != "index"}
  return of_arrays(arrays, order, batch_size, mesh, reader.stand_ins(size))


def of_arrays(arrays: dict, order: Order, batch_size: int, mesh, instead=None, on_device: bool = True) -> Feed:
  """A split that has been read whole.

  Args:
    arrays: {key: [N, ...]}, "mask" among them.
    order: of the N training examples.
    batch_size: examples of a batch, over all devices.
    mesh: the devices, one axis.
    instead: [N] the example that training takes for each; None: itself.
    on_device: the arrays lie on the devices and items are indices; else each item is its batch.
  """
  size = order.size
  resident = place(arrays, mesh, P()) if on_device else {}

  def item(rows, spec):
    own = {"index": own_rows(rows).astype(np.int32)}
    return place(own if on_device else _taken(np, arrays, own["index"]), mesh, spec)

  def train_items(spans, most):
    def make(step, count):
      rows = order.rows(step * batch_size, count * batch_size).reshape(count, batch_size)
      rows = rows if instead is None else instead[rows]
      return item(np.pad(rows, ((0, most - count), (0, 0))), P(None, *mesh.axis_names))

    return ahead(make(step, count) for step, count in spans)

  def eval_items():
    return ahead(item(rows, P(*mesh.axis_names)) for rows in padded(size, batch_size))

  def fetch(resident, item):
    return _taken(jnp, resident, item["index"]) if on_device else item

  def read(indices):
    return _taken(np, arrays, np.array(list(indices), np.int32))

  return Feed(size, resident, fetch, train_items, eval_items, read)


def _taken(xp, arrays, index) -> dict:
  """The batch of indices [..., B], zeros for -1; xp is NumPy or its namesake of JAX."""
  real, at = index >= 0, xp.maximum(index, 0)
  shown = lambda x: real.reshape(*index.shape, *[1] * (x.ndim - 1))
  batch = {key: xp.where(shown(x), x[at], xp.zeros((), x.dtype)) for key, x in arrays.items()}
  return batch | {"index": index}


def _streamed(reader, size, order, batch_size, workers, mesh) -> Feed:
  """Examples read by Grain; items are whole batches."""
  training = reader.standing_in(size)

  def train_items(spans, most):
    with contextlib.ExitStack() as open_streams:
      stream, at = None, None

      def make(first, count):
        nonlocal stream, at
        if first != at:  # the start, or a step that is left out
          open_streams.close()
          start = first * batch_size
          stream = _grain(_Positions(order, batch_size), training, batch_size, workers, start)
          open_streams.callback(stream.close)
        batches = [training.checked(_next(stream)) for _ in range(count)]
        batches += [batches[0]] * (most - count)  # never used: the compiled loop stops before them
        stacked = {key: np.stack([b[key] for b in batches]) for key in batches[0]}
        at = first + count
        return place(stacked, mesh, P(None, *mesh.axis_names))

      yield from ahead(make(first, count) for first, count in spans)

  def eval_items():
    rows = padded(size, batch_size)
    stream = _grain(_Listed(rows.reshape(-1), batch_size), reader, batch_size, workers, 0)
    with contextlib.closing(stream):
      yield from ahead(place(reader.checked(_next(stream)), mesh, P(*mesh.axis_names)) for _ in rows)

  def fetch(resident, item):
    return item

  return Feed(size, {}, fetch, train_items, eval_items, functools.partial(_read, reader))


def _next(stream):
  """The next batch; DataError if it does not come."""
  try:
    return next(stream)
  except Exception as error:  # whatever Grain raises: a worker process has died, or could not start
    raise DataError(f"reading data failed: {type(error).__name__}: {first_line(error)}") from error


class _Positions:
  """The endless stream as Grain reads it: `_blocked` positions of an `Order`."""

  def __init__(self, order, batch_size):
    self.order, self.batch_size = order, batch_size
    self.processes = jax.process_count()

  def __len__(self):
    return 2**60

  def __getitem__(self, i):
    return self.order.rows(_blocked(int(i), self.batch_size, self.processes), 1)[0]


class _Listed(_Positions):
  """A finite list of indices as Grain reads it."""

  def __len__(self):
    return len(self.order)

  def __getitem__(self, i):
    return self.order[_blocked(int(i), self.batch_size, self.processes)]


def _blocked(i: int, batch_size: int, processes: int) -> int:
  """Grain deals a batch out to processes row by row; so reordered, each gets a block of neighbouring rows instead."""
  batch, row = divmod(i, batch_size)
  return batch * batch_size + (row % processes) * (batch_size // processes) + row // processes


def _grain(positions, reader, batch_size, workers, start) -> Iterator[dict]:
  """Batches of this process's rows from a Grain iterator whose state is one integer, the next global position."""
  import grain
  from absl import flags
  from grain import experimental

  multiprocessing = None
  if workers:
    flags.FLAGS.is_parsed() or flags.FLAGS.mark_as_parsed()  # Grain's workers read an absl flag
    multiprocessing = grain.multiprocessing.MultiprocessingOptions(num_workers=workers)
  iterator = iter(
    experimental.ElasticIterator(
      grain.MapDataset.source(positions).map(reader),
      batch_size,
      grain.sharding.ShardOptions(shard_index=jax.process_index(), shard_count=jax.process_count()),
      multiprocessing_options=multiprocessing,
    )
  )
  iterator.set_state({"global_next_index": start})
  return iterator
