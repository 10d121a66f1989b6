"""Figures of text: tokens coloured by a number, and numbers by place."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

WIDTH = 100  # characters in a line


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
