"""Series: what they hold, how they are cut and standardised, and what is refused."""

import gzip
import hashlib
import math

import jax
import numpy as np
import pytest

from flaxonomy.configs.base import Data, Series
from flaxonomy.data import pipeline, series
from flaxonomy.data.datasets import adding, mackey_glass
from flaxonomy.errors import DataError, UserError
from flaxonomy.train import loop

B = 8


def opened(config, split="train", trained=None, devices=2, seed=3):
  """(feed, records, info)."""
  source, info = series.open_split(config, split, trained)
  feed = series.open_feed(config, source, info, seed, B, loop.make_mesh(devices))
  return feed, source.records, info


def batches(feed, items, of=lambda x: x):
  return [jax.tree.map(np.asarray, feed.fetch(feed.resident, jax.tree.map(of, item))) for item in items]


# What the series are.


def test_mackey_glass_against_its_equation():
  """The first seventeen units by the closed form, as the past is constant; the next ones by SciPy's integrator."""
  from scipy.integrate import solve_ivp

  x = mackey_glass.series(51)
  gain = lambda past: 0.2 * past / (1 + past**10)
  rest = gain(1.2) / 0.1
  piece = lambda t: rest + (1.2 - rest) * np.exp(-0.1 * t)
  np.testing.assert_allclose(x[:17], piece(np.arange(1, 18)), atol=1e-9)
  for begin in (17, 34):
    slope = lambda t, now, past=piece: gain(past(t - 17)) - 0.1 * now
    found = solve_ivp(slope, (begin, begin + 17), [x[begin - 1]], rtol=1e-12, atol=1e-12, dense_output=True)
    np.testing.assert_allclose(x[begin : begin + 17], found.sol(np.arange(begin + 1, begin + 18))[0], atol=1e-8)
    piece = lambda t, found=found: found.sol(t)[0]


def test_mackey_glass_against_the_rule_in_plain_python():
  """Two hundred steps of Runge and Kutta's rule, written down once more."""
  f = lambda now, past: 0.2 * past / (1 + past**10) - 0.1 * now
  x = dict.fromkeys(range(-170, 1), 1.2)
  slope = dict.fromkeys(range(-170, 1), 0.0)
  for i in range(200):
    a, c = x[i - 170], x[i - 169]
    left = f(1.2, 1.2) if i == 170 else slope[i - 170]
    b = (a + c) / 2 + 0.1 / 8 * (left - slope[i - 169])
    k1 = f(x[i], a)
    k2 = f(x[i] + 0.05 * k1, b)
    k3 = f(x[i] + 0.05 * k2, b)
    k4 = f(x[i] + 0.1 * k3, c)
    x[i + 1] = x[i] + 0.1 * (k1 + 2 * k2 + 2 * k3 + k4) / 6
    slope[i + 1] = f(x[i + 1], c)
  np.testing.assert_allclose(mackey_glass.series(20), [x[i] for i in range(10, 201, 10)], rtol=1e-12)


def test_mackey_glass_is_stored_in_the_order_of_time():
  whole = mackey_glass.series(11_000)[1_000:].astype(np.float32)
  config = Data("mackey_glass", series=Series(window=2, horizon=1))
  for split, begin, end in (("train", 0, 8_000), ("validation", 8_000, 9_000), ("test[:50%]", 9_000, 9_500)):
    np.testing.assert_array_equal(series._line(config, split)[1], whole[begin:end])
  assert 0.2 < whole.std() < 0.3, "chaos, and no rest"


def test_the_adding_problem():
  """Marks and sums, counted one by one; the paper's ranges; nothing that changes from machine to machine."""
  inputs, targets = adding.examples("test", 30)
  assert inputs.shape == (2000, 30, 2)
  firsts, seconds = [], []
  for (value, marker), target in zip(inputs[:500].transpose(0, 2, 1), targets.tolist()):
    marked = np.flatnonzero(marker == 1)
    assert len(marked) == 2
    assert math.isclose(target, 0.5 + float(value[marked].sum()) / 4, abs_tol=1e-6)
    assert marker[-1] == -1
    assert marker[0] in (-1, 1)
    assert marker[0] == -1 or value[0] == 0
    assert np.flatnonzero(marker == -1).tolist() == ([0, 29] if marker[0] == -1 else [29])
    firsts.append(marked[0])
    seconds.append(marked[1])
  assert set(firsts) == set(range(10))
  assert max(seconds) == 14
  assert abs(inputs[..., 0].mean()) < 0.01
  assert abs(inputs[..., 0].std() - 3**-0.5) < 0.01
  assert inputs[..., 0].min() >= -1
  assert not np.array_equal(adding.examples("train", 30)[0][:2000], inputs)


