"""The command line's logic: parsing with one-line errors, and one function for each mode.

JAX is imported by `run` only, so that a mistake on the command line is told before it starts.
"""

import ast
import logging as standard_logging
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags

from flaxonomy import configs
from flaxonomy.configs import base
from flaxonomy.errors import UserError, first_line, unknown
from flaxonomy.train import cpu

CONFIGS = Path(configs.__file__).parent
DEFAULT = CONFIGS / "digits.py"


def prepare(argv: list[str]) -> tuple[list[str], dict[str, Any]]:
  """A command line ready for absl and ml_collections.

  Args:
    argv: as sys.argv.

  Returns:
    (argv, fields): with --config where it is missing, and without overrides of model fields that the config does not
    list, such as --config.model.fields.dropout=0.2, which are {"model.fields.dropout": 0.2} in `fields`.

  Raises:
    UserError: a config field or file that does not exist.
  """
  path, kept, fields = config_path(argv), argv[:1], {}
  if path is not None and not _is_file(path):
    raise unknown("config file", path, _near(path) or map(str, _files()), "(see --list)")
  if path is None:
    kept.append(f"--config={DEFAULT}")
  for argument in argv[1:]:
    found = re.fullmatch(r"--?(no)?config\.([^=]+)(?:=(.*))?", argument, re.DOTALL)
    kind = base.check_field(found[2]) if found else None
    if kind is object:
      fields[found[2]] = False if found[1] else _literal(found[3])
    elif kind is dict:
      fields[found[2]] = _literal(found[3])
    else:
      kept.append(argument)
  return kept, fields


def _is_file(path: str) -> bool:
  return os.path.isfile(path)  # noqa: PTH113 - False, and no error, for a name too long or a folder that is closed to us


def _near(path: str) -> list[str]:
  try:
    return [str(p) for p in _files(Path(path).parent)]
  except OSError:
    return []


def _literal(text: str | None):
  """A Python value; text that is none is itself."""
  try:
    return ast.literal_eval(text)
  except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
    return {"true": True, "false": False, None: True}.get(text, text)


def parse(argv: list[str], values: flags.FlagValues) -> None:
  """Parses a prepared command line into absl's flags.

  Raises:
    UserError: whatever is wrong with it, or with the config file it names.
  """
  path = config_path(argv)
  try:
    rest = values(argv)
  except flags.Error as error:
    raise UserError(" ".join(str(error).split())) from None
  except Exception as error:
    raise UserError(f"config file {path!r}{_line(error, path)}: {type(error).__name__}: {error}") from error
  if rest[1:]:
    raise UserError(f"unexpected argument {rest[1]!r}; every option starts with --, see --help")


def config_path(argv) -> str | None:
  """The file that --config names, without the argument behind its colon."""
  for i, argument in enumerate(argv):
    if found := re.fullmatch(r"--?config(?:=(.*))?", argument, re.DOTALL):
      value = found[1] if found[1] is not None else (argv[i + 1] if i + 1 < len(argv) else "")
      return value.split(":", 1)[0]
  return None


def _line(error, path) -> str:
  """Where in the config file an error arose: " line N"."""
  if isinstance(error, SyntaxError):
    return f" line {error.lineno}"
  lines = [
    f.lineno for f in traceback.extract_tb(error.__traceback__) if path and Path(f.filename).name == Path(path).name
  ]
  return f" line {lines[-1]}" if lines else ""


def _files(folder: Path = CONFIGS) -> list[Path]:
  """Experiment files of a folder."""
  return (
    sorted(p for p in folder.glob("*.py") if p.name not in ("__init__.py", "base.py", "values.py"))
    if folder.is_dir()
    else []
  )


def listing() -> str:
  """A line for each config: its path and the first line of its docstring."""
  lines = []
  for path in _files():
    summary = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    lines.append((f"configs/{path.name}", summary))
  width = max(len(name) for name, _ in lines)
  return "\n".join(f"{name:<{width}}  {summary}" for name, summary in lines)


