"""The order of examples, and feeds that give the same batches however they are read, split and mapped."""

import itertools
import pickle

import grain
import jax
import numpy as np
import pytest
import scipy.stats
import tensorflow_datasets as tfds
from jax.sharding import PartitionSpec as P

from flaxonomy.configs.base import Config, Data
from flaxonomy.data import pipeline, sources
from flaxonomy.data.datasets import cache_folder
from flaxonomy.train import loop, step
from flaxonomy.train.sharding import DATA

SPLIT = "test[:50]"
BATCH = 12  # an epoch ends within the fifth batch


def feed_of(split=SPLIT, batch_size=BATCH, devices=2, seed=3, **fields):
  """(feed, info, mesh) of digits."""
  mesh = loop.make_mesh(devices)
  config = Data("digits", **fields)
  source, info = pipeline.open_split(config, split)
  return pipeline.open_feed(config, source, info, seed, batch_size, mesh), info, mesh


def spans(counts, first=0):
  """(first step, count) of dispatches that follow one another."""
  return list(zip(itertools.accumulate([first, *counts]), counts))


def train_batches(first, counts, most, **fields):
  """Batches as the mapped step sees them, on the host, for each step."""
  feed, _, mesh = feed_of(**fields)
  fetch = step.pmapped(
    lambda resident, items, i: feed.fetch(resident, jax.tree.map(lambda x: x[i], items)),
    mesh,
    (P(), P(None, DATA), P()),
    P(DATA),
  )
  batches = []
  for count, items in zip(counts, feed.train_items(spans(counts, first), most)):
    batches += [jax.device_get(fetch(feed.resident, items, np.int32(i))) for i in range(count)]
  return batches


def eval_batches(feed, mesh):
  fetch = step.pmapped(feed.fetch, mesh, (P(), P(DATA)), P(DATA))
  return [jax.device_get(fetch(feed.resident, item)) for item in feed.eval_items()]


def assert_identical(some, others):
  """The same bits of the same types."""
  assert len(some) == len(others)
  for a, b in zip(some, others):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype, key
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# The order.


@pytest.mark.parametrize("size", [1, 2, 7, 364])
def test_every_epoch_is_a_permutation(size):
  order = pipeline.Order(size, 0)
  for epoch in (0, 1, 2, 1000):
    rows = order.rows(epoch * size, size)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(np.sort(rows), np.arange(size))


def test_epochs_and_seeds_differ():
  stretches = [pipeline.Order(50, seed).rows(50 * epoch, 50).tolist() for seed in range(4) for epoch in range(4)]
  assert all(a != b for a, b in itertools.combinations(stretches, 2))
  assert stretches[0] == pipeline.Order(50, 0).rows(0, 50).tolist()


def test_order_is_pinned():
  """Values that no version of NumPy may change, for a resumed run would see other examples."""
  assert pipeline.Order(10, 0).rows(0, 20).tolist() == [3, 2, 1, 8, 6, 0, 7, 4, 5, 9, 7, 4, 5, 1, 9, 8, 6, 2, 0, 3]
  assert pipeline.Order(60000, 1).rows(120000, 5).tolist() == [15401, 29753, 40013, 31643, 52545]


def test_order_is_fair():
  """Every example is as likely at every place."""
  rows = pipeline.Order(6, 0).rows(0, 6 * 1000).reshape(1000, 6)
  for place in rows.T:
    assert scipy.stats.chisquare(np.bincount(place, minlength=6)).pvalue > 1e-3
  assert len(np.unique(rows[:, :3], axis=0)) == 120  # every beginning of three


def test_rows_across_epochs_are_elementwise():
  order = pipeline.Order(7, 5)
  one_by_one = [order.rows(i, 1)[0] for i in range(40)]
  for first, count in ((0, 40), (0, 7), (5, 4), (6, 1), (7, 7), (13, 23), (39, 1)):
    assert order.rows(first, count).tolist() == one_by_one[first : first + count]


