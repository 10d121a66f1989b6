"""Ten thousand made-up inputs: each is read, or refused by a UserError of one line.

What is generated is the same at every run.
"""

import functools
import io
import json
import math
import pickle
import struct
import typing
import zlib

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from flaxonomy.configs import base
from flaxonomy.data import images
from flaxonomy.data.pipeline import Info
from flaxonomy.errors import UserError
from flaxonomy.train import command, report, weights, workdir

INPUTS = {
  "images of random bytes": 1000,
  "damaged images": 3000,
  "config fields": 2000,
  "configs": 1000,
  "command lines": 1000,
  "workdirs": 1000,
  "weights": 1000,
}
pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of much that it reads


def test_ten_thousand_inputs():
  assert sum(INPUTS.values()) == 10_000


def fuzz(kind, **strategies):
  """A test that is given so many inputs."""
  chosen = settings(
    max_examples=INPUTS[kind],
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
  )
  return lambda test: chosen(given(**strategies)(test))


def read(function, *arguments):
  """What a function returns, or None where it refuses its input with one line."""
  try:
    return function(*arguments)
  except UserError as error:
    message = str(error)
    assert message.strip()
    assert len(message.splitlines()) == 1, message
    assert len(message) < 2000, message
    return None


# Damage to valid bytes.

TELLING = [
  b"",
  b"\0",
  b"\xff",
  b"\0\0\0\0",
  b"\xff\xff\xff\xff",
  b"\x7f\xff\xff\xff",
  b"\xff\xff\xff\x7f",
  b"\x80",
  b"{",
]
damage = st.tuples(
  st.sampled_from(["flip", "put", "insert", "cut", "end", "twice"]),
  st.floats(0, 1, exclude_max=True),
  st.integers(0, 7),
  st.sampled_from(TELLING) | st.binary(max_size=6),
)


def damaged(data: bytes, changes) -> bytes:
  for what, share, count, new in changes:
    at = int(share * len(data))
    before, after = data[:at], data[at:]
    data = {
      "flip": before + bytes(x ^ 1 << count for x in after[:1]) + after[1:],
      "put": before + new + after[len(new) :],
      "insert": before + new + after,
      "cut": before + after[count + 1 :],
      "end": before,
      "twice": before + after[: 8 * count] + after,
    }[what]
  return data


# Images.


def encoded(image, form, **options) -> bytes:
  out = io.BytesIO()
  image.save(out, form, **options)
  return out.getvalue()


@functools.cache
def samples() -> list[bytes]:
  """Small images of every format and kind."""
  grid = np.indices((9, 12)).sum(0, dtype=np.uint8) * 11
  colour = Image.fromarray(np.stack([grid, grid.T.reshape(9, 12), 255 - grid], -1))
  grey, alpha = colour.convert("L"), colour.convert("RGBA")
  exif = Image.Exif()
  exif[0x0112] = 6
  png = [colour, grey, alpha, colour.convert("P"), colour.convert("1"), colour.convert("LA")]
  found = [encoded(image, "png") for image in [*png, Image.fromarray(grid.astype(np.uint16) << 8)]]
  found += [encoded(colour, "png", exif=exif), encoded(alpha.quantize(), "png", transparency=0)]
  found += [encoded(colour, "png", save_all=True, append_images=[colour.rotate(180)])]
  found += [encoded(image, "jpeg") for image in (colour, grey, colour.convert("CMYK"))]
  found += [encoded(colour, "jpeg", progressive=True, exif=exif)]
  found += [encoded(grey, "gif"), encoded(colour.convert("P"), "gif", save_all=True, append_images=[grey])]
  found += [encoded(image, "bmp") for image in png[:5]] + [encoded(colour, "dib")]
  for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
    found += [encoded(colour, "tiff", compression=compression)]
  found += [encoded(colour.convert("1"), "tiff", compression="group4"), encoded(grey.convert("F"), "tiff")]
  found += [encoded(colour.convert("CMYK"), "tiff", exif=exif), encoded(grey.convert("I"), "tiff")]
  found += [encoded(colour, "webp", lossless=True, exif=exif), encoded(alpha, "webp", quality=50)]
  found += [encoded(colour, "webp", save_all=True, append_images=[colour.rotate(180)])]
  found += [encoded(image, "ppm") for image in (colour, grey, colour.convert("1"))]
  return found + [b"P3\n2 1\n255\n1 2 3 4 5 6\n", b"P2\n# grey\n2 2\n9\n1 2\n3 4\n", b"Pf\n1 1\n-1.0\n\0\0\x80\x3f"]