def test_every_machine_makes_the_same():
  digest = lambda *arrays: hashlib.sha256(b"".join(x.tobytes() for x in arrays)).hexdigest()
  assert digest(*adding.examples("test", 30)) == "f277c839a5508cd847d5c0ded993d10af7740fd9dba3810534e90c26231bcf42"
  whole = mackey_glass.series(11_000).astype(np.float32)
  assert digest(whole) == "2cfb1e91e71e8d5081d0385d55a26e0fd7c86d9b3d4bacdb7fde3ffb5e740de5"


# Windows.


@pytest.fixture
def table(tmp_path):
  """A function: (values, name="data.csv") -> a Data of a CSV file with a column of them between two others."""

  def make(values, name="data.csv", **fields):
    text = "day,load,note\r\n" + "".join(f'{i},{v},"a, b"\r\n' for i, v in enumerate(values))
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return Data("csv", data_dir=str(path), series=Series(**{"column": "load", "window": 5, "horizon": 2} | fields))

  return make


def test_windows_and_standardising_against_numpy(table):
  values = np.random.default_rng(0).normal(100, 7, 203).round(3)
  config = table(values.tolist(), period=3)
  _, train, info = opened(config)
  _, test, later = opened(config, "test", info)
  first, last = values[:162], values[183:]
  mean, std = first.mean(), first.std()
  known = later.series
  assert known == info.series
  np.testing.assert_allclose([*known["mean"], *known["std"]], [mean, std], rtol=1e-12)
  np.testing.assert_allclose(known["scale"], [np.abs(np.diff(first)).mean()], rtol=1e-12)
  np.testing.assert_allclose(known["seasonal_scale"], [np.abs(first[3:] - first[:-3]).mean()], rtol=1e-12)
  assert (known["inputs"], known["targets"], known["column"]) == (1, 1, "load")
  for records, part, size in ((train, first, 156), (test, last, 14)):
    assert records["inputs"].shape == (size, 5, 1)
    assert records["targets"].shape == (size, 2, 1)
    for i in range(size):
      np.testing.assert_allclose(records["inputs"][i, :, 0], (part[i : i + 5] - mean) / std, atol=1e-5)
      np.testing.assert_allclose(records["targets"][i, :, 0], (part[i + 5 : i + 7] - mean) / std, atol=1e-5)
  assert (info.size, later.size) == (156, 14)


def test_no_window_crosses_into_another_split(table):
  """Every value tells its place; the three splits share none, and leave none out."""
  config, seen, trained = table(list(range(200))), {}, None
  for split in ("train", "validation", "test"):
    _, records, info = opened(config, split, trained)
    trained = trained or info
    values = np.concatenate([records["inputs"].ravel(), records["targets"].ravel()])
    back = values * trained.series["std"][0] + trained.series["mean"][0]
    seen[split] = set(np.rint(back).astype(int).tolist())
  assert seen == {"train": set(range(160)), "validation": set(range(160, 180)), "test": set(range(180, 200))}
  part = opened(config, "train[25%:50%]")[1]
  assert len(part["inputs"]) == 40 - 6


@pytest.mark.parametrize("on_device", [True, False])
def test_feeds(table, on_device):
  """Training in the shuffled order, whatever the devices; an evaluation has each window once and zeros behind."""
  config = table(np.sin(np.arange(60)).tolist())
  config.on_device = on_device
  feed, records, info = opened(config)
  order = pipeline.Order(info.size, 3).rows(0, 3 * B).reshape(3, B)
  for devices in (2, 4):
    feed = opened(config, devices=devices)[0]
    made = batches(feed, feed.train_items([(i, 1) for i in range(3)], 1), lambda x: x[0])
    for batch, rows in zip(made, order, strict=True):
      np.testing.assert_array_equal(batch["index"], rows)
      np.testing.assert_array_equal(batch["inputs"], records["inputs"][rows])
      np.testing.assert_array_equal(batch["targets"], records["targets"][rows])
      np.testing.assert_array_equal(batch["mask"], np.ones(B, np.float32))
  made = batches(feed, feed.eval_items())
  whole = {key: np.concatenate([batch[key] for batch in made]) for key in made[0]}
  assert info.size == 42
  np.testing.assert_array_equal(whole["index"], [*range(42), *[-1] * 6])
  np.testing.assert_array_equal(whole["inputs"][:42], records["inputs"])
  assert {key: x.dtype.name for key, x in whole.items()} == {
    "inputs": "float32", "targets": "float32", "mask": "float32", "index": "int32",
  }  # fmt: skip
  assert not any(whole[key][42:].any() for key in ("inputs", "targets", "mask"))
  np.testing.assert_array_equal(feed.read([3, 0])["targets"], records["targets"][[3, 0]])


