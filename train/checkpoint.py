"""Checkpoints: state, data position and config in one atomic step. The only file that knows Orbax.

Each step is a folder `checkpoints/STEP` that appears whole or not at all. Writing goes on in the background after the
state has been copied to the host.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from flaxonomy.errors import UserError


class Checkpoints:
  """The checkpoints of one workdir."""

  def __init__(self, workdir: Path, keep_last: int = 1, keep_best: int = 0, best: str = "", read_only: bool = False):
    """Opens, and unless `read_only` creates, the folder.

    Args:
      workdir: absolute.
      keep_last: newest steps that are kept.
      keep_best: steps with the best `best` metric that are kept as well.
      best: name of the metric; with a leading "-" lower is better.
      read_only: nothing is written or cleaned up.
    """
    name = best.removeprefix("-")
    sign = -1.0 if best.startswith("-") else 1.0
    keep = [policies.LatestN(keep_last)]
    if keep_best and best:
      keep.append(
        policies.BestN(
          get_metric_fn=lambda metrics: sign * metrics[name], n=keep_best, keep_checkpoints_without_metrics=False
        )
      )
    self._best = lambda metrics: sign * metrics.get(name, float("-inf"))
    self._manager = ocp.CheckpointManager(
      workdir / "checkpoints",
      item_handlers={
        "state": ocp.StandardCheckpointHandler(),
        "position": ocp.JsonCheckpointHandler(),
        "config": ocp.JsonCheckpointHandler(),
      },
      options=ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keep),
        best_fn=self._best,
        create=not read_only,
        read_only=read_only,
        cleanup_tmp_directories=not read_only,
      ),
    )

  def steps(self) -> list[int]:
    """The saved steps, ascending."""
    return sorted(self._manager.all_steps())

  def best_step(self) -> int | None:
    """The step with the best metric, or None."""
    return self._manager.best_step()

  def save(self, step: int, state, position: dict, config: dict, metrics: dict[str, float]) -> None:
    """Starts saving a step, with the metrics measured at it, if any; does nothing if it is saved already."""
    if step in self._manager.all_steps():
      return
    items = {
      "state": ocp.args.StandardSave(state),
      "position": ocp.args.JsonSave(position),
      "config": ocp.args.JsonSave(config),
    }
    self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics or None)

  def restore(self, step: int, like):
    """A saved step.

    Args:
      step: one of `steps()`.
      like: State of ShapeDtypeStructs with the shardings to restore to.

    Returns:
      (state, position)

    Raises:
      UserError: the saved state has other leaves or shapes.
    """
    self._check(step, like)
    items = {"state": ocp.args.StandardRestore(like), "position": ocp.args.JsonRestore()}
    restored = self._manager.restore(step, args=ocp.args.Composite(**items))
    return restored["state"], restored["position"]

  def _check(self, step, like):
    """Refuses a state of another architecture, naming the first leaves that differ."""
    saved = self._manager.item_metadata(step)["state"].tree
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

  def wait(self) -> None:
    """Returns when all started saves are on disk."""
    self._manager.wait_until_finished()

  def close(self) -> None:
    """Finishes what is under way and lets go of the folder."""
    self._manager.close()