def test_order_travels_to_other_processes():
  order = pipeline.Order(9, 4)
  assert pickle.loads(pickle.dumps(order)).rows(5, 30).tolist() == order.rows(5, 30).tolist()


# Training batches.


def test_batches_are_the_examples_in_order():
  """Against TFDS's own decoding."""
  folder = cache_folder() / "tfds"
  sources.open_source(Data("digits"), "test")
  theirs = tfds.builder("digits", data_dir=str(folder)).as_data_source("test")
  order = pipeline.Order(50, 3).rows(0, 6 * BATCH).reshape(6, BATCH)
  for batch, indices in zip(train_batches(0, [1] * 6, 1), order, strict=True):
    assert {key: x.dtype.name for key, x in batch.items()} == {
      "image": "uint8", "label": "int32", "index": "int32", "mask": "float32",
    }  # fmt: skip
    np.testing.assert_array_equal(batch["index"], indices)
    np.testing.assert_array_equal(batch["image"], [theirs[int(i)]["image"] for i in indices])
    np.testing.assert_array_equal(batch["label"], [theirs[int(i)]["label"] for i in indices])
    np.testing.assert_array_equal(batch["mask"], np.ones(BATCH))


@pytest.mark.parametrize("fields", [{}, {"image_size": (6, 9), "channels": 3}], ids=["stored", "resized"])
def test_resident_and_streamed_batches_are_the_same(fields):
  resident, streamed = (train_batches(0, [3, 1, 2, 3], 3, on_device=on, **fields) for on in (True, False))
  assert len(resident) == 9
  assert_identical(streamed, resident)
  assert resident[0]["image"].shape == ((BATCH, 6, 9, 3) if fields else (BATCH, 8, 8, 1))


@pytest.mark.parametrize("on_device", [True, False])
def test_start_in_the_middle_is_skipping(on_device):
  whole = train_batches(0, [1] * 9, 1, on_device=on_device)
  for first in (3, 5):  # 5 lies in the second epoch
    assert_identical(train_batches(first, [9 - first], 9, on_device=on_device), whole[first:])


@pytest.mark.parametrize("on_device", [True, False])
def test_devices_do_not_change_the_batches(on_device):
  one, four = (train_batches(0, [2, 3], 3, on_device=on_device, devices=devices) for devices in (1, 4))
  assert_identical(four, one)


def test_worker_processes_do_not_change_the_batches():
  here, there = (train_batches(2, [2, 2], 2, on_device=False, workers=workers) for workers in (0, 2))
  assert_identical(there, here)
  feed, _, mesh = feed_of(on_device=False, workers=2)
  assert_identical(eval_batches(feed, mesh), eval_batches(feed_of(on_device=True)[0], mesh))


@pytest.mark.parametrize("on_device", [True, False])
def test_unused_rows_of_a_dispatch_do_not_count(on_device):
  """A dispatch of one step in a loop compiled for four, and then the next."""
  feed, _, _ = feed_of(on_device=on_device)
  items = list(feed.train_items(spans([1, 2]), 4))
  assert [x.shape[:2] for x in jax.tree.leaves(items)] == [(4, BATCH)] * len(jax.tree.leaves(items))
  np.testing.assert_array_equal(items[1]["index"][:2].ravel(), pipeline.Order(50, 3).rows(BATCH, 2 * BATCH))


@pytest.mark.parametrize("on_device", [True, False])
def test_read_ahead_is_two(on_device):
  feed, _, _ = feed_of(on_device=on_device)
  made = []
  endless = ((i, made.append(i) or 1) for i in itertools.count())
  items = feed.train_items(endless, 1)
  for taken in range(1, 5):
    next(items)
    assert len(made) == taken + pipeline.AHEAD
  items.close()
  assert pipeline.AHEAD == 2


@pytest.mark.parametrize("length", [0, 1, 2, 5])
def test_read_ahead_loses_nothing(length):
  assert list(pipeline.ahead(iter(range(length)))) == list(range(length))


