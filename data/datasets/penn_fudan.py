"""Penn-Fudan's images whose values number people."""

from pathlib import Path

import numpy as np

from flaxonomy.data import masks
from flaxonomy.data.datasets import annotations


def objects(mask: Path) -> annotations.Annotation:
  """People by the image whose values number them.

  Raises:
    DataError: as `masks.instances`.
  """
  pixels = masks.instances(mask)
  values = [int(value) for value in np.unique(pixels) if value]
  boxes = []
  for value in values:
    y, x = (np.flatnonzero((pixels == value).any(axis)) for axis in (1, 0))
    boxes.append((x[0], y[0], x[-1] + 1, y[-1] + 1))
  numbered = masks.Instances(mask, tuple(values))
  return annotations.annotation(repr(str(mask)), boxes, [1] * len(values), size=pixels.shape)._replace(masks=numbered)
