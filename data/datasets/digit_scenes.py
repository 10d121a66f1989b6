"""Scenes of handwritten digits: coloured inks on textured canvases, with boxes, masks and captions, drawn here.

The digits are scikit-learn's, enlarged by cubic interpolation, their grey levels the coverage of the ink. Training
scenes hold those of the training split of `digits` alone, test scenes those of its test split. A digit in front may
hide another in part, but not one whose ink it does not stand out from. A pixel belongs to the last digit drawn that
covers more than half of it. Boxes are tight around the visible pixels, as COCO's are.

Sizes follow the canvas: "digit_scenes" is of 128 pixels, "digit_scenes/64" and "digit_scenes/256" of theirs, and so is
any number from 64 to 1,024; "digit_scenes/64_7" has the scenes of seed 7, not 0. Everything about a scene follows from
a stream of raw bits of its own, which NumPy promises for ever, by arithmetic alone, so that every machine draws the
same scenes.
"""

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from flaxonomy.data.datasets import digits, pictures

SIDES = (128, 64, 256)  # of canvases that are listed; the first is the default
LIMITS = (64, 1024)  # of those that one may ask for; below, small digits would be no smaller than others
COUNTS = {"train": 4_000, "test": 500}
MOST_OBJECTS, MOST_WORDS = 8, 16  # of a scene, of its caption
VISIBLE = 0.7  # the least share of a digit's own pixels
APART, LIGHTER = 260, 28  # how far an ink is from what it stands out from, and in luma; from black to white 765 and 255

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLURALS = ("zeros", "ones", "twos", "threes", "fours", "fives", "sixes", "sevens", "eights", "nines")
SIZES = {"large": (45, 60), "": (27, 37), "small": (17, 23)}  # of a digit with its margin, on a canvas of 128
INKS = {
  "red": (214, 24, 30), "orange": (246, 130, 14), "yellow": (248, 222, 24), "green": (24, 146, 52),
  "blue": (26, 66, 222), "purple": (126, 36, 166), "pink": (246, 104, 178), "black": (14, 14, 14),
  "white": (242, 242, 242),
}  # fmt: skip
CANVASES = (  # name and two tones
  ("white", (242, 242, 240), (214, 214, 220)), ("grey", (136, 136, 138), (168, 168, 172)),
  ("black", (14, 14, 16), (50, 50, 56)), ("red", (120, 18, 22), (160, 30, 32)),
  ("orange", (240, 160, 76), (250, 190, 116)), ("yellow", (248, 236, 140), (236, 214, 84)),
  ("green", (18, 76, 34), (38, 112, 56)), ("green", (190, 234, 188), (148, 210, 150)),
  ("blue", (18, 36, 104), (36, 66, 152)), ("blue", (192, 220, 248), (142, 186, 236)),
  ("purple", (66, 22, 96), (102, 50, 136)), ("purple", (222, 200, 242), (194, 166, 226)),
  ("pink", (252, 214, 226), (244, 180, 202)),
)  # fmt: skip


class Object(NamedTuple):
  """A digit in a scene.

  Attributes:
    row: which of scikit-learn's.
    label: what it is.
    colour: name of its ink.
    ink: (r, g, b).
    size: a key of SIZES.
    extent: of the square that it is drawn in, a tenth of it margin on each side.
    corner: (y, x) of that square.
    box: (y0, x0, y1, x1) around its visible pixels, the ends behind them.
    area: visible pixels.
  """

  row: int
  label: int
  colour: str
  ink: tuple[int, int, int]
  size: str
  extent: int
  corner: tuple[int, int] = (0, 0)
  box: tuple[int, int, int, int] = (0, 0, 0, 0)
  area: int = 0