def test_columns_and_compression(table, tmp_path):
  values = np.arange(100.0) ** 2
  plain, packed = table(values), table(values, "data.csv.gz")
  np.testing.assert_array_equal(opened(plain)[1]["inputs"], opened(packed)[1]["inputs"])
  assert opened(table(values, column="day"))[2].series["mean"] == (39.5,)
  (tmp_path / "small.csv").write_text("\ufeffa, b\n1,2\n\n3,4\n5,6\n")
  config = Data("csv", data_dir=str(tmp_path / "small.csv"))
  assert (series._line(config, "train")[0], series._line(config, "train[:50%]")[1].tolist()) == ("b", [2.0])


# What is refused.


@pytest.mark.parametrize(
  "text, message",
  [
    ("", "its first line must name the columns"),
    ("day,load\n1,2\n2,\n", "row 3, column 'load' is empty"),
    ("day,load\n1,2\n2,n/a\n", "row 3, column 'load' holds 'n/a', which is no finite number"),
    ("day,load\n1,inf\n", "row 2, column 'load' holds 'inf'"),
    ("day,load\n1,2\n3\n", "row 3 has 1 columns, the first one 2"),
    ('day,load\n1,"2\n', "data.csv'"),
    ("day,load\n" + "1,5\n" * 50, "never change"),
  ],
)
def test_damaged_tables_are_one_line(tmp_path, text, message):
  (tmp_path / "data.csv").write_text(text)
  config = Data("csv", data_dir=str(tmp_path / "data.csv"), series=Series(column="load", window=5))
  with pytest.raises(DataError) as raised:
    series.open_split(config, "train")
  assert message in str(raised.value)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "fields, split, message",
  [
    ({"column": "lod"}, "train", r"unknown column of .*: 'lod'; did you mean 'load'.*data.series.column"),
    ({}, "trian", "unknown split 'trian'; did you mean 'train'"),
    ({}, "train[:0%]", "is empty"),
    ({"window": 30, "horizon": 20}, "train", "has 48 values, too few for windows of 30 and 20"),
    ({"period": 6}, "train", r"'data.series.period' \(6\) must be at most data.series.window \(5\)"),
  ],
)
def test_mistakes(table, fields, split, message):
  with pytest.raises(UserError, match=message):
    series.open_split(table(np.sin(np.arange(60)).tolist(), **fields), split)


def test_more_mistakes(tmp_path, table):
  with pytest.raises(UserError, match="unknown series 'mackey_glas'; did you mean 'mackey_glass'"):
    series.open_split(Data("mackey_glas"), "train")
  with pytest.raises(UserError, match=r"needs a CSV file, not .*data.data_dir"):
    series.open_split(Data("csv", data_dir=str(tmp_path)), "train")
  with pytest.raises(UserError, match="4 elements or more"):
    series.open_split(Data("adding", series=Series(window=3)), "train")
  config = table(np.sin(np.arange(100)).tolist())
  info = opened(config)[2]
  config.series.window = 6
  with pytest.raises(UserError, match="'data.series.window' was 5 in training and cannot be 6 now"):
    series.open_split(config, "test", info)


@pytest.mark.parametrize("change", [{"mean": ()}, {"inputs": 0}, {"std": ("a",)}, {"more": 1}, {"window": 2.5}])
def test_what_is_read_back_is_checked(table, change):
  known = opened(table(np.sin(np.arange(60)).tolist()))[2].series
  assert series.sound(known) == known
  with pytest.raises(TypeError):
    series.sound(known | change)
