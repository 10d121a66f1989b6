"""Data that is damaged or too little: one line and an end, or a warning and the rest; never a hang."""

import collections
import itertools
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from feeds import BATCH, Feed, failure, png
from PIL import Image

from flaxonomy.configs.base import Data
from flaxonomy.data import images, pipeline, reader, sources
from flaxonomy.data.datasets import cache_folder
from flaxonomy.errors import UserError

pytestmark = pytest.mark.usefixtures("timely")
SPLIT = "train[860:900]"  # of digits, about the middle of the file
FEEDS = {
  "resident": {"on_device": True},
  "streamed": {"on_device": False},
  "workers": {"on_device": False, "workers": 2},
}
in_process = pytest.mark.parametrize("feed", ["resident", "streamed"])
each_feed = pytest.mark.parametrize("feed", FEEDS)


def warnings_of(capsys) -> list[str]:
  return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]


def assert_identical(some, others):
  assert len(some) == len(others)
  for a, b in zip(some, others):
    assert a.keys() == b.keys()
    for key in a:
      assert a[key].dtype == b[key].dtype
      np.testing.assert_array_equal(a[key], b[key], err_msg=key)


# Where the damage is done.


def damaged_folder(root: Path, bad: dict[int, str], count=20, classes=2) -> Data:
  """A folder of images of which some cannot be read: {index in split "train": what was done to the file}."""
  for split, number in (("train", count), ("test", 4)):
    for label in range(classes):
      (root / split / f"class{label}").mkdir(parents=True)
      for i in range(number // classes):
        image = np.random.default_rng([label, i]).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(image).save(root / split / f"class{label}" / f"{i}.png")
  config = Data("folder", data_dir=str(root), image_size=(8, 8))
  for index, how in bad.items():
    path = sources.open_source(config, "train").records[index]["image"]
    whole = path.read_bytes()
    path.write_bytes({"truncated": whole[:-80], "garbage": b"\x07\xff" * 300, "empty": b""}[how])
  return config


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
  """A folder with our prepared digits, bytes in the middle of whose training file are overwritten."""
  sources.open_source(Data("digits"), "train")
  root = tmp_path_factory.mktemp("damaged")
  shutil.copytree(cache_folder() / "tfds" / "digits", root / "digits")
  (file,) = (root / "digits").rglob("*-train.array_record*")
  data = bytearray(file.read_bytes())
  at = len(data) // 2
  data[at : at + 300] = b"\xff" * 300
  file.write_bytes(data)
  return root


@pytest.fixture(scope="module")
def unreadable(digits) -> list[int]:
  """Those of SPLIT that TFDS itself cannot read."""
  theirs = tfds.builder("digits", data_dir=str(digits)).as_data_source(SPLIT)
  bad = []
  for i in range(len(theirs)):
    try:
      theirs[i]
    except Exception:
      bad.append(i)
  assert 1 < len(bad) < 10
  return bad


# What is done about examples that cannot be read.


@pytest.mark.parametrize(
  "feed, how", [*itertools.product(["resident", "streamed"], ["truncated", "garbage", "empty"]), ("workers", "garbage")]
)
def test_image_that_cannot_be_read_ends_the_run(feed, how, tmp_path):
  config = Data(**damaged_folder(tmp_path, {7: how}).__dict__ | FEEDS[feed])
  message = failure(lambda: Feed(config).train(5))
  assert message.startswith("example 7 of split 'train' of dataset 'folder': cannot read image ")
  assert repr(str(sources.open_source(config, "train").records[7]["image"])) in message
  assert "--config.data.on_error=skip" in message
  if feed != "workers":
    assert "example 7 of" in failure(lambda: Feed(config).evaluate())


@each_feed
def test_record_that_cannot_be_read_ends_the_run(feed, digits, unreadable):
  config = Data("digits", data_dir=str(digits), **FEEDS[feed])
  message = failure(lambda: Feed(config, SPLIT).evaluate())
  assert message.startswith(f"example {unreadable[0]} of split {SPLIT!r} of dataset 'digits': ")
  if feed != "workers":
    message = failure(lambda: Feed(config, SPLIT).train(5))
    assert int(message.split()[1]) in unreadable


@pytest.mark.parametrize(
  "kind, feed", [*itertools.product(["image", "record"], ["resident", "streamed"]), ("image", "workers")]
)
def test_skipping(kind, feed, tmp_path, digits, unreadable, capsys):
  """One warning each; training goes on with the next that can be read, evaluation without; alike for every feed."""
  if kind == "image":
    bad, split, size = {3: "truncated", 19: "garbage", 0: "empty"}, "train", 20
    config = damaged_folder(tmp_path, bad)
  else:
    bad, split, size = unreadable, SPLIT, 40
    config = Data("digits", data_dir=str(digits))
  config.on_error, config.error_limit = "skip", len(bad)
  make = lambda **fields: Feed(Data(**config.__dict__ | fields), split)
  steps = 3 * size // BATCH + 2  # more than three epochs
  opened = make(**FEEDS[feed])
  batches, whole = opened.train(steps), opened.evaluate()
  lines = warnings_of(capsys)
  assert len(lines) == len(bad)
  for i in bad:
    (line,) = [line for line in lines if f"example {i} of split {split!r} of dataset {config.name!r}: " in line]
    assert f"of at most {len(bad)})" in line

  order = pipeline.Order(size, 3).rows(0, steps * BATCH).reshape(steps, BATCH)
  good = [i for i in range(size) if i not in bad]
  next_good = [next((i + k) % size for k in range(size) if (i + k) % size in good) for i in range(size)]
  readable = sources.open_source(config, split).records
  pixels = {i: images.decode(readable[i]["image"], opened.feed.read([good[0]])["image"].shape[-1]) for i in good}
  for batch, rows in zip(batches, order):
    np.testing.assert_array_equal(batch["index"], np.array(next_good)[rows])
    np.testing.assert_array_equal(batch["mask"], np.ones(BATCH))
    np.testing.assert_array_equal(batch["image"], np.stack([pixels[i] for i in batch["index"]]))
    np.testing.assert_array_equal(batch["label"], [readable[i]["label"] for i in batch["index"]])

  np.testing.assert_array_equal(whole["index"][:size], np.arange(size))
  np.testing.assert_array_equal(np.flatnonzero(whole["mask"]), good)
  assert not whole["image"][whole["mask"] == 0].any()

  if feed != "resident":
    resident = make(on_device=True)
    assert_identical(batches, resident.train(steps))
    assert_identical([whole], [resident.evaluate()])


def test_a_long_stretch_that_cannot_be_read(capsys):
  """Beyond the reach of a stand-in a row counts nothing, in every feed."""
  records = [{"image": b"damaged" if 5 <= i < 10 + reader.REACH else png(i), "label": 0} for i in range(130)]
  batches = {}
  for name in ("resident", "streamed"):
    opened = fake(records, **FEEDS[name], on_error="skip", error_limit=130)
    batches[name] = opened.train(2 * 130 // BATCH)
    assert len(warnings_of(capsys)) == 5 + reader.REACH
  rows = {key: np.concatenate([b[key] for b in batches["streamed"]]) for key in ("image", "index", "mask")}
  assert set(rows["index"][rows["mask"] == 0]) == {5, 6, 7, 8, 9}
  assert not rows["image"][rows["mask"] == 0].any()
  assert set(rows["index"][rows["mask"] == 1]) == {*range(5), *range(10 + reader.REACH, 130)}
  assert_identical(batches["streamed"], batches["resident"])


@each_feed
def test_limit(feed, tmp_path, capsys):
  config = damaged_folder(tmp_path, {1: "garbage", 4: "garbage", 8: "garbage"}, count=30)
  fields = config.__dict__ | FEEDS[feed] | {"on_error": "skip"}
  message = failure(lambda: Feed(Data(**fields | {"error_limit": 2})).train(9))
  assert message.startswith("example ")
  assert message.endswith("that is one more than data.error_limit, 2")
  assert len(warnings_of(capsys)) == 2
  if feed != "workers":
    assert "data.error_limit, 0" in failure(lambda: Feed(Data(**fields | {"error_limit": 0})).evaluate())
    assert not warnings_of(capsys)
    assert "data.error_limit, 1" in failure(lambda: Feed(Data(**fields)).evaluate())  # one in a thousand, one at least


@pytest.mark.parametrize("size, limit", [(1, 1), (999, 1), (1999, 1), (2000, 2), (60000, 60)])
def test_limit_is_one_in_a_thousand(size, limit):
  source = sources.Source([None] * size, ("a",), None, "train")
  assert reader.Reader(source, pipeline.Info("fake", ("a",), (8, 8, 1), size)).limit == limit


@in_process
def test_nothing_can_be_read(feed):
  opened = fake([{"image": b"", "label": 0}] * 5, **FEEDS[feed], on_error="skip", error_limit=5)
  for batch in [*opened.train(2), opened.evaluate()]:
    assert not batch["mask"].any()
    assert not batch["image"].any()


def test_first_image_settles_the_channels(tmp_path):
  """With skip the next one does."""
  config = damaged_folder(tmp_path, {0: "garbage"})
  message = failure(lambda: pipeline.open_split(config, "train"))
  assert message.startswith("dataset 'folder': the first image settles the channels, but cannot read image ")
  config.on_error = "skip"
  assert pipeline.open_split(config, "train")[1].image_shape == (8, 8, 3)


# Fakes.


def fake(records, classes=3, **fields) -> Feed:
  names = tuple("abcdefgh"[:classes])
  info = pipeline.Info("fake", names, (8, 8, 1), len(records))
  return Feed(Data("fake", **fields), source=sources.Source(records, names, (8, 8, 1), "train"), info=info)


@in_process
@pytest.mark.parametrize("label", [3, -1, 2**40, "one", None])
def test_label_that_is_no_class(feed, label, capsys):
  records = [{"image": png(i), "label": label if i == 2 else 1} for i in range(6)]
  message = failure(lambda: fake(records, **FEEDS[feed]).train(2))
  assert message.startswith("example 2 of split 'train' of dataset 'fake': ")
  if isinstance(label, int):
    assert f"label {label} is none of the 3 classes" in message
  fake(records, **FEEDS[feed], on_error="skip").train(2)
  assert len(warnings_of(capsys)) == 1


# Too few examples.


@in_process
@pytest.mark.parametrize("size, split", [(1, "train[:1]"), (5, "train[7:12]")])
def test_batch_larger_than_the_dataset(feed, size, split):
  """Every step is full, epochs one after another."""
  opened = Feed(Data("digits", **FEEDS[feed]), split)
  order = pipeline.Order(size, 3).rows(0, 4 * BATCH).reshape(4, BATCH)
  one = opened.feed.read(range(size))
  for batch, rows in zip(opened.train(4), order, strict=True):
    np.testing.assert_array_equal(batch["index"], rows)
    np.testing.assert_array_equal(batch["mask"], np.ones(BATCH))
    np.testing.assert_array_equal(batch["image"], one["image"][rows])
  counts = collections.Counter(order.ravel().tolist())
  assert max(counts.values()) - min(counts.values()) <= 1
  whole = opened.evaluate()
  assert whole["mask"].sum() == size
  assert whole["mask"].shape == (BATCH,)


@pytest.mark.parametrize("split", ["train[:0]", "train[5:5]", "train[:0%]", "train[900:800]", "test[364:]"])
def test_empty_split(split):
  message = failure(lambda: pipeline.open_split(Data("digits"), split), UserError, 2)
  assert repr(split) in message


def test_empty_split_of_a_folder(tmp_path):
  config = damaged_folder(tmp_path, {})
  for split in ("train[:0%]", "train[50%:50%]", "train[90%:10%]"):
    message = failure(lambda split=split: pipeline.open_split(config, split), UserError, 2)
    assert repr(split) in message


# What is trained on is not what is evaluated.


@pytest.mark.parametrize("name", ["digits", "folder"])
@pytest.mark.parametrize("splits", [("train[:90%]", "train[90%:]"), ("train[10%:]", "train[:10%]")], ids=str)
def test_no_training_example_is_in_the_evaluation(name, splits, tmp_path):
  if name == "folder":
    config, size = damaged_folder(tmp_path, {}, count=60), 60
  else:
    config, size = Data("digits"), 1433
  train, test = (Feed(config, split) for split in splits)
  fed = {image.tobytes() for batch in train.train(-(-size // BATCH)) for image in batch["image"]}
  whole = test.evaluate()
  scored = [image.tobytes() for image in whole["image"][whole["mask"] == 1]]
  assert len(scored) == len(set(scored)) == round(size / 10)
  assert len(fed) == size - len(scored)  # every image once, and no two alike
  assert not fed & set(scored)


# Other processes.


@pytest.mark.parametrize("workers, killed", [(1, 1), (2, 1)])
def test_killed_worker_ends_the_run(workers, killed):
  """As the kernel does when memory runs out."""
  feed = Feed(Data("digits", on_device=False, workers=workers)).feed
  before = {process.pid for process in multiprocessing.active_children()}
  items = feed.train_items(((i, 1) for i in range(10**6)), 1)
  next(items)
  ours = [process for process in multiprocessing.active_children() if process.pid not in before]
  assert len(ours) == workers
  for process in ours[:killed]:
    os.kill(process.pid, signal.SIGKILL)
  began = time.monotonic()
  message = failure(lambda: collections.deque(items, maxlen=0))
  assert time.monotonic() - began < 30
  assert message.startswith("reading data failed: ")
  assert "-9" in message
  for process in ours:  # the others were closed with the stream
    process.join(10)
    assert not process.is_alive()


def test_two_processes_prepare_the_same_dataset(tmp_path):
  program = (
    "import sys; from flaxonomy.configs.base import Data; from flaxonomy.data import sources\n"
    "print('ready', flush=True); sys.stdin.readline()\n"
    "source = sources.open_source(Data('digits', data_dir=sys.argv[1]), 'train')\n"
    "print(len(source.records), sum(int(source.records[i]['label']) for i in range(1433)))"
  )
  command = [sys.executable, "-c", program, str(tmp_path / "new")]
  pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
  both = [subprocess.Popen(command, **pipes, text=True, cwd=tmp_path) for _ in range(2)]
  try:
    for process in both:
      assert process.stdout.readline() == "ready\n", process.stderr.read()
    for process in both:
      process.stdin.write("go\n")
      process.stdin.flush()
    said = [process.communicate(timeout=50) for process in both]
  finally:
    for process in both:
      process.kill()
  assert [process.returncode for process in both] == [0, 0], said
  here = sources.open_source(Data("digits"), "train").records
  assert said[0][0] == said[1][0] == f"1433 {sum(int(here[i]['label']) for i in range(1433))}\n"
  assert [path.name for path in (tmp_path / "new" / "digits").iterdir()] == ["1.0.0"]  # nothing half-made is left
