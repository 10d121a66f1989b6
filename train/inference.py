"""What is done with trained runs: evaluate (one or an ensemble), predict on files, preview the augmentation.

All start from workdirs alone and read data, never Python, from them.
"""

import csv
import json
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import PartitionSpec as P

from flaxonomy.configs import base
from flaxonomy.data import pipeline
from flaxonomy.errors import UserError
from flaxonomy.train import checkpoint, evaluation, figures, loop, processes, report, step, tasks, workdir
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import State, Task


class Trained(NamedTuple):
  """A run read back from its workdir."""

  folder: Path
  config: base.Config
  info: pipeline.Info
  task: Task
  state: State
  step: int


def load(path: str | Path, mesh, which: str = "latest", changes: dict | None = None) -> Trained:
  """A run from its workdir.

  Args:
    path: the workdir.
    mesh: the devices to restore to.
    which: checkpoint to take: "latest", "best" or a step.
    changes: config fields to override, such as {"data.data_dir": "..."}.

  Raises:
    UserError: no run there, no such checkpoint, or one of another architecture.
    DataError: the checkpoint is damaged; "latest" takes the newest that is not.
  """
  folder = workdir.absolute(path)
  config = base.override(workdir.load_config(folder), changes or {})
  info = workdir.load_info(folder)
  task = tasks.build(config, info, mesh.size)
  saves = checkpoint.Checkpoints(folder, best=config.train.best_metric or task.best, read_only=True)
  try:
    at = saves.choose(which)
    state, _ = saves.restore(at, loop.abstract_state(task, mesh))
  finally:
    saves.close()
  return Trained(folder, config, info, task, state, at)


def evaluate(paths: list[str], which: str = "latest", changes: dict | None = None) -> dict:
  """Evaluates one run, or several as an ensemble whose outputs are averaged (probabilities, not logits).

  Args:
    paths: workdirs of runs of one task on the same classes and image shape.
    which: checkpoint, as in `load`.
    changes: as in `load`.

  Returns:
    {"metrics": {...}, "steps": [int, ...], "workdirs": [str, ...]}; for one run also in its folder `evaluation`, with
    the pictures.

  Raises:
    UserError: runs that do not go together, and as `load` and `pipeline.open_feed`.
  """
  mesh = loop.make_mesh()
  runs = [load(path, mesh, which, changes) for path in paths]
  first = runs[0]
  for other in runs[1:]:
    for field in ("task", "data.name", "data.train_split", "data.eval_split"):
      one, two = base.flatten(first.config)[field], base.flatten(other.config)[field]
      if one != two:
        raise UserError(
          f"no ensemble: {field} is {one!r} in {str(first.folder)!r} and {two!r} in {str(other.folder)!r}"
        )
    loop.same_data(first.info, other.info, f"in {str(first.folder)!r}", f"in {str(other.folder)!r}")
  if len(runs) > 1 and not first.task.averaged:
    raise UserError(f"no ensemble: what task {first.config.task!r} makes cannot be averaged")
  feed = loop.open_test(first.config, mesh, first.info)
  function = evaluation.eval_function([run.task for run in runs], feed, mesh)
  found = evaluation.evaluate(function, first.task, feed, [run.state for run in runs])
  name = evaluation.split_name(first.config)
  result = {
    "metrics": {f"{name}_{k}": float(v) for k, v in found.metrics.items()},
    "steps": [run.step for run in runs],
    "workdirs": [str(run.folder) for run in runs],
  }
  if len(runs) == 1 and processes.first():
    folder = first.folder / "evaluation"
    folder.mkdir(exist_ok=True)
    report.save_figures(folder, first.task.pictures(found.batch, found.outputs, found.sums) | found.files)
    report.write_text(folder / "result.json", json.dumps(result, indent=2) + "\n")
  return result


