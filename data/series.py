"""Series on their way to the devices: windows of values, and what follows each.

  mackey_glass  our builder; data/datasets/mackey_glass.py
  csv           a column of the CSV file that data.data_dir names, .csv or .csv.gz, cut 80, 10 and 10 in a hundred
  adding        the adding problem, sequences of data.series.window elements; data/datasets/adding.py

A series is cut into its splits in the order of time before it is cut into windows, one at each place, so that no window
crosses into another split. Its values are standardised by mean and deviation of the training split.
"""

import math
from typing import NamedTuple

import numpy as np

from flaxonomy.data import pipeline, sources
from flaxonomy.data.datasets import adding
from flaxonomy.data.pipeline import Feed, Info
from flaxonomy.data.sources import Source
from flaxonomy.errors import DataError, UserError, unknown

KINDS = ("mackey_glass", "csv", "adding")
SHARES = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}  # of a CSV file


class Series(NamedTuple):
  """What a task must know of its series; `Info.series` is this as a dict.

  Attributes:
    inputs: C, numbers in an element of a window.
    targets: C', numbers in an element of what follows.
    window: elements that are seen.
    horizon: elements that are predicted.
    period: elements of a season.
    column: name of a CSV file's column, or None.
    mean: [C'] of the training values, taken off all.
    std: [C'] likewise, by which all are divided.
    scale: [C'] mean absolute change from one training value to the next, in the series' own units.
    seasonal_scale: [C'] the same over a period; () where that is one element, or no values differ by it. Both are ()
      where the targets are not what goes on from the inputs.
    tolerance: the error below which a forecast counts as right, or None.
  """

  inputs: int
  targets: int
  window: int
  horizon: int
  period: int
  column: str | None
  mean: tuple[float, ...]
  std: tuple[float, ...]
  scale: tuple[float, ...] = ()
  seasonal_scale: tuple[float, ...] = ()
  tolerance: float | None = None


def open_split(config, split: str, trained: Info | None = None) -> tuple[Source, Info]:
  """Reads a split and cuts it into windows.

  Args:
    config: configs.base.Data.
    split: a TFDS split; of "csv" and "adding" such as "train" or "train[10%:90%]".
    trained: what is known of the training split, whose mean and deviation are used; None: this is it.

  Returns:
    ({"inputs": [N, window, C], "targets": [N, horizon, C']} float32 as records, what a task must know of them)

  Raises:
    UserError: unknown series, split or column; a split that is too short for a window.
    DataError: see `table.column`; or a series that never changes.
  """
  if config.name not in KINDS:
    raise unknown("series", config.name, KINDS, "(config field 'data.name')")
  if trained is not None:
    _as_trained(config.series, trained.series)
  if config.name == "adding":
    records, series = _adding(config, split)
  else:
    column, values = _line(config, split)
    known = config.series.window + config.series.horizon
    if len(values) < known:
      raise UserError(
        f"split {split!r} of series {config.name!r} has {len(values)} values, too few for windows of "
        f"{config.series.window} and {config.series.horizon} behind them; set data.series.window or data.series.horizon"
      )
    series = described(config, column, values) if trained is None else Series(**trained.series)
    records = windows(standardised(series, values), config.series.window, config.series.horizon)
  info = Info(config.name, size=len(records["inputs"]), series=series._asdict())
  return Source(records, (), None, split), info


def open_feed(config, source: Source, info: Info, seed: int, batch_size: int, mesh) -> Feed:
  """Readies a split for training and evaluation; if its windows fit on the devices, they lie there.

  Args:
    config: configs.base.Data.
    source: from `open_split`.
    info: likewise.
    seed: of the order of training examples.
    batch_size: windows of a batch, over all devices; divisible by them.
    mesh: the devices, one axis.
  """
  on_device = config.on_device
  if on_device is None:
    on_device = sum(x.nbytes for x in source.records.values()) <= config.on_device_limit * 2**20
  arrays = source.records | {"mask": np.ones(info.size, np.float32)}
  return pipeline.of_arrays(arrays, pipeline.Order(info.size, seed), batch_size, mesh, on_device=on_device)


def _as_trained(asked, series: dict) -> None:
  """Refuses windows of another form than those of the training split."""
  for name in ("window", "horizon", "period"):
    if getattr(asked, name) != series[name]:
      raise UserError(
        f"config field 'data.series.{name}' was {series[name]} in training and cannot be {getattr(asked, name)} now"
      )