def resolve(flag, fields: dict, named: bool, workdir: str | None, mode: str) -> tuple[base.Config, list[str], dict]:
  """What a parsed command line asks for.

  Args:
    flag: the config flag.
    fields: from `prepare`.
    named: whether --config was given; if not, a workdir that holds a run brings its own config.
    workdir: folders with commas between, or None.
    mode: of the launcher.

  Returns:
    (config, workdirs, overrides)

  Raises:
    UserError: a config that is none, or several workdirs where one is meant.
  """
  path = config_flags.get_config_filename(flag)
  changes = dict(config_flags.get_override_values(flag)) | fields
  if not isinstance(flag.value, base.Config):
    raise UserError(f"get_config() of {path!r} must return a Config, not {type(flag.value).__name__}")
  config = base.override(flag.value, changes)
  file, _, variant = path.partition(":")
  folders = [f for f in (workdir or f"runs/{Path(file).stem}{variant and '_'}{variant}").split(",") if f]
  if len(folders) > 1 and mode != "eval":
    raise UserError(f"--mode={mode} takes one --workdir, not {len(folders)}; several make an ensemble with --mode=eval")
  if not named and _is_file(os.path.expanduser(folders[0]) + "/config.json"):
    from flaxonomy.train import workdir as workdirs

    config = base.override(workdirs.load_config(workdirs.absolute(folders[0])), changes)
  return config, folders, changes


ONE_PROCESS = ("predict", "sample", "chat", "export", "explain", "preview", "doctor")  # modes that are not for several


class Ask(NamedTuple):
  """What is asked for.

  Attributes:
    config: for train, preview and doctor; the other modes take the workdir's, with `changes`.
    folders: workdirs.
    changes: overridden config fields.
    inputs: files and folders for predict and explain.
    checkpoint: latest, best or a step.
    writing: arguments of `writing.write` for sample.
  """

  config: base.Config
  folders: list[str]
  changes: dict
  inputs: list[str] = []
  checkpoint: str = "latest"
  writing: dict = {}


def run(mode: str, ask: Ask, cache: bool, joined: tuple | None = None):
  """Does what a command line asks for and says where the results lie.

  Args:
    mode: a key of `MODES`.
    ask: the rest of it.
    cache: keep compiled code between starts.
    joined: arguments of `processes.start` for one of several processes.
  """
  if joined and mode in ONE_PROCESS:
    raise UserError(f"--mode={mode} is for one process; leave out --distributed")
  devices = ask.config.train.cpu_devices
  cpu.one_thread_each(min(devices, ask.config.train.devices or devices))  # JAX reads it once
  import jax
  from absl import logging

  from flaxonomy.train import compile_cache, processes

  _hush(logging)
  jax.config.update("jax_num_cpu_devices", devices)
  if joined:
    processes.start(*joined)
  saved = compile_cache.enable() if cache else None
  if mode in ("eval", "predict", "sample", "chat", "export", "explain"):
    _refuse_studies(ask.folders)
  last = MODES[mode](ask)
  if processes.first():
    if saved and saved.seconds >= 0.5:
      print(f"compilation cache: {saved.seconds:.1f} s of compilation saved", file=sys.stderr, flush=True)
    if last is not None:
      print(last)


def _hush(logging) -> None:
  """A checkpoint that fails is told by us in one line; Orbax's threads would add pages to it."""
  logging.set_verbosity(logging.FATAL)
  standard_logging.getLogger("asyncio").setLevel(standard_logging.CRITICAL)
  warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def broken(error: Exception) -> int:
  """Tells of an error that ends one of several processes, and gives the exit code."""
  if re.search("gloo|connection|coordination", str(error), re.IGNORECASE):
    print(f"error: lost another process of this run: {first_line(error)}", file=sys.stderr)
  else:
    traceback.print_exception(error)
  return 1


def leave(code: int) -> None:
  """Ends one of several processes; see `processes.leave`."""
  from flaxonomy.train import processes

  processes.leave(code)


