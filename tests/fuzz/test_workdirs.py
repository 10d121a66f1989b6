"""What lies in a workdir, and files of weights."""

import json
import pickle
import struct

import numpy as np
import safetensors.numpy
from hypothesis import strategies as st
from made_up import FIELDS, GROUPS, changed, check_config, damage, damaged, fuzz, read, values

from flaxonomy.configs import base
from flaxonomy.data.pipeline import Info
from flaxonomy.train import report, weights, workdir

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
