"""Darknet's `.weights` files to YOLO's variables and back.

A file is a header, three int32 (major, minor, revision) and the images seen so far, int64 from version 0.2 on and
int32 before, then all numbers as float32, layer by layer in the order of the cfg file, little-endian:

  convolution with batch norm   biases, scales, rolling means, rolling variances, kernel [out, in, high, wide]
  convolution without           biases, kernel
  connected                     biases, matrix [out, in], or [in, out] in files whose major or minor is above 1000

Nothing in it tells names or shapes: those are of the model that it is read for. A file may end behind any layer, as
those do that Redmon's trainings start from (darknet53.conv.74).
"""

import math
import re
from typing import NamedTuple

import numpy as np

from flaxonomy.errors import UserError

FLOAT, INT, LONG = np.dtype("<f4"), np.dtype("<i4"), np.dtype("<i8")
_LEAF = re.compile(r"(params|batch_stats)/(conv|fc)(\d+)/(conv/|norm/|)(kernel|bias|scale|mean|var)")
_ORDER = ("norm/bias", "conv/bias", "bias", "norm/scale", "norm/mean", "norm/var", "conv/kernel", "kernel")


class Header(NamedTuple):
  """What stands before the weights; as darknet has written it since 2017."""

  major: int = 0
  minor: int = 2
  revision: int = 0
  seen: int = 0

  @property
  def long(self) -> bool:
    """Whether `seen` has eight bytes."""
    return self.major * 10 + self.minor >= 2 and not self.transposed

  @property
  def transposed(self) -> bool:
    """Whether matrices lie turned over."""
    return self.major > 1000 or self.minor > 1000


def from_bytes(
  data: bytes, shapes: dict[str, tuple], more: dict[str, tuple] | None = None, path: str = ""
) -> tuple[dict, Header]:
  """The arrays of a file for a model.

  Args:
    data: what the file holds.
    shapes: {"params/conv1/conv/kernel": shape, ...} of all that the model has.
    more: the same of the model with one more class. With it the file may be of any number of classes.
    path: of the file, for messages.

  Returns:
    ({our path: float32 array in our layout}, header)

  Raises:
    UserError: a file that does not end where a layer does, or a model that darknet does not have.
  """
  _layers(shapes)
  header, start = _header(data, path)
  layers = _that_fit(path, len(data) - start, shapes, more)
  numbers = np.frombuffer(data, FLOAT, (len(data) - start) // 4, start)
  found, place = {}, 0
  for name, shape in [entry for layer in layers for entry in layer]:
    size = math.prod(shape)
    found[name] = _ours(name, numbers[place : place + size], shape, layers, header)
    place += size
  return found, header


def to_bytes(arrays: dict[str, np.ndarray], header: Header | None = None) -> bytes:
  """The inverse of `from_bytes`.

  Args:
    arrays: {our path: array} of all that the model has.
    header: what stands before them; None: version 0.2.

  Raises:
    UserError: a model that darknet does not have.
  """
  header = header or Header()
  layers = _layers({name: np.shape(value) for name, value in arrays.items()})
  begin = np.array(header[:3], INT).tobytes(), np.array(header.seen, LONG if header.long else INT).tobytes()
  names = [name for layer in layers for name, _ in layer]
  return b"".join([*begin, *(_theirs(n, np.asarray(arrays[n]), layers, header).astype(FLOAT).tobytes() for n in names)])


def _header(data, path) -> tuple[Header, int]:
  """(header, bytes of it)"""
  first = 3 * INT.itemsize
  header = Header(*np.frombuffer(data, INT, 3).tolist()) if len(data) >= first else None
  kind = LONG if header and header.long else INT
  if header is None or len(data) < first + kind.itemsize:
    raise UserError(f"weights {path!r}: {len(data)} bytes are too few for darknet's header")
  return header._replace(seen=int(np.frombuffer(data, kind, 1, first)[0])), first + kind.itemsize


def _layers(shapes) -> list[list[tuple[str, tuple]]]:
  """For each layer, in the file's order, our paths and shapes in the file's order."""
  layers = {}
  for name, shape in shapes.items():
    known = _LEAF.fullmatch(name)
    if known is None:
      raise UserError(f"only YOLO has darknet's weights; this model has {name!r}")
    _, kind, number, inner, leaf = known.groups()
    layers.setdefault((kind == "fc", int(number)), []).append((_ORDER.index(inner + leaf), name, tuple(shape)))
  return [[(name, shape) for _, name, shape in sorted(layers[key])] for key in sorted(layers)]


def _that_fit(path, size, shapes, more):
  """The layers that a file of so many bytes behind its header holds."""
  layers, ends = _layers(shapes), [0]
  for layer in layers:
    ends.append(ends[-1] + 4 * sum(math.prod(shape) for _, shape in layer))
  if size in ends[1:]:
    return layers[: ends.index(size)]
  others = ""
  if more is not None:
    each = 4 * sum(math.prod(shape) for shape in more.values()) - ends[-1]  # bytes of a class
    apart, left = divmod(size - ends[-1], each)
    moved = lambda name: tuple(n + apart * (m - n) for n, m in zip(shapes[name], more[name]))
    if not left and all(n > 0 for name in shapes for n in moved(name)):
      return _layers({name: moved(name) for name in shapes})
    others = f", {each} more for each class"
  last = max(i for i, end in enumerate(ends) if end <= size)
  where = "ends behind that" if last == len(layers) else f"ends within layer {last + 1} of {len(layers)}"
  raise UserError(
    f"weights {path!r} hold {size} bytes behind their header, the model's are {ends[-1]}{others}: the file {where}"
  )


def _ours(name, numbers, shape, layers, header):
  """A tensor in our layout."""
  if not name.endswith("kernel"):
    return numbers.astype(np.float32)
  if len(shape) == 4:
    high, wide, inputs, outputs = shape
    return np.ascontiguousarray(numbers.reshape(outputs, inputs, high, wide).transpose(2, 3, 1, 0), np.float32)
  matrix = numbers.reshape(shape) if header.transposed else numbers.reshape(shape[::-1]).T
  if square := _seen(name, shape, layers):
    side, channels = square
    matrix = matrix.reshape(channels, side, side, -1).transpose(1, 2, 0, 3).reshape(shape)
  return np.ascontiguousarray(matrix, np.float32)


def _theirs(name, value, layers, header):
  """A tensor in darknet's layout."""
  if value.ndim == 4:
    return value.transpose(3, 2, 0, 1)
  if value.ndim == 2:
    if square := _seen(name, value.shape, layers):
      side, channels = square
      value = value.reshape(side, side, channels, -1).transpose(2, 0, 1, 3).reshape(value.shape)
    return value if header.transposed else value.T
  return value


def _seen(name, shape, layers):
  """(side, channels) of the square map that the first connected layer sees; darknet's rows go channel by channel."""
  if name != "params/fc1/kernel":
    return None
  last = [entries for entries in layers if "/conv" in entries[0][0]][-1]
  channels = last[-1][1][-1]
  side = math.isqrt(shape[0] // channels)
  if side * side * channels != shape[0]:
    raise UserError("darknet's weights need images whose last map is square; this one is not")
  return side, channels
