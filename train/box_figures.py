"""Pictures of boxes: images with what was found in them, beside what is true, and precision over recall.

Truths and what was found are those of coco.py, in pixels of the images.
"""

import colorsys
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from flaxonomy.train import figures
from flaxonomy.train.coco import RECALLS
from flaxonomy.train.figures import INK

SIDE = 448  # pixels to which smaller pictures are enlarged, by a whole number
CLEAR = 0.55  # of a picture that shows through a mask
COLOURS = (  # apart from each other for most eyes, and bright enough to be seen on photographs
  (230, 60, 50), (40, 130, 240), (50, 190, 80), (255, 175, 0), (175, 85, 225),
  (0, 200, 210), (245, 110, 185), (160, 115, 60), (175, 215, 40), (145, 150, 165),
)  # fmt: skip


def colours(count: int) -> list[tuple[int, int, int]]:
  """A colour for each class, [count] of (r, g, b): behind the first ten, hues a golden section apart."""
  found = list(COLOURS[:count])
  for i in range(len(found), count):
    shade = colorsys.hsv_to_rgb(i * 0.618034 % 1, (0.85, 0.55)[i % 2], (0.95, 0.8, 1.0)[i % 3])
    found.append(tuple(round(255 * part) for part in shade))
  return found


def drawn(
  image: np.ndarray,
  found: dict,
  names: Sequence[str],
  shades: Sequence[tuple[int, int, int]] | None = None,
  truth: dict | None = None,
  most: int | None = None,
) -> Image.Image:
  """An image with boxes, their classes and scores, and translucent masks; the likeliest lie on top.

  Small images are enlarged by a whole number.

  Args:
    image: [H, W, 3] uint8.
    found: what is drawn; without "scores", as a truth is, classes alone. Crowds have dashed boxes.
    names: of the classes.
    shades: (r, g, b) of each class; None: `colours`.
    truth: its boxes are drawn, too, white and dashed.
    most: pixels of the longer side to which larger images are reduced; None: they keep their size.
  """
  shades = shades or colours(len(names))
  scale = _scale(image, most)
  labels = np.asarray(found["labels"], int)
  picture = _enlarged(_masked(image, found.get("masks"), [shades[label - 1] for label in labels]), scale)
  boxes = _within(scale * np.asarray(found["boxes"], float), picture.size)
  crowd = np.asarray(found.get("crowd", np.zeros(len(boxes))), bool)
  pen = ImageDraw.Draw(picture, "RGBA")
  width = max(2, round(max(picture.size) / 300))
  for box in _within(scale * np.asarray(truth["boxes"], float), picture.size) if truth else ():
    _frame(pen, box, (255, 255, 255), width, True)
  for i in reversed(range(len(boxes))):
    _frame(pen, boxes[i], shades[labels[i] - 1], width, crowd[i])
  scores = found.get("scores")
  texts = [names[label - 1] + (f" {scores[i]:.2f}" if scores is not None else "") for i, label in enumerate(labels)]
  _write(pen, boxes, texts, [shades[label - 1] for label in labels], picture.size)
  return picture


