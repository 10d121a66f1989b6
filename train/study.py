"""Studies: runs that differ in a few fields, side by side, and pictures that need no training.

A study has a folder of its own. In it lie study.json (the config), a workdir for each run, named by its label, and what
compares them: comparison.png and comparison.json, brought up to date after every run. The runs are ordinary ones.
"""

import contextlib
import copy
import dataclasses
import json
import sys
from pathlib import Path

import jax

from flaxonomy.configs import base
from flaxonomy.errors import UserError, shown
from flaxonomy.train import basics, figures, loop, processes, report, tasks
from flaxonomy.train import workdir as workdirs

_NO_STUDY = {"preview.png", ".lock", "study.json.partial"}  # may lie in a folder before a study starts there


def run(config: base.Config, workdir: str | Path, quiet: bool = False) -> dict:
  """Draws the picture and makes the runs of a study, or goes on with them.

  Args:
    config: with `study.compare`, `study.picture` or both; left as it is.
    workdir: made if it does not exist; runs in it that are finished are not made again.
    quiet: no progress lines.

  Returns:
    {"runs": {label: {"parameters": int, "metrics": {"test_accuracy": float, ...}, "step": int, "seconds": float,
    "changes": {...}}}, "best": str, "picture": str or None, "files": [str, ...]}, also in comparison.json; `best` is
    the metric that is compared, `files` are the pictures.

  Raises:
    UserError: anything the user can mend; what is wrong with any of the runs is found before the first one starts.
    Preempted: SIGTERM or SIGINT stopped a run; the same call goes on.
  """
  folder, configs = workdirs.absolute(workdir), variants(config)
  if not configs and config.study.picture is None:
    raise UserError("config fields 'study.compare' and 'study.picture' are both empty: there is no study to make")
  draw = None if config.study.picture is None else basics.picture(config.study.picture)
  processes.together(lambda: _check(folder, configs))
  if (found := processes.together(lambda: finished(config, folder))) is not None:
    return found
  with workdirs.lock(folder):
    bests = processes.agree(lambda: [_sound(label, variant) for label, variant in configs.items()])
    found = {"runs": {}, "best": bests[0] if bests else None, "picture": config.study.picture, "files": []}
    if processes.first():
      with _writing(folder):
        report.write_text(folder / "study.json", json.dumps(base.to_dict(config), indent=2) + "\n")
        found["files"] = _drawn(folder, config.study.picture, draw)
        report.write_text(folder / "comparison.json", json.dumps(found, indent=2) + "\n")
    for i, (label, variant) in enumerate(configs.items(), 1):
      if not quiet and processes.first():
        print(f"run {i} of {len(configs)}: {label}", file=sys.stderr, flush=True)
      result = loop.run(variant, folder / label, quiet=quiet)
      if processes.first():
        found["runs"][label] = _row(variant, folder / label, result, config.study.compare[label])
        with _writing(folder):
          _compare(folder, found)
  return processes.together(lambda: _comparison(folder))


@contextlib.contextmanager
def _writing(folder):
  """A context in which a disk that is full, or closed to us, is told in one line."""
  try:
    yield
  except OSError as error:
    raise UserError(f"cannot write to workdir {str(folder)!r}: {error.strerror}; the same line goes on") from None


def _compare(folder, found):
  """Brings the comparison up to date with the runs that are finished."""
  rows = {label: report.read_metrics(folder / label) for label in found["runs"]}
  made = {"comparison.png": figures.comparison(rows, found["best"])}
  drawn = {}
  for label in found["runs"]:
    for name, row in report.read_traces(folder / label).items():
      drawn.setdefault(name, {})[label] = (range(1, len(row) + 1), row)
  for name, panel in drawn.items():
    title = name.replace("_", " ")
    made[f"{name}.png"] = figures.lines({title: panel}, "step of the example", [title])
  report.save_figures(folder, made)
  found["files"] = sorted({*found["files"], *made})
  report.write_text(folder / "comparison.json", json.dumps(found, indent=2) + "\n")


def variants(config: base.Config) -> dict[str, base.Config]:
  """{label: config} of a study's runs.

  Raises:
    UserError: a label that cannot name a folder, or changes that are none; the run is named.
  """
  plain, found = dataclasses.replace(copy.deepcopy(config), study=base.Study()), {}
  for label, changes in config.study.compare.items():
    if not isinstance(label, str) or not report.PLAIN.fullmatch(label) or Path(label).suffix in (".png", ".json"):
      raise UserError(
        f"config field 'study.compare': {shown(label)} cannot name a folder; take letters, digits, '_', '-' and '.'"
      )
    if not isinstance(changes, dict) or any(not isinstance(path, str) for path in changes):
      raise UserError(
        f"config field 'study.compare': {label!r} must be changes such as {{'optim.lr': 0.1}}, not {shown(changes)}"
      )
    if any(path.split(".")[0] == "study" for path in changes):
      raise UserError(f"config field 'study.compare': {label!r} cannot change the study itself")
    try:
      found[label] = base.override(plain, changes)
    except UserError as error:
      raise _of(label, error) from None
  return found


