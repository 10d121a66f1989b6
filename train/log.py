"""The loop's writing side: rows, progress line, pictures, status.json. Only the first process writes."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import jax

from flaxonomy.errors import warn
from flaxonomy.train import evaluation, numbers, processes, report
from flaxonomy.train import workdir as workdirs


class Log:
  """One stretch of a run, from where it starts or goes on.

  Metrics of a dispatch are read when the next one has been sent off, so the devices never wait for Python. They are
  read in every process, so that all judge them alike.
  """

  def __init__(
    self, session, folder: Path, at: int, measured: bool, quiet: bool, see: Callable[[int, int, dict], None]
  ):
    """Opens the files.

    Args:
      session: loop.Session.
      folder: workdir.
      at: steps made; rows after it are dropped.
      measured: whether the evaluation at that step is known; if not, its row is dropped too.
      quiet: no progress line.
      see: (step, bad leaf, metrics) of every step, in order; may raise.
    """
    self._session, self._folder, self._see = session, folder, see
    self._config, self._name = session.config.train, evaluation.split_name(session.config)
    self._pending = self._rows = self._progress = None
    self._full = False
    if processes.first():
      again = None if measured else (at, self._name)
      self._rows = report.Metrics(folder, at, self._config.tensorboard, again)
      workdirs.status(folder, "running", at)
      if not quiet:
        self._progress = report.Progress(self._config.steps, at, session.config.data.batch_size)
        self._progress.say(_greeting(session, at, folder))

  def push(self, first: int, count: int, metrics: dict) -> None:
    """Takes the metrics [most] of a dispatch and writes those of the one before."""
    self.flush()
    self._pending = (first, count, metrics)

  def flush(self) -> None:
    """Reads, writes and judges the metrics that are waiting."""
    if self._pending is None:
      return
    first, count, metrics = self._pending
    self._pending = None
    metrics = jax.device_get(metrics)
    bad = metrics.pop(numbers.BAD)
    for i in range(count):
      at = first + i + 1
      row = {name: float(values[i]) for name, values in metrics.items()}
      if self._rows and (at % self._config.log_every == 0 or at == self._config.steps or bad[i] >= 0):
        with self._tolerant():
          self._rows.write(at, "train", row)
      self._see(at, int(bad[i]), row)
    if self._progress:
      self._progress.update(first + count, row)

  def wait(self, items):
    """The next of the items; the progress line tells if much time goes by here."""
    began = time.monotonic()
    item = next(items)
    if self._progress:
      self._progress.waited += time.monotonic() - began
    return item

  def evaluated(self, at: int, found: evaluation.Evaluation) -> None:
    """Writes an evaluation's metrics and pictures."""
    if self._rows is None:
      return
    with self._tolerant():
      self._rows.write(at, self._name, found.metrics)
      report.save_figures(self._folder, self._session.task.pictures(found.batch, found.outputs, found.sums))
      if self._session.task.traces:
        report.write_traces(self._folder, self._session.task.traces(found.outputs))
    self.saved(at)
    if self._progress:
      values = "  ".join(f"{k} {v:.4f}" for k, v in found.metrics.items())
      self._progress.say(f"step {at}/{self._config.steps}  {self._name}: {values}")

  def saved(self, at: int) -> None:
    """Brings status.json up to date."""
    with self._tolerant():
      workdirs.status(self._folder, "running", at)

  @contextlib.contextmanager
  def _tolerant(self):
    """A full disk does not end a run here; the checkpoints decide that. Rows wait in memory until there is room."""
    try:
      yield
    except OSError as error:
      if not self._full:
        warn(f"cannot write to {str(self._folder)!r}: {error.strerror}; rows are kept in memory until there is room")
      self._full = True

  def pause(self):
    """A context that the progress line does not count as training."""
    return self._progress.pause() if self._progress else contextlib.nullcontext()

  def close(self) -> None:
    """Closes the files."""
    if self._rows is not None:
      with self._tolerant():
        self._rows.close()


def _greeting(session, at: int, folder: Path) -> str:
  config, devices = session.config, session.mesh.devices.flatten()
  state = jax.eval_shape(session.task.init, jax.random.PRNGKey(0))
  params = sum(x.size for x in jax.tree.leaves(state.params))
  sizes = f"{session.train.size:,} + {session.test.size:,} examples of {_shape(session.info, config.data)}"
  kept = "on the devices" if session.train.resident else "streamed"
  start = f"resuming at step {at}" if at else "from the start"
  count = jax.process_count()
  on = f"{len(devices)} x {devices[0].device_kind}" + (f" in {count} processes" if count > 1 else "")
  return (
    f"{config.model.name} ({params:,} parameters) on {config.data.name} ({sizes}, {kept}), {on}, {start}, in {folder}"
  )


def _shape(info, data) -> str:
  """What an example is."""
  if info.tokenizers:
    kinds = " and ".join(f"{each.size:,}" for each in info.tokenizers.values())
    return f"{max(data.text.buckets, default=data.text.length)} tokens of {kinds} kinds"
  if info.series:
    return f"{data.series.window} + {data.series.horizon} values"
  return " x ".join(map(str, info.image_shape))