def checksums_mended(data: bytes) -> bytes:
  """A PNG whose chunks have the right checksums, so that damage gets further in."""
  at = 8
  while data.startswith(b"\x89PNG") and at + 12 <= len(data):
    (length,) = struct.unpack(">I", data[at : at + 4])
    end = at + 8 + length
    if end + 4 > len(data):
      break
    data = data[:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end])) + data[end + 4 :]
    at = end + 4
  return data


def check_image(data, channels, size):
  x = read(images.decode, data, channels, size)
  if x is not None:
    assert x.dtype == np.uint8
    assert x.ndim == 3
    assert x.size
    assert x.shape[-1] in ((channels,) if channels else (1, 3))
    assert size is None or x.shape[:2] == size


shapes = {"channels": st.sampled_from([None, 1, 3]), "size": st.sampled_from([None, (5, 7)])}
MAGIC = [
  b"",
  b"\x89PNG\r\n\x1a\n",
  b"\xff\xd8\xff",
  b"GIF89a",
  b"BM",
  b"II*\0",
  b"MM\0*",
  b"RIFF\x20\0\0\0WEBPVP8 ",
  b"P6\n",
]


@fuzz("images of random bytes", magic=st.sampled_from(MAGIC), data=st.binary(max_size=300), **shapes)
def test_images_of_random_bytes(magic, data, channels, size):
  check_image(magic + data, channels, size)


@fuzz(
  "damaged images",
  number=st.integers(0, len(samples()) - 1),
  changes=st.lists(damage, min_size=1, max_size=4),
  mend=st.booleans(),
  **shapes,
)
def test_damaged_images(number, changes, mend, channels, size):
  data = damaged(samples()[number], changes)
  check_image(checksums_mended(data) if mend else data, channels, size)


def test_samples_are_images():
  for data in samples():
    assert images.decode(data).ndim == 3


# Configs.

FIELDS = list(base.field_types())
GROUPS = ["model", "data", "data.augment", "optim", "train"]
every_text = st.text(st.characters(exclude_categories=()), max_size=20)  # surrogates too
numbers = st.one_of(
  st.integers(),
  st.floats(),
  st.integers(4, 9).map(lambda zeros: 10 ** (1000 * zeros)),  # Python prints no integer of more than 4,300 digits
  st.sampled_from([0, 1, 2, -1, 2**31, 2**32, 2**63, 10**400, -(10**400), 0.5, 1e-3, -0.0, 5e-324, math.inf]),
)
plain = (
  st.none() | st.booleans() | numbers | every_text | st.sampled_from(["adam", "digits", "skip", "x" * 5000, "a\nb"])
)
values = st.recursive(
  plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(every_text, inner, max_size=3), max_leaves=8
)
near_misses = st.builds(
  lambda field, share, new: damaged(field.encode(), [("put", share, 0, new.encode())]).decode(errors="replace"),
  st.sampled_from(FIELDS),
  st.floats(0, 1, exclude_max=True),
  st.sampled_from(["", ".", "s", "é", "\n", "__", "=", " "]),
)
below = st.builds(".".join, st.lists(st.sampled_from(["a", "b", "features", "name", ""]), min_size=1, max_size=3))
paths = st.one_of(
  st.sampled_from(FIELDS),
  st.sampled_from(FIELDS),
  st.sampled_from(GROUPS),
  near_misses,
  below.map("model.fields.{}".format),
  every_text,
  st.just("z" * 20_000),
)


def nested(depth: int) -> list:
  found = []
  for _ in range(depth):
    found = [found]
  return found


def check_config(config):
  """A config can be written and read again."""
  if config is not None:
    assert isinstance(config, base.Config)
    text = json.dumps(base.to_dict(config))
    assert json.dumps(base.to_dict(base.from_dict(json.loads(text)))) == text


