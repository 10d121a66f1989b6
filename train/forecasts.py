"""What follows a CSV file: a trained forecast of the steps behind its last row, from a workdir alone."""

import csv
from pathlib import Path

import jax
import numpy as np

from flaxonomy.data.datasets import table
from flaxonomy.data.series import Series, standardised
from flaxonomy.errors import UserError
from flaxonomy.train import figures, inference, loop, report, tasks
from flaxonomy.train.tasks import forecasting


def predict(path: str, inputs: list[str], which: str = "latest", changes: dict | None = None) -> Path:
  """Forecasts what follows a series.

  Args:
    path: workdir.
    inputs: one CSV file; the column is the one that was trained on, or data.series.column in `changes`.
    which: checkpoint, as in `inference.load`.
    changes: as there.

  Returns:
    The folder made for it: predictions.csv with the forecast and both naive ones by steps ahead, and forecast.png.

  Raises:
    UserError: no run, several files, a file without the column or shorter than a window.
    DataError: a value that is no number.
  """
  run = inference.load(path, loop.make_mesh(1), which, changes)
  series = Series(**run.info.series)
  if not series.scale:
    raise UserError(f"--mode=predict goes on with a series, and {run.info.name!r} is none that goes on")
  if len(inputs) != 1:
    raise UserError(f"--mode=predict forecasts one series; --inputs must be one CSV file, not {len(inputs)}")
  column, values = table.column(inputs[0], run.config.data.series.column or series.column)
  if len(values) < series.window:
    raise UserError(f"{inputs[0]!r} has {len(values)} values, and the model reads a window of {series.window}")
  window = standardised(series, values[-series.window :])[None]
  model = tasks.module(run.config, horizon=series.horizon, outputs=series.targets)
  made = jax.jit(lambda variables, x: model.apply(variables, x, train=False)["forecast"])(run.state.variables(), window)
  columns = {"forecast": made} | forecasting.baselines(window, series)
  columns = {name: np.asarray(x, float)[0, :, 0] * series.std[0] + series.mean[0] for name, x in columns.items()}
  ahead = np.arange(1, series.horizon + 1)
  folder = inference.new_folder(run.folder / "predictions")
  with (folder / "predictions.csv").open("w", newline="") as file:
    rows = zip(ahead.tolist(), *(x.tolist() for x in columns.values()))
    csv.writer(file).writerows([["steps_ahead", *columns], *rows])
  drawn = {name: (ahead, x) for name, x in columns.items()}
  drawn[column] = np.arange(1 - series.window, 1), values[-series.window :]
  title = f"what follows {Path(inputs[0]).name}"
  report.save_figures(folder, {"forecast.png": figures.lines({title: drawn}, "steps ahead")})
  return folder
