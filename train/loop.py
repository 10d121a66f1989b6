"""The one loop: data -> mapped step -> log, evaluate, picture, checkpoint.

`run(config, workdir)` is all there is to training, from the command line and from Python alike. It keeps no state
outside its arguments, so that a second call in a process gives what a fresh process gives, bit for bit.
"""

import copy
import functools
import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from flaxonomy.configs import base
from flaxonomy.data import pipeline
from flaxonomy.errors import DataError, Preempted, UserError, unknown, warn
from flaxonomy.train import checkpoint, evaluation, numbers, pretrained, processes, report, step, tasks
from flaxonomy.train import workdir as workdirs
from flaxonomy.train.log import Log
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import State, Task
from flaxonomy.train.watch import Watch


def run(config: base.Config, workdir: str | Path, *, quiet: bool = False) -> dict:
  """Trains, or goes on with, the run in a folder.

  Args:
    config: left as it is.
    workdir: made if it does not exist; a run of the same config in it is resumed, a finished one returned.
    quiet: no progress line.

  Returns:
    {"metrics": {"test_accuracy": float, ...}, "step": int, "seconds": float, "config": dict}, also in result.json.

  Raises:
    UserError: anything the user can mend; what is found before the first step leaves everything as it was.
    Preempted: SIGTERM or SIGINT stopped it; the same call goes on.
  """
  began = time.monotonic()
  config = base.validate(copy.deepcopy(config))
  folder = workdirs.absolute(workdir)
  processes.together(lambda: workdirs.check(folder, config))
  if (result := processes.together(lambda: workdirs.finished(folder, config.train.steps))) is not None:
    return result
  leaving = functools.partial(workdirs.ended, folder)
  with workdirs.lock(folder), Watch(leaving) as watch, workdirs.ending(folder):
    processes.together(lambda: workdirs.check(folder, config))
    session = processes.agree(lambda: prepare(config))
    processes.together(lambda: workdirs.check_data(folder, session.info))
    if config.model.init_from and not (folder / "config.json").exists():
      session = session._replace(start=processes.agree(lambda: _given(session)))
    processes.together(lambda: workdirs.create(folder, config, session.info))
    result = _train(session, folder, began, quiet, watch)
    workdirs.ended(folder, 0, "", result["step"])
    return result


class Session(NamedTuple):
  """A config made ready: devices, data and functions. Nothing is compiled yet."""

  config: base.Config
  mesh: Mesh
  info: pipeline.Info
  task: Task
  train: pipeline.Feed
  test: pipeline.Feed
  start: dict | None = None  # what `model.init_from` gave, once it has been read


def prepare(config: base.Config) -> Session:
  """Opens the data and builds the task of a config.

  Raises:
    UserError: unknown names, data not prepared, batch size not divisible by the devices.
  """
  report.wants_tensorboard(config.train.tensorboard)
  mesh, data = make_mesh(config.train.devices), tasks.data(config)
  divisor = mesh.size * (config.train.accumulate or 1)
  if config.data.batch_size % divisor:
    near = config.data.batch_size // divisor * divisor
    raise UserError(
      f"config field 'data.batch_size' ({config.data.batch_size}) must be divisible by {mesh.size} devices x "
      f"train.accumulate {config.train.accumulate or 1}; nearest: {f'{near} or ' if near else ''}{near + divisor}"
    )
  source, info = data.open_split(config.data, config.data.train_split)
  test = _opened_test(config, info)
  task = tasks.build(config, info, mesh.size)  # every name is known to be right before all the data is read
  if (best := (config.train.best_metric or task.best).removeprefix("-")) not in task.measures:
    raise unknown("metric", best, task.measures, "(config field 'train.best_metric')")
  train = data.open_feed(config.data, source, info, config.seed, config.data.batch_size, mesh)
  return Session(config, mesh, info, task, train, _test_feed(config, mesh, *test))


def same_data(one: pipeline.Info, other: pipeline.Info, here: str, there: str) -> None:
  """Refuses two sets of data that differ in classes, image shape or series.

  Raises:
    UserError: names what differs.
  """
  for field in ("class_names", "image_shape", "series"):
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
  return _test_feed(config, mesh, *_opened_test(config, trained))


def _opened_test(config, trained):
  source, info = tasks.data(config).open_split(config.data, config.data.eval_split, trained)
  same_data(trained, info, "to train", "to evaluate")
  return source, info


def _test_feed(config, mesh, source, info):
  size = eval_batch_size(config, mesh)
  return tasks.data(config).open_feed(config.data, source, info, config.seed, size, mesh)


