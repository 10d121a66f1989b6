"""Darknet's blocks and weight files: written here by NumPy in darknet's order, read, run, and written again."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxonomy import models
from flaxonomy.configs.base import Config, Model
from flaxonomy.data.pipeline import Info
from flaxonomy.errors import UserError
from flaxonomy.models.interop import darknet as files
from flaxonomy.models.vision import darknet
from flaxonomy.train import pretrained, weights

RNG = np.random.default_rng(0)


class Net(nn.Module):
  """Two convolutions, with batch norm and without, and two dense layers."""

  @nn.compact
  def __call__(self, x, *, train: bool):
    x = darknet.Unit(3, 3, 2, name="conv1")(x, train=train)
    x = darknet.Unit(2, 1, linear=True, name="conv2")(x, train=train)
    return nn.Dense(2, name="fc2")(nn.Dense(5, name="fc1")(x.reshape(x.shape[0], -1)))


def shapes_of(model, side):
  image = jnp.zeros((1, side, side, 3))
  variables = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), image, train=False))
  return weights.flatten(variables, lambda leaf: leaf)


def sizes_of(model, side):
  return {name: leaf.shape for name, leaf in shapes_of(model, side).items()}


def drawn(*shape):
  return RNG.uniform(0.5, 1.5, shape).astype("<f4")


SEEN = np.int64(77)


def read(path, sizes):
  return files.from_bytes(path.read_bytes(), sizes, path=str(path))


def saved(path, arrays, header=(0, 2, 0), seen=SEEN):
  with path.open("wb") as file:
    file.write(np.array(header, "<i4").tobytes() + seen.tobytes() + b"".join(a.tobytes() for a in arrays))
  return path


def test_a_file_runs_as_darknet_runs_it(tmp_path):
  x = RNG.normal(size=(2, 4, 4, 3)).astype(np.float32)
  beta, gamma, mean, var, kernel = drawn(3), drawn(3), drawn(3), drawn(3), RNG.normal(size=(3, 3, 3, 3)).astype("<f4")
  bias2, kernel2 = drawn(2), drawn(2, 3, 1, 1)
  bias3, matrix3, bias4, matrix4 = drawn(5), drawn(5, 8), drawn(2), drawn(2, 5)
  path = saved(
    tmp_path / "net.weights",
    (beta, gamma, mean, var, kernel, bias2, kernel2, bias3, matrix3, bias4, matrix4),
  )  # fmt: skip
  found, header = read(path, sizes_of(Net(), 4))
  assert header == (0, 2, 0, 77)
  ours = jax.jit(lambda v: Net().apply(v, x, train=False))(weights.unflatten(found))
  padded = np.pad(x.transpose(0, 3, 1, 2), ((0, 0), (0, 0), (1, 1), (1, 1)))
  y = np.zeros((2, 3, 2, 2))
  for j, i in np.ndindex(2, 2):
    y[:, :, j, i] = np.einsum("bchw,ochw->bo", padded[:, :, 2 * j : 2 * j + 3, 2 * i : 2 * i + 3], kernel)
  column = lambda v: v[None, :, None, None]
  y = (y - column(mean)) / np.sqrt(column(var) + 1e-5) * column(gamma) + column(beta)
  y = np.where(y > 0, y, 0.1 * y)
  y = np.einsum("bchw,oc->bohw", y, kernel2[:, :, 0, 0]) + column(bias2)
  y = (y.reshape(2, -1) @ matrix3.T + bias3[None]) @ matrix4.T + bias4[None]
  np.testing.assert_allclose(ours, y, rtol=1e-4, atol=1e-4)


def test_the_classifier_is_averaged_over_all_places():
  """As darknet19.cfg has it: the convolution to the classes looks at each place, and their average counts."""
  model, x = models.create("darknet19", num_classes=3, shrink=32), drawn(2, 64, 96, 3)
  shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), x, train=False))
  variables = jax.tree.map(lambda leaf: drawn(*leaf.shape) - 0.9, shapes)
  variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
  found = jax.jit(lambda: model.apply(variables, x, train=False))()
  last = variables["params"]["conv19"]["conv"]
  maps = np.asarray(found["stage5"], np.float64)
  assert maps.shape[1:3] == (2, 3)
  places = np.einsum("bhwc,co->bhwo", maps, last["kernel"][0, 0]) + last["bias"][None, None, None]
  np.testing.assert_allclose(found["logits"], places.mean((1, 2)), rtol=1e-4, atol=1e-5 * np.abs(places).max())


def test_running_statistics_are_darknets():
  """.99 of the old ones, and the unbiased variance of the batch."""
  unit, x = darknet.Unit(2, 1), RNG.normal(size=(2, 3, 3, 1)).astype(np.float32)
  variables = {
    "params": {
      "conv": {"kernel": np.ones((1, 1, 1, 2), "f")}, "norm": {"scale": np.ones(2, "f"), "bias": np.zeros(2, "f")},
    },
    "batch_stats": {"norm": {"mean": np.zeros(2, "f"), "var": np.ones(2, "f")}},
  }  # fmt: skip
  _, changed = jax.jit(lambda: unit.apply(variables, x, train=True, mutable=["batch_stats"]))()
  stats = changed["batch_stats"]["norm"]
  np.testing.assert_allclose(stats["mean"], 0.01 * x.mean(), rtol=1e-4)
  np.testing.assert_allclose(stats["var"], 0.99 + 0.01 * x.var(ddof=1), rtol=1e-6)


@pytest.mark.parametrize("name, side, fields", [
  ("yolo_v1", 128, {"shrink": 32}), ("yolo_v1", 128, {"shrink": 32, "batch_norm": True}),
  ("yolo_v2", 64, {"shrink": 16}), ("yolo_v3", 64, {"shrink": 32}), ("darknet19", 64, {"shrink": 32}),
])  # fmt: skip
def test_bytes_survive(name, side, fields, tmp_path):
  sizes = sizes_of(models.create(name, num_classes=3, **fields), side)
  numbers = drawn(sum(math.prod(size) for size in sizes.values()))
  for header, seen in (((0, 2, 0), np.int64(2**40)), ((0, 1, 0), np.int32(7)), ((0, 1001, 0), np.int32(7))):
    path = saved(tmp_path / "a.weights", [numbers], header, seen)
    found, told = read(path, sizes)
    assert {key: value.shape for key, value in found.items()} == sizes
    assert told == (*header, seen)
    assert files.to_bytes(found, told) == path.read_bytes()


def test_matrices_of_old_files_lie_turned_over(tmp_path):
  sizes = {"params/conv1/conv/kernel": (1, 1, 1, 2), "params/conv1/conv/bias": (2,), "params/fc1/bias": (3,),
           "params/fc1/kernel": (8, 3)}  # fmt: skip
  matrix, rest = drawn(3, 8), [drawn(2), drawn(2), drawn(3)]
  new = read(saved(tmp_path / "new.weights", [*rest, matrix]), sizes)[0]
  turned = saved(tmp_path / "old.weights", [*rest, np.ascontiguousarray(matrix.T)], (0, 1001, 0), np.int32(1))
  old = read(turned, sizes)[0]
  np.testing.assert_array_equal(new["params/fc1/kernel"], old["params/fc1/kernel"])
  by_channel = matrix.reshape(3, 2, 2, 2).transpose(2, 3, 1, 0).reshape(8, 3)  # row, column, channel
  np.testing.assert_array_equal(new["params/fc1/kernel"], by_channel)


SIZES = sizes_of(Net(), 4)
FLOATS = sum(math.prod(size) for size in SIZES.values())  # 12 + 81, 2 + 6, 5 + 40, 2 + 10


def test_files_that_end_elsewhere_are_one_line(tmp_path):
  path = tmp_path / "x.weights"
  for size, told in ((4 * FLOATS - 4, "ends within layer 4 of 4"), (4 * FLOATS + 4, "ends behind that"),
                     (4 * 100 + 3, "ends within layer 2 of 4"), (0, "ends within layer 1 of 4")):  # fmt: skip
    saved(path, [np.zeros(size, np.uint8)])
    with pytest.raises(
      UserError, match=f"hold {size} bytes behind their header, the model's are 632: .* {told}"
    ) as raised:
      read(path, SIZES)
    assert "\n" not in str(raised.value)
  for begin in (b"", b"12345", bytes(12), bytes(15)):
    path.write_bytes(begin)
    with pytest.raises(UserError, match=f"{len(begin)} bytes are too few for darknet's header"):
      read(path, SIZES)
  with pytest.raises(UserError, match="only YOLO has darknet's weights; this model has 'params/conv1_1/kernel'"):
    read(path, {"params/conv1_1/kernel": (1,)})


def test_a_file_may_end_behind_a_layer(tmp_path):
  found, _ = read(saved(tmp_path / "x.weights", [drawn(12 + 81)]), SIZES)
  assert {name.split("/")[1] for name in found} == {"conv1"}


def test_runs_start_from_files_of_other_classes(tmp_path, monkeypatch, capsys):
  """Twenty classes in the file, three here: the head starts anew, the rest is taken."""
  there, here, more = (shapes_of(models.create("yolo_v2", num_classes=n, shrink=16), 64) for n in (20, 3, 4))
  there = {name: leaf.shape for name, leaf in there.items()}
  path = saved(tmp_path / "yolo.weights", [drawn(sum(math.prod(size) for size in there.values()))])
  monkeypatch.setattr(pretrained, "_shapes", lambda config, info, mesh: here if len(info.class_names) == 3 else more)
  config = Config(task="detection", model=Model("yolo_v2", init_from=str(path)))
  taken = pretrained.load(config, Info("scenes", ("a", "b", "c")), None)
  heads = {f"params/conv23/conv/{leaf}" for leaf in ("kernel", "bias")}
  assert set(taken) == set(here) - heads
  whole, _ = read(path, there)
  for name in taken:
    np.testing.assert_array_equal(taken[name], whole[name])
  assert "start anew" in capsys.readouterr().err
  path.write_bytes(path.read_bytes()[:-4])
  with pytest.raises(UserError, match="the model's are .* 1300 more for each class: the file ends"):
    pretrained.load(config, Info("scenes", ("a", "b", "c")), None)
  path.unlink()
  with pytest.raises(UserError, match="cannot read weights .*No such file"):
    pretrained.load(config, Info("scenes", ("a", "b", "c")), None)
