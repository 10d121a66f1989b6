"""Handwritten digits, 8 x 8 grey, from scikit-learn's installed copy: real data without a download.

Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten Digits" (UCI), the 1,797 examples that scikit-learn
carries. They come without a split; ours takes, from each class, every fifth example by a fixed shuffle as test.
"""

import numpy as np
import tensorflow_datasets as tfds

from flaxonomy.data.datasets import pictures


class Digits(tfds.core.GeneratorBasedBuilder):
  """1,433 training and 364 test images of 10 classes; `image` [8, 8, 1] uint8 with 17 grey levels, `label`."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    return pictures.info(self, __doc__, (8, 8, 1), map(str, range(10)))

  def _split_generators(self, dl_manager):
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    shuffled = np.random.Generator(np.random.PCG64(0)).permutation(len(images))
    test = np.sort(np.concatenate([shuffled[digits.target[shuffled] == c][::5] for c in range(10)]))
    train = np.setdiff1d(np.arange(len(images)), test)
    return {
      name: self._generate_examples(images, digits.target, rows) for name, rows in (("train", train), ("test", test))
    }

  def _generate_examples(self, images, labels, rows):
    for i in rows.tolist():
      yield i, {"image": pictures.png(images[i]), "label": int(labels[i])}
