"""Scenes of digits: composed again by Pillow, masks and boxes pixel by pixel, and every caption taken at its word."""

import collections
import colorsys
import contextlib
import hashlib
import inspect
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from flaxonomy.configs.base import Data
from flaxonomy.data import images, sources
from flaxonomy.data.datasets import digit_scenes, digits
from flaxonomy.data.datasets.digits import Digits
from flaxonomy.errors import UserError


@pytest.fixture(scope="module")
def scenes():
  """{split: [Scene]} of the usual size, a few of each."""
  return {
    split: [digit_scenes.scene(split, i) for i in range(count)] for split, count in (("train", 150), ("test", 50))
  }


@pytest.fixture(scope="module")
def every(scenes):
  return scenes["train"] + scenes["test"]


@pytest.fixture(scope="module")
def theirs():
  """scikit-learn's digits."""
  from sklearn.datasets import load_digits

  return load_digits()


def cover_of(theirs, thing) -> np.ndarray:
  """[extent, extent] from 0 to 255: the coverage of a digit as Pillow enlarges it."""
  grid = Image.fromarray(np.pad(theirs.images[thing.row], 3).astype(np.float32))  # mode "F"
  size = (thing.extent, thing.extent)
  return 255 * np.clip(np.asarray(grid.resize(size, Image.Resampling.BICUBIC, box=(2, 2, 12, 12))) / 16, 0, 1)


# What is drawn.


def digest(found) -> str:
  """Of all that is stored of some scenes, PNG before it is encoded."""
  held = [(s.image.tobytes(), s.instances.tobytes(), s.semantic.tobytes(), s.caption, s.objects) for s in found]
  return hashlib.sha256(repr(held).encode()).hexdigest()


def test_every_machine_draws_the_same(scenes):
  found = [*scenes["train"][:6], scenes["test"][0]]
  assert digest(found) == "59753834675013d8f67e17ae8aef43f67f201a0843f366895afa7856127dd1ac"


def stored(found, index: int) -> str:
  """A digest of a record."""
  record = digit_scenes.example(found, index)
  held = [value if isinstance(value, int | str | list) else value.getvalue() for _, value in sorted(record.items())]
  return hashlib.sha256(repr(held).encode()).hexdigest()


def test_a_scene_depends_on_its_number_alone(scenes):
  others = digit_scenes.scene("test", 3), digit_scenes.scene("train", 3, seed=1), digit_scenes.scene("train", 4)
  assert not any((scenes["train"][3].image == other.image).all() for other in others)
  here = [stored(scenes["train"][i], i) for i in (3, 1)]
  program = "\n".join((
    "import hashlib",
    "from flaxonomy.data.datasets import digit_scenes",
    inspect.getsource(stored),
    "for i in (3, 1): print(stored(digit_scenes.scene('train', i), i))",
  ))  # fmt: skip
  there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
  assert there.split() == here
  assert stored(digit_scenes.scene("train", 1), 1) == here[1]


def test_pillow_composes_the_same(scenes, theirs):
  for found in scenes["train"][:12]:
    image, instances = found.canvas.astype(float), np.zeros(found.canvas.shape[:2], int)
    for k, thing in enumerate(found.objects, 1):
      y, x = thing.corner
      cover = np.rint(cover_of(theirs, thing))
      np.testing.assert_array_less(abs(cover - digit_scenes.coverage(thing.row, thing.extent)), 1.5)
      for v, u in np.ndindex(cover.shape):
        share = cover[v, u] / 255
        image[y + v, x + u] = np.rint((1 - share) * image[y + v, x + u] + share * np.array(thing.ink))
        if cover[v, u] > 127.5:
          instances[y + v, x + u] = k
    assert abs(image - found.image).max() <= 2  # Pillow reckons with fewer digits
    assert (instances != found.instances).mean() < 1e-4


def test_boxes_areas_and_classes_are_those_of_the_masks(every, theirs):
  for found in every:
    assert 1 <= len(found.objects) <= 8
    assert sorted(np.unique(found.instances)) == list(range(len(found.objects) + 1))
    meant = np.zeros_like(found.semantic)
    for k, thing in enumerate(found.objects, 1):
      pixels = np.argwhere(found.instances == k)
      assert thing.box == (*pixels.min(0), *(pixels.max(0) + 1))
      assert thing.area == len(pixels)
      assert thing.label == theirs.target[thing.row]
      meant[found.instances == k] = 1 + theirs.target[thing.row]
    np.testing.assert_array_equal(found.semantic, meant)


