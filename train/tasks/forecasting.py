"""Forecasting: from a window of a series to the elements behind it, by squared error of standardised values.

Measured in the series' own units, against the naive forecast, which repeats the last value, and the seasonal one, which
repeats the last season. MASE is Hyndman and Koehler 2006, "Another look at measures of forecast accuracy": the mean
absolute error over that of the naive forecast of one step, or of one season, on the training series.

The norm of the loss's gradient for each state h_t shows how far back a recurrent net learns from: Bengio, Simard and
Frasconi 1994; Pascanu, Mikolov and Bengio 2013.
"""

import csv
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy.data.datasets import table
from flaxonomy.data.series import Series, standardised
from flaxonomy.errors import UserError
from flaxonomy.train import figures, losses, step, tasks
from flaxonomy.train.step import Serve, Task

SHOWN = 5  # windows in a picture
TRACED = 16  # examples of a batch, on each device, whose gradients are followed


def build(config, info, devices: int) -> Task:
  """The task of predicting `info.series`; see `tasks.build`.

  Raises:
    UserError: a loss by another name than "mse".
  """
  series = Series(**info.series)
  model = tasks.module(config, horizon=series.horizon, outputs=series.targets)
  tasks.require(config, hasattr(model, "horizon"))
  if config.train.loss != "mse":
    raise UserError("task 'forecasting' learns by squared error; set config field 'train.loss' to 'mse'")

  shape = (series.window, series.inputs)
  learner = tasks.learner(config, lambda rng: model.init(rng, jnp.zeros((1, *shape)), train=False), devices)

  def loss(params, collections, batch, rng):
    stages = model.apply({"params": params}, batch["inputs"], train=True, rngs={"dropout": rng})
    error = losses.squared_error(stages["forecast"], batch["targets"]).mean((1, 2))
    return step.Made({"loss": ((error * batch["mask"]).sum(), batch["mask"].sum())}, collections)

  def predict_step(state, batch):
    forecast = model.apply(state.variables(), batch["inputs"], train=False)["forecast"]
    few = {key: batch[key][:TRACED] for key in ("inputs", "targets")}
    norms = gradient_norms(model, state.variables(), **few)
    # What a picture of a few shows need not be found for all.
    norms = jnp.pad(norms, ((0, len(forecast) - len(norms)), (0, 0)), constant_values=jnp.nan)
    return {"forecast": forecast, "gradient_norm": norms}

  mean, std = (jnp.asarray(each, jnp.float32)[None, None] for each in (series.mean, series.std))

  def call(variables, x):
    """From a window in the series' own units to a forecast in them."""
    x = (x - mean) / std if series.scale else x
    return {"forecast": model.apply(variables, x, train=False)["forecast"] * std + mean}

  draw = lambda rng, b: jax.random.normal(rng, (b, *shape)) * (std if series.scale else 1)
  return Task(
    init=learner.init,
    train_step=learner.step(loss),
    predict_step=predict_step,
    score=lambda outputs, batch: score(outputs, batch, series),
    metrics=lambda sums: metrics(sums, series),
    measures=measures(series),
    best="accuracy" if series.tolerance else "-mae",
    pictures=lambda batch, outputs, sums: pictures(batch, outputs, sums, series),
    augment=lambda rng, batch: batch,
    specs=learner.specs,
    serve=Serve(call, shape, jnp.float32, draw),
    averaged=True,
    traces=traces,
    follow=lambda variables, files: follow(model, variables, files, series, config.data.series.column),
  )


