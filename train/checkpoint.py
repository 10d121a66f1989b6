"""Checkpoints: state, data position and config in one atomic step. The only file that knows Orbax.

Each step is a folder `checkpoints/STEP` that appears whole or not at all. Writing goes on in the background after the
state has been copied to the host. Orbax does not look at what it reads back, so a step carries `checksums.json`,
written just before the folder gets its name, and is checked against it before it is restored.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from flaxonomy.errors import DataError, NumericError, UserError, first_line, unknown, warn
from flaxonomy.train import processes
from flaxonomy.train.report import write_text

SUMS = "checksums.json"
_STAMPED = ("_CHECKPOINT_METADATA", "commit_success.txt")  # Orbax writes to these after the sums are taken
_PARTIAL = ".orbax-checkpoint-tmp"


class _Manager(ocp.CheckpointManager):
  """Orbax's manager, but that it leaves the question whether to stop, which each process may ask once, to the loop."""

  def reached_preemption(self, step: int) -> bool:
    return False

  def _finalize(self, step, steps_to_remove):
    if jax.process_count() > 1:
      try:
        self._non_blocking_metadata_store.wait_until_finished()
        self._wait_for_checkpointers()
      except Exception as error:
        _end_if_several(error)
    super()._finalize(step, steps_to_remove)


def _end_if_several(error):
  """A write that fails in one of several processes would leave all waiting for one another: it ends this one."""
  if jax.process_count() > 1:
    warn(f"a checkpoint could not be written: {first_line(error)}; this process ends, and the others with it")
    os._exit(UserError.exit_code)


