"""X against O, 9 x 9 grey: the toy of many a first lesson in convolution, drawn here so that it is a task.

The letters are those of the lessons, an X of two diagonals and an O of a ring, but each has its own place, size, stroke
weight, rotation, shear and noise. Everything follows from one stream of raw bits, which NumPy promises for ever, by
arithmetic alone, so that every machine draws the same images.
"""

import numpy as np
import tensorflow_datasets as tfds

from flaxonomy.data.datasets import pictures

CLASSES = ("O", "X")
SIDE = 9
SIZES = {"train": 800, "test": 200}
NOISE = 0.25  # deviation, of full scale


class Xo(tfds.core.GeneratorBasedBuilder):
  """800 training and 200 test images, half of each letter; `image` [9, 9, 1] uint8, bright on dark, `label`."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    return pictures.info(self, __doc__, (SIDE, SIDE, 1), CLASSES)

  def _split_generators(self, dl_manager):
    return {name: self._generate_examples(seed, count) for seed, (name, count) in enumerate(SIZES.items())}

  def _generate_examples(self, seed, count):
    for i in range(count):
      yield i, {"image": pictures.png(example(seed, i)), "label": i % 2}


def example(seed: int, index: int) -> np.ndarray:
  """[9, 9] uint8: the image of a place in a split, an O at even ones."""
  uniform = (np.random.PCG64([seed, index]).random_raw(6 + 4 * SIDE**2) >> 11) * 2.0**-53
  size = 5 + 4 * uniform[0]
  weight = 0.8 + 0.7 * uniform[1]
  centre = (uniform[2:4] - 0.5) * (SIDE - size)
  half = 0.13 * (2 * uniform[4] - 1)  # tangent of half the angle, which is 15 degrees at most
  cosine, sine = (1 - half**2) / (1 + half**2), 2 * half / (1 + half**2)
  shear = 0.25 * (2 * uniform[5] - 1)
  linear = ((cosine, shear * cosine - sine), (sine, shear * sine + cosine))
  bell = (uniform[6:].reshape(4, SIDE, SIDE).sum(0) - 2) * 3**0.5  # of deviation 1
  image = draw(CLASSES[index % 2], size, weight, centre, linear) + NOISE * bell
  return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def draw(letter: str, size: float, weight: float, centre=(0.0, 0.0), linear=((1.0, 0.0), (0.0, 1.0))) -> np.ndarray:
  """A letter without noise, [9, 9] from 0 to 1, its edges a pixel wide.

  Args:
    letter: "X" or "O".
    size: its height and width in pixels.
    weight: of its stroke, in pixels.
    centre: (y, x) from the image's.
    linear: [2, 2], the turn of the image that is undone for the letter to stand upright.
  """
  y, x = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2
  y, x = y - centre[0], x - centre[1]
  (a, b), (c, d) = linear
  y, x = np.abs(a * y + b * x), np.abs(c * y + d * x)  # the letters are the same in every quarter
  reach = (size - 1) / 2
  if letter == "O":
    distance = np.abs(np.sqrt(y**2 + x**2) - reach)
  else:
    along = np.clip((y + x) / 2, 0, reach)  # the nearest point of the diagonal is (along, along)
    distance = np.sqrt((y - along) ** 2 + (x - along) ** 2)
  return np.clip(weight / 2 + 0.5 - distance, 0, 1)
