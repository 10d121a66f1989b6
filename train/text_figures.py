"""Figures of text: tokens coloured by a number, texts beside each other, words by words, and numbers by place."""

import textwrap

import numpy as np
from matplotlib import colormaps, font_manager
from matplotlib.figure import Figure

WIDTH = 100  # characters in a line
OTHERS = (  # fonts with more scripts, where they are installed; without one such words are rows of boxes
  "Noto Sans CJK KR", "Noto Sans KR", "NanumGothic", "Apple SD Gothic Neo", "Malgun Gothic", "Arial Unicode MS",
)  # fmt: skip


def coloured(rows: list[list[tuple[str, float]]], heading: str, titles=None, most: float | None = None) -> Figure:
  """Rows of tokens on a ground that is the darker, the larger their number; orange, and below 0 blue.

  Args:
    rows: of (token, number).
    heading: printed above, before the scale.
    titles: of the rows, printed above each; None: none.
    most: the number, either way, with the darkest ground; None: the 99th percentile.
  """
  values = np.array([value for row in rows for _, value in row] or [1.0])
  most = most or max(float(np.percentile(values, 99)), 1e-6)
  cells, line = [], 0  # (column, line, token, share or None)
  for i, row in enumerate(rows):
    if titles:
      cells.append((0, line, titles[i], None))
      line += 1
    column = 0
    for token, value in row:
      token = _shown(token)
      if column + len(token) > WIDTH and column:
        line, column = line + 1, 0
      cells.append((column, line, token[:WIDTH], float(np.clip(value / most, -1, 1))))
      column += len(token)
    line += 2
  return _drawn(cells, line, f"{heading}: white 0, darkest {most:.2g} and above")


def _shown(token: str) -> str:
  """What cannot be seen, made visible."""
  return token.replace("\n", "⏎").replace("\t", "→").replace("$", "\\$")


def _drawn(cells, lines, heading) -> Figure:
  figure = Figure(figsize=(10, 0.2 * lines + 0.5))
  axis = figure.add_axes((0.01, 0.01, 0.98, 1 - 0.45 / figure.get_figheight()))
  axis.set_axis_off()
  axis.set_xlim(0, WIDTH)
  axis.set_ylim(lines, 0)
  for column, line, token, share in cells:
    style = {"fontsize": 8, "va": "center", "family": "monospace"}
    if share is None:
      axis.text(column, line + 0.5, token, weight="bold", **style)
      continue
    width = len(token.replace("\\$", "$"))
    cmap = colormaps["Blues" if share < 0 else "Oranges"]
    axis.add_patch(_ground(column, line, width, cmap(0.85 * abs(share))))
    axis.text(column + width / 2, line + 0.5, token, ha="center", **style)
  figure.suptitle(heading, fontsize=10, y=1 - 0.1 / figure.get_figheight())
  return figure


def _ground(column, line, width, colour):
  from matplotlib.patches import Rectangle

  return Rectangle((column, line), width, 1, color=colour, lw=0)


def by_place(loss) -> Figure:
  """Mean loss [T] by how many tokens of the window stand before."""
  figure = Figure(figsize=(7, 3.5), layout="constrained")
  axis = figure.subplots()
  axis.plot(np.arange(len(loss)), loss, lw=1)
  axis.set_xlabel("tokens of the window before it")
  axis.set_ylabel("nats a token")
  axis.grid(alpha=0.3)
  return figure


def _fonts(first: str) -> list[str]:
  installed = {font.name for font in font_manager.fontManager.ttflist}
  return [first, *(name for name in OTHERS if name in installed)]


def beside(rows: list[list[tuple[str, str]]]) -> Figure:
  """Texts one below the other: of each row (name, text), long ones broken into lines."""
  lines = []
  for row in rows:
    indent = " " * (max(len(name) for name, _ in row) + 2)
    for name, text in row:
      first, *more = textwrap.wrap(_shown(text), WIDTH - len(indent)) or [""]
      lines += [name.ljust(len(indent)) + first, *(indent + line for line in more)]
    lines.append("")
  figure = Figure(figsize=(10, 0.157 * len(lines) + 0.2))
  figure.text(0.01, 0.99, "\n".join(lines), fontsize=8, va="top", family=_fonts("monospace"), linespacing=1.4)
  return figure


def maps(rows: list[tuple[list[str], list[str], np.ndarray]]) -> Figure:
  """Words by words: rows of (M words across, N words down, [N, M] from 0 to 1), the darker the more."""
  columns = min(2, len(rows))
  grid = -(-len(rows) // columns)
  most = max(max(weights.shape) for *_, weights in rows)
  side = float(np.clip(0.22 * most + 1.2, 3.5, 9))
  figure = Figure(figsize=(columns * side, grid * side), layout="constrained")
  axes = figure.subplots(grid, columns, squeeze=False).reshape(-1)
  for axis, (across, down, weights) in zip(axes, rows):
    axis.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    style = {"fontsize": 7, "family": _fonts("sans-serif")}
    axis.set_xticks(range(len(across)), map(_shown, across), rotation=90, **style)
    axis.set_yticks(range(len(down)), map(_shown, down), **style)
    axis.xaxis.tick_top()
  for axis in axes[len(rows) :]:
    axis.set_axis_off()
  return figure


def by_length(rows: list[tuple[int, int, int, float]], heading: str) -> Figure:
  """BLEU by length: rows (fewest words, most words, sentences, BLEU), the number of sentences above each bar."""
  figure = Figure(figsize=(7, 3.5), layout="constrained")
  axis = figure.subplots()
  bars = axis.bar(range(len(rows)), [value for *_, value in rows], color="#2171b5")
  axis.bar_label(bars, [str(count) for _, _, count, _ in rows], fontsize=7)
  axis.set_xticks(range(len(rows)), [f"{least} to {most}" for least, most, *_ in rows], fontsize=8)
  axis.set_xlabel("words of the source; above, how many sentences")
  axis.set_ylabel("BLEU")
  axis.set_title(heading, fontsize=8)
  return figure
