"""Digits cut out of scenes, by Pillow and by their scenes."""

import numpy as np
from PIL import Image

from flaxonomy.data.datasets import digit_scenes, digit_scenes_cropped


def test_digits_cut_out_are_the_middle_of_a_square():
  """Where the longer side is 16 nothing is resized; off the canvas its edge is repeated."""
  whole = 0
  for scene in (digit_scenes.scene("train", i) for i in range(150)):
    padded = Image.fromarray(np.pad(scene.image, ((128, 128), (128, 128), (0, 0)), "edge"))
    for thing in scene.objects:
      y0, x0, y1, x1 = thing.box
      side = 2 * max(y1 - y0, x1 - x0)
      y, x = 128 + (y0 + y1 - side) // 2, 128 + (x0 + x1 - side) // 2
      square = padded.crop((x, y, x + side, y + side))
      whole += side == 32
      expected = square if side == 32 else square.resize((32, 32), Image.Resampling.BILINEAR)
      found = digit_scenes_cropped.cropped(scene.image, thing.box)
      np.testing.assert_array_equal(found, np.asarray(expected))
  assert whole > 5


def test_every_digit_of_a_scene_is_cut_out():
  scenes = [digit_scenes.scene("test", i) for i in range(50)]
  builder = digit_scenes_cropped.DigitScenesCropped
  found = list(builder._generate_examples(None, "test", 50))
  labels = [(f"{i}_{k}", thing.label) for i, s in enumerate(scenes) for k, thing in enumerate(s.objects)]
  assert [(key, example["label"]) for key, example in found] == labels
  assert (
    np.asarray(Image.open(found[0][1]["image"]))
    == digit_scenes_cropped.cropped(scenes[0].image, scenes[0].objects[0].box)
  ).all()
