"""Datasets by name: what they hold, against scikit-learn, TFDS and the files themselves; every mistake in one line."""

import collections
import importlib.util
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from flaxonomy.configs.base import Data
from flaxonomy.data import images, pipeline, sources
from flaxonomy.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
  """A folder in which our digits have been prepared from nothing, and a copy under a name that TFDS does not know."""
  folder = tmp_path_factory.mktemp("tfds")
  sources.open_source(Data("digits", data_dir=str(folder)), "train")
  copy(folder / "digits" / "1.0.0", folder / "figures" / "1.0.0", "figures")
  return folder


def copy(old: Path, new: Path, name: str, file_format: str = "array_record"):
  """A prepared dataset under another name, said to be in another format."""
  new.mkdir(parents=True)
  for path in old.iterdir():
    shutil.copy(path, new / path.name.replace("digits", name).replace("array_record", file_format))
  info = json.loads((new / "dataset_info.json").read_text())
  assert info["fileFormat"] == "array_record"
  (new / "dataset_info.json").write_text(json.dumps(info | {"name": name, "fileFormat": file_format}))


def decoded(source) -> list:
  records = [source.records[i] for i in range(len(source.records))]
  return [(images.decode(record["image"]).tobytes(), int(record["label"])) for record in records]


def mistake(config, split="train") -> str:
  """The one line that a mistake ends in."""
  with pytest.raises(UserError) as error:
    pipeline.image_shape(config, sources.open_source(config, split))
  message = str(error.value)
  assert len(message.splitlines()) == 1, message
  return message


# Our own digits.