class Checkpoints:
  """The checkpoints of one workdir, and the metrics measured at each."""

  def __init__(self, workdir: Path, keep_last: int = 1, keep_best: int = 0, best: str = "", read_only: bool = False):
    """Opens, and unless `read_only` creates, the folder.

    Args:
      workdir: absolute.
      keep_last: newest steps that are kept.
      keep_best: steps with the best `best` metric that are kept as well.
      best: name of the metric; with a leading "-" lower is better.
      read_only: nothing is written or cleaned up.
    """
    self._folder, self._read_only = workdir / "checkpoints", read_only
    self._best, self._keep = best, (keep_last, keep_best)
    self._sound = set()  # steps known to be whole: written or restored by us
    self._saving, self._failures = None, 0
    self.metrics = self._read_metrics()
    if not read_only and processes.first():
      self._clear("*")
    self._manager = self._open()

  def _open(self):
    return _Manager(
      self._folder,
      item_handlers={
        "state": ocp.StandardCheckpointHandler(),
        "position": ocp.JsonCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self,
        create=not self._read_only,
        read_only=self._read_only,
        async_options=ocp.AsyncOptions(post_finalization_callback=self._write_sums),
      ),
    )

  def steps(self) -> list[int]:
    """The saved steps, ascending."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """The saved step with the best metric, or None."""
    return next(iter(self._ranked(self.steps())), None)

  def should_preserve(self, checkpoints, *, context) -> list[bool]:
    """Orbax's question which steps to keep: the newest, the best, and always the newest that is known to be whole."""
    steps = sorted(info.step for info in checkpoints)
    last, best = self._keep
    kept = {*steps[-last:], *self._ranked(steps)[:best], *sorted(self._sound & set(steps))[-1:]}
    return [info.step in kept for info in checkpoints]

  def measured(self, step: int, metrics: dict[str, float]) -> None:
    """Takes down what was measured at a step."""
    self.metrics[step] = metrics
    if processes.first():
      try:
        write_text(self._folder / "metrics.json", json.dumps(self.metrics) + "\n")
      except OSError as error:  # it is written whole the next time
        warn(f"cannot write to {str(self._folder)!r}: {error.strerror}")

  def save(self, step: int, state, position: dict, config: dict) -> bool:
    """Starts saving a step; does nothing if it is saved already.

    Returns:
      False if that is not possible and can be tried again at a later step; a warning says why.

    Raises:
      NumericError: the state is not finite; it is not saved.
      UserError: it was not possible the last time either.
    """
    self.poll(wait=True)
    if processes.together(lambda: step in self._manager.all_steps()):
      return True
    if bad := not_finite(state):
      raise NumericError(f"step {step} is not saved: {bad[0]} and {len(bad) - 1} other leaves are not finite")
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))
    free = processes.together(lambda: shutil.disk_usage(self._folder).free)
    if free < size:
      return self._failed(step, f"{size / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free in {str(self._folder)!r}")
    items = {
      "state": ocp.args.StandardSave(_fields(state)),
      "position": ocp.args.JsonSave(position | {"checksums": True}),
      "config": ocp.args.JsonSave(config),
    }
    self._saving = step
    try:
      self._manager.save(step, args=ocp.args.Composite(**items), force=True)
    except (OSError, ValueError) as error:
      _end_if_several(error)
      return self._failed(step, first_line(error))
    return True

  def poll(self, wait: bool = False) -> bool:
    """Looks after the save under way, and with `wait` waits for it.

    Returns:
      False if it failed; a warning says why.

    Raises:
      UserError: the save before failed as well.
    """
    if self._saving is None or not (wait or not self._manager.is_saving_in_progress()):
      return True
    step = self._saving
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError) as error:
      return self._failed(step, first_line(error))
    self._saving, self._failures = None, 0
    self._sound.add(step)
    return True

  def _failed(self, step, reason) -> bool:
    self._saving, self._failures = None, self._failures + 1
    with contextlib.suppress(Exception):  # it would tell of the same failure at every save to come
      self._manager.close()
    self._clear(step)
    self._manager = self._open()
    whole = f"saved steps: {', '.join(map(str, self.steps())) or 'none'}"
    if self._failures > 1:
      raise UserError(f"two checkpoints in a row could not be written, the last at step {step}: {reason}; {whole}")
    if processes.first():
      warn(f"checkpoint {step} could not be written: {reason}; {whole}; training goes on until the next")
    return False

  def _clear(self, step):
    """Removes what an interrupted save of a step left."""
    for partial in self._folder.glob(f"{step}{_PARTIAL}*"):
      shutil.rmtree(partial, ignore_errors=True)

  def restore(self, step: int, like):
    """A saved step.

    Args:
      step: one of `steps()`.
      like: State of ShapeDtypeStructs with the shardings to restore to.

    Returns:
      (state, position)

    Raises:
      DataError: the step is damaged.
      UserError: the saved state has other leaves, shapes or types.
    """
    known = step in self._sound
    if not known and (reason := processes.together(lambda: damage(self._folder / str(step)))):
      sound = [s for s in self.steps() if s != step]
      raise DataError(f"checkpoint {step} of {str(self._folder)!r} is damaged: {reason}; others: {sound}")
    self._check(step, like)
    items = {"state": ocp.args.StandardRestore(_fields(like)), "position": ocp.args.JsonRestore()}
    try:
      restored = self._manager.restore(step, args=ocp.args.Composite(**items))
    except Exception as error:  # whatever Orbax raises at files that are whole
      raise DataError(f"checkpoint {step} of {str(self._folder)!r} cannot be read: {first_line(error)}") from error
    self._sound.add(step)
    return like.replace(**restored["state"]), restored["position"]

  def newest(self) -> int | None:
    """The newest whole step; None if nothing was ever saved. Damaged newer ones are set aside as STEP.corrupt.

    Raises:
      UserError: there are steps, but none of them is whole. They are left as they are.
    """
    found, damaged = processes.together(self._search)
    if damaged and found is None:
      reasons = "; ".join(f"step {step}: {reason}" for step, reason in damaged)
      raise UserError(
        f"no checkpoint of {str(self._folder)!r} is whole: {reasons}; put one back, or type another --workdir"
      )
    for step, reason in damaged:
      self.set_aside(step, f"is damaged ({reason})", f", going back to {found}")
    if found is not None:
      self._sound.add(found)
    return found

  def set_aside(self, step: int, reason: str, then: str = "") -> None:
    """Renames a step to STEP.corrupt, so that nothing takes it for one, and says so."""
    name = processes.together(lambda: self._set_aside(step))
    if processes.first():
      warn(f"checkpoint {step} {reason}; {name}{then}")
    if not self._read_only:
      self._manager.reload()
    self._sound.discard(step)

  def _search(self):
    """(newest whole step or None, [[damaged step, reason], ...] from the newest on)."""
    damaged = []
    for step in reversed(self.steps()):
      reason = damage(self._folder / str(step))
      if reason is None:
        return step, damaged
      if (self._folder / str(step)).exists():  # a run under way removes old steps
        damaged.append([step, reason])
    aside = [[int(p.name.partition(".")[0]), "set aside before"] for p in sorted(self._folder.glob("[0-9]*.corrupt*"))]
    return None, damaged or aside

  def _set_aside(self, step) -> str:
    if self._read_only:
      return "left where it is"
    names = (f"{step}.corrupt" + (f".{i}" if i > 1 else "") for i in itertools.count(1))
    name = next(name for name in names if not (self._folder / name).exists())
    (self._folder / str(step)).rename(self._folder / name)
    return f"set aside as {name}"

  def choose(self, which: str) -> int:
    """The step that "latest", "best" or a number names.

    Raises:
      UserError: there is none.
    """
    steps = self.steps()
    if which == "latest" and (newest := self.newest()) is not None:
      return newest
    if which == "latest" or not steps:
      raise UserError(f"workdir {str(self._folder.parent)!r} holds no checkpoint yet; train it first")
    named = {str(step): step for step in steps} | ({"best": self.best_step()} if self.best_step() is not None else {})
    if which not in named:
      raise unknown(f"checkpoint of {str(self._folder.parent)!r}:", which, ["latest", *named], "(--checkpoint)")
    return named[which]

  def forget(self, step: int) -> None:
    """Drops the metrics measured after a step."""
    self.metrics = {at: metrics for at, metrics in self.metrics.items() if at <= step}

  def last(self) -> int | None:
    """The newest step, once what is under way has been written; None if there is none."""
    self.poll(wait=True)
    return max(self.steps(), default=None)

  def close(self) -> None:
    """Finishes what is under way and lets go of the folder. What fails is told; it hides no other error."""
    try:
      self.poll(wait=True)
    except UserError as error:
      warn(str(error))
    finally:
      with contextlib.suppress(OSError, ValueError):  # what failed has been told
        self._manager.close()
      if not self._read_only and processes.first():
        self._clear("*")

  def _ranked(self, steps) -> list[int]:
    """Those of the steps at which the metric was measured, the best first, of equals the newest."""
    name = self._best.removeprefix("-")
    sign = 1.0 if self._best.startswith("-") else -1.0
    known = [step for step in steps if name in self.metrics.get(step, {})]
    return sorted(known, key=lambda step: (sign * self.metrics[step][name], -step))

  def _read_metrics(self):
    try:
      found = json.loads((self._folder / "metrics.json").read_text())
      return {int(step): dict(values) for step, values in found.items()}
    except FileNotFoundError:
      return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
      warn(f"{str(self._folder / 'metrics.json')!r} is damaged ({first_line(error)}): the best steps are forgotten")
      return {}

  def _write_sums(self):
    """Called in Orbax's thread when all is written and the folder is about to get its name."""
    if processes.first():
      for partial in self._folder.glob(f"*{_PARTIAL}*"):
        write_text(partial / SUMS, json.dumps(_sums(partial)) + "\n")

  def _check(self, step, like):
    """Refuses a state of another architecture, naming the first leaves that differ."""
    try:
      saved = self._manager.item_metadata(step)["state"].tree
    except Exception as error:  # whatever Orbax raises at a step without checksums
      raise DataError(f"checkpoint {step} of {str(self._folder)!r} cannot be read: {first_line(error)}") from error
    describe = lambda tree: {
      jax.tree_util.keystr(path, simple=True, separator="/"): (tuple(x.shape), str(x.dtype))
      for path, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    have, want = describe(saved), describe(like)
    differ = sorted(k for k in have.keys() | want.keys() if have.get(k) != want.get(k))
    if differ:
      lines = [f"{k}: file {have.get(k, 'none')}, model {want.get(k, 'none')}" for k in differ[:5]]
      raise UserError(
        f"checkpoint {step} is of another model or optimizer; {len(differ)} leaves differ: {'; '.join(lines)}"
      )


def _fields(state) -> dict:
  """A State by its fields; without `carry` where nothing is carried, as runs have it that are older than the field."""
  fields = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
  return fields if state.carry is not None else {k: v for k, v in fields.items() if k != "carry"}


@jax.jit
def _finite(leaves):
  return jnp.stack([jnp.isfinite(x).all() for x in leaves])


def not_finite(tree) -> list[str]:
  """Paths of the leaves that hold a NaN or an infinity."""
  leaves = [(path, x) for path, x in jax.tree_util.tree_leaves_with_path(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
  finite = np.asarray(_finite([x for _, x in leaves])) if leaves else []
  return [jax.tree_util.keystr(path, simple=True, separator="/") for (path, _), ok in zip(leaves, finite) if not ok]


def _sums(folder: Path) -> dict[str, list[int]]:
  """{file: [bytes, CRC-32]} of every file that will not change any more."""
  names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
  return {name: list(_sum(folder / name)) for name in names if name not in (*_STAMPED, SUMS)}


def _sum(path: Path) -> tuple[int, int]:
  size = crc = 0
  with path.open("rb") as file:
    while block := file.read(2**20):
      size, crc = size + len(block), zlib.crc32(block, crc)
  return size, crc


def damage(folder: Path) -> str | None:
  """What is wrong with the folder of a step, or None. Steps from before there were checksums are taken on trust."""
  try:
    if not (folder / SUMS).exists():
      position = json.loads((folder / "position/metadata").read_text())
      return f"{SUMS} is missing" if "checksums" in position else None
    for name, (size, crc) in json.loads((folder / SUMS).read_text()).items():
      path = folder / name
      if not path.resolve().is_relative_to(folder.resolve()):
        return f"{SUMS} names {name!r}, which lies outside"
      if not path.is_file():
        return f"{name} is missing"
      if path.stat().st_size != size:
        return f"{name} has {path.stat().st_size} bytes instead of {size}"
      if _sum(path) != (size, crc):
        return f"the content of {name} has changed"
    json.loads((folder / _STAMPED[0]).read_text())
    return None if (folder / _STAMPED[1]).exists() else f"{_STAMPED[1]} is missing"
  except (OSError, ValueError, TypeError, AttributeError) as error:
    return first_line(error)