def test_digits_hide_each_other_but_in_part(every, theirs):
  share = np.array([o.area / (cover_of(theirs, o) > 127.5).sum() for found in every for o in found.objects])
  assert share.min() >= 0.69  # of 0.7, the rounding of Pillow's
  assert 0.03 < (share < 0.95).mean() < 0.3


def test_digits_stand_out(every):
  luma = lambda colours: np.asarray(colours, float) @ (0.299, 0.587, 0.114)
  for found in every:
    for thing in found.objects:
      y, x = thing.corner
      behind = luma(found.canvas[y : y + thing.extent, x : x + thing.extent])
      assert abs(behind - luma(thing.ink)).min() > 15
      y0, x0, y1, x1 = thing.box
      assert 10 <= y1 - y0 <= 50
      assert 4 <= x1 - x0 <= 50


def test_no_digit_is_in_both_splits(scenes, tmp_path):
  rows = {k: {i for i, _ in part} for k, part in Digits(data_dir=str(tmp_path))._split_generators(None).items()}
  assert {split: len(held) for split, held in rows.items()} == {"train": 1433, "test": 364}
  for split, found in scenes.items():
    assert set(digits.loaded()[2][split].tolist()) == rows[split]
    assert {thing.row for s in found for thing in s.objects} <= rows[split]


def test_classes_numbers_and_sizes_are_in_balance(every):
  things = [thing for found in every for thing in found.objects]
  classes = np.bincount([thing.label for thing in things], minlength=10)
  assert classes.min() > 0.5 * classes.mean()
  assert classes.max() < 1.6 * classes.mean()
  numbers = np.bincount([len(found.objects) for found in every], minlength=9)
  assert numbers[1:].min() >= 10
  sizes = collections.Counter(thing.size for thing in things)
  assert min(sizes.values()) > len(things) / 6
  assert len({thing.colour for thing in things}) == len(digit_scenes.INKS)
  assert {found.pattern for found in every} == {"", "striped", "checked", "cloudy"}
  assert 0.05 < np.mean([len(found.names) == 2 for found in every]) < 0.4


# What is said.

COLOURS = {  # (hue, saturation, value), each from and to
  "red": (340, 375, 0.6, 1, 0.4, 1), "orange": (18, 42, 0.4, 1, 0.8, 1), "yellow": (43, 62, 0.3, 1, 0.8, 1),
  "green": (100, 160, 0.1, 1, 0.2, 1), "blue": (198, 250, 0.15, 1, 0.2, 1), "purple": (256, 300, 0.1, 1, 0.3, 1),
  "pink": (315, 358, 0.1, 0.7, 0.85, 1), "black": (0, 360, 0, 1, 0, 0.25), "white": (0, 360, 0, 0.15, 0.8, 1),
  "grey": (0, 360, 0, 0.15, 0.45, 0.75),
}  # fmt: skip
ONE = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MANY = ["zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines"]
HOW = {  # of middles (y, x)
  "above": lambda a, b: a[0] < b[0], "below": lambda a, b: a[0] > b[0], "left of": lambda a, b: a[1] < b[1],
  "right of": lambda a, b: a[1] > b[1],
}  # fmt: skip
NOUN = rf"(?:an?|{'|'.join(ONE[2:9])}) (?:small |large )?(?:{'|'.join(COLOURS)}) (?:{'|'.join(ONE + MANY)})"
CANVAS = rf"(an? (?:(?:striped|checked|cloudy) )?(?:{'|'.join(COLOURS)})(?: and (?:{'|'.join(COLOURS)}))? canvas)"
PLACE = r"at the (?:top|bottom)(?: left| right)?|on the left|on the right|in the middle"


def like(name: str, colour) -> bool:
  """Whether one would call a colour so."""
  hue, saturation, value = colorsys.rgb_to_hsv(*(np.asarray(colour, float) / 255))
  h0, h1, s0, s1, v0, v1 = COLOURS[name]
  return (h0 <= 360 * hue <= h1 or h0 <= 360 * hue + 360 <= h1) and s0 <= saturation <= s1 and v0 <= value <= v1


def middle(thing) -> tuple[float, float]:
  y0, x0, y1, x1 = thing.box
  return (y0 + y1) / 2, (x0 + x1) / 2


def sized(size: str, found) -> list:
  """The small or the large objects."""
  extents = {"small": (0, 25), "large": (40, 99)}[size]
  return [thing for thing in found.objects if extents[0] < thing.extent * 128 / len(found.image) < extents[1]]


