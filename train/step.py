"""The train step: State, Task, the supervised step, and the mapping over devices.

A step is written per device, as for `jax.pmap`: it sees its own slice of the batch and the named axis `DATA`, sums
gradients over it, and folds the device's index into its randomness. `pmapped` maps it over a mesh.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from flaxonomy.train import sharding
from flaxonomy.train.sharding import DATA


class State(flax.struct.PyTreeNode):
  """All that a run carries from step to step.

  Attributes:
    step: [] int32, updates made so far.
    rng: [2] uint32, the run's key; a step folds its number into it.
    params: trainable parameters, float32.
    collections: the model's other variables, such as "batch_stats"; equal on all devices.
    opt_state: the optimizer's state.
    ema: exponential moving average of params, or None.
    carry: what a recurrent model carries over from one window of a stream to the next, arrays [B, ...] split over the
      devices as batches are; or None.
  """

  step: jax.Array
  rng: jax.Array
  params: Any
  collections: Any
  opt_state: Any
  ema: Any = None
  carry: Any = None

  def variables(self):
    """The variables to evaluate: the averaged parameters where there are any."""
    return {"params": self.params if self.ema is None else self.ema, **self.collections}


class Task(NamedTuple):
  """A kind of problem as pure functions. Batches are dicts of arrays, see data/__init__.py.

  Attributes:
    init: rng [2] -> State, whole leaves.
    train_step: (State, batch) -> (State, metrics), per device inside the mapped axis; metrics are float32 scalars,
      equal on all devices.
    predict_step: (State, batch) -> outputs, a dict of arrays [B, ...], per device. State and batch are read only.
    score: (outputs, batch) -> sums, a dict of float32 arrays to be added over devices and batches; examples whose
      mask is 0 add nothing.
    metrics: sums (NumPy, float64) -> {name: float}, the field's metrics, named without a split.
    measures: names of the metrics.
    best: the one that picks the best checkpoint; a leading "-" means lower is better.
    pictures: (batch, outputs, sums) -> {file name: matplotlib figure}, from the first examples of the evaluation.
    augment: (rng, batch) -> batch, per device: what training does to a batch before the model sees it.
    specs: State of PartitionSpecs, how the state lies on the devices.
    serve: what `export` exports; None if nothing is served.
    table: (outputs, names) -> (header, rows, captions) for `predict`; None if the task labels nothing.
    given: what a user named -> Given, for `predict`; there where `table` is.
    follow: (variables, files) -> {file name: figure or text}: what goes on where these end, for `predict`; None if
      the task labels items or nothing.
    read: lines of text -> Given, for chat; None if no answer is a text. The first column of `table` is the answer.
    averaged: outputs are probabilities, of which an ensemble's are the mean.
    traces: outputs of the first examples of the evaluation -> {name: [N]}, numbers along a line, which a study lays
      over each other; None if there are none.
    carry: B -> what the state carries over before the first batch of B examples; None if nothing is. The outputs of
      `predict_step` then have it behind the batch, as "carry".
    review: of metrics that are no sums over examples; None: all are.
    told: (names, captions) -> {file name: figure or text}: what `predict` writes of all items together.
    tiles: (batch, whether it has been augmented) -> images [B, H, W, C] uint8 for a preview; None if there are none.
    finish: (State, pipeline.Feed of the training split) -> State: fits behind the last step what gradient descent does
      not; None if there is nothing.
  """

  init: Callable[[jax.Array], State]
  train_step: Callable[[State, dict], tuple[State, dict]]
  predict_step: Callable[[State, dict], dict]
  score: Callable[[dict, dict], dict]
  metrics: Callable[[dict], dict]
  measures: tuple[str, ...]
  best: str
  pictures: Callable[[dict, dict, dict], dict]
  augment: Callable[[jax.Array, dict], dict]
  specs: State
  serve: "Serve | None" = None
  table: Callable | None = None
  given: "Callable[[list[str]], Given] | None" = None
  follow: Callable | None = None
  read: "Callable[[list[str]], Given] | None" = None
  averaged: bool = False
  traces: Callable[[dict], dict] | None = None
  carry: Callable[[int], Any] | None = None
  review: "Review | None" = None
  told: Callable[[list[str], list], dict] | None = None
  tiles: Callable[[dict, bool], Any] | None = None
  finish: Callable | None = None


class Review(NamedTuple):
  """What an evaluation keeps on the host of every example, each once, and what it makes of all of it.

  Attributes:
    of: names of the outputs that are read.
    keep: (texts, outputs) -> a list, an entry for each example: texts as from `pipeline.Feed`, outputs [n, ...] NumPy.
    report: (all entries in order) -> ({name: float}, more metrics; {file name: matplotlib figure or text}).
  """

  of: tuple[str, ...]
  keep: Callable[[list, dict], list]
  report: Callable[[list], tuple[dict, dict]]


class Serve(NamedTuple):
  """What is exported: `call(variables, x) -> dict of arrays`; x [b, *shape] of dtype, drawn by `example(rng, b)`."""

  call: Callable[[Any, jax.Array], dict]
  shape: tuple[int, ...]
  dtype: Any
  example: Callable[[Any, int], Any]


class Given(NamedTuple):
  """What a user gives to `predict`.

  Attributes:
    kind: what the names are, the head of their column.
    names: one for each item.
    batch: (first, end) -> batch of these items, NumPy arrays [end - first, ...].
    draw: (item, caption) -> (file name, PIL image), or None where there is no picture of one.
  """

  kind: str
  names: list[str]
  batch: Callable[[int, int], dict]
  draw: Callable[[int, str], tuple[str, Any]] | None = None


class Made(NamedTuple):
  """What the forward pass of a step makes.

  Attributes:
    sums: {name: (sum, weight)}, each [] float32, over the local examples. The first entry is minimised: its sum over
      all devices and microbatches divided by its weight over the same, so that unequal weights (masks, tokens) count
      right.
    collections: the model's other variables after it.
    carry: as `State.carry`.
  """

  sums: dict
  collections: Any
  carry: Any = None


def supervised(*, loss, optimizer, plan, augment, accumulate: int = 1, ema_decay: float | None = None):
  """A train step for one set of parameters and one optimizer.

  Args:
    loss: (params, collections, batch, rng) -> Made; the batch has the state's "carry" where there is one.
    optimizer: optim.Optimizer.
    plan: sharding.Plan of the parameters.
    augment: (rng, batch) -> batch, keyed by each example's index; sees the device's whole batch.
    accumulate: microbatches; the local batch must be divisible by it. Batch statistics are each microbatch's own.
    ema_decay: of the average of parameters, rising as min(decay, (1 + t) / (10 + t)); None: no average.

  Returns:
    train_step(state, batch) -> (state, metrics), see `Task`.
  """

  def train_step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    batch = augment(rng, batch)
    rng = jax.random.fold_in(rng, lax.axis_index(DATA))
    params = plan.gather(state.params)
    if state.carry is not None:
      batch = batch | {"carry": state.carry}
    grads, (sums, collections, carry) = _gradient(loss, params, state.collections, batch, rng, accumulate)
    grads, sums = plan.sum(grads, sums)
    weight = jnp.maximum(next(iter(sums.values()))[1], 1e-8)
    grads = jax.tree.map(lambda g: g / weight, grads)
    params, opt_state, info = optimizer.update(grads, state.opt_state, state.params, state.step)
    state = state.replace(
      step=state.step + 1,
      params=params,
      collections=lax.pmean(collections, DATA),
      opt_state=opt_state,
      ema=average(state.ema, params, ema_decay, state.step),
      carry=carry,
    )
    return state, {name: total / jnp.maximum(w, 1e-8) for name, (total, w) in sums.items()} | info

  return train_step


def _gradient(loss, params, collections, batch, rng, accumulate) -> tuple[Any, Made]:
  """Gradient of the summed loss over the local batch, and what was made of the batch."""

  def objective(params, collections, batch, rng):
    made = loss(params, collections, batch, rng)
    return next(iter(made.sums.values()))[0], made

  gradient = jax.grad(objective, has_aux=True)
  if accumulate == 1:
    return gradient(params, collections, batch, rng)

  def micro(before, each):
    grads, sums, collections = before
    i, part = each
    more, made = gradient(params, collections, part, jax.random.fold_in(rng, i))
    after = (jax.tree.map(jnp.add, grads, more), jax.tree.map(jnp.add, sums, made.sums), made.collections)
    return after, made.carry

  parts = jax.tree.map(lambda x: x.reshape(accumulate, x.shape[0] // accumulate, *x.shape[1:]), batch)
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(jnp.zeros_like, params)
  shapes = jax.eval_shape(lambda: gradient(params, collections, first, rng)[1].sums)
  start = (zeros, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), collections)
  (grads, sums, collections), carries = lax.scan(micro, start, (jnp.arange(accumulate), parts))
  return grads, Made(sums, collections, jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), carries))


def average(ema, params, decay, step):
  """The moving average after one more update; None where there is none. Leaf-wise, so shards will do."""
  if ema is None:
    return None
  d = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
  return jax.tree.map(lambda e, p: e * d + p * (1 - d), ema, params)


def specs(state: State, shards: int) -> State:
  """How a state lies on the devices: parameters, optimizer state and average cut by their plans, the rest whole.

  Args:
    state: of arrays or shapes, whole.
    shards: devices to cut over, 1 for a state that every device holds whole.
  """
  cut = {name: sharding.plan(getattr(state, name), shards).specs for name in ("params", "opt_state", "ema")}
  cut["carry"] = jax.tree.map(lambda _: P(DATA), state.carry)
  return jax.tree.map(lambda _: P(), state.replace(**dict.fromkeys(cut))).replace(**cut)


def pmapped(f, mesh, in_specs, out_specs, donate: bool = False):
  """Maps a per-device function over the mesh, as `jax.pmap` does since JAX 0.8, without a device axis on the state.

  Args:
    f: function of trees of arrays.
    mesh: with the one axis `DATA`.
    in_specs: PartitionSpecs (trees, or prefixes) of the arguments: P() whole, P(DATA) split along the first axis.
    out_specs: of the results; a result with P() must be equal on all devices.
    donate: the first argument's buffers are reused for the results.

  Returns:
    The compiled function. `check_vma=False` is load-bearing: with the default, the gradient of replicated parameters
    is summed over the devices before our own sum, silently.
  """
  mapped = jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
  return jax.jit(mapped, donate_argnums=0 if donate else ())


def many(train_step, fetch, most: int):
  """A function that makes up to `most` steps in one dispatch.

  The number of steps is an argument, so that one compiled loop serves every stretch and each step is the same machine
  code wherever the stretch begins: a run that stops anywhere and resumes is the same to the last bit.

  Args:
    train_step: a Task's.
    fetch: (resident, item) -> batch, see pipeline.Feed.
    most: steps for which items are stacked; 1 compiles no loop.

  Returns:
    run(state, resident, items, count) -> (state, metrics): items have a leading axis [most], of which the first
    `count` are used; metrics are [most], zeros after the first `count`.
  """

  def run(state, resident, items, count):
    def one(i, state):
      return train_step(state, fetch(resident, jax.tree.map(lambda x: x[i], items)))

    if most == 1:
      state, metrics = one(0, state)
      return state, jax.tree.map(lambda m: m[None], metrics)

    def body(i, carry):
      state, metrics = one(i, carry[0])
      return state, jax.tree.map(lambda row, m: row.at[i].set(m), carry[1], metrics)

    shapes = jax.eval_shape(lambda state: one(0, state)[1], state)
    rows = jax.tree.map(lambda s: jnp.zeros((most, *s.shape), s.dtype), shapes)
    return lax.fori_loop(0, count, body, (state, rows))

  return run
