"""Handwritten digits, 8 x 8 grey, from scikit-learn's installed copy: real data without a download.

Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits" (UCI), the 1,797 examples that scikit-learn
carries. They come without a split; ours takes, from each class, every fifth example by a fixed shuffle as test.
"""

import functools

import numpy as np
import tensorflow_datasets as tfds

from flaxonomy.data.datasets import pictures


@functools.cache
def loaded() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
  """scikit-learn's digits: shades [N, 8, 8] from 0 to 16, labels [N], and the rows of each split."""
  from sklearn.datasets import load_digits

  found = load_digits()
  shuffled = np.random.Generator(np.random.PCG64(0)).permutation(len(found.target))
  test = np.sort(np.concatenate([shuffled[found.target[shuffled] == c][::5] for c in range(10)]))
  return found.images, found.target, {"train": np.setdiff1d(np.arange(len(found.target)), test), "test": test}


class Digits(tfds.core.GeneratorBasedBuilder):
  """1,433 training and 364 test images of 10 classes; `image` [8, 8, 1] uint8 with 17 grey levels, `label`."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    return pictures.info(self, __doc__, (8, 8, 1), map(str, range(10)))

  def _split_generators(self, dl_manager):
    shades, labels, rows = loaded()
    images = np.rint(shades * (255 / 16)).astype(np.uint8)
    return {name: self._generate_examples(images, labels, rows[name]) for name in ("train", "test")}

  def _generate_examples(self, images, labels, rows):
    for i in rows.tolist():
      yield i, {"image": pictures.png(images[i]), "label": int(labels[i])}
