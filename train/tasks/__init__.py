"""One file for each kind of problem; `build` turns a config and what is known of its data into a Task."""

import dataclasses
import importlib

import jax.numpy as jnp
from flaxonomy import models
from flaxonomy.errors import unknown
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import Task

TASKS = {
  "classification": "flaxonomy.train.tasks.classification",
  "gan": "flaxonomy.train.tasks.gan",
}


def build(config, info, devices: int) -> Task:
  """The task that a config names.

  Args:
    config: configs.base.Config.
    info: data.pipeline.Info.
    devices: on which the step will be mapped.

  Raises:
    UserError: unknown task, model, field, optimizer or schedule.
  """
  if config.task not in TASKS:
    raise unknown("task", config.task, TASKS, "(config field 'task')")
  return importlib.import_module(TASKS[config.task]).build(config, info, devices)


def module(config, **given):
  """The config's model with what the data and the training settle: `given`, the compute type, the batch-norm axis.

  Args:
    config: configs.base.Config; `model.fields` overrule the rest.
    **given: fields that follow from the data, such as num_classes.
  """
  given |= {"dtype": jnp.dtype(config.train.dtype), "axis_name": DATA if config.train.sync_batchnorm else None}
  plain = models.create(config.model.name)
  known = {f.name for f in dataclasses.fields(plain)}
  return models.create(config.model.name, **{k: v for k, v in given.items() if k in known} | config.model.fields)