def _refuse_studies(folders):
  from flaxonomy.train import study

  for folder in folders:
    study.refuse(folder)


def _study(config, folder):
  from flaxonomy.train import study, workdir

  done = study.finished(config, workdir.absolute(folder)) is not None
  found = study.run(config, folder)
  if done:
    print("already complete; type another --workdir for a new study, or more train.steps")
  table = f"{study.table(found)}\n" if found["runs"] else ""
  return f"{table}everything lies in {folder}: {', '.join(found['files'])}"


def _train(ask):
  from flaxonomy.train import loop, workdir

  if ask.config.study.compare or ask.config.study.picture is not None:
    return _study(ask.config, ask.folders[0])
  _refuse_studies(ask.folders)
  folder = workdir.absolute(ask.folders[0])
  done = workdir.finished(folder, ask.config.train.steps)
  if (folder / "config.json").exists() and not done:
    before = workdir.load_config(folder).train.steps
    if before != ask.config.train.steps and ask.config.optim.schedule in ("cosine", "linear", "one_cycle"):
      print(f"train.steps was {before}: the {ask.config.optim.schedule} schedule now ends at {ask.config.train.steps}")
  result = loop.run(ask.config, folder)
  if done:
    print(f"already complete at step {result['step']}; type another --workdir for a new run, or more train.steps")
  return f"{_metrics(result['metrics'])}; everything lies in {ask.folders[0]} (open {ask.folders[0]}/report.html)"


def _metrics(metrics: dict) -> str:
  return ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in metrics.items())


def _eval(ask):
  from flaxonomy.train import inference

  result = inference.evaluate(ask.folders, ask.checkpoint, ask.changes)
  of = ask.folders[0] if len(ask.folders) == 1 else f"ensemble of {len(ask.folders)}"
  return f"{_metrics(result['metrics'])}; {of}, step {', '.join(map(str, result['steps']))}"


def _predict(ask):
  from flaxonomy.train import inference

  if not ask.inputs:
    raise UserError("--mode=predict needs --inputs=FILE_OR_FOLDER[,...]")
  folder = inference.predict(ask.folders[0], ask.inputs, ask.checkpoint, ask.changes)
  pictures = len(list(folder.glob("*.png")))
  beside = f", {'a picture' if pictures == 1 else f'{pictures} pictures'} beside it" if pictures else ""
  return f"{folder}/predictions.csv{beside}"


def _export(ask):
  from flaxonomy.train import export

  return f"exported, reloaded and checked: {export.export(ask.folders[0], ask.checkpoint)}"


def _explain(ask):
  from flaxonomy.train import explain

  found = explain.explain(ask.folders[0], ask.inputs, ask.checkpoint, ask.changes)
  wrong = "" if found["count"] is None else f"{found['count']} of {found['examples']} examples wrong, "
  return f"{wrong}step {found['step']}; in {ask.folders[0]}/explain: {', '.join(found['files'])}"


def _preview(ask):
  from flaxonomy.train import inference

  return f"what the model will see: {inference.preview(ask.config, ask.folders[0])}"


def _doctor(ask):
  from flaxonomy.train import doctor

  return doctor.examine(ask.config, ask.folders[0])


def _sample(ask):
  from flaxonomy.train import writing

  pieces = writing.write(ask.folders[0], which=ask.checkpoint, changes=ask.changes, **ask.writing)
  print(ask.writing["prompt"], end="", flush=True)
  for piece in pieces:
    print(piece, end="", flush=True)
  return ""


def _chat(ask):
  from flaxonomy.train import chat

  chat.talk(*chat.start(ask.folders[0], ask.checkpoint, ask.changes), sys.stdin, sys.stdout)


MODES = {
  "train": _train, "eval": _eval, "predict": _predict, "sample": _sample, "chat": _chat, "export": _export,
  "explain": _explain, "preview": _preview, "doctor": _doctor,
}  # fmt: skip
