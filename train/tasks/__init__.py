"""One file for each kind of problem; `build` turns a config and what is known of its data into a Task."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from flaxonomy import models
from flaxonomy.errors import UserError, unknown
from flaxonomy.train import optim, sharding, step
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import State, Task

TASKS = {  # by name: the module of train/tasks, and that of data/ which reads what it learns from
  "classification": ("classification", "pipeline"),
  "gan": ("gan", "pipeline"),
  "language_model": ("language_model", "streams"),
  "translation": ("translation", "pairs"),
  "text_classification": ("text_classification", "sentences"),
  "forecasting": ("forecasting", "series"),
  "detection": ("detection", "scenes"),
}

DESCRIBED = {
  "pipeline": "image_shape",
  "streams": "tokenizers",
  "series": "series",
  "sentences": "tokenizers",
  "pairs": "tokenizers",
  "scenes": "image_shape",
}  # by what in Info, each kind of data

MANY = 2**20  # parameters, from which on a step is not cut into slices


def build(config, info, devices: int) -> Task:
  """The task that a config names.

  Args:
    config: configs.base.Config.
    info: data.pipeline.Info.
    devices: on which the step will be mapped.

  Raises:
    UserError: unknown task, model, field, optimizer or schedule.
  """
  found = _module(config, "train.tasks", 0)
  if not getattr(info, needed := DESCRIBED[TASKS[config.task][1]]):
    raise UserError(
      f"task {config.task!r} needs {needed.replace('_', ' ')}, and what is known of dataset {info.name!r} tells none"
    )
  return found.build(config, info, devices)


def data(config):
  """The module that reads a task's kind of data: its `open_split` and `open_feed` are like those of data.pipeline.

  Args:
    config: configs.base.Config.

  Raises:
    UserError: unknown task.
  """
  return _module(config, "data", 1)


def _module(config, package, which):
  if config.task not in TASKS:
    raise unknown("task", config.task, TASKS, "(config field 'task')")
  return importlib.import_module(f"flaxonomy.{package}.{TASKS[config.task][which]}")


def require(config, fits: bool) -> None:
  """Raises UserError unless the model is one that the task can train."""
  if not fits:
    raise UserError(
      f"task {config.task!r} cannot train model {config.model.name!r}; set config field 'task' or 'model.name' "
      f"(tasks: {', '.join(TASKS)}; models: {', '.join(models.MODELS)})"
    )


class Learner(NamedTuple):
  """One net and its optimizer; see `learner`.

  Attributes:
    params: shapes of its parameters.
    collections: shapes of its other variables.
    init: rng [2] -> State.
    specs: as `Task.specs`.
    step: (loss, augment, accumulate) -> train step, see `step.supervised`.
  """

  params: Any
  collections: Any
  init: Callable[[jax.Array], State]
  specs: State
  step: Callable


def learner(config, variables: Callable, devices: int, carry: Callable[[], Any] = lambda: None) -> Learner:
  """What every task with one net needs of it.

  Args:
    config: configs.base.Config.
    variables: rng [2] -> the net's first variables.
    devices: on which the step will be mapped.
    carry: () -> the first `State.carry`.

  Raises:
    UserError: an optimizer or schedule that cannot be, or patterns of `optim.freeze` that mean no parameter.
  """
  shards = devices if config.train.zero else 1
  params, collections = _split(jax.eval_shape(variables, jax.random.PRNGKey(0)))
  optim.require(config.optim.freeze, optim.paths(params), "optim.freeze")
  optimizer = optim.create(config.optim, config.train.steps, params, shards)

  def init(rng):
    params, collections = _split(variables(rng))
    ema = jax.tree.map(jnp.copy, params) if config.train.ema_decay is not None else None
    return State(jnp.zeros([], jnp.int32), rng, params, collections, optimizer.init(params), ema, carry())

  def make(loss, augment=lambda rng, batch: batch, accumulate=None):
    plan = sharding.plan(params, shards)
    accumulate = microbatches(config, devices, params, collections) if accumulate is None else accumulate
    return step.supervised(
      loss=loss, optimizer=optimizer, plan=plan, augment=augment, accumulate=accumulate,
      ema_decay=config.train.ema_decay,
    )  # fmt: skip

  specs = step.specs(jax.eval_shape(init, jax.random.PRNGKey(0)), shards)
  return Learner(params, collections, init, specs, make)


def _split(variables):
  collections = dict(variables)
  return collections.pop("params"), collections


def microbatches(config, devices: int, params, collections) -> int:
  """Microbatches of a step.

  On CPUs the default cuts a device's batch into slices of at most eight examples, whose activations stay in the cache
  from the forward pass to the backward pass; not where batch statistics would then be those of a slice, nor where the
  parameters, whose gradient every slice adds to, weigh more than activations would.

  Args:
    config: configs.base.Config.
    devices: over which the batch is split.
    params: of the model, arrays or shapes.
    collections: of the model; {} if it has parameters only.
  """
  if config.train.accumulate is not None:
    return config.train.accumulate
  local = config.data.batch_size // devices
  if collections or jax.default_backend() != "cpu" or sum(x.size for x in jax.tree.leaves(params)) > MANY:
    return 1
  return local // next(size for size in (8, 7, 6, 5, 4, local) if local % size == 0)


def module(config, **given):
  """The config's model with what the data and the training settle: `given`, the compute type, the batch-norm axis.

  Args:
    config: configs.base.Config; `model.fields` hold the rest.
    **given: fields that follow from the data, such as num_classes.
  """
  given |= {"dtype": jnp.dtype(config.train.dtype), "axis_name": DATA if config.train.sync_batchnorm else None}
  plain = models.create(config.model.name)
  known = {f.name for f in dataclasses.fields(plain)}
  if settled := sorted(set(given) & known & set(config.model.fields) - {"axis_name"}):
    raise UserError(f"config field 'model.fields.{settled[0]}' follows from the data or train.dtype; leave it out")
  return models.create(config.model.name, **{k: v for k, v in given.items() if k in known} | config.model.fields)