# Evaluation.


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize(
  "devices, batch_size", [(1, 1), (1, 7), (1, 37), (1, 100), (2, 14), (2, 38), (4, 7), (4, 28), (4, 36), (4, 500)]
)
def test_evaluation_counts_every_example_once(devices, batch_size, on_device):
  """Whether the batch size divides the split, is smaller, or larger, or must be rounded up to the devices."""
  config = Config(data=Data("digits", eval_split="test[:37]", eval_batch_size=batch_size, on_device=on_device))
  mesh = loop.make_mesh(devices)
  feed = loop.open_test(config, mesh, pipeline.open_split(config.data, "test")[1])
  batches = eval_batches(feed, mesh)
  rounded = -(-batch_size // devices) * devices
  assert {batch["image"].shape for batch in batches} == {(rounded, 8, 8, 1)}
  assert len(batches) == -(-37 // rounded)
  whole = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
  assert whole["mask"].sum() == 37
  real = whole["mask"] == 1
  np.testing.assert_array_equal(whole["index"][real], np.arange(37))
  for key in ("image", "label", "mask"):
    assert not whole[key][~real].any(), key
  assert (whole["index"][~real] == -1).all()
  expected = feed.read(range(37))
  for key in whole:
    np.testing.assert_array_equal(whole[key][real], expected[key])


def test_resident_and_streamed_evaluations_are_the_same():
  (resident, _, mesh), (streamed, _, _) = (feed_of(on_device=on_device) for on_device in (True, False))
  assert_identical(eval_batches(streamed, mesh), eval_batches(resident, mesh))
  assert_identical(eval_batches(streamed, mesh), eval_batches(streamed, mesh))  # a second time
  assert_identical([streamed.read([3, 3, 0])], [resident.read([3, 3, 0])])
  np.testing.assert_array_equal(resident.read([3, 3, 0])["index"], [3, 3, 0])


# Several processes, simulated.


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_dealt_rows_become_blocks(processes):
  """Grain deals process p the rows p, p + n, ...; through `_blocked` these are its block of each batch."""
  batch_size, batches = 8, 3
  share = batch_size // processes
  for p in range(processes):
    dealt = grain.MapDataset.range(batches * batch_size)[p::processes]
    rows = np.array([pipeline._blocked(dealt[i], batch_size, processes) for i in range(len(dealt))])
    whole = np.arange(batches * batch_size).reshape(batches, batch_size)
    np.testing.assert_array_equal(rows.reshape(batches, share), whole[:, p * share : (p + 1) * share])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_each_process_reads_its_own_rows(processes, monkeypatch):
  """Both feeds hand a process the same block of the global batch, wherever the stream starts."""
  order, start = pipeline.Order(20, 0), 3
  whole = order.rows(start * 8, 32).reshape(4, 8)
  monkeypatch.setattr(jax, "process_count", lambda: processes)
  streamed, resident = [], []
  for p in range(processes):
    monkeypatch.setattr(jax, "process_index", lambda p=p: p)
    stream = pipeline._grain(pipeline._Positions(order, 8), lambda i: {"index": i}, 8, 0, start * 8)
    streamed.append([next(stream)["index"] for _ in range(4)])
    stream.close()
    resident.append(pipeline.own_rows(whole))
  np.testing.assert_array_equal(np.concatenate(streamed, -1), whole)
  np.testing.assert_array_equal(np.concatenate(resident, -1), whole)
  assert np.shape(streamed[0]) == (4, 8 // processes)


# What is opened.


def test_what_a_task_is_told():
  feed, info, _ = feed_of(image_size=(10, 12), channels=3)
  assert info == pipeline.Info("digits", tuple("0123456789"), (10, 12, 3), 50)
  assert feed.size == 50


def test_small_sets_stay_on_the_devices():
  resident, _, _ = feed_of(devices=4, split="train")
  assert {x.sharding.is_fully_replicated for x in resident.resident.values()} == {True}
  assert resident.resident["image"].shape == (1433, 8, 8, 1)
  assert len(resident.resident["image"].sharding.device_set) == 4
  assert feed_of(on_device_limit=0)[0].resident == {}
  assert feed_of(on_device_limit=0, on_device=True)[0].resident != {}