def typed(kind):
  """Values of a field's type, most of them possible ones."""
  inner = typing.get_args(kind)
  if origin := typing.get_origin(kind):
    if origin is not tuple:
      return st.none() | typed(inner[0])
    return st.lists(typed(inner[0]), max_size=3) if ... in inner else st.tuples(*map(typed, inner))
  return {
    bool: st.booleans(),
    int: st.integers(1, 100) | st.integers(),
    float: st.floats(0, 0.9) | st.floats(),
    str: st.sampled_from(["float32", "skip", "train"]) | every_text,
    dict: st.dictionaries(every_text, values, max_size=3),
  }[kind]


sound = st.one_of([st.tuples(st.just(path), typed(kind)) for path, kind in base.field_types().items()])


@fuzz("config fields", changes=st.lists(sound | sound | st.tuples(paths, values), min_size=1, max_size=3).map(dict))
def test_config_fields(changes):
  check_config(read(base.override, base.Config(), changes))


def changed(tree, changes):
  """Plain nested dicts with some entries set, removed or put elsewhere."""
  tree = json.loads(json.dumps(tree))
  for path, what, value in changes:
    holder, *names = tree, *path.split(".")
    for name in names[:-1]:
      holder = holder[name] if isinstance(holder, dict) and isinstance(holder.get(name), dict) else holder
    if what == "remove":
      holder.pop(names[-1], None)
    elif what == "rename" and names[-1] in holder:
      holder[str(value)[:50] if isinstance(value, str) else "other"] = holder.pop(names[-1])
    else:
      holder[names[-1]] = value
  return tree


anywhere = st.lists(
  st.tuples(st.sampled_from(FIELDS + GROUPS) | paths, st.sampled_from(["set", "set", "remove", "rename"]), values),
  max_size=3,
)


@fuzz(
  "configs",
  tree=st.one_of(
    anywhere.map(lambda changes: changed(base.to_dict(base.Config()), changes)),
    st.dictionaries(st.sampled_from([*GROUPS, "task", "seed", "model.fields.a", "1"]) | every_text, values, max_size=4),
  ),
)
def test_configs(tree):
  check_config(read(base.from_dict, tree))


@pytest.mark.parametrize("field", ["seed", "data.mean", "model.fields", "model.fields.a"])
def test_deeply_nested_values(field):
  for depth in (10, 500, 5000):
    read(base.override, base.Config(), {field: nested(depth)})


# Command lines.

fragments = st.sampled_from(
  [
    "1",
    "-",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "'",
    '"',
    "a",
    "()",
    "{[]:1}",
    "None",
    "1e999",
    "\0",
    "\n",
    " ",
    "j",
    "b''",
  ]
)
nasty = st.sampled_from(
  [
    "(" * 300,
    "-" * 5000 + "1",
    "9" * 5000,
    "[" * 5000,
    "{" * 90 + "}" * 90,
    "1+" * 3000 + "1",
    "a " * 5000,
    "not " * 3000,
  ]
)
literals = st.one_of(
  st.lists(fragments, max_size=6).map("".join),
  values.filter(lambda x: not isinstance(x, int) or abs(x) < 2**100).map(lambda x: _text(x)),
  nasty,
)
arguments = st.one_of(
  st.builds("--{}config.{}={}".format, st.sampled_from(["", "", "no"]), paths, literals),
  below.flatmap(lambda name: literals.map(f"--config.model.fields.{name}={{}}".format)),
  literals.map("--config.model.fields={}".format),
  nasty.map("--config.model.fields.dropout={}".format),
  paths.map("--config.{}".format),
  paths.map("-noconfig.{}".format),
  st.sampled_from(
    ["--config", "--config=", "--config=configs/digit.py", "--config=:x", "--config=" + "a" * 5000, "--"]
  ),
  every_text.map("--config={}".format),
  every_text.map("--config={}.py:argument".format),
  every_text,
)


def _text(value) -> str:
  try:
    return repr(value)
  except ValueError:
    return "9" * 5000


@fuzz("command lines", argv=st.lists(arguments, min_size=1, max_size=4))
def test_command_lines(argv):
  found = read(command.prepare, ["launch.py", *argv])
  if found is not None:
    kept, fields = found
    assert kept[0] == "launch.py"
    assert all(path.startswith(("model.fields", "study.compare")) for path in fields)


# Workdirs.

