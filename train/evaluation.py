"""Evaluating: one state, or several as an ensemble, on every example of a split exactly once."""

import re
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from flaxonomy.configs import base
from flaxonomy.data import pipeline
from flaxonomy.train import step
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import State, Task

PICTURED = 40  # examples shown in pictures


def eval_function(members: list[Task], feed: pipeline.Feed, mesh: Mesh):
  """Compiled (states, carries, resident, item) -> (sums, outputs [B, ...], carries); see `Task.carry`.

  Outputs are averaged over the members.
  """

  def evaluate(states, carries, resident, item):
    batch = feed.fetch(resident, item)
    states = [state.replace(carry=carry) for state, carry in zip(states, carries)]
    outputs = [task.predict_step(state, batch) for task, state in zip(members, states)]
    carries = [each.pop("carry", None) for each in outputs]
    outputs = jax.tree.map(lambda *x: sum(x) / len(x), *outputs) if len(outputs) > 1 else outputs[0]
    return jax.lax.psum(members[0].score(outputs, batch), DATA), outputs, carries

  return step.pmapped(evaluate, mesh, (P(), P(DATA), P(), P(DATA)), (P(), P(DATA), P(DATA)))


class Evaluation(NamedTuple):
  """Metrics over a split, and what its first examples became."""

  metrics: dict[str, float]
  sums: dict
  batch: dict
  outputs: dict
  files: dict = {}  # by name, of a task's review


def evaluate(
  function, task: Task, feed: pipeline.Feed, states: list[State], stop: Callable[[], bool] = lambda: False
) -> Evaluation | None:
  """Evaluates states, as an ensemble if several, on every example of a split exactly once.

  Args:
    function: from `eval_function`.
    task: the first member given to it.
    feed: as given to it.
    states: one or more.
    stop: asked before every batch.

  Returns:
    None if it was stopped.
  """
  states = [state.replace(opt_state=None, carry=None) for state in states]
  of = task.review.of if task.review else ()
  sums, held, first, before, carries = [], [], None, None, None
  for item in feed.eval_items():
    if stop():
      return None
    if carries is None:
      carries = [task.carry and task.carry(len(item["index"])) for _ in states]
    part, outputs, carries = function(states, carries, feed.resident, item)
    first = (item["index"], outputs) if first is None else first
    if before is not None:  # read one behind: XLA's CPU backend deadlocks with many dispatches under way
      sums.append(jax.device_get(before[0]))
      held.append(jax.tree.map(local_rows, before[1]))
    before = part, (item["index"], {name: outputs[name] for name in of})
  sums.append(jax.device_get(before[0]))
  held.append(jax.tree.map(local_rows, before[1]))
  total = jax.tree.map(lambda *x: np.sum(x, axis=0, dtype=np.float64), *sums)
  index, outputs = jax.tree.map(local_rows, first)
  real = np.flatnonzero(index >= 0)[:PICTURED]
  outputs = {key: x[real] for key, x in outputs.items()}
  more, files = task.review.report(_kept(task.review, feed, held)) if task.review else ({}, {})
  return Evaluation(task.metrics(total) | more, total, feed.read(index[real].tolist()), outputs, files)


def _kept(review, feed, held) -> list:
  """What a task keeps of all examples, in every process, from (index, outputs) of this process's rows of each batch."""
  kept = []
  for rows in held:
    if jax.process_count() > 1:  # not before all batches are done: collectives under way at once may deadlock
      rows = multihost_utils.process_allgather(rows, tiled=True)
    index, outputs = rows
    real = np.flatnonzero(index >= 0)
    kept += review.keep(feed.texts(index[real].tolist()), {name: x[real] for name, x in outputs.items()})
  return kept


def local_rows(x: jax.Array) -> np.ndarray:
  """This process's rows of an array split along its first axis."""
  shards = {s.index[0].start or 0: s.data for s in x.addressable_shards}
  return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def split_name(config: base.Config) -> str:
  """What metrics of the evaluation split are called: its name; "validation" for a part of the training split."""
  name = re.match(r"\w*", config.data.eval_split)[0]
  return "validation" if name == re.match(r"\w*", config.data.train_split)[0] else name