class Scene(NamedTuple):
  """A picture and what is known of it.

  Attributes:
    canvas: [S, S, 3] uint8, without digits.
    names: of its colours, one or two.
    pattern: "striped", "checked", "cloudy", or "" where there is no word for it.
    objects: in the order in which they are drawn.
    image: [S, S, 3] uint8.
    instances: [S, S] uint8, 0 for the canvas, k for the visible pixels of the k-th object.
    semantic: [S, S] uint8, 0 for the canvas, else 1 + label.
    caption: what a person might say.
  """

  canvas: np.ndarray
  names: tuple[str, ...]
  pattern: str
  objects: tuple[Object, ...]
  image: np.ndarray
  instances: np.ndarray
  semantic: np.ndarray
  caption: str


class DigitScenes(tfds.core.GeneratorBasedBuilder):
  """4,000 training and 500 test scenes of one to eight digits, with boxes, masks of objects and classes, captions."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=str(side), description=f"{side} x {side}") for side in SIDES]

  @classmethod
  def asked(cls, name: str) -> tfds.core.BuilderConfig | None:
    """The variant "SIDE" or "SIDE_SEED"; None: there is none of this name."""
    known = re.fullmatch(r"([1-9]\d{1,3})(?:_(0|[1-9]\d{0,8}))?", name)
    if name in cls.builder_configs or known is None or not LIMITS[0] <= int(known[1]) <= LIMITS[1]:
      return cls.builder_configs.get(name)
    return tfds.core.BuilderConfig(name=name, description=f"{known[1]} x {known[1]}, seed {known[2] or 0}")

  def _info(self) -> tfds.core.DatasetInfo:
    side = int(self.builder_config.name.partition("_")[0])
    picture = lambda channels: tfds.features.Image(shape=(side, side, channels), encoding_format="png")
    label, text = tfds.features.ClassLabel(names=list(NAMES)), tfds.features.Text()
    objects = {"bbox": tfds.features.BBoxFeature(), "label": label, "area": np.int64, "is_crowd": np.bool_}
    features = tfds.features.FeaturesDict({
      "id": np.int64, "image": picture(3), "objects": tfds.features.Sequence(objects), "instances": picture(1),
      "semantic": picture(1), "caption": text,
    })  # fmt: skip
    return tfds.core.DatasetInfo(builder=self, description=__doc__, features=features)

  def _split_generators(self, dl_manager):
    return {split: self._generate_examples(split, count) for split, count in COUNTS.items()}

  def _generate_examples(self, split, count):
    side, _, seed = self.builder_config.name.partition("_")
    for i in range(count):
      yield i, example(scene(split, i, int(side), int(seed or 0)), i)


def example(found: Scene, index: int) -> dict:
  """A scene as it is stored."""
  side = len(found.image)
  objects = [
    {"bbox": tfds.features.BBox(*(edge / side for edge in o.box)), "label": o.label, "area": o.area, "is_crowd": False}
    for o in found.objects
  ]
  images = {name: pictures.png(getattr(found, name), level=2) for name in ("image", "instances", "semantic")}
  return {"id": index, "objects": objects, "caption": found.caption, **images}


def scene(split: str, index: int, side: int = SIDES[0], seed: int = 0) -> Scene:
  """A scene, the same whatever others are drawn.

  Args:
    split: a key of COUNTS.
    index: its place in the split.
    side: S of the canvas.
    seed: of all scenes.
  """
  bits = np.random.PCG64([seed, list(COUNTS).index(split), index])
  names, (one, other), inks = _colours(bits)
  pattern, share = _pattern(bits, side)
  canvas = _mix(one, other, np.rint(share * 255).astype(np.uint8))
  objects, image, instances = _draw(bits, canvas, _plan(bits, split, inks, side))
  semantic = np.array([0, *(1 + thing.label for thing in objects)], np.uint8)[instances]
  text = caption(bits, objects, names, pattern, side)
  return Scene(canvas, names, pattern, objects, image, instances, semantic, text)


def coverage(row: int, extent: int) -> np.ndarray:
  """A digit enlarged, with a margin of one of its pixels: [extent, extent] uint8, 255 where ink hides the canvas."""
  grid = np.pad(digits.loaded()[0][row] / 16, 3)
  place = (np.arange(extent) + 0.5) * (10 / extent) + 1.5
  return np.rint(np.clip(_enlarge(grid, place), 0, 1) * 255).astype(np.uint8)


def _enlarge(grid: np.ndarray, place: np.ndarray) -> np.ndarray:
  """Cubic interpolation (Keys 1981, a = -1/2) of a square at places along both axes, two from its edges at least."""
  base = np.floor(place).astype(int)
  x = place - base
  near = (1.5 * x - 2.5) * x * x + 1, ((-1.5 * x + 2) * x + 0.5) * x
  weights = {-1: ((-0.5 * x + 1) * x - 0.5) * x, 0: near[0], 1: near[1], 2: (0.5 * x - 0.5) * x * x}
  rows = sum(weight[:, None] * grid[base + k] for k, weight in weights.items())
  return sum(weight * rows[:, base + k] for k, weight in weights.items())


def _plan(bits, split: str, inks: list[str], side: int) -> list[Object]:
  """What is to be in a scene, the largest first. Digits of one class and ink come in one size."""
  _, labels, rows = digits.loaded()
  rows, room, planned, seen = rows[split], 3 * side**2 // 4, [], set()
  count, most_alike = 1 + _below(bits, MOST_OBJECTS), (1, 4)[_below(bits, 2)]
  while len(planned) < count:
    alike = min(1 + _below(bits, most_alike), count - len(planned))
    label, colour = _below(bits, 10), inks[_below(bits, len(inks))]
    if (label, colour) in seen:
      continue
    seen.add((label, colour))
    for size in list(SIZES)[_below(bits, 3) :]:
      low, high = (limit * side // 128 for limit in SIZES[size])
      if alike * high**2 <= room or size == "small":
        break
    own = rows[labels[rows] == label]
    for _ in range(alike):
      extent = max(10, low + _below(bits, high - low + 1))
      row, ink = int(own[_below(bits, len(own))]), _jitter(bits, INKS[colour], 10)
      planned.append(Object(row, label, colour, ink, size, extent))
      room -= extent**2
  return sorted(planned, key=lambda thing: -thing.extent)


def _draw(bits, canvas: np.ndarray, planned: list[Object]) -> tuple[tuple[Object, ...], np.ndarray, np.ndarray]:
  """(objects, image, instances) of what finds a place."""
  image, side = canvas.copy(), len(canvas)
  instances, near = np.zeros((2, side, side), np.uint8)  # `near` has the faint edges of digits, too
  placed, whole, left = [], np.zeros(1), np.zeros(1)
  for thing in planned:
    cover = coverage(thing.row, thing.extent)
    solid, faint = cover >= 128, cover >= 16
    alike = [False, *(not _apart(INKS[thing.colour], INKS[other.colour]) for other in placed)]
    for _ in range(40):
      y, x = _below(bits, side - thing.extent + 1), _below(bits, side - thing.extent + 1)
      window = np.s_[y : y + thing.extent, x : x + thing.extent]
      after = left - np.bincount(instances[window][solid], minlength=len(left))
      if (after < VISIBLE * whole)[1:].any() or np.bincount(near[window][faint], minlength=len(left))[alike].any():
        continue
      placed.append(thing._replace(corner=(y, x)))
      instances[window][solid] = near[window][faint] = len(placed)
      image[window] = _mix(image[window], thing.ink, cover)
      own = np.count_nonzero(solid)
      whole, left = np.append(whole, own), np.append(after, own)
      break
  return tuple(_seen(thing, instances == k) for k, thing in enumerate(placed, 1)), image, instances


def _mix(under, over, share: np.ndarray) -> np.ndarray:
  """Colours [..., 3] under others, whose share [h, w] uint8 is of 255; uint8."""
  under, over, share = (np.asarray(x, np.uint16) for x in (under, over, share[..., None]))  # which holds 255 * 255
  return ((under * (255 - share) + over * share + 127) // 255).astype(np.uint8)


def _seen(thing: Object, mask: np.ndarray) -> Object:
  """An object with what is to be seen of it."""
  y, x = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  box = int(y[0]), int(x[0]), int(y[-1]) + 1, int(x[-1]) + 1
  return thing._replace(box=box, area=int(np.count_nonzero(mask)))


def _colours(bits) -> tuple[tuple, tuple, list[str]]:
  """(names, two tones) of a canvas of one colour, now and then of two, and the inks that stand out from it."""
  while True:
    first, second = (CANVASES[_below(bits, len(CANVASES))] for _ in range(2))
    second = second if _below(bits, 4) == 0 else first
    one, other = _jitter(bits, first[1], 6), _jitter(bits, second[2], 6)
    tones = [tuple((x * (4 - k) + y * k) // 4 for x, y in zip(one, other)) for k in range(5)]
    inks = [name for name, ink in INKS.items() if all(_apart(ink, tone) for tone in tones)]
    if len(inks) >= 3:
      return tuple(dict.fromkeys((first[0], second[0]))), (one, other), inks


def _pattern(bits, side: int) -> tuple[str, np.ndarray]:
  """(what one calls it, [S, S] from 0 to 1)."""
  pattern = ("", "striped", "checked", "cloudy")[_below(bits, 4)]
  clouds = _clouds(bits, side)
  half, waves, phase = (_below(bits, 2**16) / 2**16 for _ in range(3))
  half, waves = 2 * half - 1, 2 + 6 * waves  # tangent of half the angle; waves to the side
  cosine, sine = (1 - half * half) / (1 + half * half), 2 * half / (1 + half * half)
  y, x = (np.indices((side, side)) + 0.5) / side
  along, across = cosine * x + sine * y, cosine * y - sine * x
  if pattern == "cloudy":
    return pattern, clouds
  if pattern == "striped":
    main = _wave(waves * along + phase)
  elif pattern == "checked":
    main = 0.5 + 2 * (_wave(waves * along + phase) - 0.5) * (_wave(waves * across + phase) - 0.5)
  else:
    main = (along - along.min()) / (along.max() - along.min())
  return pattern, 0.75 * main + 0.25 * clouds


def _wave(turns: np.ndarray) -> np.ndarray:
  """From 0 to 1 and back in every turn, with soft edges."""
  return np.clip(4 * np.abs(turns - np.floor(turns) - 0.5) - 0.5, 0, 1)


def _clouds(bits, side: int) -> np.ndarray:
  """Smooth noise of two scales, [S, S] from 0 to 1."""
  total = 0
  for cells, weight in ((3, 1.0), (8, 0.5)):
    grid = (bits.random_raw((cells + 4) ** 2) >> 11).reshape(cells + 4, -1) * 2.0**-53
    total = total + weight * _enlarge(grid, (np.arange(side) + 0.5) * (cells / side) + 1.5)
  return (total - total.min()) / (total.max() - total.min())


def _apart(one: Sequence[int], other: Sequence[int]) -> bool:
  """Whether two colours are easily told from each other: by luma, and in RGB weighed as the eye does ("redmean")."""
  (r, g, b), red = (x - y for x, y in zip(one, other)), (one[0] + other[0]) // 2
  far = ((512 + red) * r * r + 1024 * g * g + (767 - red) * b * b) >> 8 >= APART**2
  return far and abs(299 * r + 587 * g + 114 * b) >= 1000 * LIGHTER


def _jitter(bits, colour: Sequence[int], most: int) -> tuple[int, ...]:
  """A colour with each channel a little off."""
  return tuple(min(255, max(0, level + _below(bits, 2 * most + 1) - most)) for level in colour)


def caption(bits, objects: Sequence[Object], names: Sequence[str], pattern: str, side: int) -> str:
  """One of the true sentences about a scene that have at most MOST_WORDS words; for the arguments see `Scene`."""
  kinds = {}
  for thing in objects:
    kinds.setdefault((thing.label, thing.colour), []).append(thing)
  kinds, first = list(kinds.values()), _below(bits, len(kinds))
  kinds, found = kinds[first:] + kinds[:first], {}
  for sized, patterned in itertools.product((True, False), repeat=2):
    canvas = _noun(1, pattern if patterned else "", " and ".join(names), "canvas")
    for text in _contents(kinds, sized, side):
      found |= dict.fromkeys((f"{text} on {canvas}", f"{canvas} with {text}"))
    if len(objects) == 1 and (place := _place(objects[0], side)):
      found |= dict.fromkeys((f"{_name(objects, sized)} {place} of {canvas}",))
    if len(kinds) > 2:
      head = f"{NAMES[len(objects)]} digits on {canvas}, "
      found |= dict.fromkeys(head + text for text in _remarks(kinds, objects, sized, side))
  fitting = [text for text in found if len(text.split()) <= MOST_WORDS]
  return fitting[_below(bits, len(fitting))]


def _contents(kinds, sized: bool, side: int) -> list[str]:
  """All that is in a scene of few kinds, in one phrase."""
  names = [_name(kind, sized) for kind in kinds]
  if len(kinds) == 2 and (how := _relation(*kinds, side)):
    return [f"{names[0]} {word} {names[1]}" for word in how]
  return [f"{', '.join(names[:-1])} and {names[-1]}" if names[1:] else names[0]] if len(kinds) < 4 else []


def _remarks(kinds, objects, sized: bool, side: int) -> list[str]:
  """What one may add to the number of digits in a scene of many kinds."""
  one, other = (_name(kind, sized) for kind in kinds[:2])
  found = [f"among them {one}"]
  if how := _relation(*kinds[:2], side):
    found += [f"among them {one} {word} {other}" for word in how]
  if len(kinds[0]) == 1 and (place := _place(kinds[0][0], side)):
    found.append(f"among them {one} {place}")
  for field in ("colour", "size"):
    value = getattr(kinds[0][0], field)
    count = sum(getattr(thing, field) == value for thing in objects)
    found += [f"{'all' if count == len(objects) else NAMES[count]} of them {value}"] if value else []
  if len(objects) > 1 and objects[0].extent > 1.25 * objects[1].extent:
    found.append(f"the largest {_name(objects[:1], False)}")
  return found


def _name(kind: Sequence[Object], sized: bool) -> str:
  """All digits of a class and ink: "two small blue ones"."""
  about = kind[0]
  noun = (NAMES if len(kind) == 1 else PLURALS)[about.label]
  return _noun(len(kind), about.size if sized else "", about.colour, noun)


def _noun(count: int, *words: str) -> str:
  """A noun behind its adjectives, with the number or the article."""
  words = " ".join(filter(None, words))
  article = "an" if words[0] in "aeiou" else "a"
  return f"{NAMES[count] if count > 1 else article} {words}"


def _place(thing: Object, side: int) -> str:
  """Where a digit is, "at the top left", or nothing where one might say either."""
  y, x = np.mean([thing.box[:2], thing.box[2:]], 0) / side
  which = lambda at, low, high: low if at < 0.36 else high if at > 0.64 else "" if 0.42 < at < 0.58 else None
  rows, columns = which(y, "top", "bottom"), which(x, "left", "right")
  if None in (rows, columns):
    return ""
  return f"at the {rows} {columns}".rstrip() if rows else f"on the {columns}" if columns else "in the middle"


def _relation(ones: Sequence[Object], others: Sequence[Object], side: int) -> tuple[str, ...]:
  """How one may say where all of some are from all of others, in the direction that is clearer; nothing if in none."""
  mine, theirs = (np.mean([(thing.box[:2], thing.box[2:]) for thing in some], 1) for some in (ones, others))
  (up, left), (down, right) = theirs.min(0) - mine.max(0), mine.min(0) - theirs.max(0)
  gap = max(up, left, down, right)
  words = {
    up: ("above",),
    down: ("below",),
    left: ("left of", "to the left of"),
    right: ("right of", "to the right of"),
  }
  return words[gap] if gap >= side / 8 else ()


def _below(bits, limit: int) -> int:
  """A number from 0 to limit - 1."""
  return (bits.random_raw() >> 32) * limit >> 32