def _of(label, error):
  return type(error)(f"run {label!r} of the study: {error}")


def finished(config: base.Config, folder: Path) -> dict | None:
  """The comparison, if everything that the study asks for lies in its folder, else None."""
  found, configs = _comparison(folder), variants(config)
  if found["picture"] != config.study.picture or list(found["runs"]) != list(configs):
    return None
  if not all((folder / name).is_file() for name in found["files"]):
    return None
  results = [workdirs.finished(folder / label, variant.train.steps) for label, variant in configs.items()]
  same = [result and result["step"] == found["runs"][label]["step"] for label, result in zip(configs, results)]
  return found if all(same) else None


def _comparison(folder) -> dict:
  """comparison.json; one that is missing or damaged is an empty one."""
  nothing = {"runs": {}, "best": None, "picture": None, "files": []}
  try:
    found = json.loads((folder / "comparison.json").read_text())
    sound = all(isinstance(found[key], type(kind)) for key, kind in nothing.items() if kind is not None)
    sound = sound and all(report.PLAIN.fullmatch(name) for name in found["files"])
    sound = sound and all(isinstance(row["step"], int) for row in found["runs"].values())
    return nothing | found if sound else nothing
  except (OSError, ValueError, KeyError, TypeError, RecursionError):
    return nothing


def refuse(workdir: str | Path) -> None:
  """Raises UserError for a folder that holds a study, where a run is meant; names the runs in it."""
  folder = workdirs.absolute(workdir)
  if (folder / "study.json").exists() and not (folder / "config.json").exists():
    held = [f"--workdir={path}" for path in sorted(folder.iterdir()) if (path / "config.json").exists()]
    runs = f"its runs are {', '.join(held)}" if held else "none of its runs has started"
    raise UserError(f"workdir {str(folder)!r} holds a study, not a run; {runs}")


def table(found: dict) -> str:
  """The runs of a comparison as lines of text: label, parameters, last metrics, seconds."""
  names = list(dict.fromkeys(name for row in found["runs"].values() for name in row["metrics"]))
  lines = [["run", "parameters", *(name.replace("_", " ") for name in names), "seconds"]]
  for label, row in found["runs"].items():
    values = [f"{row['metrics'][name]:.4f}" if name in row["metrics"] else "" for name in names]
    lines.append([label, f"{row['parameters']:,}", *values, f"{row['seconds']:.1f}"])
  widths = [max(map(len, column)) for column in zip(*lines)]
  return "\n".join(
    "  ".join([line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))])
    for line in lines
  )


def _check(folder: Path, configs: dict) -> None:
  """Refuses a folder that holds something else than a study, or runs of other configs."""
  if not folder.exists():
    return
  if not folder.is_dir():
    raise UserError(f"workdir {str(folder)!r} is a file; type another --workdir")
  if (folder / "config.json").exists():
    raise UserError(
      f"workdir {str(folder)!r} holds a run, and a study needs a folder of its own; type another --workdir"
    )
  if not (folder / "study.json").exists() and {path.name for path in folder.iterdir()} - _NO_STUDY:
    raise UserError(f"workdir {str(folder)!r} holds files but no study (no study.json); type another --workdir")
  for label, variant in configs.items():
    workdirs.check(folder / label, variant)


def _sound(label: str, variant: base.Config) -> str:
  """The metric by which a run is judged, once its names, data and sizes have been found to be right."""
  try:
    # Streamed, whatever the run will do, so that nothing but the first example is read.
    session = loop.prepare(base.override(variant, {"data.on_device": False, "data.workers": 0}))
  except UserError as error:
    raise _of(label, error) from None
  return (variant.train.best_metric or session.task.best).removeprefix("-")


def _drawn(folder, name, draw) -> list[str]:
  """The files of the picture, drawn unless they lie there already."""
  before = _comparison(folder)
  files = [file for file in before["files"] if file != "comparison.png"]
  if draw is None or (before["picture"] == name and files and all((folder / file).is_file() for file in files)):
    return files if draw else []
  made = draw()
  report.save_figures(folder, made)
  return sorted(made)


def _row(variant, folder, result, changes) -> dict:
  """What comparison.json says of a run."""
  task = tasks.build(variant, workdirs.load_info(folder), 1)
  params = jax.eval_shape(task.init, jax.random.PRNGKey(0)).params
  size = sum(leaf.size for leaf in jax.tree.leaves(params))
  kept = {key: result[key] for key in ("metrics", "step", "seconds")}
  return {"parameters": size, **kept, "changes": changes}
