"""The digits of `digit_scenes` one by one: what a classifier learns from before a detector does.

As Netzer et al. 2011, "Reading Digits in Natural Images with Unsupervised Feature Learning", cut house numbers into
their second format: a square around each digit, with parts of others in it. Here it is twice as wide as the longer side
of the digit's box; what lies off the canvas repeats its edge. Pillow brings the squares to 32 x 32.
"""

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from flaxonomy.data.datasets import digit_scenes, pictures

SIDE = 32
WIDER = 2  # sides of a square, in those of the box


class DigitScenesCropped(tfds.core.GeneratorBasedBuilder):
  """18,003 training and 2,242 test images of 10 classes; `image` [32, 32, 3] uint8, `label` of the digit amid it."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    return pictures.info(self, __doc__, (SIDE, SIDE, 3), digit_scenes.NAMES)

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split, count) for split, count in digit_scenes.COUNTS.items()}

  def _generate_examples(self, split, count):
    for i in range(count):
      scene = digit_scenes.scene(split, i)
      for k, thing in enumerate(scene.objects):
        yield f"{i}_{k}", {"image": pictures.png(cropped(scene.image, thing.box)), "label": thing.label}


def cropped(image: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
  """The square around a box, [32, 32, 3] uint8.

  Args:
    image: [H, W, 3] uint8.
    box: (y0, x0, y1, x1) pixels, the ends behind it.
  """
  y0, x0, y1, x1 = box
  h, w, _ = image.shape
  side = WIDER * max(y1 - y0, x1 - x0)
  y, x = np.arange(side) + (y0 + y1 - side) // 2, np.arange(side) + (x0 + x1 - side) // 2
  square = image[np.clip(y, 0, h - 1)][:, np.clip(x, 0, w - 1)]
  return np.asarray(Image.fromarray(square).resize((SIDE, SIDE), Image.Resampling.BILINEAR))