def meant(text: str, found, counted: bool = True) -> list:
  """The objects that a noun phrase speaks of; it says how many of that kind there are."""
  assert re.fullmatch(NOUN, text), text
  number, *adjectives, noun = text.split()
  count = 1 if number in ("a", "an") else ONE.index(number)
  assert number == ("an" if adjectives[0] == "orange" else "a") if count == 1 else True
  label = (ONE if count == 1 else MANY).index(noun)
  chosen = [o for o in found.objects if o.label == label and like(adjectives[-1], o.ink)]
  if len(adjectives) == 2:
    chosen = [o for o in chosen if o in sized(adjectives[0], found)]
  assert len(chosen) == count or not counted, text
  return chosen


def there(thing, place: str, side: int):
  """Asserts where a digit is, by thirds or nearly."""
  for at, (low, high) in zip(middle(thing), (("top", "bottom"), ("left", "right"))):
    at /= side
    assert at < 0.4 if low in place else at > 0.6 if high in place else 0.4 < at < 0.6, place


def content(text: str, found) -> list:
  """The objects of "A", "A and B", "A, B and C", "A left of B", "A at the top"; what is said of them is asserted."""
  if match := re.fullmatch(rf"({NOUN}) (?:to the )?({'|'.join(HOW)}) ({NOUN})", text):
    one, other = meant(match[1], found), meant(match[3], found)
    assert all(HOW[match[2]](middle(a), middle(b)) for a in one for b in other)
    return one + other
  if match := re.fullmatch(rf"({NOUN}) ({PLACE})", text):
    (one,) = meant(match[1], found)
    there(one, match[2], len(found.image))
    return [one]
  return [thing for part in re.split(" and |, ", text) for thing in meant(part, found)]


def on(text: str, found):
  """Asserts what is said of a canvas."""
  *names, _ = re.sub("^an? | and|striped |checked |cloudy ", "", text).split()
  assert tuple(names) == found.names
  pattern = set(text.split()) & {"striped", "checked", "cloudy"}
  assert pattern <= {found.pattern}
  assert text.startswith("an ") == (text.split()[1] == "orange")
  pixels = found.canvas.reshape(-1, 3)
  if len(names) == 1:
    assert like(names[0], pixels.mean(0)), (text, pixels.mean(0))


def remark(text: str, found) -> str:
  """The kind of a remark upon some of the objects, which is asserted."""
  if match := re.fullmatch(r"(\w+) of them (\w+)", text):
    count = len(found.objects) if match[1] == "all" else ONE.index(match[1])
    chosen = [o for o in found.objects if like(match[2], o.ink)] if match[2] in COLOURS else sized(match[2], found)
    assert len(chosen) == count
    return "count"
  if match := re.fullmatch(rf"the largest ({NOUN})", text):
    first, second, *_ = sorted((o.extent for o in found.objects), reverse=True)
    assert first > 1.2 * second
    assert first in [o.extent for o in meant(match[1], found, counted=False)]
    return "largest"
  assert text.startswith("among them ")
  content(text.removeprefix("among them "), found)
  return "among"


def judge(found) -> str:
  """The form of a caption, all of whose claims are asserted."""
  text = found.caption
  assert len(text.split()) <= 16
  if match := re.fullmatch(rf"(\w+) digits on {CANVAS}, (.*)", text):
    assert ONE.index(match[1]) == len(found.objects)
    on(match[2], found)
    return remark(match[3], found)
  if match := re.fullmatch(rf"{CANVAS} with (.*)", text):
    ground, rest, form = match[1], match[2], "canvas first"
  else:
    match = re.fullmatch(rf"(.*) (on|of) {CANVAS}", text)
    rest, ground, form = match[1], match[3], "place" if match[2] == "of" else "canvas last"
  on(ground, found)
  assert len(content(rest, found)) == len(found.objects)
  return form


def test_captions_are_true(every):
  forms = collections.Counter(judge(found) for found in every)
  assert set(forms) == {"count", "largest", "among", "canvas first", "place", "canvas last"}, forms
  captions = [found.caption for found in every]
  assert len(set(captions)) > 0.97 * len(captions)
  words = collections.Counter(re.findall("[a-z]+", " ".join(captions)))
  assert len(words) < 65
  assert {"small", "large", "above", "below", "left", "right", "striped", "checked", "cloudy"} <= set(words)


