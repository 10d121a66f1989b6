"""What a run says: metrics.jsonl, TensorBoard, the progress line, pictures, result.json, report.html."""

import base64
import contextlib
import html
import importlib.util
import json
import math
import os
import re
import sys
import time
from pathlib import Path

from flaxonomy.errors import missing_extra, warn
from flaxonomy.train import figures

PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")  # names that cannot lead out of a folder


def write_text(path: Path, text: str) -> None:
  """Writes a whole file or nothing: a reader never sees half of it."""
  partial = path.with_name(path.name + ".partial")
  with partial.open("w") as file:
    file.write(text)
    file.flush()
    os.fsync(file.fileno())
  os.replace(partial, path)


class Metrics:
  """Rows of numbers by step: metrics.jsonl, which is the truth, and TensorBoard events beside it."""

  def __init__(self, workdir: Path, resume_step: int, tensorboard: bool | None, again: tuple[int, str] | None = None):
    """Opens the log; rows after `resume_step`, written by a run that went further before it died, are dropped.

    Args:
      workdir: of the run.
      resume_step: steps made.
      tensorboard: as `wants_tensorboard`.
      again: (step, split) of a row that will be written again, and is dropped.
    """
    self._path = workdir / "metrics.jsonl"
    rows = read_metrics(workdir)
    lines = self._path.read_bytes().count(b"\n") if self._path.exists() else 0
    if lines > len(rows):  # a last line that was cut off by a crash has no end
      warn(f"{str(self._path)!r}: {lines - len(rows)} damaged rows are left out")
    rows = [row for row in rows if row["step"] <= resume_step and (row["step"], row["split"]) != again]
    write_text(self._path, "".join(json.dumps(row) + "\n" for row in rows))
    self._file = self._path.open("ab", buffering=0)
    self._waiting = b""
    self._events = None
    if wants_tensorboard(tensorboard):
      from tensorboardX import SummaryWriter

      # Its thread dies on a full disk; a queue without end keeps that from holding up the run.
      self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=resume_step + 1, max_queue=10**9)

  def write(self, step: int, split: str, values: dict[str, float]) -> None:
    """Appends a row; it is in the file when this returns. What is not finite is null.

    Raises:
      OSError: there is no room; the row is kept and written with the next.
    """
    told = {name: value if math.isfinite(value) else None for name, value in values.items()}
    self._waiting += json.dumps({"step": step, "split": split} | told).encode() + b"\n"
    try:
      self._flush()
    except OSError:
      self._events = None  # its thread has died or will, and closing it would wait for ever
      raise
    if self._events:
      for name, value in values.items():
        self._events.add_scalar(f"{split}/{name}", value, step)

  def _flush(self):
    while self._waiting:  # a disk that is nearly full takes a part
      self._waiting = self._waiting[self._file.write(self._waiting) :]

  def close(self) -> None:
    """Flushes and closes the files."""
    try:
      if not self._file.closed:
        self._flush()
    finally:
      self._file.close()
      if self._events:
        self._events.close()


def wants_tensorboard(tensorboard: bool | None) -> bool:
  """Whether to write TensorBoard events: as asked, or, for None, if they can be.

  Raises:
    UserError: they are asked for and tensorboardX is not installed.
  """
  try:
    installed = importlib.util.find_spec("tensorboardX") is not None
  except ValueError:  # its import is blocked
    installed = False
  if tensorboard and not installed:
    raise missing_extra("tensorboardX", "tensorboard", "config field 'train.tensorboard'")
  return installed if tensorboard is None else tensorboard


def read_metrics(workdir: Path) -> list[dict]:
  """The rows of metrics.jsonl; damaged ones, such as a last line cut off by a crash, are left out."""
  path = workdir / "metrics.jsonl"
  rows = []
  for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
    try:
      row = json.loads(line)
      rows.append(row | {"step": int(row["step"]), "split": str(row["split"])})
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
      continue
  return rows


