"""X against O: what is drawn, that it never changes, and that it is a task."""

import hashlib

import numpy as np
import pytest

from flaxonomy.configs.base import Data
from flaxonomy.data import pipeline, sources
from flaxonomy.data.datasets import xo

X = """
.........
.#.....#.
..#...#..
...#.#...
....#....
...#.#...
..#...#..
.#.....#.
.........
"""
O = """
.........
...###...
..#...#..
.#.....#.
.#.....#.
.#.....#.
..#...#..
...###...
.........
"""  # noqa: E741


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
  """{split: (images [n, 9, 9, 1], labels [n])} and class names, as the pipeline reads them."""
  folder, found = tmp_path_factory.mktemp("xo"), {}
  for split in ("train", "test"):
    source, info = pipeline.open_split(Data("xo", data_dir=str(folder)), split)
    assert (info.class_names, info.image_shape) == (("O", "X"), (9, 9, 1))
    reader = pipeline.Reader(source, info)
    images, labels = zip(*(reader.example(i) for i in range(info.size)))
    found[split] = np.stack(images), np.array(labels)
  return found


def test_letters_are_those_of_the_lessons():
  for letter, picture in (("X", X), ("O", O)):
    drawn = xo.draw(letter, 7, 1) >= 0.5
    assert "\n".join("".join(".#"[int(v)] for v in row) for row in drawn) == picture.strip()
    moved = xo.draw(letter, 5, 1, (-2, 2))
    np.testing.assert_allclose(moved[:5, 4:], xo.draw(letter, 5, 1)[2:7, 2:7])
    assert not moved[6:].any()
    quarter = xo.draw(letter, 7, 1.3, linear=((0, 1), (-1, 0)))
    np.testing.assert_allclose(quarter, xo.draw(letter, 7, 1.3))
  sheared = xo.draw("X", 7, 1, linear=((1, 0), (0.5, 1)))
  np.testing.assert_allclose(sheared, sheared[::-1, ::-1])
  assert np.abs(sheared - sheared[::-1]).max() > 0.5


def test_counts_and_balance(splits):
  for split, count in (("train", 800), ("test", 200)):
    images, labels = splits[split]
    assert images.dtype == np.uint8
    assert np.bincount(labels).tolist() == [count // 2, count // 2]


def test_every_machine_draws_the_same():
  whole = np.stack([xo.example(seed, i) for seed, count in ((0, 800), (1, 200)) for i in range(count)])
  assert (
    hashlib.sha256(whole.tobytes()).hexdigest() == "afdd3760a1afa52dd097882487cc63fb749c7fcd2e2bb2db034252e7ae770ca3"
  )


def test_what_is_stored_is_what_is_drawn(splits):
  for seed, split in enumerate(("train", "test")):
    images, labels = splits[split]
    drawn = {xo.example(seed, i).tobytes(): i % 2 for i in range(len(images))}
    assert {image.tobytes(): label for image, label in zip(images, labels.tolist())} == drawn


def test_no_image_is_there_twice(splits):
  images = np.concatenate([splits["train"][0], splits["test"][0]]).reshape(1000, -1)
  assert len(np.unique(images, axis=0)) == 1000


def test_a_line_is_not_enough_but_neighbours_are(splits):
  from sklearn.linear_model import LogisticRegression
  from sklearn.neighbors import KNeighborsClassifier

  (train, labels), (test, truth) = ((images.reshape(len(images), -1) / 255, y) for images, y in splits.values())
  line = LogisticRegression(max_iter=2000).fit(train, labels).score(test, truth)
  assert 0.7 < line < 0.98
  assert KNeighborsClassifier(5).fit(train, labels).score(test, truth) > 0.95


def test_it_is_found_by_name():
  with pytest.raises(Exception, match="'xo'"):
    sources.open_source(Data("xoo"), "train")
