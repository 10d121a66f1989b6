"""What our builders of images share."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def info(builder, description: str, shape: tuple[int, int, int], names) -> tfds.core.DatasetInfo:
  """The description of a dataset of `image` [H, W, C] uint8, stored as PNG, and `label`.

  Args:
    builder: the TFDS builder.
    description: of the dataset.
    shape: [H, W, C] of the images.
    names: of the classes.
  """
  features = {
    "image": tfds.features.Image(shape=shape, encoding_format="png"),
    "label": tfds.features.ClassLabel(names=list(names)),
  }
  return tfds.core.DatasetInfo(
    builder=builder,
    description=description,
    features=tfds.features.FeaturesDict(features),
    supervised_keys=("image", "label"),
  )


def png(image: np.ndarray, level: int = 6) -> io.BytesIO:
  """An image encoded: without TensorFlow, TFDS stores images that are encoded already.

  Args:
    image: [H, W] or [H, W, 3] uint8.
    level: of compression, from 1, fast, to 9, small.
  """
  file = io.BytesIO()
  Image.fromarray(image).save(file, "png", compress_level=level)
  file.seek(0)
  return file