def eval_batch_size(config: base.Config, mesh: Mesh) -> int:
  """data.eval_batch_size, rounded up to a multiple of the devices."""
  return -(-config.data.eval_batch_size // mesh.size) * mesh.size


def make_mesh(count: int | None = None) -> Mesh:
  """The devices of all processes, or the first `count`, on the one axis.

  Raises:
    UserError: there are fewer.
  """
  devices = jax.devices()
  if jax.process_count() > 1 and count not in (None, len(devices)):
    raise UserError(f"config field 'train.devices' must be None with several processes: all {len(devices)} are used")
  if count and count > len(devices):
    raise UserError(f"config field 'train.devices' is {count}, but there are {len(devices)} devices")
  return Mesh(np.array(devices[:count]), (DATA,))


def train_function(session: Session, most: int):
  """Compiled (state, resident, items, count) -> (state, metrics [most]); see `step.many`."""
  specs = session.task.specs
  guarded = numbers.guarded(session.task.train_step, session.config.train.on_nan == "skip")
  many = step.many(guarded, session.train.fetch, most)
  return step.pmapped(many, session.mesh, (specs, P(), P(None, DATA), P()), (specs, P()), donate=True)


def initial_state(session: Session) -> State:
  """The state before the first step, on the devices: a function of the seed, and of the weights it starts from."""
  shardings = jax.tree.map(lambda spec: NamedSharding(session.mesh, spec), session.task.specs)
  state = jax.jit(session.task.init, out_shardings=shardings)(jax.random.PRNGKey(session.config.seed))
  if session.config.model.init_from is None:
    return state
  return pretrained.put(state, _given(session) if session.start is None else session.start)


def _given(session: Session) -> dict:
  """What `model.init_from` gives to the run."""
  return pretrained.load(session.config, session.info, session.mesh)


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


class _Run(NamedTuple):
  """What a run works with from its first step to its last."""

  session: Session
  folder: Path
  saves: checkpoint.Checkpoints
  watch: Watch
  health: numbers.Health
  train: Callable
  test: Callable
  seconds: Callable[[], float]
  quiet: bool


def _train(session: Session, folder: Path, began: float, quiet: bool, watch: Watch) -> dict:
  """From the newest checkpoint, or the start, to the last step and its report."""
  config, task = session.config, session.task
  best = config.train.best_metric or task.best
  saves = checkpoint.Checkpoints(folder, config.train.keep_last, config.train.keep_best, best)
  try:
    state, at, known = _start(session, saves)
    health = numbers.Health(
      config.train.on_nan, config.train.nan_limit, config.data.batch_size, state, known.get("bad_steps", ())
    )
    train = train_function(session, steps_per_dispatch(config))
    test = evaluation.eval_function([task], session.test, session.mesh)
    seconds = lambda: known.get("seconds", 0.0) + time.monotonic() - began
    run = _Run(session, folder, saves, watch, health, train, test, seconds, quiet)
    while True:
      try:
        return _stretch(run, state, at)
      except numbers.Rollback:
        with watch.rest():
          saves.poll(wait=True)
          state, at, _ = _start(session, saves)
  finally:
    saves.close()


def _start(session: Session, saves: checkpoint.Checkpoints) -> tuple[State, int, dict]:
  """(state, its step, what was saved beside it): from the newest whole checkpoint, else from the seed."""
  newest = saves.newest()
  if newest is None:
    state, at, position = initial_state(session), 0, {}
  else:
    try:
      like = abstract_state(session.task, session.mesh)
      state, position = processes.agree(lambda: saves.restore(newest, like))
    except DataError as error:  # its sums are right, or it has none, and yet it cannot be read
      saves.set_aside(newest, str(error))
      return _start(session, saves)
    at = position["next_position"] // position["batch_size"]
  if at > session.config.train.steps:
    raise UserError(
      f"the run has made {at} steps, and config field 'train.steps' is {session.config.train.steps}; type more, or "
      "another --workdir"
    )
  saves.forget(at)
  return state, at, position


def _stretch(run: _Run, state: State, at: int) -> dict:
  """Steps from `at` to the last one, and the result.

  Raises:
    Preempted: a signal came; the state is saved.
    numbers.Rollback: the numbers went bad, and the last checkpoint is to be taken up again.
  """
  config = run.session.config
  steps, most = config.train.steps, steps_per_dispatch(config)
  eval_every = config.train.eval_every or max(1, steps // 10)
  save_every = config.train.checkpoint_every or eval_every
  see = lambda step, bad, row: run.health.see(step, bad, row, run.saves.last)
  due = lambda at: at > 0 and (at % eval_every == 0 or at == steps)
  every, alike = (eval_every, save_every), run.session.train.alike
  spans = functools.partial(_spans, at, steps, most, every, run.health.left_out, alike)
  items = run.session.train.train_items((span for span in spans() if span[1]), most)
  log = Log(run.session, run.folder, at, at in run.saves.metrics, run.quiet, see)
  try:
    whole = not due(at) or at in run.saves.metrics or _measure(run, log, state, at)
    for first, count in spans() if whole else ():
      if run.watch.stop():
        break
      if count:
        state, made = run.train(state, run.session.train.resident, log.wait(items), np.int32(count))
        log.push(first, count, made)
      else:
        state = _pass(state)
      at = first + max(count, 1)
      run.watch.beat()
      run.saves.poll()
      if at == steps and run.session.task.finish is not None:
        state = _fitted(run, log, state)
      if at % save_every == 0 or at == steps:
        _save(run, log, state, at)
      if due(at) and not _measure(run, log, state, at):
        break
    if at == steps and at in run.saves.metrics:
      return _finish(run, log, at)
    return _stop(run, log, state, at)
  except DataError:
    if run.watch.signum is None:
      raise
    return _stop(run, log, state, at)  # a worker process got the signal first
  finally:
    items.close()
    log.close()


def _spans(at: int, steps: int, most: int, every: tuple[int, ...], left_out, alike):
  """(first step, steps) of each dispatch; a step that is left out is a span of 0.

  Args:
    at: steps made.
    steps: of the whole run.
    most: steps of a dispatch.
    every: no dispatch goes past a multiple of one of them.
    left_out: steps counted from 1.
    alike: see `pipeline.Feed`.
  """
  left_out = {step - 1 for step in left_out}
  while at < steps:
    count = alike(at, min([most, steps - at, *(e - at % e for e in every)]))
    count = next((i for i in range(count) if at + i in left_out), count) if left_out else count
    yield at, count
    at += max(count, 1)


@functools.partial(jax.jit, donate_argnums=0)
def _pass(state: State) -> State:
  """The state with one more step counted and none made."""
  return state.replace(step=state.step + 1)


def _measure(run: _Run, log: Log, state: State, at: int) -> bool:
  """Evaluates; False if a signal came first."""
  session = run.session
  log.flush()
  with log.pause(), run.watch.rest():
    found = evaluation.evaluate(run.test, session.task, session.test, [state], run.watch.stop)
    if found is None:
      return False
    metrics = {name: float(value) for name, value in found.metrics.items()}
    log.evaluated(at, found._replace(metrics=metrics))
    run.saves.measured(at, metrics)
  return True


def _fitted(run: _Run, log: Log, state: State) -> State:
  """The state once the task has fitted what is no gradient descent; see `Task.finish`."""
  log.flush()
  with log.pause(), run.watch.rest():
    shardings = jax.tree.map(lambda x: x.sharding, state)
    return jax.device_put(run.session.task.finish(state, run.session.train), shardings)


def _save(run: _Run, log: Log, state: State, at: int) -> bool:
  """Starts a checkpoint; False if it could not be written."""
  log.flush()  # a state after a bad step is judged before it is saved
  size = run.session.config.data.batch_size
  position = {"next_position": at * size, "batch_size": size, "seconds": run.seconds()}
  with log.pause(), run.watch.rest():
    position["bad_steps"] = run.health.bad_steps
    return run.saves.save(at, state, position, base.to_dict(run.session.config))


def _finish(run: _Run, log: Log, at: int) -> dict:
  """Waits for the last checkpoint and writes the report."""
  with run.watch.rest():
    run.saves.poll(wait=True)
    if at not in run.saves.steps():
      raise UserError(f"the last checkpoint could not be written to {str(run.folder)!r}; make room and go on")
    name = evaluation.split_name(run.session.config)
    metrics = {f"{name}_{key}": value for key, value in run.saves.metrics[at].items()}
    result = {"metrics": metrics, "step": at, "seconds": run.seconds(), "config": base.to_dict(run.session.config)}
    result = json.loads(json.dumps(result))  # what result.json will be read back as
    if processes.first():
      log.close()
      report.finish(run.folder, result)
    return result


def _stop(run: _Run, log: Log, state: State, at: int) -> NoReturn:
  """Saves, and raises Preempted."""
  name = signal.Signals(run.watch.signum).name
  try:
    if at > 0:
      _save(run, log, state, at)
      run.saves.poll(wait=True)
  except UserError as error:  # the older ones stand, and the run can be gone on with
    warn(str(error))
  saved = run.saves.last()
  where = "before the first step" if at == 0 else f"at step {at} of {run.session.config.train.steps}"
  kept = "nothing was saved yet" if saved is None else f"saved at step {saved}"
  log.saved(saved or 0)
  raise Preempted(f"stopped by {name} {where}, {kept}; the same line goes on", run.watch.signum) from None
