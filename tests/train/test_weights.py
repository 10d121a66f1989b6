"""Weights files: what is read back, and what is refused before anything of it is believed or run."""

import io
import pickle
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from flaxonomy.errors import UserError
from flaxonomy.train import weights


class Mine:
  """A pickle of it makes a file when it is loaded."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return open, (self.path, "w")


def test_round_trip(tmp_path):
  tree = {
    "params": {"conv1_1": {"kernel": np.ones((3, 3), np.float32)}, "scale": np.asarray(jnp.ones(3, jnp.bfloat16))}
  }
  safetensors.numpy.save_file(weights.flatten(tree), tmp_path / "w.safetensors")
  read = weights.unflatten(weights.read(tmp_path / "w.safetensors"))
  np.testing.assert_array_equal(read["params"]["conv1_1"]["kernel"], tree["params"]["conv1_1"]["kernel"])
  assert read["params"]["scale"].dtype == jnp.bfloat16


def test_pickles_are_never_loaded(tmp_path):
  marker = tmp_path / "marker"
  plain = pickle.dumps(Mine(str(marker)))
  archive = io.BytesIO()
  with zipfile.ZipFile(archive, "w") as file:
    file.writestr("archive/data.pkl", plain)
    file.writestr("../../escaped", "x")
  array = io.BytesIO()
  np.save(array, np.array([Mine(str(marker))], dtype=object), allow_pickle=True)
  for name, content in (("w.pt", archive.getvalue()), ("w.pkl", plain), ("w.npy", array.getvalue())):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match="pickle|NumPy|cannot read") as told:
      weights.read(tmp_path / name)
    assert "\n" not in str(told.value)
  assert not marker.exists()
  assert {p.name for p in tmp_path.iterdir()} == {"w.pt", "w.pkl", "w.npy"}


@pytest.mark.parametrize("names", [("../x",), ("/etc/x",), ("a//b",), ("a b",), ("a", "a/b"), ("x" * 501,)])
def test_names_that_are_no_plain_paths(tmp_path, names):
  safetensors.numpy.save_file({name: np.ones(1, np.float32) for name in names}, tmp_path / "w")
  with pytest.raises(UserError, match="no plain path|beginning of"):
    weights.read(tmp_path / "w")


def test_no_such_file(tmp_path):
  with pytest.raises(UserError, match=r"cannot read weights .*none.safetensors': .*No such file"):
    weights.read(tmp_path / "none.safetensors")
