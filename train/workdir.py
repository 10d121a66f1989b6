"""The folder of a run: its config, what is known of its data, and whether it may be written to."""

import json
from pathlib import Path

from flaxonomy.configs import base
from flaxonomy.data.pipeline import Info
from flaxonomy.errors import UserError
from flaxonomy.train.report import write_text

# What may differ when a run is resumed: how long and how often, where the data lies, and on what it runs.
RESUMABLE = {
  "train.steps", "train.eval_every", "train.checkpoint_every", "train.log_every", "train.keep_last", "train.keep_best",
  "train.best_metric", "train.tensorboard", "train.devices", "train.cpu_devices",
  "train.steps_per_dispatch", "data.data_dir", "data.workers", "data.on_device", "data.on_device_limit",
  "data.eval_batch_size",
}  # fmt: skip


def absolute(workdir: str | Path) -> Path:
  """The folder's absolute path, with ~ expanded; checkpoints need it."""
  return Path(workdir).expanduser().absolute()


def check(workdir: Path, config: base.Config) -> None:
  """Refuses a folder that holds a run of another config, or something else than a run.

  Raises:
    UserError: names the fields that differ, with both values.
  """
  if not workdir.exists():
    return
  if not workdir.is_dir():
    raise UserError(f"workdir {str(workdir)!r} is a file; type another --workdir")
  if not (workdir / "config.json").exists():
    if any(path.name != "preview.png" for path in workdir.iterdir()):
      raise UserError(f"workdir {str(workdir)!r} holds files but no run (no config.json); type another --workdir")
    return
  there, here = base.flatten(load_config(workdir)), base.flatten(config)
  differ = [f"{k} = {there[k]!r} there, {here[k]!r} here" for k in here if there[k] != here[k] and k not in RESUMABLE]
  if differ:
    more = f" and {len(differ) - 3} more" if len(differ) > 3 else ""
    raise UserError(
      f"workdir {str(workdir)!r} belongs to another config: {'; '.join(differ[:3])}{more}; type another --workdir, or "
      "leave out --config to go on with its own"
    )


def create(workdir: Path, config: base.Config, info: Info) -> None:
  """Makes the folder and writes config.json and data.json."""
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    write_text(workdir / "data.json", json.dumps(info._asdict(), indent=2) + "\n")
    write_text(workdir / "config.json", json.dumps(base.to_dict(config), indent=2) + "\n")
  except OSError as error:
    raise UserError(f"cannot write to workdir {str(workdir)!r}: {error.strerror}") from None


def check_data(workdir: Path, info: Info) -> None:
  """Refuses to go on with a run on other data than it began with: other classes, shapes or number of examples.

  Raises:
    UserError: names what differs.
  """
  if not (workdir / "data.json").exists():
    return
  there = load_info(workdir)
  for field in ("class_names", "image_shape", "size"):
    if getattr(there, field) != getattr(info, field):
      raise UserError(
        f"workdir {str(workdir)!r} was trained on other data: {field} was {getattr(there, field)}, is now "
        f"{getattr(info, field)}; put the data back, or type another --workdir"
      )


def load_config(workdir: Path) -> base.Config:
  """The config of a run.

  Raises:
    UserError: there is no run, or its config.json is damaged.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise UserError(f"workdir {str(workdir)!r} holds no run (no config.json); train one with --workdir={workdir}")
  return base.from_dict(_read(path))


def _read(path: Path) -> dict:
  """A JSON file of the workdir; UserError if it is missing or damaged."""
  try:
    return json.loads(path.read_text())
  except (OSError, json.JSONDecodeError) as error:
    raise UserError(f"{str(path)!r} is damaged or cannot be read: {error}") from None


def load_info(workdir: Path) -> Info:
  """What is known of a run's data.

  Raises:
    UserError: data.json is missing or damaged.
  """
  saved = _read(workdir / "data.json")
  try:
    return Info(saved["name"], tuple(saved["class_names"]), tuple(saved["image_shape"]), saved["size"])
  except (KeyError, TypeError) as error:
    raise UserError(f"{str(workdir / 'data.json')!r} is damaged: {error!r}") from None


def finished(workdir: Path, steps: int) -> dict | None:
  """The result of a run that has made all its steps, or None."""
  path = workdir / "result.json"
  if not path.exists():
    return None
  result = _read(path)
  return result if result["step"] >= steps else None