class Progress:
  """The live line: step, loss, accuracy, examples/s, time left; plain lines where there is no terminal."""

  def __init__(self, steps: int, start: int, batch_size: int, stream=None, every: float = 10.0):
    """Starts the clock.

    Args:
      steps: of the whole run.
      start: steps made already.
      batch_size: examples a step.
      stream: where to write; standard error if None.
      every: seconds between plain lines.
    """
    self._stream = stream or sys.stderr
    self._live = self._stream.isatty()
    self._steps, self._batch = steps, batch_size
    self._every = 0.2 if self._live else every
    self._mark = (start, time.monotonic())
    self._shown = time.monotonic() if not self._live else 0.0
    self._rate = None
    self.waited = 0.0  # seconds for data since the last line

  def update(self, step: int, metrics: dict[str, float]) -> None:
    """Shows the state after `step` if it is time to."""
    now = time.monotonic()
    if now - self._shown < self._every and step < self._steps:
      return
    done, since = step - self._mark[0], now - self._mark[1]
    if done:
      rate = done / since
      self._rate = rate if self._rate is None else 0.7 * self._rate + 0.3 * rate
    waited, self.waited = self.waited / max(since, 1e-9), 0.0
    self._mark, self._shown = (step, now), now
    parts = [f"step {step}/{self._steps}"]
    parts += [f"{name} {metrics[name]:.4f}" for name in ("loss", "accuracy") if name in metrics]
    if self._rate:
      parts += [f"{self._rate * self._batch:,.0f} examples/s", f"{_duration((self._steps - step) / self._rate)} left"]
    if waited > 0.05:
      parts.append(f"data wait {waited:.0%}")
    self._print("  ".join(parts))

  @contextlib.contextmanager
  def pause(self):
    """Time spent inside does not count as training."""
    began = time.monotonic()
    yield
    self._mark = (self._mark[0], self._mark[1] + time.monotonic() - began)

  def say(self, line: str) -> None:
    """Prints a line of its own."""
    print(("\r\x1b[K" if self._live else "") + line, file=self._stream, flush=True)

  def _print(self, line):
    if self._live:
      print(f"\r\x1b[K{line}", end="", file=self._stream, flush=True)
    else:
      print(line, file=self._stream, flush=True)


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(int(seconds + 0.5), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def save_figures(folder: Path, named: dict) -> None:
  """Writes {file name: figure} as PNG files, each whole or not at all."""
  for name, figure in named.items():
    if not PLAIN.fullmatch(name):
      raise ValueError(f"the name of a picture must be plain, not {name!r}")
    partial = folder / f"{name}.partial"
    figure.savefig(partial, format="png", dpi=100)
    os.replace(partial, folder / name)


def write_traces(folder: Path, traces: dict) -> None:
  """Writes {name: [N]} to traces.json."""
  write_text(folder / "traces.json", json.dumps({name: list(map(float, row)) for name, row in traces.items()}) + "\n")


def read_traces(folder: Path) -> dict[str, list[float]]:
  """What `write_traces` wrote; what is missing or damaged is left out."""
  try:
    found = json.loads((folder / "traces.json").read_text())
    return {name: list(map(float, row)) for name, row in found.items() if PLAIN.fullmatch(name)}
  except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
    return {}


def finish(workdir: Path, result: dict) -> None:
  """Writes curves.png, report.html and result.json from what the workdir holds."""
  save_figures(workdir, {"curves.png": figures.curves(read_metrics(workdir))})
  write_text(workdir / "report.html", _page(workdir, result))
  write_text(workdir / "result.json", json.dumps(result, indent=2) + "\n")


def _page(workdir: Path, result: dict) -> str:
  """The report: one static file, pictures inside."""

  def table(pairs):
    cells = "".join(f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in pairs)
    return f"<table>{cells}</table>"

  def leaves(tree, prefix=""):
    for key, value in tree.items():
      yield from leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]

  pictures = "".join(
    f'<h2>{path.stem}</h2><img alt="{path.stem}" src="data:image/png;base64,'
    f'{base64.b64encode(path.read_bytes()).decode()}">'
    for path in sorted(workdir.glob("*.png"))
  )
  metrics = [(k, f"{v:.4f}") for k, v in result["metrics"].items()]
  facts = [("step", result["step"]), ("seconds", f"{result['seconds']:.1f}")]
  return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(workdir.name)}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top; }}
th {{ font-weight: 500; color: #555; }} img {{ max-width: 100%; }} h2 {{ margin-top: 2rem; }}
</style></head><body><h1>{html.escape(workdir.name)}</h1>
<h2>metrics</h2>{table(metrics + facts)}{pictures}<h2>config</h2>{table(leaves(result["config"]))}</body></html>
"""
