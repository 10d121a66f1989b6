"""The one loop: data -> mapped step -> log, evaluate, picture, checkpoint.

`run(config, workdir)` is all there is to training, from the command line and from Python alike. It keeps no state
outside its arguments, so that a second call in a process gives what a fresh process gives, bit for bit.
"""

import contextlib
import copy
import json
import re
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxonomy.configs import base
from flaxonomy.data import pipeline
from flaxonomy.errors import UserError, unknown
from flaxonomy.train import checkpoint, report, step, tasks
from flaxonomy.train import workdir as workdirs
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import State, Task

PICTURED = 40  # examples shown in pictures


def run(config: base.Config, workdir: str | Path, *, quiet: bool = False) -> dict:
  """Trains, or goes on with, the run in a folder.

  Args:
    config: left as it is.
    workdir: made if it does not exist; a run of the same config in it is resumed, a finished one returned.
    quiet: no progress line.

  Returns:
    {"metrics": {"test_accuracy": float, ...}, "step": int, "seconds": float, "config": dict}, also in result.json.

  Raises:
    UserError: anything the user can mend; nothing is written then.
  """
  began = time.monotonic()
  config = base.validate(copy.deepcopy(config))
  folder = workdirs.absolute(workdir)
  workdirs.check(folder, config)
  if (result := workdirs.finished(folder, config.train.steps)) is not None:
    return result
  session = prepare(config)
  workdirs.check_data(folder, session.info)
  workdirs.create(folder, config, session.info)
  return _train(session, folder, began, quiet)


class Session(NamedTuple):
  """A config made ready: devices, data and functions. Nothing is compiled yet."""

  config: base.Config
  mesh: Mesh
  info: pipeline.Info
  task: Task
  train: pipeline.Feed
  test: pipeline.Feed


def prepare(config: base.Config) -> Session:
  """Opens the data and builds the task of a config.

  Raises:
    UserError: unknown names, data not prepared, batch size not divisible by the devices.
  """
  report.wants_tensorboard(config.train.tensorboard)
  mesh = make_mesh(config.train.devices)
  divisor = mesh.size * (config.train.accumulate or 1)
  if config.data.batch_size % divisor:
    near = config.data.batch_size // divisor * divisor
    raise UserError(
      f"config field 'data.batch_size' ({config.data.batch_size}) must be divisible by {mesh.size} devices x "
      f"train.accumulate {config.train.accumulate or 1}; nearest: {f'{near} or ' if near else ''}{near + divisor}"
    )
  source, info = pipeline.open_split(config.data, config.data.train_split)
  same_data(info, pipeline.open_split(config.data, config.data.eval_split)[1], "to train", "to evaluate")
  task = tasks.build(config, info, mesh.size)  # every name is known to be right before all the data is read
  if (best := (config.train.best_metric or task.best).removeprefix("-")) not in task.measures:
    raise unknown("metric", best, task.measures, "(config field 'train.best_metric')")
  train = pipeline.open_feed(config.data, source, info, config.seed, config.data.batch_size, mesh)
  return Session(config, mesh, info, task, train, open_test(config, mesh, info))


def same_data(one: pipeline.Info, other: pipeline.Info, here: str, there: str) -> None:
  """Refuses two sets of data that differ in classes or image shape.

  Raises:
    UserError: names what differs.
  """
  for field in ("class_names", "image_shape"):
    if getattr(one, field) != getattr(other, field):
      raise UserError(
        f"dataset {one.name!r} differs in {field.replace('_', ' ')}: {getattr(one, field)} {here}, "
        f"{getattr(other, field)} {there}"
      )


def open_test(config: base.Config, mesh: Mesh, trained: pipeline.Info) -> pipeline.Feed:
  """The evaluation split; its batch size is rounded up to a multiple of the devices.

  Raises:
    UserError: it has other classes or shapes than the data that was trained on.
  """
  source, info = pipeline.open_split(config.data, config.data.eval_split)
  same_data(trained, info, "to train", "to evaluate")
  return pipeline.open_feed(config.data, source, info, config.seed, eval_batch_size(config, mesh), mesh)


