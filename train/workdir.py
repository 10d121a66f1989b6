"""The folder of a run: its config, what is known of its data, who works in it, and how it stands."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
from pathlib import Path

from flaxonomy.configs import base
from flaxonomy.data import text
from flaxonomy.data.pipeline import Info
from flaxonomy.data.series import sound
from flaxonomy.errors import BusyError, Preempted, UserError, first_line, shown
from flaxonomy.train import processes
from flaxonomy.train.report import write_text

# What may differ when a run is resumed: how long and how often, where the data lies, and on what it runs.
RESUMABLE = {
  "train.steps", "train.eval_every", "train.checkpoint_every", "train.log_every", "train.keep_last", "train.keep_best",
  "train.best_metric", "train.tensorboard", "train.devices", "train.cpu_devices",
  "train.steps_per_dispatch", "data.data_dir", "data.workers", "data.on_device", "data.on_device_limit",
  "data.eval_batch_size", "data.on_error", "data.error_limit", "train.on_nan", "train.nan_limit", "decode.beams",
  "decode.penalty", "decode.length_penalty", "decode.max_ratio", "decode.max_extra",
  "detect.score", "detect.threshold", "detect.most", "detect.draw_score", "detect.draw_threshold",
}  # fmt: skip
_NO_RUN = {  # may lie in a folder without making it a run: a preview, and what a start leaves that was killed
  "preview.png", ".lock", "status.json", "config.json.partial", "status.json.partial",
}  # fmt: skip
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.ENOENT, errno.EFBIG, errno.EIO}
_STATES = {0: "finished", 130: "preempted", 143: "preempted"}  # by exit code; every other is "failed"


def absolute(workdir: str | Path) -> Path:
  """The folder's absolute path, with ~ expanded; checkpoints need it.

  Raises:
    UserError: a bucket's address, which is no path, or a path that cannot be.
  """
  if "://" in str(workdir):
    raise UserError(
      f"workdir {str(workdir)!r} is not a path, and a bucket has no locks and no atomic renames: type a folder, and "
      "copy it there afterwards"
    )
  try:
    folder = Path(workdir).expanduser().absolute()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
      folder.stat()
    return folder
  except (OSError, RuntimeError, ValueError) as error:
    raise UserError(f"workdir {shown(str(workdir))} cannot be: {first_line(error)}") from None


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
    if {path.name for path in workdir.iterdir()} - _NO_RUN:
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
  """Writes config.json, data.json and the tokenizers, each in a file that says what it is for."""
  known = info._asdict() | {"tokenizers": sorted(info.tokenizers)}
  try:
    for name, tokenizer in info.tokenizers.items():
      text.save(tokenizer, _tokenizer_file(workdir, name))
    write_text(workdir / "config.json", json.dumps(base.to_dict(config), indent=2) + "\n")
    write_text(workdir / "data.json", json.dumps(known, indent=2) + "\n")
  except OSError as error:
    raise _unwritable(workdir, error) from None


def _tokenizer_file(workdir: Path, name: str) -> Path:
  return workdir / f"tokenizer_{name}.json"


def _unwritable(workdir, error) -> UserError:
  return UserError(f"cannot write to workdir {str(workdir)!r}: {error.strerror}")


@contextlib.contextmanager
def lock(workdir: Path):
  """A context in which this run alone may write to the folder, which is made if it does not exist.

  The kernel lets go of the lock however the process ends. A folder made here is removed again if the run fails before
  it leaves anything in it.

  Raises:
    BusyError: another run is at work there; it is named.
    UserError: the folder cannot be made or written to.
  """
  made = [path for path in (workdir, *workdir.parents) if not path.exists()]
  held = []
  processes.together(lambda: held.append(_acquire(workdir)))
  try:
    yield
  finally:
    if held:
      with contextlib.suppress(OSError):  # someone may have taken it away, or put something there
        if made and {path.name for path in workdir.iterdir()} <= {".lock"}:
          (workdir / ".lock").unlink(missing_ok=True)
          for path in made:
            path.rmdir()
      held[0].close()


def _acquire(workdir):
  """The open, locked file."""
  path = workdir / ".lock"
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = path.open("a+")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.seek(0)
      holder = file.read().strip() or "another process"
      file.close()
      raise BusyError(
        f"workdir {str(workdir)!r} is in use by {holder}; wait for it, stop it, or type another --workdir"
      ) from None
    if not path.exists() or not os.path.samestat(os.fstat(file.fileno()), path.stat()):
      file.close()  # a start that failed took its folder away while we opened this
      return _acquire(workdir)
    file.truncate(0)
    file.write(f"{socket.gethostname()} process {os.getpid()} since {_now()}\n")
    file.flush()
    return file
  except OSError as error:
    raise _unwritable(workdir, error) from None


def _now() -> str:
  return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def status(workdir: Path, state: str, step: int | None = None, exit_code: int | None = None, reason: str = "") -> None:
  """Writes status.json, by which others see how the run stands.

  Args:
    workdir: of the run.
    state: running, finished, preempted or failed.
    step: the newest that is known; None: the one that status.json has.
    exit_code: of a run that has ended.
    reason: one line.
  """
  if not processes.first() and exit_code in (None, *_STATES):
    return  # a process that fails alone speaks for itself
  path = workdir / "status.json"
  if step is None:
    step = _read(path).get("step", 0) if path.exists() else 0
  told = {"state": state, "step": step, "exit_code": exit_code, "reason": reason}
  told |= {"host": socket.gethostname(), "pid": os.getpid(), "time": _now()}
  write_text(path, json.dumps(told, indent=2) + "\n")


def ended(workdir: Path, exit_code: int, reason: str, step: int | None = None) -> None:
  """Writes status.json for a run that ends with a code; if it cannot be written, nothing more can be done."""
  with contextlib.suppress(OSError, UserError):
    status(workdir, _STATES.get(exit_code, "failed"), step, exit_code, reason)


@contextlib.contextmanager
def ending(workdir: Path):
  """A context whose exceptions are noted in status.json, if the folder holds a run by then."""
  try:
    yield
  except (UserError, Preempted) as error:
    if (workdir / "config.json").exists():
      ended(workdir, error.exit_code, str(error))
    raise
  except OSError as error:
    if error.errno not in _DISK:
      raise
    told = UserError(f"workdir {str(workdir)!r}: {error}; make room or put it back, and the same line goes on")
    ended(workdir, told.exit_code, str(told))
    raise told from error
  except BaseException as error:
    ended(workdir, 1, f"{type(error).__name__}: {error}")
    raise


def check_data(workdir: Path, info: Info) -> None:
  """Refuses to go on with a run on other data than it began with: other classes, shapes, tokens or number of examples.

  Raises:
    UserError: names what differs.
  """
  if not (workdir / "data.json").exists():
    return
  there = load_info(workdir)
  if there.tokenizers != info.tokenizers:
    raise UserError(
      f"workdir {str(workdir)!r} was trained on other text: its tokens are not those of dataset {info.name!r} now; put "
      "the data back, or type another --workdir"
    )
  for field in ("class_names", "image_shape", "series", "size", "categories"):
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
    found = json.loads(path.read_text())
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f"{str(path)!r} is damaged or cannot be read: {error}") from None
  if not isinstance(found, dict):
    raise UserError(f"{str(path)!r} is damaged: it holds no object")
  return found


def load_info(workdir: Path) -> Info:
  """What is known of a run's data.

  Raises:
    UserError: data.json is missing or damaged.
  """
  saved = _read(workdir / "data.json")
  try:
    shape, series = saved["image_shape"], saved.get("series")
    shape = None if shape is None else tuple(shape)
    if series is not None:
      series = sound({k: tuple(v) if isinstance(v, list) else v for k, v in series.items()})
    tokenizers = dict.fromkeys(saved.get("tokenizers", ()))
    if not set(tokenizers) <= {"text", "source", "target"}:
      raise TypeError(f"tokenizers {shown(list(tokenizers))}")
    categories = tuple(saved.get("categories", ()))
    info = Info(saved["name"], tuple(saved["class_names"]), shape, saved["size"], tokenizers, series, categories)
  except (KeyError, TypeError, AttributeError) as error:
    raise UserError(f"{str(workdir / 'data.json')!r} is damaged: {error!r}") from None
  shape = (0, 0, 0) if info.image_shape is None else info.image_shape
  kinds = [type(x) for x in (info.name, *info.class_names, *tokenizers, *shape, info.size, *categories)]
  right = [str] * (1 + len(info.class_names) + len(tokenizers)) + [int] * (4 + len(categories))
  if len(shape) != 3 or kinds != right or len(categories) not in (0, len(info.class_names)):
    raise UserError(f"{str(workdir / 'data.json')!r} is damaged: it describes no data")
  return info._replace(tokenizers={name: text.load(_tokenizer_file(workdir, name)) for name in tokenizers})


def finished(workdir: Path, steps: int) -> dict | None:
  """The result of a run that has made all its steps, or None."""
  path = workdir / "result.json"
  if not path.exists():
    return None
  result = _read(path)
  try:
    done = result["step"] >= steps
    known = all(isinstance(value, (int, float)) for value in result["metrics"].values())
  except (KeyError, TypeError, AttributeError):
    done, known = False, False
  if not known:
    raise UserError(f"{str(path)!r} is damaged; remove it to go on from the newest checkpoint") from None
  return result if done else None
