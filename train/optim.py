"""Optimizers and learning-rate schedules by name, over optax.

Where optax's defaults differ from the papers', ours are the papers'; where the papers leave a number open, torch's:

  adagrad   accumulator 0, epsilon 1e-10 (optax .1 and 1e-7); Duchi et al. 2011
  adadelta  rho .9, epsilon 1e-6, lr is a factor (1 in the paper); Zeiler 2012
  rmsprop   decay .99, epsilon outside the root (optax .9, inside); Hinton 2012, as torch
  adam      betas .9 .999, epsilon 1e-8, weight_decay is L2 in the gradient; Kingma and Ba 2014
  adamw     weight_decay decoupled, times lr; Loshchilov and Hutter 2017
  lars      trust .001, momentum .9; You et al. 2017
  lamb      epsilon 1e-6; You et al. 2019
  muon      Jordan 2024: matrices orthogonalised, convolution kernels as [kh kw I, O]; vectors by Adam, undecayed
  sgd, momentum, nesterov   velocity v = m v + g, step lr v, as torch; weight_decay is L2 in the gradient

Weight decay skips the paths that `weight_decay_exclude` matches; lars and lamb take no trust ratio there either.

Deviations: lars divides by |g + wd w| as optax does, where the paper has |g| + wd |w|; muon orthogonalises the output
layer too, which Jordan leaves to AdamW; one_cycle moves the learning rate only, not the momentum. An optimizer's
setting that the named one does not read, and boundaries without the schedule "step", are refused rather than ignored.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from flaxonomy.errors import UserError, unknown
from flaxonomy.train import sharding


class Optimizer(NamedTuple):
  """A pair of pure functions.

  `init(params) -> opt_state` takes whole leaves. `update(grads, opt_state, params, step) -> (params, opt_state, info)`
  takes leaves cut by the plan for parameters; step counts the updates made so far; info holds float32 scalars: "lr",
  and "grad_norm" before clipping.
  """

  init: Callable[[Any], Any]
  update: Callable[[Any, Any, Any, jax.Array], tuple[Any, Any, dict]]


def create(optim, steps: int, params, shards: int = 1) -> Optimizer:
  """The optimizer that a config names.

  Args:
    optim: configs.base.Optim.
    steps: of the whole run, for schedules that end with it.
    params: tree of arrays or shapes, whole; only its structure and shapes are used.
    shards: devices over which parameters and state are cut (ZeRO); 1: not.

  Raises:
    UserError: unknown optimizer or schedule; a pattern that is no regular expression.
  """
  rate = schedule(optim, steps)
  tx = _named(optim, rate, params)
  _refuse_unread(optim)
  plan = sharding.plan(params, shards)
  frozen = matches(params, optim.freeze)
  if optim.freeze:
    labels = jax.tree.map(lambda f: "frozen" if f else "trained", frozen)
    tx = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, labels)
  if optim.name in _NEED_WHOLE_LEAVES and shards > 1:
    tx = _on_whole_leaves(tx, params, shards)

  def update(grads, opt_state, params, step):
    grads = jax.tree.map(lambda f, g: jnp.zeros_like(g) if f else g, frozen, grads)
    norm = jnp.sqrt(plan.squared_norm(grads))
    if optim.clip_norm is not None:
      factor = jnp.minimum(1.0, optim.clip_norm / (norm + 1e-6))  # as torch's clip_grad_norm_
      grads = jax.tree.map(lambda g: g * factor, grads)
    updates, opt_state = tx.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state, {"lr": jnp.float32(rate(step)), "grad_norm": norm}

  return Optimizer(tx.init, update)


_READS = {
  "sgd": (),
  "momentum": ("momentum",),
  "nesterov": ("momentum",),
  "adagrad": ("eps",),
  "adadelta": ("rho", "eps"),
  "rmsprop": ("rho", "eps", "centered", "momentum"),
  "adam": ("b1", "b2", "eps"),
  "adamw": ("b1", "b2", "eps"),
  "lars": ("momentum", "eps"),
  "lamb": ("b1", "b2", "eps"),
  "muon": ("momentum", "b1", "b2"),
}


def _refuse_unread(optim):
  """Raises UserError for a setting that the named optimizer would ignore in silence."""
  for field in ("momentum", "b1", "b2", "rho", "eps", "centered"):
    if getattr(optim, field) not in (None, False) and field not in _READS[optim.name]:
      reads = ", ".join(f"optim.{name}" for name in _READS[optim.name]) or "none of these"
      raise UserError(f"optimizer {optim.name!r} does not read config field 'optim.{field}'; it reads {reads}")
  if optim.boundaries and optim.schedule != "step":
    raise UserError(f"schedule {optim.schedule!r} does not read config field 'optim.boundaries'; schedule 'step' does")


def paths(tree) -> list[str]:
  """The "module/leaf" path of every leaf, in the tree's order."""
  return ["/".join(str(k.key) for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def matches(params, patterns: tuple[str, ...]):
  """Tree of bools: whether any of the regular expressions is found in the leaf's "module/leaf" path.

  Raises:
    UserError: a pattern is not a regular expression.
  """
  compiled = _compiled(patterns)
  found = [any(c.search(path) for c in compiled) for path in paths(params)]
  return jax.tree.unflatten(jax.tree.structure(params), found)


def require(patterns: tuple[str, ...], names: list[str], field: str) -> None:
  """Refuses patterns that find nothing.

  Args:
    patterns: regular expressions.
    names: paths of all parameters that they may mean, those of several nets together.
    field: the config field that they stand in.

  Raises:
    UserError: a pattern is not a regular expression or finds nothing.
  """
  for c in _compiled(patterns):
    if not any(map(c.search, names)):
      raise unknown(f"parameter in config field {field!r}:", c.pattern, names)


def _compiled(patterns):
  try:
    return [re.compile(p) for p in patterns]
  except re.error as error:
    raise UserError(f"pattern {error.pattern!r} is not a regular expression: {error}") from None


def _named(optim, rate, params) -> optax.GradientTransformation:
  """The optax transformation of a config, on whole leaves, without clipping and freezing."""
  if optim.name not in OPTIMIZERS:
    raise unknown("optimizer", optim.name, OPTIMIZERS, "(config field 'optim.name')")
  decayed = jax.tree.map(lambda excluded: not excluded, matches(params, optim.weight_decay_exclude))
  return OPTIMIZERS[optim.name](optim, rate, decayed)


def _or(value, default):
  return default if value is None else value


def _l2(optim, decayed, tx):
  """Weight decay as L2: w added to the gradient before everything else."""
  return optax.chain(optax.add_decayed_weights(optim.weight_decay, decayed), tx) if optim.weight_decay else tx


def _betas(optim, eps):
  return {"b1": _or(optim.b1, 0.9), "b2": _or(optim.b2, 0.999), "eps": _or(optim.eps, eps)}


def _sgd(optim, rate, decayed):
  return _l2(optim, decayed, optax.sgd(rate))


def _momentum(optim, rate, decayed):
  return _l2(optim, decayed, optax.sgd(rate, momentum=_or(optim.momentum, 0.9)))


def _nesterov(optim, rate, decayed):
  return _l2(optim, decayed, optax.sgd(rate, momentum=_or(optim.momentum, 0.9), nesterov=True))


def _adagrad(optim, rate, decayed):
  return _l2(optim, decayed, optax.adagrad(rate, initial_accumulator_value=0.0, eps=_or(optim.eps, 1e-10)))


def _adadelta(optim, rate, decayed):
  return _l2(optim, decayed, optax.adadelta(rate, rho=_or(optim.rho, 0.9), eps=_or(optim.eps, 1e-6)))


def _rmsprop(optim, rate, decayed):
  tx = optax.rmsprop(rate, decay=_or(optim.rho, 0.99), eps=_or(optim.eps, 1e-8), eps_in_sqrt=False,
                     centered=optim.centered, momentum=optim.momentum)  # fmt: skip
  return _l2(optim, decayed, tx)


def _adam(optim, rate, decayed):
  return _l2(optim, decayed, optax.adam(rate, **_betas(optim, 1e-8)))


def _adamw(optim, rate, decayed):
  return optax.adamw(rate, **_betas(optim, 1e-8), weight_decay=optim.weight_decay, mask=decayed)


def _lars(optim, rate, decayed):
  return optax.lars(rate, optim.weight_decay, decayed, eps=_or(optim.eps, 0.0), trust_ratio_mask=decayed,
                    momentum=_or(optim.momentum, 0.9))  # fmt: skip


def _lamb(optim, rate, decayed):
  """optax.lamb, but for the leaves without weight decay, which take no trust ratio."""
  betas = _betas(optim, 1e-6)
  return optax.chain(
    optax.scale_by_adam(**betas),
    optax.add_decayed_weights(optim.weight_decay, decayed),
    optax.masked(optax.scale_by_trust_ratio(), decayed),
    optax.scale_by_learning_rate(rate),
  )


def _muon(optim, rate, decayed):
  def matrices(params):
    kinds = {2: optax.contrib.MuonDimensionNumbers(0, 1), 4: optax.contrib.MuonDimensionNumbers((0, 1, 2), 3)}
    return jax.tree.map(lambda p: kinds.get(p.ndim), params)

  return optax.contrib.muon(rate, beta=_or(optim.momentum, 0.95), weight_decay=optim.weight_decay,
                            weight_decay_mask=decayed, adam_b1=_or(optim.b1, 0.9), adam_b2=_or(optim.b2, 0.999),
                            muon_weight_dimension_numbers=matrices)  # fmt: skip


OPTIMIZERS = {
  "sgd": _sgd,
  "momentum": _momentum,
  "nesterov": _nesterov,
  "adagrad": _adagrad,
  "adadelta": _adadelta,
  "rmsprop": _rmsprop,
  "adam": _adam,
  "adamw": _adamw,
  "lars": _lars,
  "lamb": _lamb,
  "muon": _muon,
}

_NEED_WHOLE_LEAVES = ("lars", "lamb", "muon")  # norms of leaves, or their singular vectors


def _on_whole_leaves(tx, params, shards):
  """The same transformation on cut leaves: gathers each leaf, updates it whole, keeps the device's own shard."""
  plan = sharding.plan(params, shards)
  state_plan = sharding.plan(jax.eval_shape(tx.init, params), shards)

  def update(grads, state, params):
    updates, state = tx.update(plan.gather(grads), state_plan.gather(state), plan.gather(params))
    return plan.cut(updates), state_plan.cut(state)

  return optax.GradientTransformation(tx.init, update)


def schedule(optim, steps: int) -> Callable[[jax.Array], jax.Array]:
  """The learning rate as a function of the updates made so far.

  Args:
    optim: configs.base.Optim; over `warmup_steps` the rate first rises linearly from 0 to the schedule's first value.
    steps: of the whole run, warm-up included.

  Raises:
    UserError: unknown schedule, or a warm-up longer than the run.
  """
  if optim.schedule not in SCHEDULES:
    raise unknown("schedule", optim.schedule, SCHEDULES, "(config field 'optim.schedule')")
  if optim.schedule == "noam":
    return _noam(optim)
  if optim.warmup_steps and optim.warmup_steps >= steps:
    raise UserError(f"config field 'optim.warmup_steps' ({optim.warmup_steps}) must be below 'train.steps' ({steps})")
  main = SCHEDULES[optim.schedule](optim, steps - optim.warmup_steps)
  if not optim.warmup_steps:
    return main
  rise = optax.linear_schedule(0.0, float(main(0)), optim.warmup_steps)
  return optax.join_schedules([rise, main], [optim.warmup_steps])


def _constant(optim, steps):
  return optax.constant_schedule(optim.lr)


def _step(optim, steps):
  """Lr times decay_rate at each boundary, counted from the start of the run."""
  after = [b - optim.warmup_steps for b in optim.boundaries]
  return optax.piecewise_constant_schedule(optim.lr, dict.fromkeys(after, optim.decay_rate))


def _exponential(optim, steps):
  return optax.exponential_decay(optim.lr, optim.decay_every, optim.decay_rate, staircase=optim.staircase)


def _cosine(optim, steps):
  """Loshchilov and Hutter 2016, without restarts."""
  return optax.cosine_decay_schedule(optim.lr, steps, alpha=optim.final_fraction)


def _linear(optim, steps):
  return optax.linear_schedule(optim.lr, optim.lr * optim.final_fraction, steps)


def _one_cycle(optim, steps):
  """Smith 2018 with cosine flanks: first value, peak and last value as torch's OneCycleLR places them."""
  first, last = optim.lr * optim.one_cycle_start, optim.lr * optim.one_cycle_start * optim.one_cycle_end
  up = max(optim.one_cycle_peak * steps - 1, 1e-6)
  down = max(steps - 1 - up, 1e-6)

  def rate(count):
    def flank(start, end, share):
      return end + (start - end) / 2 * (1 + jnp.cos(math.pi * jnp.clip(share, 0, 1)))

    return jnp.where(count <= up, flank(first, optim.lr, count / up), flank(optim.lr, last, (count - up) / down))

  return rate


def _noam(optim, steps=None):
  """Vaswani et al. 2017, section 5.3, equation 3; lr is a factor, the step counts from 1."""
  if optim.warmup_steps < 1:
    raise UserError("schedule 'noam' needs config field 'optim.warmup_steps' (4000 in the paper)")

  def rate(count):
    t = jnp.asarray(count + 1, jnp.float32)
    return optim.lr * optim.model_size**-0.5 * jnp.minimum(t**-0.5, t * optim.warmup_steps**-1.5)

  return rate


SCHEDULES = {
  "constant": _constant,
  "step": _step,
  "exponential": _exponential,
  "cosine": _cosine,
  "one_cycle": _one_cycle,
  "linear": _linear,
  "noam": _noam,
}