def gradient_norms(model, variables, inputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Norm of the gradient of each example's squared error for the last layer's h after each step, [B, T].

  Args:
    model: a forecaster.
    variables: its own.
    inputs: [B, T, C].
    targets: [B, horizon, C'].
  """

  def loss(offsets):
    given = {**variables, "perturbations": {"state": offsets}}
    forecast = model.apply(given, inputs, train=False)["forecast"]
    return losses.squared_error(forecast, targets).mean((1, 2)).sum()

  slopes = jax.grad(loss)(jnp.zeros((*inputs.shape[:2], model.hidden_size)))
  peak = jnp.abs(slopes).max(-1)
  scaled = slopes / jnp.maximum(peak, 1e-37)[..., None]  # whose squares do not underflow as theirs would
  return peak * jnp.sqrt(jnp.square(scaled).sum(-1))


def baselines(inputs, series: Series) -> dict:
  """The naive forecasts by name, [B, horizon, C] each, which repeat the last elements of windows [B, T, C]."""
  found, length = {}, inputs.shape[1]
  for name, period in _periods(series).items():
    found[name] = inputs[:, np.array([length - period + i % period for i in range(series.horizon)])]
  return found


def score(outputs: dict, batch: dict, series: Series) -> dict:
  """Sums over a batch, of standardised values: each but "count" [] is [horizon, C'].

  Args:
    outputs: {"forecast": [B, horizon, C']}, of one model or the mean of several.
    batch: with "inputs", "targets" and "mask".
    series: what there is to know.
  """
  mask, targets = batch["mask"][:, None, None], batch["targets"]
  total = lambda x: (x * mask).sum(0)
  error = jnp.abs(outputs["forecast"] - targets)
  sums = {"absolute": total(error), "square": total(error**2), "count": batch["mask"].sum()}
  if series.tolerance:
    sums["right"] = total((error < series.tolerance).astype(jnp.float32))
  for name, forecast in baselines(batch["inputs"], series).items():
    sums[name] = total(jnp.abs(forecast - targets))
  return sums


def _periods(series) -> dict[str, int]:
  """{name: period} of the forecasts that a model is compared with."""
  if not series.scale:
    return {}
  return {"naive": 1} | ({"seasonal_naive": series.period} if series.period > 1 else {})


def measures(series: Series) -> tuple[str, ...]:
  """Names of the metrics."""
  own = ("accuracy",) if series.tolerance else ()
  scaled = (("mase",) if series.scale else ()) + (("seasonal_mase",) if series.seasonal_scale else ())
  return ("loss", "mae", "rmse", *own, *scaled, *(f"{name}_mae" for name in _periods(series)))


def metrics(sums: dict, series: Series) -> dict[str, float]:
  """The mean squared error of standardised values, and in own units the mean absolute and root mean squared error.

  Of a series also MASE, by steps and by seasons, and the errors of the naive forecasts; of a problem with a tolerance
  the share of forecasts within it.
  """
  std, count = np.asarray(series.std), sums["count"]
  mean = {name: total / count for name, total in sums.items() if name != "count"}
  error = mean["absolute"].mean(0) * std
  found = {"loss": mean["square"].mean(), "mae": error.mean(), "rmse": np.sqrt((mean["square"] * std**2).mean())}
  if series.tolerance:
    found["accuracy"] = mean["right"].mean()
  for name, scale in (("mase", series.scale), ("seasonal_mase", series.seasonal_scale)):
    if scale:
      found[name] = (error / np.asarray(scale)).mean()
  return found | {f"{name}_mae": (mean[name] * std).mean() for name in _periods(series)}


def traces(outputs: dict) -> dict[str, np.ndarray]:
  """{"gradient_norm": [T]}, the mean over the examples that were followed."""
  norms = np.asarray(outputs["gradient_norm"], np.float64)
  return {"gradient_norm": norms[~np.isnan(norms).all(1)].mean(0)}


def pictures(batch: dict, outputs: dict, sums: dict, series: Series) -> dict:
  """forecast.png and gradient_norm.png; see `Task.pictures`."""
  norms = traces(outputs)["gradient_norm"]
  title = "norm of the loss's gradient for h by time step"
  drawn = {title: {"mean": (np.arange(1, len(norms) + 1), norms)}}
  return {
    "forecast.png": _forecasts(batch, outputs, sums, series),
    "gradient_norm.png": figures.lines(drawn, "time step", [title]),
  }


def follow(model, variables, files: list[str], series: Series, column: str | None) -> dict:
  """What follows the last row of a CSV file: the forecast and both naive ones, by steps ahead.

  Args:
    model: a forecaster.
    variables: its own.
    files: of names, one.
    series: what was trained on.
    column: the file's; None: the one that was trained on.

  Returns:
    predictions.csv and forecast.png; see `Task.follow`.

  Raises:
    UserError: several files, a file without the column or shorter than a window, a problem that is no series.
    DataError: a value that is no number.
  """
  if not series.scale:
    raise UserError("--mode=predict goes on with a series, and what this run learned is none that goes on")
  if len(files) != 1:
    raise UserError(f"--mode=predict forecasts one series; --inputs must be one CSV file, not {len(files)}")
  column, values = table.column(files[0], column or series.column)
  if len(values) < series.window:
    raise UserError(f"{files[0]!r} has {len(values)} values, and the model reads a window of {series.window}")
  window = standardised(series, values[-series.window :])[None]
  forecast = jax.jit(lambda variables, x: model.apply(variables, x, train=False)["forecast"])(variables, window)
  found = {"forecast": forecast} | baselines(window, series)
  found = {name: np.asarray(x, float)[0, :, 0] * series.std[0] + series.mean[0] for name, x in found.items()}
  ahead, text = np.arange(1, series.horizon + 1), io.StringIO()
  rows = zip(ahead.tolist(), *(x.tolist() for x in found.values()))
  csv.writer(text).writerows([["steps_ahead", *found], *rows])
  drawn = {name: (ahead, x) for name, x in found.items()}
  drawn[column] = np.arange(1 - series.window, 1), values[-series.window :]
  title = f"what follows {Path(files[0]).name}"
  return {"predictions.csv": text.getvalue(), "forecast.png": figures.lines({title: drawn}, "steps ahead")}


def _forecasts(batch, outputs, sums, series) -> figures.Figure:
  """Windows with what follows them; where nothing goes on from the inputs, targets by size with their forecasts."""
  std, mean = np.asarray(series.std), np.asarray(series.mean)
  real = lambda x: x[..., 0] * std[0] + mean[0]
  truth, forecast = real(batch["targets"]), real(outputs["forecast"])
  if not series.scale:
    order, place = truth[:, 0].argsort(), np.arange(1, len(truth) + 1)
    drawn = {"forecast": (place, forecast[order, 0]), "truth": (place, truth[order, 0])}
    return figures.lines({"examples in the order of their truth": drawn}, "example")
  others = {name: real(x) for name, x in baselines(batch["inputs"], series).items()}
  panels, behind = {}, np.arange(1, series.horizon + 1)
  for i in np.unique(np.linspace(0, len(truth) - 1, SHOWN).round().astype(int)):
    whole = np.append(real(batch["inputs"][i]), truth[i])
    drawn = {name: (behind, each[i]) for name, each in ({"forecast": forecast} | others).items()}
    drawn["truth"] = np.arange(1 - series.window, series.horizon + 1), whole
    panels[f"window {batch['index'][i]}"] = drawn
  errors = {"forecast": sums["absolute"]} | {name: sums[name] for name in others}
  panels["mean absolute error by steps ahead"] = {
    name: (behind, each[:, 0] / sums["count"] * std[0]) for name, each in errors.items()
  }
  return figures.lines(panels, "steps ahead")
