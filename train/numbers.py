"""Numbers going bad: found in every step, on all devices alike, and what is done about it.

`train.on_nan` is one of

  stop      the run ends with the step, the first bad leaf, the batch and the last good checkpoint in one line
  skip      the step leaves the state as it was, but for its number; costs a second copy of the state in memory
  rollback  back to the last good checkpoint, and past the bad batch without it

`optax.apply_if_finite` lets the NaN through after its limit; here `train.nan_limit` bad steps among the last 1,000 end
the run, and no state that is not finite is ever saved.
"""

import collections
import math
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from flaxonomy.errors import NumericError, warn
from flaxonomy.train import processes
from flaxonomy.train.sharding import DATA

BAD = "bad_leaf"  # the metric: number of the first leaf that is not finite, -1 if all are
WINDOW = 1000  # steps over which bad ones are counted


class Rollback(Exception):  # noqa: N818
  """The loop is to go on from the last good checkpoint."""


def guarded(train_step, skip: bool):
  """A train step that looks at what it made.

  Args:
    train_step: a Task's.
    skip: keep the state before the step, with the next step's number, where something is not finite.

  Returns:
    (state, batch) -> (state, metrics), with the metric `BAD`, int32, equal on all devices: an index into
    `leaf_names`.
  """

  def step(state, batch):
    new, metrics = train_step(state, batch)
    finite = jnp.stack([jnp.isfinite(x).all() for _, x in _floats((new, metrics))])
    first = lax.pmin(jnp.where(finite.all(), finite.size, jnp.argmin(finite)), DATA)
    bad = jnp.where(first == finite.size, -1, first).astype(jnp.int32)
    if skip:
      kept = jax.tree.map(lambda before, after: jnp.where(bad < 0, after, before), state, new)
      new = kept.replace(step=new.step)
    return new, metrics | {BAD: bad}

  return step


def _floats(tree):
  return [(path, x) for path, x in jax.tree_util.tree_leaves_with_path(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def leaf_names(state, metrics) -> list[str]:
  """Names of what `guarded` looks at: "params/conv1_1/kernel", ..., then "metric loss", ...

  Args:
    state: arrays or shapes.
    metrics: the metrics' names.
  """
  found = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in _floats(state)]
  return found + [f"metric {name}" for name in sorted(metrics)]


class Health:
  """What is known of a run's bad steps, and the verdict on a new one."""

  def __init__(self, policy: str, limit: int, batch_size: int, state, bad_steps=()):
    """Takes up the count where the last checkpoint left it.

    Args:
      policy: train.on_nan.
      limit: so many bad steps among the last `WINDOW` end the run.
      batch_size: of the run, for the batch's position.
      state: the run's, arrays or shapes.
      bad_steps: counted from 1, as metrics.jsonl does.
    """
    self.policy, self.bad_steps = policy, sorted(set(bad_steps))
    self._limit, self._batch, self._state = limit, batch_size, state
    self._losses, self._usual = collections.deque(maxlen=200), None

  @property
  def left_out(self) -> list[int]:
    """The steps whose batches are not to be seen again."""
    return self.bad_steps if self.policy == "rollback" else []

  def see(self, step: int, bad: int, row: dict, last_good: Callable[[], int | None]) -> None:
    """Judges a step.

    Args:
      step: counted from 1.
      bad: its `BAD`.
      row: its metrics.
      last_good: gives the newest checkpoint.

    Raises:
      NumericError: the run is to stop.
      Rollback: it is to go back.
    """
    if bad < 0:
      self._spike(step, row.get("loss"))
      return
    if step not in self.bad_steps:
      self.bad_steps = [*self.bad_steps, step]
    told = self._describe(step, bad, row, last_good())
    recent = sum(s > step - WINDOW for s in self.bad_steps)
    if self.policy == "stop":
      raise NumericError(f"{told}; lower optim.lr, set optim.clip_norm, or train.on_nan to skip or rollback")
    if recent >= self._limit:
      raise NumericError(f"{told}; {recent} bad steps among the last {WINDOW}, train.nan_limit is {self._limit}")
    if self.policy == "rollback":
      _warn(f"{told}; going back to it, and on without that batch ({recent} of at most {self._limit - 1})")
      raise Rollback
    _warn(f"{told}; skipped ({recent} of at most {self._limit - 1})")

  def _describe(self, step, bad, row, last_good) -> str:
    wrong = ", ".join(f"{name} {value}" for name, value in row.items() if not math.isfinite(value))
    first = (step - 1) * self._batch
    leaf = leaf_names(self._state, row)[bad]
    return (
      f"step {step}: numbers are not finite ({wrong or 'metrics are'}); first bad leaf {leaf}; batch at "
      f"positions {first} to {first + self._batch - 1} of the training order; last good checkpoint: "
      f"{'none, the start' if last_good is None else last_good}"
    )

  def _spike(self, step, loss):
    """Warns of a loss far outside what the last 200 steps showed, at most once in 50."""
    if loss is None:
      return
    self._losses.append(loss)
    if self._usual and loss > 3 * self._usual[0] and loss > self._usual[0] + 30 * self._usual[1]:
      middle, spread = self._usual
      _warn(f"step {step}: loss {loss:.4g}, where the last {len(self._losses)} steps had {middle:.4g} +- {spread:.2g}")
      self._usual = None
    if step % 50 == 0 and len(self._losses) == self._losses.maxlen:
      middle = statistics.median(self._losses)
      self._usual = middle, statistics.median(abs(x - middle) for x in self._losses)


def _warn(line):
  if processes.first():  # all come to the same verdict
    warn(line)