def sound(found: dict) -> dict:
  """What `Series._asdict` made, as it was read back; TypeError if it is something else."""
  series = Series(**found)
  counts = (series.inputs, series.targets, series.window, series.horizon, series.period)
  if any(type(count) is not int or count < 1 for count in counts):
    raise TypeError(f"series of {counts}")
  for numbers in (series.mean, series.std, series.scale, series.seasonal_scale):
    if len(numbers) not in (0, series.targets) or any(not isinstance(x, float) for x in numbers):
      raise TypeError(f"series by {numbers}")
  if not len(series.mean) == len(series.std) == series.targets:
    raise TypeError("series without mean or deviation")
  return series._asdict()


def _adding(config, split) -> tuple[dict, Series]:
  length = config.series.window
  if length < adding.SHORTEST or config.series.horizon != 1:
    raise UserError(
      f"series 'adding' has sequences of {adding.SHORTEST} elements or more (config field 'data.series.window') and "
      f"one target (data.series.horizon), not {length} and {config.series.horizon}"
    )
  name, begin, end = _slice(split, adding.SIZES)
  inputs, targets = (x[begin:end] for x in adding.examples(name, length))
  series = Series(2, 1, length, 1, config.series.period, None, (0.0,), (1.0,), tolerance=adding.TOLERANCE)
  return {"inputs": inputs, "targets": targets[:, None, None]}, series


def _line(config, split) -> tuple[str | None, np.ndarray]:
  """(name of the column, values [N] float64) of a split, in the order of time."""
  if config.name == "csv":
    from flaxonomy.data.datasets import table

    column, values = table.column(config.data_dir, config.series.column)
    bounds = {name: [round(share * len(values)) for share in both] for name, both in SHARES.items()}
    name, begin, end = _slice(split, {name: end - begin for name, (begin, end) in bounds.items()})
    return column, values[bounds[name][0] :][begin:end]
  with sources.told(config):
    records = sources.open_records(sources.open_builder(config), split, config.name)
    return None, np.array([record["value"] for record in records], np.float64)


def _slice(split: str, sizes: dict[str, int]) -> tuple[str, int, int]:
  """(name, first, behind the last) of a split such as "train[10%:90%]"."""
  name, *shares = sources.part(split)
  if name not in sizes:
    raise unknown("split", name, sizes, "(train_split, eval_split; a part is 'train[10%:90%]')")
  size = sizes[name]
  begin, end = (min(round(share * size), size) for share in shares)
  if begin >= end:
    raise UserError(f"split {split!r} is empty; set data.train_split or data.eval_split")
  return name, begin, end


def described(config, column: str | None, values: np.ndarray) -> Series:
  """What there is to know of a training split.

  Sums are rounded once, whatever their order, so that every machine finds the same numbers.

  Args:
    config: configs.base.Data.
    column: its name, or None.
    values: [N] float64.
  """
  period = config.series.period
  if not period <= config.series.window:
    raise UserError(
      f"config field 'data.series.period' ({period}) must be at most data.series.window ({config.series.window}), in "
      "which the seasonal forecast finds its values"
    )
  mean = math.fsum(values) / len(values)
  std = math.sqrt(math.fsum((values - mean) ** 2) / len(values))
  if not 0 < std < math.inf:
    raise DataError(f"the training values of series {config.name!r} never change, or are too large")
  scale, seasonal = (math.fsum(np.abs(values[m:] - values[:-m])) / (len(values) - m) for m in (1, period))
  settings = config.series.window, config.series.horizon, period, column
  return Series(1, 1, *settings, (mean,), (std,), (scale,), (seasonal,) if period > 1 and seasonal > 0 else ())


def standardised(series: Series, values: np.ndarray) -> np.ndarray:
  """Values [N] as the model sees them, [N, 1] float32."""
  return ((values - series.mean[0]) / series.std[0])[:, None].astype(np.float32)


def windows(values: np.ndarray, window: int, horizon: int) -> dict:
  """Every window of values [N, C] with what follows it; views, which take no room."""
  both = np.lib.stride_tricks.sliding_window_view(values, window + horizon, 0).swapaxes(1, 2)
  return {"inputs": both[:, :window], "targets": both[:, window:]}
