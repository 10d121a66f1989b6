"""One file for each kind of problem; `build` turns a config and what is known of its data into a Task."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp

from flaxonomy import models
from flaxonomy.errors import UserError, unknown
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import Task

TASKS = {  # by name: the module of train/tasks, and that of data/ which reads what it learns from
  "classification": ("classification", "pipeline"),
  "gan": ("gan", "pipeline"),
  "language_model": ("language_model", "streams"),
  "translation": ("translation", "pairs"),
  "text_classification": ("text_classification", "sentences"),
  "forecasting": ("forecasting", "series"),
}

DESCRIBED = {
  "pipeline": "image_shape",
  "streams": "tokenizers",
  "series": "series",
  "sentences": "tokenizers",
  "pairs": "tokenizers",
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