def predict(path: str, inputs: list[str], which: str = "latest", changes: dict | None = None) -> Path:
  """Labels what is given with a trained run: image files, or the lines of text files; or goes on with a series.

  Args:
    path: workdir.
    inputs: files, and folders of images.
    which: checkpoint, as in `load`.
    changes: as in `load`.

  Returns:
    The folder made for it, `predictions` in the workdir (or `predictions_2`, ...): predictions.csv, and of images a
    captioned picture each, of a series forecast.png, of detections predictions.json.

  Raises:
    UserError: nothing there, an unreadable file, or a task that labels nothing.
  """
  mesh = loop.make_mesh()
  run = load(path, mesh, which, changes)
  if run.task.follow is not None:
    files = run.task.follow(run.state.variables(), inputs)
    folder = new_folder(run.folder / "predictions")
    report.save_figures(folder, files)
    return folder
  if run.task.table is None:
    raise UserError(
      f"task {run.config.task!r} labels nothing; see --mode=eval for its pictures or, of language models, --mode=sample"
    )
  given = run.task.given(inputs)
  header, rows, captions = labeller(run, mesh, loop.eval_batch_size(run.config, mesh))(given)
  folder = new_folder(run.folder / "predictions")
  with (folder / "predictions.csv").open("w", newline="") as file:
    csv.writer(file).writerows([[given.kind, *header], *([name, *row] for name, row in zip(given.names, rows))])
  for i, caption in enumerate(captions if given.draw else ()):
    name, picture = given.draw(i, caption)
    picture.save(folder / name)
  if run.task.told is not None:
    report.save_figures(folder, run.task.told(given.names, captions))
  return folder


def labeller(run: Trained, mesh, size: int):
  """A compiled function: Given -> (header, rows, captions), an entry for each item; see `Task.table`.

  Args:
    run: of a task with a table.
    mesh: the devices.
    size: items of a batch, divisible by them.
  """
  function = step.pmapped(run.task.predict_step, mesh, (P(), P(DATA)), P(DATA))
  state = run.state.replace(opt_state=None)

  def label(given):
    header, rows, captions = [], [], []
    for begin in range(0, len(given.names), size):
      end = min(begin + size, len(given.names))
      batch = {
        key: np.pad(x, ((0, size - len(x)), *[(0, 0)] * (x.ndim - 1))) for key, x in given.batch(begin, end).items()
      }
      outputs = function(state, batch | {"index": np.arange(size, dtype=np.int32)})
      outputs = {key: np.asarray(x)[: end - begin] for key, x in outputs.items()}
      header, more, said = run.task.table(outputs, run.info.class_names)
      rows, captions = rows + more, captions + said
    return header, rows, captions

  return label


def new_folder(path: Path) -> Path:
  """The folder, made; with a number behind its name if that is taken."""
  for i in range(1, 10**6):
    folder = path if i == 1 else path.with_name(f"{path.name}_{i}")
    try:
      folder.mkdir()
    except FileExistsError:
      continue
    return folder
  raise UserError(f"too many folders named {str(path)!r}")


def preview(config: base.Config, path: str | Path) -> Path:
  """Writes preview.png, a contact sheet: training images as stored, and as the model will see them in seven epochs.

  With data.crop_size only the middle of what is stored is shown, for the tiles of a sheet are of one size.

  Args:
    config: of which the data, augmentation and seed are used.
    path: workdir, made if it does not exist.

  Returns:
    The picture's path.

  Raises:
    UserError: a task that learns from something else than images.
  """
  folder = workdir.absolute(path)
  workdir.check(folder, config)
  session = loop.prepare(config)
  if session.task.tiles is None:
    raise UserError(
      f"--mode=preview shows training images, and task {config.task!r} has none; see --mode=eval for its pictures"
    )
  mesh, shown, draws = session.mesh, min(8, session.train.size), 7
  count = -(-shown // mesh.size) * mesh.size
  batch = session.train.read([i % session.train.size for i in range(count)])
  function = step.pmapped(session.task.augment, mesh, (P(), P(DATA)), P(DATA))
  columns = [session.task.tiles(batch, False)]
  for i in range(draws):
    seen = jax.device_get(function(jax.random.fold_in(jax.random.PRNGKey(config.seed), i), batch))
    columns.append(session.task.tiles(seen, True))
  names = [session.info.class_names[label] for label in batch["label"][:shown]] if "label" in batch else [""] * shown
  titles = [name if i == 0 else "" for name in names for i in range(draws + 1)]
  tiles = np.stack(columns, 1)[:shown].reshape(-1, *columns[0].shape[1:])
  folder.mkdir(parents=True, exist_ok=True)
  report.save_figures(
    folder, {"preview.png": figures.gallery(tiles, titles, None, "as stored, and as the model will see it")}
  )
  return folder / "preview.png"