def test_digits_are_those_of_scikit_learn(prepared):
  from sklearn.datasets import load_digits

  train, test = (sources.open_source(Data("digits", data_dir=str(prepared)), split) for split in ("train", "test"))
  assert (len(train.records), len(test.records)) == (1433, 364)
  assert train.shape == (8, 8, 1)
  assert train.class_names == tuple("0123456789")
  theirs = load_digits()
  pixels = np.rint(theirs.images * 255 / 16).astype(np.uint8)
  assert collections.Counter(decoded(train) + decoded(test)) == collections.Counter(
    (x.tobytes(), int(label)) for x, label in zip(pixels, theirs.target)
  )
  held_out = np.bincount([label for _, label in decoded(test)])
  np.testing.assert_array_equal(held_out, -(-np.bincount(theirs.target) // 5))
  assert not set(decoded(train)) & set(decoded(test))


def test_digits_are_prepared_once(prepared):
  files = {p: p.stat().st_mtime_ns for p in (prepared / "digits").rglob("*")}
  sources.open_source(Data("digits", data_dir=str(prepared)), "test")
  assert {p: p.stat().st_mtime_ns for p in (prepared / "digits").rglob("*")} == files


def test_digits_lie_in_the_private_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("FLAXONOMY_CACHE", str(tmp_path / "cache"))
  assert len(sources.open_source(Data("digits"), "test").records) == 364
  assert (tmp_path / "cache" / "tfds" / "digits" / "1.0.0" / "dataset_info.json").is_file()
  assert (tmp_path / "cache").stat().st_mode & 0o777 == 0o700


def test_parts_of_a_split(prepared):
  of = lambda split: decoded(sources.open_source(Data("digits", data_dir=str(prepared)), split))
  train = of("train")
  assert of("train[:10%]") == train[:143]
  assert of("train[:10%]") + of("train[10%:]") == train
  assert of("train[5:9]") == train[5:9]
  assert len({label for _, label in of("train[:10%]")}) == 10
  assert len(of("train+test")) == 1797


def test_sources_travel_to_other_processes(prepared, tmp_path):
  Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder_of(tmp_path, {"a": 1}) / "a" / "0.png")
  for config in (Data("digits", data_dir=str(prepared)), Data("folder", data_dir=str(tmp_path))):
    source = sources.open_source(config, "train")
    again = pickle.loads(pickle.dumps(source.records))
    assert len(again) == len(source.records)
    assert images.decode(again[0]["image"]).tobytes() == images.decode(source.records[0]["image"]).tobytes()


def test_a_dataset_that_only_its_files_know(prepared):
  source = sources.open_source(Data("figures", data_dir=str(prepared)), "test")
  assert decoded(source) == decoded(sources.open_source(Data("digits", data_dir=str(prepared)), "test"))
  assert source.class_names == tuple("0123456789")


# Mistakes.


@pytest.mark.parametrize(
  "name, near",
  [
    ("digit", "'digits'"),
    ("figure", "'figures'"),
    ("mnits", "'mnist'"),
    ("cifar-10", "'cifar10'"),
    ("foldr", "'folder'"),
  ],
)
def test_unknown_dataset(prepared, name, near):
  message = mistake(Data(name, data_dir=str(prepared)))
  assert message.startswith(f"unknown dataset {name!r}; did you mean ")
  assert message.count(near) == 1
  assert "'data.name'" in message


def test_nothing_like_it(prepared):
  message = mistake(Data("qqqqqq", data_dir=str(prepared)))
  assert "known: " in message
  assert "digits" in message
  assert "figures" in message


def test_no_such_version_of_a_dataset(prepared):
  assert "9.9.9" in mistake(Data("mnist:9.9.9", data_dir=str(prepared)))


@pytest.mark.parametrize("name", ["digits", "figures"])
def test_unknown_split(prepared, name):
  message = mistake(Data(name, data_dir=str(prepared)), "trian")
  assert message.startswith(f"unknown split of dataset {name!r}: 'trian'; did you mean 'train'?")
  assert "train_split, eval_split" in message
  assert "known: test, train" in mistake(Data(name, data_dir=str(prepared)), "validation")


@pytest.mark.parametrize(
  "split", ["", "train[", "train[:10", "train[:x%]", "train[:200%]", "train[9999:]", "train[:0%]"]
)
def test_split_that_cannot_be_read(prepared, split):
  assert repr(split) in mistake(Data("digits", data_dir=str(prepared)), split)


def test_not_prepared(prepared):
  message = mistake(Data("mnist", data_dir=str(prepared)))
  assert "not prepared" in message
  assert "'data.data_dir'" in message
  command = message.split("type: ")[1]
  program = command.removeprefix('python -c "').removesuffix('"')
  compile(program, "what to type", "exec")
  assert f"tfds.builder('mnist', data_dir={str(prepared)!r}, file_format='array_record')" in program
  assert not (prepared / "mnist").exists()


def test_not_prepared_in_tfds_own_folder():
  assert "not prepared in '~/tensorflow_datasets'" in mistake(Data("malaria"))


def test_prepared_as_tfrecord(prepared, tmp_path):
  folder = tmp_path / "figures" / "1.0.0"
  copy(prepared / "digits" / "1.0.0", folder, "figures", "tfrecord")
  message = mistake(Data("figures", data_dir=str(tmp_path)))
  assert "TFRecord" in message
  assert f"tfds convert_format --dataset_version_dir={folder} --out_file_format=array_record" in message


def test_digits_that_cannot_be_prepared(tmp_path):
  (tmp_path / "file").touch()
  message = mistake(Data("digits", data_dir=str(tmp_path / "file")))
  assert "cannot prepare dataset 'digits'" in message
  assert "'data.data_dir'" in message


def test_builder_that_needs_tensorflow(prepared):
  if importlib.util.find_spec("tensorflow"):
    pytest.skip("TensorFlow is installed")
  assert "No module named 'tensorflow'" in mistake(Data("coco", data_dir=str(prepared)))


@pytest.mark.parametrize(
  "field, value, words",
  [
    ("channels", 2, "'data.channels' must be 1 (grey), 3 (colour) or None, not 2"),
    ("fit", "contain", "'data.fit' can be 'contain' for images with boxes alone"),
    ("image_size", (0, 8), "'data.image_size' must be positive, not (0, 8)"),
    ("mean", (0.5, 0.5, 0.5), "'data.mean' has 3 entries, but the images have 1 channels"),
    ("std", (0.5, 0.5), "'data.std' has 2 entries, but the images have 1 channels"),
  ],
)
def test_shape_that_cannot_be(prepared, field, value, words):
  assert words in mistake(Data("digits", data_dir=str(prepared), **{field: value}))


def test_shape_as_stored_or_as_configured(prepared):
  def shape(**fields):
    config = Data("digits", data_dir=str(prepared), **fields)
    return pipeline.image_shape(config, sources.open_source(config, "test"))

  assert shape() == (8, 8, 1)
  assert shape(channels=3, mean=(0.1, 0.2, 0.3)) == (8, 8, 3)
  assert shape(image_size=(12, 10)) == (12, 10, 1)


# A folder of images.


def folder_of(root: Path, counts: dict[str, int], size=(4, 6)) -> Path:
  """ROOT/CLASS/0.png, ... grey of a level of its own."""
  for label, (name, count) in enumerate(counts.items()):
    (root / name).mkdir(parents=True)
    for i in range(count):
      Image.fromarray(np.full(size, 50 * label + i, np.uint8)).save(root / name / f"{i}.png")
  return root


def files(source) -> dict[Path, int]:
  records = [source.records[i] for i in range(len(source.records))]
  found = {r["image"]: r["label"] for r in records}
  assert len(found) == len(records)
  return found


def test_folder_of_classes(tmp_path):
  """ROOT/CLASS: a stable tenth is the test split, the rest the training split."""
  folder_of(tmp_path, {"cat": 40, "dog": 40, "owl": 30})
  (tmp_path / "dog" / "notes.txt").touch()
  (tmp_path / "notes.txt").touch()
  config = Data("folder", data_dir=str(tmp_path))
  train, test = (sources.open_source(config, split) for split in ("train", "test"))
  assert train.class_names == test.class_names == ("cat", "dog", "owl")
  every = files(train) | files(test)
  assert set(every) == set(tmp_path.rglob("*.png"))
  assert len(every) == len(files(train)) + len(files(test)) == 110
  assert all(train.class_names[label] == path.parent.name for path, label in every.items())
  assert 3 <= len(files(test)) <= 25
  for record in (train.records[0], test.records[-1]):
    level = 50 * record["label"] + int(record["image"].stem)
    np.testing.assert_array_equal(images.decode(record["image"]), np.full((4, 6, 1), level))

  Image.fromarray(np.zeros((4, 6), np.uint8)).save(tmp_path / "cat" / "new.png")  # moves no other file
  assert set(files(test)) <= set(files(sources.open_source(config, "test")))
  assert set(files(train)) <= set(files(sources.open_source(config, "train")))


def test_folder_of_splits(tmp_path):
  """ROOT/SPLIT/CLASS: every file of a split, below sub-folders too."""
  for split, count in (("train", 6), ("test", 3), ("val", 2)):
    folder_of(tmp_path / split, {"cat": count, "dog": count})
  folder_of(tmp_path / "train" / "dog", {"old": 2})
  for split, count in (("train", 14), ("test", 6), ("val", 4)):
    source = sources.open_source(Data("folder", data_dir=str(tmp_path)), split)
    assert source.class_names == ("cat", "dog")
    assert set(files(source)) == set((tmp_path / split).rglob("*.png"))
    assert len(source.records) == count
    assert all(source.class_names[label] in path.parts for path, label in files(source).items())


def test_folder_percent_slices_are_disjoint_and_hold_every_class(tmp_path):
  folder_of(tmp_path / "train", {"cat": 40, "dog": 40, "owl": 40})
  of = lambda split: files(sources.open_source(Data("folder", data_dir=str(tmp_path)), split))
  assert len(of("train[:25%]")) == 30
  assert of("train[:25%]") | of("train[25%:]") == of("train")
  assert len(of("train[25%:]")) == 90
  assert list(of("train[10%:30%]")) == list(of("train"))[12:36]
  assert min(np.bincount(list(of("train[:25%]").values()), minlength=3)) >= 5
  assert min(np.bincount(list(of("train[75%:]").values()), minlength=3)) >= 5


def test_folder_images_of_different_sizes(tmp_path):
  folder_of(tmp_path / "train", {"cat": 3}, size=(4, 6))
  folder_of(tmp_path / "train", {"dog": 3}, size=(9, 5))
  config = Data("folder", data_dir=str(tmp_path))
  message = mistake(config)
  assert "may differ in size" in message
  assert "'data.image_size'" in message
  config.image_size = (7, 3)
  source = sources.open_source(config, "train")
  shape = pipeline.image_shape(config, source)
  assert shape == (7, 3, 1)
  read = pipeline.Reader(source, pipeline.open_split(config, "train")[1])
  for i in range(6):
    example = read(i)
    np.testing.assert_array_equal(example["image"], np.full((7, 3, 1), int(source.records[i]["image"].stem)))
    assert example["label"] == ["cat", "dog"].index(source.records[i]["image"].parent.name)


def test_folder_mistakes(tmp_path):
  assert "'data.data_dir'" in mistake(Data("folder"))
  assert str(tmp_path / "missing") in mistake(Data("folder", data_dir=str(tmp_path / "missing")))
  assert "no sub-folder" in mistake(Data("folder", data_dir=str(tmp_path)))
  (tmp_path / "cat").mkdir()
  assert "holds no images (looked for .png" in mistake(Data("folder", data_dir=str(tmp_path)))
  folder_of(tmp_path / "cat", {"young": 30})
  assert "did you mean 'train'?" in mistake(Data("folder", data_dir=str(tmp_path)), "trian")
  assert "must look like" in mistake(Data("folder", data_dir=str(tmp_path)), "train[3:7]")
  assert "holds no images" in mistake(Data("folder", data_dir=str(tmp_path)), "train[:0%]")
  folder_of(tmp_path / "splits" / "train", {"cat": 1})
  assert "unknown split" in mistake(Data("folder", data_dir=str(tmp_path / "splits")), "test")


def test_folder_with_a_broken_image(tmp_path):
  folder_of(tmp_path / "train", {"cat": 1})
  (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no image")
  assert str(tmp_path / "train" / "cat" / "0.png") in mistake(Data("folder", data_dir=str(tmp_path), image_size=(4, 4)))


# Real datasets, where they are.


@pytest.mark.parametrize(
  "name, counts, shape, classes",
  [
    ("mnist", (60000, 10000), (28, 28, 1), ("0", "9")),
    ("fashion_mnist", (15000, 5000), (28, 28, 1), ("T-shirt/top", "Ankle boot")),
    ("cifar10", (50000, 10000), (32, 32, 3), ("airplane", "truck")),
  ],
)
def test_real_datasets(shared_data, name, counts, shape, classes):
  folder = shared_data / "tfds"
  if not (folder / name).is_dir():
    pytest.skip(f"no {name} in {folder}")
  theirs = tfds.builder(name, data_dir=str(folder)).as_data_source()
  for split, count in zip(("train", "test"), counts):
    config = Data(name, data_dir=str(folder))
    source = sources.open_source(config, split)
    assert len(source.records) == count
    assert pipeline.image_shape(config, source) == shape
    assert len(source.class_names) == 10
    assert (source.class_names[0], source.class_names[-1]) == classes
    for i in (0, count // 2, count - 1):
      example = pipeline.Reader(source, pipeline.open_split(config, split)[1])(i)
      np.testing.assert_array_equal(example["image"], theirs[split][i]["image"])
      assert example["label"] == theirs[split][i]["label"]
    assert example["image"].std() > 10


def test_no_image_or_label(shared_data):
  folder = shared_data / "tfds"
  if not (folder / "tiny_shakespeare").is_dir():
    pytest.skip(f"no tiny_shakespeare in {folder}")
  message = mistake(Data("tiny_shakespeare", data_dir=str(folder)))
  assert "no single image with a single class label" in message
  assert "text (Text)" in message