def gallery(
  images: Sequence[np.ndarray],
  truths: Sequence[dict],
  founds: Sequence[dict],
  names: Sequence[str],
  heading: str = "",
  columns: int = 2,
) -> Figure:
  """Images with what is true, and beside each the same with what was found.

  Args:
    images: N of [H, W, 3] uint8, of any sizes.
    truths: N.
    founds: N.
    names: of the classes.
    heading: printed above.
    columns: pairs in a row.
  """
  shades = colours(len(names))
  pairs = [
    [drawn(image, each, names, shades, most=SIDE) for each in (truth, found)]
    for image, truth, found in zip(images, truths, founds, strict=True)
  ]
  if not pairs:
    return figures.message("no images")
  columns, gap, between, top = min(columns, len(pairs)), 22, 6, 58
  wide, tall = (max(pair[0].size[i] for pair in pairs) for i in (0, 1))
  across = 2 * wide + between + gap
  sheet = Image.new("RGB", (columns * across + gap, -(-len(pairs) // columns) * (tall + gap) + top), "white")
  figure = Figure(figsize=(sheet.width / 100, sheet.height / 100))
  axis = figure.add_axes((0, 0, 1, 1))
  axis.set_axis_off()
  for i, pair in enumerate(pairs):
    for j, picture in enumerate(pair):
      x, y = gap + i % columns * across + j * (wide + between), top + i // columns * (tall + gap)
      sheet.paste(picture, (x + (wide - picture.width) // 2, y + (tall - picture.height) // 2))
      if i < columns:
        axis.text(x + wide / 2, top - 8, ("true", "found")[j], fontsize=9, ha="center", va="bottom", color=INK)
  axis.imshow(sheet, interpolation="nearest", aspect="auto")
  axis.text(sheet.width / 2, 18, heading, fontsize=10, ha="center", va="center", color=INK, parse_math=False)
  return figure


def precision_recall(panels: dict[str, dict[str, tuple]], heading: str = "") -> Figure:
  """Precision over recall, a panel for each overlap: the mean thick, classes thin, with their average precision.

  Args:
    panels: {title: {class: (recall [N], precision [N])}}, from `coco.precisions` or `voc.precision_recall`; drawn is
      the best precision at each recall or above.
    heading: printed above.
  """
  figure = Figure(figsize=(6.0 * max(1, len(panels)), 4.2), layout="constrained")
  for axis, (title, lines) in zip(figure.subplots(1, max(1, len(panels)), squeeze=False)[0], panels.items()):
    best = {name: _best(*line) for name, line in lines.items()}
    few, shades = len(best) <= len(COLOURS), dict(zip(best, colours(len(best))))
    if best:
      mean = np.mean(list(best.values()), 0)
      label = f"mean of {len(best)}  {mean.mean():.3f}"
      axis.plot(RECALLS, mean, color=INK, linewidth=2.4, label=label, zorder=3)
    for name in sorted(best, key=lambda name: -best[name].mean()):
      colour = tuple(part / 255 for part in shades[name]) if few else "#b8c2cc"
      label = f"{name}  {best[name].mean():.3f}" if few else None
      axis.plot(RECALLS, best[name], color=colour, linewidth=1.2 if few else 0.7, label=label)
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axis.set_title(title if best else f"{title}: nothing to find", fontsize=10)
    axis.grid(alpha=0.3)
    if best:
      axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.02), frameon=False)
  figure.suptitle(heading, fontsize=10)
  return figure


def _best(recall, precision):
  """[101]: the best precision at each of RECALLS or above, 0 where none comes so far."""
  recall, precision = np.asarray(recall, float), np.append(np.asarray(precision, float), 0.0)
  best = np.maximum.accumulate(precision[::-1])[::-1]
  return best[np.searchsorted(recall, RECALLS - 1e-9)]


def _scale(image, most):
  longest = max(image.shape[:2])
  return most / longest if most and longest > most else max(1, SIDE // longest)


def _within(boxes, size):
  """[K, 4], no part beyond the picture: a net that learns badly may find anything."""
  return np.clip(np.nan_to_num(boxes.reshape(-1, 4)), 0, (*size, *size))


def _enlarged(image, scale):
  """[H, W, 3] uint8 as a PIL image; whole pixels where it becomes larger."""
  picture = Image.fromarray(image)
  way = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
  return picture.resize([max(1, round(side * scale)) for side in picture.size], way) if scale != 1 else picture


def _masked(image, masks, shades):
  """A copy of the image with each mask in its colour, the likeliest on top, its edge the clearest."""
  image = np.array(image, np.float32)
  for mask, shade in reversed(list(zip(masks if masks is not None else (), shades))):
    mask = np.asarray(mask, bool)
    image[mask] = CLEAR * image[mask] + (1 - CLEAR) * np.float32(shade)
  return np.rint(image).astype(np.uint8)


def _frame(pen, box, shade, width, dashed=False):
  """A thin box around [x1, y1, x2, y2], between dark lines that part it from a ground of its own colour."""
  x1, y1, x2, y2 = (round(float(edge)) for edge in box)
  x2, y2 = max(x2 - 1, x1), max(y2 - 1, y1)
  if not dashed:
    pen.rectangle((x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0, 130), width=1)
    pen.rectangle((x1, y1, x2, y2), outline=shade, width=width)
    return
  across, down = (1, 0, x2 - x1), (0, 1, y2 - y1)
  for x, y, (dx, dy, length) in ((x1, y1, across), (x1, y2, across), (x1, y1, down), (x2, y1, down)):
    pen.line((x, y, x + dx * length, y + dy * length), fill=(0, 0, 0, 130), width=width)
    for start in range(0, length, 5 * width):
      end = min(start + 3 * width, length)
      pen.line((x + dx * start, y + dy * start, x + dx * end, y + dy * end), fill=shade, width=width)


def _write(pen, boxes, texts, shades, size):
  """Writes a line of text at each box, on a ground of its colour."""
  font = ImageFont.load_default(size=max(12, round(max(size) / 45)))
  up, down = font.getmetrics()
  tall = up + down
  places = _places(boxes, [(round(font.getlength(text)) + 6, tall) for text in texts], size)
  for (x1, y1, x2, y2), text, shade in reversed(list(zip(places, texts, shades))):
    light = np.dot(shade, (0.299, 0.587, 0.114)) > 140
    pen.rectangle((x1, y1, x2 - 1, y2 - 1), fill=(*shade, 225))
    pen.text((x1 + 3, y1), text, fill="black" if light else "white", font=font)


def _places(boxes, labels, size):
  """Where labels are written: near their boxes, over as little as can be of the labels before and of other boxes.

  Args:
    boxes: [K, 4].
    labels: K of (width, height).
    size: (width, height) of the picture.

  Returns:
    K of (x1, y1, x2, y2).
  """
  boxes, chosen = np.asarray(boxes, float).reshape(-1, 4), np.zeros((len(labels), 4))
  for i, ((x1, y1, x2, y2), (wide, tall)) in enumerate(zip(boxes, labels)):
    corners = [  # the first ones are preferred
      (x1, y1 - tall), (x1, y1), (x2 - wide, y1 - tall), (x1, y2), (x2 - wide, y2), (x2 - wide, y1), (x1, y2 - tall),
      (x2, y1), (x1 - wide, y1), (x2, y2 - tall), (x1 - wide, y2 - tall),
    ]  # fmt: skip
    corners = np.clip(np.rint(corners), 0, np.maximum(0, np.subtract(size, (wide, tall))))
    places = np.concatenate([corners, corners + (wide, tall)], 1)
    others = _common(places, np.delete(boxes, i, 0))
    cost = 8 * _common(places, chosen[:i]) + 0.3 * others + 0.01 * wide * tall * np.arange(len(places))
    chosen[i] = places[cost.argmin()]
  return [tuple(place) for place in chosen.astype(int).tolist()]


def _common(places, others):
  """[P]: the area that each of `places` [P, 4] shares with all of `others` [K, 4], counted for each."""
  corner = np.maximum(places[:, None, :2], others[None, :, :2])
  return np.maximum(np.minimum(places[:, None, 2:], others[None, :, 2:]) - corner, 0).prod(-1).sum(1)
