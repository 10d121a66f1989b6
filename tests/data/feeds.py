"""A split as batches on the host, the one line that it ends in, and images to feed it."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from flaxonomy.data import pipeline
from flaxonomy.errors import DataError
from flaxonomy.train import loop

BATCH = 12


class Feed:
  """One split, and its batches on the host."""

  def __init__(self, config, split="train", source=None, info=None, batch_size=BATCH):
    self.mesh = loop.make_mesh(1)
    if source is None:
      source, info = pipeline.open_split(config, split)
    self.feed = pipeline.open_feed(config, source, info, 3, batch_size, self.mesh)

  def train(self, steps) -> list[dict]:
    items = self.feed.train_items(((i, 1) for i in range(steps)), 1)
    fetch = lambda item: self.feed.fetch(self.feed.resident, jax.tree.map(lambda x: x[0], item))
    return [jax.device_get(fetch(item)) for item in items]

  def evaluate(self) -> dict:
    """All batches as one."""
    batches = [jax.device_get(self.feed.fetch(self.feed.resident, item)) for item in self.feed.eval_items()]
    return {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}


def failure(function, kind=DataError, code=3) -> str:
  """The one line that a function ends in."""
  with pytest.raises(kind) as error:
    function()
  message = str(error.value)
  assert error.value.exit_code == code
  assert len(message.splitlines()) == 1, message
  assert len(message) < 2000
  return message


def png(level=0, size=(8, 8)) -> bytes:
  out = io.BytesIO()
  Image.fromarray(np.full(size, level, np.uint8)).save(out, "png")
  return out.getvalue()