def test_false_captions_are_found_out(every):
  """The test above can tell: captions with another number, class, colour or side pass where they happen to be true."""
  for word, other in (("two", "three"), ("red", "blue"), ("above", "below"), ("left", "right"), ("large", "small")):
    told = [found for found in every if re.search(rf"\b{word}\b", found.caption)]
    assert len(told) >= 5
    passed = []
    for found in told:
      false = re.sub(rf"\b{word}\b", other, found.caption)
      with contextlib.suppress(AssertionError, ValueError):
        judge(found._replace(caption=false))
        passed.append(false)
    assert len(passed) < 0.2 * len(told), passed


# What is stored.


def test_what_is_stored_is_what_is_drawn(tmp_path, monkeypatch):
  assert digit_scenes.COUNTS == {"train": 4000, "test": 500}
  monkeypatch.setattr(digit_scenes, "COUNTS", {"train": 7, "test": 3})
  builder = sources.open_builder(Data("digit_scenes/64", data_dir=str(tmp_path)))
  assert (tmp_path / "digit_scenes" / "64" / "1.0.0" / "dataset_info.json").is_file()
  assert builder.info.features["objects"]["label"].names == ONE
  for split, count in digit_scenes.COUNTS.items():
    records = sources.open_records(builder, split, "digit_scenes/64")
    assert sorted(int(record["id"]) for record in records) == list(range(count))
    for record in records:
      found = digit_scenes.scene(split, int(record["id"]), 64)
      np.testing.assert_array_equal(record["image"], found.image)
      np.testing.assert_array_equal(record["instances"][..., 0], found.instances)
      np.testing.assert_array_equal(record["semantic"][..., 0], found.semantic)
      assert record["caption"].decode() == found.caption
      objects = record["objects"]
      np.testing.assert_array_equal(np.array(objects["bbox"]) * 64, [thing.box for thing in found.objects])
      assert np.array(objects["label"]).tolist() == [thing.label for thing in found.objects]
      assert np.array(objects["area"]).tolist() == [thing.area for thing in found.objects]
      assert not any(objects["is_crowd"])


@pytest.mark.parametrize("side", [*digit_scenes.SIDES, digit_scenes.LIMITS[1], 101])
def test_digits_grow_with_the_canvas(side):
  found = [digit_scenes.scene("test", i, side) for i in range(8 if side < 512 else 2)]
  assert {s.image.shape for s in found} == {(side, side, 3)}
  assert {s.instances.shape for s in found} == {(side, side)}
  assert all(judge(s) for s in found)
  for thing in (thing for s in found for thing in s.objects):
    low, high = {"large": (45, 60), "": (27, 37), "small": (17, 23)}[thing.size]
    assert low * side // 128 <= thing.extent <= max(10, high * side // 128)


def test_masks_are_small_files():
  record = digit_scenes.example(digit_scenes.scene("train", 0), 0)
  assert len(record["image"].getvalue()) < 30_000
  assert len(record["instances"].getvalue()) < 2_000
  assert images.decode(record["instances"].getvalue()).shape == (128, 128, 1)


@pytest.mark.parametrize(
  "name",
  [
    "digit_scenes/63",
    "digit_scenes/1025",
    "digit_scenes/064",
    "digit_scenes/64_",
    "digit_scenes/64_x",
    "digit_scenes/",
    "digits/64",
    "digit_scene",
  ],
)
def test_variants_that_there_are_not(name, tmp_path):
  with pytest.raises(UserError, match=f"unknown dataset '{name}'; did you mean 'digit") as error:
    sources.open_source(Data(name, data_dir=str(tmp_path)), "train")
  assert "'data.name'" in str(error.value)
  assert not list(tmp_path.iterdir())


def test_any_side_and_seed_may_be_asked_for(tmp_path, monkeypatch):
  monkeypatch.setattr(digit_scenes, "COUNTS", {"train": 1, "test": 2})
  for name, side, seed in (("digit_scenes/80", 80, 0), ("digit_scenes/80_7", 80, 7)):
    for _ in range(2):  # drawn, then found
      records = sources.open_records(sources.open_builder(Data(name, data_dir=str(tmp_path))), "test", name)
    for record in records:
      found = digit_scenes.scene("test", int(record["id"]), side, seed)
      np.testing.assert_array_equal(record["image"], found.image)


def test_the_default_is_of_128(tmp_path, monkeypatch):
  monkeypatch.setattr(digit_scenes, "COUNTS", {"train": 1, "test": 1})
  for name in ("digit_scenes", "digit_scenes/128"):
    builder = sources.open_builder(Data(name, data_dir=str(tmp_path)))
    assert sources.open_records(builder, "test", name)[0]["image"].shape == (128, 128, 3)
  assert [path.name for path in (tmp_path / "digit_scenes").glob("[0-9]*")] == ["128"]