def eval_batch_size(config: base.Config, mesh: Mesh) -> int:
  """data.eval_batch_size, rounded up to a multiple of the devices."""
  return -(-config.data.eval_batch_size // mesh.size) * mesh.size


def make_mesh(count: int | None = None) -> Mesh:
  """The devices of all processes, or the first `count`, on the one axis.

  Raises:
    UserError: there are fewer.
  """
  devices = jax.devices()
  if count and count > len(devices):
    raise UserError(f"config field 'train.devices' is {count}, but there are {len(devices)} devices")
  return Mesh(np.array(devices[:count]), (DATA,))


def train_function(session: Session, most: int):
  """Compiled (state, resident, items, count) -> (state, metrics [most]); see `step.many`."""
  specs = session.task.specs
  many = step.many(session.task.train_step, session.train.fetch, most)
  return step.pmapped(many, session.mesh, (specs, P(), P(None, DATA), P()), (specs, P()), donate=True)


def eval_function(members: list[Task], feed: pipeline.Feed, mesh: Mesh):
  """Compiled (states, resident, item) -> (sums, outputs [B, ...]); outputs are averaged over the members."""

  def evaluate(states, resident, item):
    batch = feed.fetch(resident, item)
    outputs = [task.predict_step(state, batch) for task, state in zip(members, states)]
    outputs = jax.tree.map(lambda *x: sum(x) / len(x), *outputs)
    return jax.lax.psum(members[0].score(outputs, batch), DATA), outputs

  return step.pmapped(evaluate, mesh, (P(), P(), P(DATA)), (P(), P(DATA)))


class Evaluation(NamedTuple):
  """Metrics over a split, and what its first examples became."""

  metrics: dict[str, float]
  sums: dict
  batch: dict
  outputs: dict


def evaluate(function, task: Task, feed: pipeline.Feed, states: list[State]) -> Evaluation:
  """Evaluates states, as an ensemble if several, on every example of a split exactly once.

  Args:
    function: from `eval_function`.
    task: the first member given to it.
    feed: as given to it.
    states: one or more.
  """
  states = [state.replace(opt_state=None) for state in states]
  sums, first = [], None
  for item in feed.eval_items():
    part, outputs = function(states, feed.resident, item)
    sums.append(part)
    first = outputs if first is None else first
  total = jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *jax.device_get(sums))
  shown = min(PICTURED, feed.size)
  outputs = {key: local_rows(x)[:shown] for key, x in first.items()}
  return Evaluation(task.metrics(total), total, feed.read(range(len(next(iter(outputs.values()))))), outputs)


def local_rows(x: jax.Array) -> np.ndarray:
  """This process's rows of an array split along its first axis."""
  shards = {s.index[0].start or 0: s.data for s in x.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def split_name(config: base.Config) -> str:
  """What metrics of the evaluation split are called: its name; "validation" for a part of the training split."""
  name = re.match(r"\w*", config.data.eval_split)[0]
  return "validation" if name == re.match(r"\w*", config.data.train_split)[0] else name


def initial_state(session: Session) -> State:
  """The state before the first step, on the devices: a function of the seed."""
  shardings = jax.tree.map(lambda spec: NamedSharding(session.mesh, spec), session.task.specs)
  return jax.jit(session.task.init, out_shardings=shardings)(jax.random.PRNGKey(session.config.seed))


def abstract_state(task: Task, mesh: Mesh) -> State:
  """Shapes, types and shardings of a state, for restoring one."""
  shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0))
  place = lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))
  return jax.tree.map(place, shapes, task.specs)


def steps_per_dispatch(config: base.Config) -> int:
  """Steps in one compiled loop: one on CPUs, where a dispatch costs nothing and a loop is slower."""
  if config.train.steps_per_dispatch is not None:
    return config.train.steps_per_dispatch
  return 1 if jax.default_backend() == "cpu" else 16


