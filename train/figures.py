"""Figures: galleries of images, confusion matrices, curves. Each function returns a matplotlib figure.

Figures are made with matplotlib's objects and never through pyplot, which keeps global state and needs a display.
"""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

RED, INK = "#c0392b", "#222222"


def gallery(images, titles=None, wrong=None, heading: str = "", columns: int = 8) -> Figure:
  """A grid of images with titles; those that are wrong have red titles and frames.

  Args:
    images: [N, H, W, C] uint8, one or three channels.
    titles: N strings, or None.
    wrong: N bools, or None.
    heading: printed above.
    columns: images in a row.
  """
  rows = -(-len(images) // columns)
  height, width = images[0].shape[:2]
  zoom = max(1, 96 // max(height, width))
  gap = max(4, zoom * max(height, width) // 12)
  top = gap + (2 * gap if titles else 0)
  down, across = zoom * height + top, zoom * width + gap
  canvas = np.full((rows * down + gap, columns * across + gap, 3), 255, np.uint8)
  inches = 1.3 * columns
  figure = Figure(figsize=(inches, inches * canvas.shape[0] / canvas.shape[1] + 0.35))
  axis = figure.add_axes((0, 0, 1, 1 - 0.35 / figure.get_figheight()))
  axis.set_axis_off()
  for i, image in enumerate(images):
    y, x = i // columns * down + top, i % columns * across + gap
    canvas[y : y + zoom * height, x : x + zoom * width] = image.repeat(zoom, 0).repeat(zoom, 1)
    bad = wrong is not None and wrong[i]
    if bad:
      axis.add_patch(Rectangle((x - 1, y - 1), zoom * width + 1, zoom * height + 1, fill=False, ec=RED, lw=2.5))
    if titles:
      axis.text(x + zoom * width / 2, y - gap / 2, titles[i], fontsize=8, ha="center", color=RED if bad else INK)
  axis.imshow(canvas, interpolation="nearest", aspect="auto")
  figure.suptitle(heading, fontsize=10, y=1 - 0.08 / figure.get_figheight())
  return figure


def confusion(matrix, names) -> Figure:
  """Counts [C, C] with a row for each true class and a column for each predicted one; numbers up to 20 classes."""
  n = len(names)
  side = float(np.clip(0.5 * n + 1.5, 4, 14))
  figure = Figure(figsize=(side, side), layout="constrained")
  axis = figure.subplots()
  share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
  axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
  if n <= 20:
    axis.set_xticks(range(n), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axis.set_yticks(range(n), names)
    for i in range(n):
      for j in range(n):
        if matrix[i, j]:
          axis.text(
            j, i, str(matrix[i, j]), ha="center", va="center", fontsize=8, color="white" if share[i, j] > 0.5 else INK
          )
  axis.set_xlabel("predicted")
  axis.set_ylabel("true")
  axis.set_title(f"confusion: {matrix.sum() - np.trace(matrix)} of {matrix.sum()} wrong", fontsize=10)
  return figure


def curves(rows: list[dict]) -> Figure:
  """A panel for each metric of metrics.jsonl over the steps: training thin and smoothed, evaluation as dots.

  Args:
    rows: {"step": int, "split": str, metric: float, ...}
  """
  series = {}
  for row in rows:
    for key, value in row.items():
      if key not in ("step", "split", "seconds") and isinstance(value, (int, float)):
        series.setdefault(key, {}).setdefault(row["split"], []).append((row["step"], value))
  names = sorted(series, key=lambda k: (k not in ("loss", "accuracy"), k))
  columns = min(3, len(names)) or 1
  grid = -(-len(names) // columns) or 1
  figure = Figure(figsize=(4.2 * columns, 2.9 * grid), layout="constrained")
  axes = figure.subplots(grid, columns, squeeze=False).reshape(-1)
  for axis, name in zip(axes, names):
    for split, points in series[name].items():
      x, y = np.array(points, float).T
      if split == "train" and len(x) > 20:
        axis.plot(x, y, color="#9ecae1", linewidth=0.7)
        axis.plot(x, _smooth(y), color="#2171b5", linewidth=1.5, label="train (smoothed)")
      else:
        axis.plot(x, y, marker=".", linewidth=1.2, color="#2171b5" if split == "train" else "#d94801", label=split)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.grid(alpha=0.3)
    if name.endswith("loss") and all(v > 0 for points in series[name].values() for _, v in points):
      axis.set_yscale("log")
    axis.legend(fontsize=7)
  for axis in axes[len(names) :]:
    axis.set_axis_off()
  return figure


def _smooth(y):
  """Exponential average over about a fiftieth of the curve, without a bias at its start."""
  decay = np.exp(-1 / max(len(y) / 50, 1))
  total = weight = 0.0
  smoothed = []
  for value in y:
    total, weight = total * decay + value, weight * decay + 1
    smoothed.append(total / weight)
  return smoothed


def captioned(image, caption: str) -> Image.Image:
  """An image with a line of text below it; small ones are enlarged to be seen. [H, W, C] uint8 to a PIL image."""
  picture = Image.fromarray(image.squeeze()).convert("RGB")
  factor = max(1, 224 // max(picture.size))
  picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
  font = ImageFont.load_default(size=16)
  width = max(picture.width, int(font.getlength(caption)) + 12)
  sheet = Image.new("RGB", (width, picture.height + 26), "white")
  sheet.paste(picture, ((width - picture.width) // 2, 0))
  ImageDraw.Draw(sheet).text((width / 2, picture.height + 13), caption, fill=INK, font=font, anchor="mm")
  return sheet


def comparison(runs: dict[str, list[dict]], best: str) -> Figure:
  """The rows of several runs, a line for each: evaluated `best`, training loss, evaluated loss; last values in words.

  Args:
    runs: {label: rows as for `curves`}.
    best: name of the metric that is compared.
  """
  panels = {}
  for trained, name in dict.fromkeys([(False, best), (True, "loss"), (False, "loss")]):
    drawn = {}
    for label, rows in runs.items():
      points = [
        (row["step"], row[name])
        for row in rows
        if (row["split"] == "train") == trained and isinstance(row.get(name), (int, float))
      ]
      if points:
        x, y = np.array(points, float).T
        y = np.array(_smooth(y)) if trained else y
        drawn[f"{label}  {y[-1]:.4g}"] = (x, y)
    if drawn:
      panels[f"training {name}, smoothed" if trained else f"evaluated {name}"] = drawn
  logs = [title for title, drawn in panels.items() if "loss" in title and all((y > 0).all() for _, y in drawn.values())]
  return lines(panels, "step", logs)


def lines(panels: dict[str, dict[str, tuple]], xlabel: str, logs=(), columns: int = 3) -> Figure:
  """Panels of lines. Where an axis is logarithmic, zeros are triangles at its foot, numbers not finite at its top.

  Args:
    panels: {title: {label: (x [N], y [N])}}; a label has one colour in every panel that lists the same labels.
    xlabel: of every panel.
    logs: titles of the panels with a logarithmic axis.
    columns: panels in a row.
  """
  columns = min(columns, len(panels)) or 1
  grid = -(-len(panels) // columns) or 1
  figure = Figure(figsize=(4.6 * columns, 3.4 * grid), layout="constrained")
  axes = figure.subplots(grid, columns, squeeze=False).reshape(-1)
  for axis, (title, drawn) in zip(axes, panels.items()):
    for i, (label, (x, y)) in enumerate(drawn.items()):
      x, y, colour, style = np.asarray(x), np.asarray(y, float), f"C{i % 10}", ("-", "--", ":")[i // 10 % 3]
      within = np.isfinite(y) & ((y > 0) | (title not in logs))
      axis.plot(x, np.where(within, y, np.nan), style, color=colour, linewidth=1.4, label=label,
                marker="." if len(x) <= 60 else "")  # fmt: skip
      for marker, height, missing in (("v", 0.02, np.isfinite(y) & ~within), ("^", 0.98, ~np.isfinite(y))):
        height += (0.03 if marker == "v" else -0.03) * i
        place = np.full(missing.sum(), height)
        axis.plot(x[missing], place, marker, color=colour, markersize=4, transform=axis.get_xaxis_transform())
    axis.set_title(title, fontsize=10)
    axis.set_xlabel(xlabel, fontsize=8)
    axis.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axis.grid(alpha=0.3)
    if title in logs:
      axis.set_yscale("log")
    axis.legend(fontsize=7)
  for axis in axes[len(panels) :]:
    axis.set_axis_off()
  return figure


def histograms(rows: dict[str, list], columns: list[str], span: tuple[float, float], heading: str) -> Figure:
  """A histogram in each cell of a grid, with the deviation of its values and the share of zeros, if there are any.

  Args:
    rows: {title: an array of values for each column}.
    columns: titles.
    span: (least, most) value drawn; those beyond are counted in the last bin on their side.
    heading: printed above.
  """
  figure = Figure(figsize=(2.1 * len(columns) + 1, 1.25 * len(rows) + 0.6), layout="constrained")
  grid = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True)
  for axes, (title, cells) in zip(grid, rows.items()):
    axes[0].set_ylabel(title, fontsize=8, rotation=0, ha="right", va="center")
    for axis, values in zip(axes, cells):
      values = np.asarray(values).ravel()
      axis.hist(np.clip(values[values != 0], *span), bins=40, range=span, color="#2171b5")
      zeros = f"\n{(values == 0).mean():.0%} zero" if (values == 0).any() else ""
      told = f"std {values.std():.2g}{zeros}"
      box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1}
      axis.text(0.97, 0.93, told, transform=axis.transAxes, fontsize=7, ha="right", va="top", bbox=box)
      axis.set_yticks([])
      axis.tick_params(labelsize=7)
  for axis, title in zip(grid[0], columns):
    axis.set_title(title, fontsize=9)
  figure.suptitle(heading, fontsize=10)
  return figure


def paths(height, x, y, walks: dict[str, tuple], columns: int = 3) -> Figure:
  """Walks over a landscape of contours, a panel each; the last point is named in the title.

  Args:
    height: [len(y), len(x)].
    x: coordinates of the grid's columns.
    y: of its rows.
    walks: {title: (x [N], y [N])}.
    columns: panels in a row.
  """
  grid = -(-len(walks) // columns)
  figure = Figure(figsize=(4.2 * columns, 2.9 * grid), layout="constrained")
  axes = figure.subplots(grid, columns, squeeze=False).reshape(-1)
  for axis, (title, (along, across)) in zip(axes, walks.items()):
    axis.contour(
      x, y, height, levels=np.geomspace(height.max() / 500, height.max(), 12), colors="#bbbbbb", linewidths=0.7
    )
    axis.plot(along, across, "o-", color=RED, markersize=2.5, linewidth=1)
    axis.plot(0, 0, "+", color=INK)
    axis.set_xlim(x[0], x[-1])
    axis.set_ylim(y[0], y[-1])
    axis.set_title(f"{title}: ends at ({along[-1]:.2f}, {across[-1]:.2f})", fontsize=10)
  for axis in axes[len(walks) :]:
    axis.set_axis_off()
  return figure


def heat_maps(maps: dict[str, np.ndarray]) -> Figure:
  """Arrays [H, W] >= 0 as pictures side by side, each against its own largest value; what is above 0 is framed."""
  figure = Figure(figsize=(3.4 * len(maps), 4.2), layout="compressed")
  axes = figure.subplots(1, len(maps), squeeze=False).reshape(-1)
  for axis, (title, values) in zip(axes, maps.items()):
    axis.imshow(values, cmap="Blues", vmin=0)
    rows, columns = (np.flatnonzero(values.any(1 - k)) for k in (0, 1))
    size = columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1
    axis.add_patch(Rectangle((columns[0] - 0.5, rows[0] - 0.5), *size, fill=False, ec=RED, lw=1.5))
    axis.set_title(title, fontsize=9)
    axis.set_xticks([])
    axis.set_yticks([])
  return figure


INCH = 0.16  # a line of small print


def panels(groups, titles=None, wrong=None, heading: str = "", columns: int = 4) -> Figure:
  """Groups of images, each image beside the next, a title above each group; wrong ones have red titles and frames.

  Args:
    groups: N lists of as many images [h, w, 3] or [h, w, 1] uint8, all of one size.
    titles: N strings of one line or more, or None; what is too long for its group is cut.
    wrong: N bools, or None.
    heading: printed above.
    columns: groups in a row.
  """
  height, width = groups[0][0].shape[:2]
  side = float(np.clip(max(height, width) / 100, 1.25, 2.2)) / max(height, width)  # inches for a pixel
  tall, wide, gap, between = side * height, side * width, 0.18, 0.05
  lines = max((title.count("\n") + 1 for title in titles), default=0) if titles else 0
  across = len(groups[0]) * (wide + between) - between
  down = tall + lines * INCH + (0.04 if lines else 0)
  columns = min(columns, len(groups))
  size = (
    max(columns * (across + gap) + gap, 0.078 * len(heading) + 0.3),
    -(-len(groups) // columns) * (down + gap) + 0.4,
  )
  figure, left = Figure(figsize=size), (size[0] - columns * (across + gap) + gap) / 2
  figure.text(0.5, 1 - 0.2 / size[1], heading, fontsize=10, ha="center", va="center")
  for i, group in enumerate(groups):
    x, y = left + i % columns * (across + gap), 0.4 + i // columns * (down + gap) + down
    colour = RED if wrong is not None and wrong[i] else None
    for j, image in enumerate(group):
      _tile(figure, (x + j * (wide + between), y, wide, tall), image, colour)
    if titles:
      cut = [_cut(line, across) for line in titles[i].split("\n")]
      place = (x + across / 2) / size[0], 1 - (y - tall - 0.05) / size[1]
      figure.text(*place, "\n".join(cut), fontsize=8, ha="center", va="bottom", color=colour or INK, linespacing=1.15,
                  parse_math=False)  # fmt: skip
  return figure


def _tile(figure, place, image, colour=None):
  """Draws an image, or a map [h, w] of numbers in colours from its least to its most.

  Args:
    figure: on which.
    place: (left, bottom, width, height) in inches, the bottom counted from above.
    image: [h, w, 3] or [h, w, 1] uint8, or [h, w].
    colour: of its frame; None: a thin grey one.
  """
  (x, y, width, height), (across, down) = place, figure.get_size_inches()
  axis = figure.add_axes((x / across, 1 - y / down, width / across, height / down))
  if image.ndim == 2:
    axis.imshow(image, cmap="viridis", aspect="auto")
  else:
    axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255, aspect="auto")
  axis.set_xticks([])
  axis.set_yticks([])
  axis.spines[:].set(color=colour or "#bbbbbb", linewidth=2.2 if colour else 0.5)


def _cut(line, inches):
  """A line of small print that fits."""
  most = max(1, int(inches / 0.066))
  return line if len(line) <= most else f"{line[: most - 1]}…"


def activations(images, titles, stages: dict[str, tuple], heading: str) -> Figure:
  """A row for each stage of a net, a block of its channels for each image; every channel from its least to its most.

  Args:
    images: N images [h, w, 3] or [h, w, 1] uint8.
    titles: N strings.
    stages: {name: (shape of the whole stage, maps [N, h, w, K], numbers of their channels [N, K])}.
    heading: printed above.
  """
  most = max(maps.shape[-1] for _, maps, _ in stages.values())
  side, between, gap, label = 1.0, 0.06, 0.3, 1.35
  block = most * (side + between) + gap
  size = max(label + len(images) * block, 0.078 * len(heading) + 0.3), 0.75 + side + len(stages) * (side + 0.2)
  figure = Figure(figsize=size)
  figure.text(0.5, 1 - 0.2 / size[1], heading, fontsize=10, ha="center", va="center")
  for n, (image, title) in enumerate(zip(images, titles)):
    x, y = label + n * block, 0.45 + side
    _tile(figure, _fitted(x, y, side, image), image)
    place = (x + side + 0.12) / size[0], 1 - (y - side / 2) / size[1]
    told = "\n".join(_cut(line, block - side - 0.45) for line in title.split("\n"))
    figure.text(*place, told, fontsize=9, va="center", color=INK, parse_math=False)
  for row, (name, (shape, maps, channels)) in enumerate(stages.items(), 1):
    y = 0.6 + side + row * (side + 0.2)
    middle = 1 - (y - side / 2) / size[1]
    figure.text((label - 0.12) / size[0], middle, _cut(name, label - 0.1), fontsize=9, ha="right", va="bottom")
    told = " x ".join(map(str, shape))
    figure.text((label - 0.12) / size[0], middle - 0.02 / size[1], told, fontsize=7, ha="right", va="top", color="#777")
    for n in range(len(images)):
      for k in range(maps.shape[-1]):
        x = label + n * block + k * (side + between)
        _tile(figure, _fitted(x, y, side, maps[n, ..., k]), maps[n, ..., k])
        place = (x + side / 2) / size[0], 1 - (y - side - 0.02) / size[1]
        figure.text(*place, str(channels[n, k]), fontsize=6.5, ha="center", va="bottom", color="#777")
  return figure


def _fitted(x, y, side, image):
  """The place of an image in the middle of a square."""
  height, width = (side * n / max(image.shape[:2]) for n in image.shape[:2])
  return x + (side - width) / 2, y - (side - height) / 2, width, height


def message(text: str) -> Figure:
  """A line of text for a picture of which there is nothing to show."""
  figure = Figure(figsize=(0.085 * len(text) + 1, 1.2))
  figure.text(0.5, 0.5, text, fontsize=11, ha="center", va="center", color=INK)
  return figure