RESULT = {"metrics": {"test_loss": 0.5, "test_accuracy": 0.9}, "step": 100, "seconds": 3.5, "config": {}}
INFO = Info("digits", tuple("0123456789"), (8, 8, 1), 1433)._asdict()
ROW = {"step": 3, "split": "train", "loss": 0.5}
PLACES = {
  "config.json": st.sampled_from(FIELDS + GROUPS),
  "data.json": st.sampled_from(list(INFO)),
  "result.json": st.sampled_from([*RESULT, "metrics.test_loss"]),
  "metrics.jsonl": st.sampled_from(list(ROW)),
}
documents = {"config.json": base.to_dict(base.Config()), "data.json": INFO, "result.json": RESULT, "metrics.jsonl": ROW}


def written(value) -> bytes:
  try:
    return json.dumps(value).encode()
  except ValueError:  # more than 4,300 digits
    return b"[" + b"9" * 5000 + b"]"


def contents(name):
  whole = written(documents[name])
  lines = [whole + b"\n"] * 3 if name == "metrics.jsonl" else [whole]
  place = st.tuples(PLACES[name], st.sampled_from(["set", "set", "remove"]), values)
  another = st.lists(place, max_size=2).map(lambda changes: written(changed(documents[name], changes)))
  return st.one_of(
    st.lists(damage, min_size=1, max_size=3).map(lambda changes: damaged(b"".join(lines), changes)),
    another,
    another.map(lambda data: b"\n".join([*lines[1:], data, *lines[1:]])),
    values.map(written),
    st.binary(max_size=100),
    st.sampled_from([b"[" * 100_000, b'{"step": Infinity, "split": "train"}', b"\xff\xfe", b"\xef\xbb\xbf{}", b""]),
  )


@fuzz("workdirs", file=st.sampled_from(list(PLACES)).flatmap(lambda name: st.tuples(st.just(name), contents(name))))
def test_workdirs(file, tmp_path):
  name, data = file
  (tmp_path / name).write_bytes(data)
  if name == "config.json":
    check_config(read(workdir.load_config, tmp_path))
  elif name == "data.json":
    info = read(workdir.load_info, tmp_path)
    if info is not None:
      assert isinstance(info.name, str)
      assert all(isinstance(name, str) for name in info.class_names)
      assert info.image_shape is None or [type(n) for n in info.image_shape] == [int, int, int]
      assert type(info.size) is int
  elif name == "result.json":
    result = read(workdir.finished, tmp_path, 100)
    if result is not None:
      assert result["step"] >= 100
      assert isinstance(result["metrics"], dict)
  else:
    for row in read(report.read_metrics, tmp_path):
      assert isinstance(row["step"], int)
      assert isinstance(row["split"], str)


# Weights files.

tensor = {
  "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "BOOL", "F8_E4M3", "X", 3]),
  "shape": st.lists(st.integers(-1, 2**40) | st.integers(0, 4), max_size=3),
  "data_offsets": st.lists(st.integers(-1, 64) | st.integers(0, 2**63), min_size=1, max_size=3),
}
leaf = st.sampled_from(["params", "kernel", "a/b", "../x", "/etc/x", "a//b", "", "é", "x" * 600])
headers = st.dictionaries(leaf | st.just("__metadata__"), st.fixed_dictionaries({}, optional=tensor), max_size=4)


def lying(header, length, body):
  """A safetensors file whose header says what it likes."""
  text = json.dumps(header).encode()
  return struct.pack("<Q", len(text) if length is None else length) + text + body


whole = safetensors.numpy.save({"params/a": np.ones((2, 3), np.float32), "params/b/c": np.arange(4)})
weights_files = st.one_of(
  st.lists(damage, min_size=1, max_size=3).map(lambda changes: damaged(whole, changes)),
  st.builds(lying, headers, st.none() | st.integers(0, 2**64 - 1), st.binary(max_size=64)),
  st.binary(max_size=100),
  st.sampled_from([pickle.dumps({"a": 1}), b"PK\x03\x04" + bytes(30), b"\x93NUMPY\x01\x00", b""]),
)


@fuzz("weights", data=weights_files)
def test_weights(data, tmp_path):
  path = tmp_path / "weights.safetensors"
  path.write_bytes(data)
  for name, array in (read(weights.read, path) or {}).items():
    assert ".." not in name.split("/")
    assert not name.startswith("/")
    assert array.nbytes <= len(data)
