"""A column of numbers from a CSV file, plain or gzipped, in the order of its rows."""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from flaxonomy.data.datasets import files
from flaxonomy.errors import DataError, UserError, first_line, shown, unknown


def column(path: str | Path | None, name: str | None) -> tuple[str, np.ndarray]:
  """Reads a column.

  Args:
    path: of the file, whose first row names the columns.
    name: of the column; None: the last one.

  Returns:
    (its name, [N] float64)

  Raises:
    UserError: there is no such file or column.
    DataError: the file is damaged, or a value is empty or no finite number; row and column are named.
  """
  if path is None or not (file := Path(path).expanduser()).is_file():
    raise UserError(f"a series needs a CSV file, not {str(path)!r} (config field 'data.data_dir', or --inputs)")
  ((file, content),) = files.read([files.File(file.name, file)])
  try:
    rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    header = [cell.strip() for cell in next(rows, [])]
    if not any(header):
      raise ValueError("its first line must name the columns")
    if name is not None and header.count(name) != 1:
      raise unknown(f"column of {files.where(file)}:", name, header, "(config field 'data.series.column')")
    at = len(header) - 1 if name is None else header.index(name)
    return header[at], np.array(list(_numbers(rows, header, at)), np.float64)
  except (ValueError, csv.Error) as error:
    raise DataError(f"{files.where(file)}: {first_line(error)}") from None


def _numbers(rows, header, at) -> Iterator[float]:
  for i, row in enumerate(rows, 2):
    if not row:
      continue
    if len(row) != len(header):
      raise ValueError(f"row {i} has {len(row)} columns, the first one {len(header)}")
    try:
      value = float(row[at])
    except ValueError:
      value = math.nan
    if not math.isfinite(value):
      what = "is empty" if not row[at].strip() else f"holds {shown(row[at])}, which is no finite number"
      raise ValueError(f"row {i}, column {header[at]!r} {what}")
    yield value