def _train(session: Session, folder: Path, began: float, quiet: bool) -> dict:
  """From the newest checkpoint, or the start, to the last step and its report."""
  config, task, steps = session.config, session.task, session.config.train.steps
  eval_every = config.train.eval_every or max(1, steps // 10)
  save_every = config.train.checkpoint_every or eval_every
  most = steps_per_dispatch(config)
  best = config.train.best_metric or task.best
  saves, log = checkpoint.Checkpoints(folder, config.train.keep_last, config.train.keep_best, best), None
  try:
    state, at, spent = _start(session, saves)
    log = _Log(session, folder, at, quiet)
    train, test = train_function(session, most), eval_function([task], session.test, session.mesh)
    counts = list(_counts(at, steps, most, (eval_every, save_every)))
    elapsed = lambda: spent + time.monotonic() - began
    for count, items in zip(counts, session.train.train_items(at, iter(counts), most)):
      state, made = train(state, session.train.resident, items, np.int32(count))
      log.push(at, count, made)
      at += count
      if at % eval_every == 0 or at == steps:
        with log.pause():
          log.evaluated(at, evaluate(test, task, session.test, [state]))
      if at % save_every == 0 or at == steps:
        position = {"next_position": at * config.data.batch_size, "batch_size": config.data.batch_size}
        with log.pause():
          saves.save(at, state, position | {"seconds": elapsed()}, base.to_dict(config), log.metrics_at(at))
    if not log.metrics_at(at):  # stopped between the last checkpoint and the report
      log.evaluated(at, evaluate(test, task, session.test, [state]))
    saves.wait()
    name = split_name(config)
    metrics = {f"{name}_{k}": v for k, v in log.metrics_at(at).items()}
    result = {"metrics": metrics, "step": at, "seconds": elapsed(), "config": base.to_dict(config)}
    result = json.loads(json.dumps(result))  # what result.json will be read back as
    log.finish(result)
    return result
  finally:
    if log:
      log.close()
    saves.close()


def _start(session: Session, saves: checkpoint.Checkpoints) -> tuple[State, int, float]:
  """(state, its step, seconds spent on it): from the newest checkpoint, else from the seed."""
  if not saves.steps():
    return initial_state(session), 0, 0.0
  state, position = saves.restore(saves.steps()[-1], abstract_state(session.task, session.mesh))
  return state, position["next_position"] // position["batch_size"], position["seconds"]


def _counts(at: int, steps: int, most: int, every: tuple[int, ...]):
  """Steps of each dispatch: at most `most`, never past a multiple of one of `every` or the end."""
  while at < steps:
    count = min([most, steps - at, *(e - at % e for e in every)])
    yield count
    at += count


class _Log:
  """The run's writing side: rows, progress line, pictures. Only the first process writes.

  Metrics of a dispatch are read when the next one has been sent off, so the devices never wait for Python.
  """

  def __init__(self, session: Session, folder: Path, at: int, quiet: bool):
    self._session, self._folder = session, folder
    self._config, self._name = session.config.train, split_name(session.config)
    self._pending, self._metrics = None, (-1, {})
    self._rows = self._progress = None
    if jax.process_index() == 0:
      self._rows = report.Metrics(folder, at, self._config.tensorboard)
      if not quiet:
        self._progress = report.Progress(self._config.steps, at, session.config.data.batch_size)
        self._progress.say(_greeting(session, at, folder))

  def push(self, first: int, count: int, metrics: dict) -> None:
    """Takes the metrics [most] of a dispatch and writes those of the one before."""
    self._flush()
    self._pending = (first, count, metrics)

  def _flush(self):
    if self._pending is None or self._rows is None:
      return
    first, count, metrics = self._pending
    self._pending = None
    metrics = jax.device_get(metrics)
    for i in range(count):
      at = first + i + 1
      row = {name: float(values[i]) for name, values in metrics.items()}
      if at % self._config.log_every == 0 or at == self._config.steps:
        self._rows.write(at, "train", row)
    if self._progress:
      self._progress.update(first + count, row)

  def evaluated(self, at: int, found: Evaluation) -> None:
    """Writes an evaluation's metrics and pictures."""
    self._flush()
    self._metrics = (at, {k: float(v) for k, v in found.metrics.items()})
    if self._rows is None:
      return
    self._rows.write(at, self._name, self._metrics[1])
    report.save_figures(self._folder, self._session.task.pictures(found.batch, found.outputs, found.sums))
    if self._progress:
      values = "  ".join(f"{k} {v:.4f}" for k, v in self._metrics[1].items())
      self._progress.say(f"step {at}/{self._config.steps}  {self._name}: {values}")

  def metrics_at(self, at: int) -> dict[str, float]:
    """The evaluation made at a step, or {}."""
    return self._metrics[1] if self._metrics[0] == at else {}

  def pause(self):
    """A context that the progress line does not count as training."""
    self._flush()
    return self._progress.pause() if self._progress else contextlib.nullcontext()

  def finish(self, result: dict) -> None:
    """Writes the report."""
    if self._rows is not None:
      self.close()
      report.finish(self._folder, result)

  def close(self) -> None:
    """Closes the rows."""
    if self._rows is not None:
      self._rows.close()


def _greeting(session: Session, at: int, folder: Path) -> str:
  config, devices = session.config, session.mesh.devices.flatten()
  state = jax.eval_shape(session.task.init, jax.random.PRNGKey(0))
  params = sum(x.size for x in jax.tree.leaves(state.params))
  shape = " x ".join(map(str, session.info.image_shape))
  sizes = f"{session.train.size:,} + {session.test.size:,} examples of {shape}"
  kept = "on the devices" if session.train.resident else "streamed"
  start = f"resuming at step {at}" if at else "from the start"
  return (
    f"{config.model.name} ({params:,} parameters) on {config.data.name} ({sizes}, {kept}), "
    f"{len(devices)} x {devices[0].device_kind}, {start}, in {folder}"
  )
