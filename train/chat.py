"""Talking with a trained run in a terminal, or through a pipe: a line in, a line out, from a workdir alone."""

import sys
from collections.abc import Callable

import jax

from flaxonomy.errors import UserError, first_line
from flaxonomy.train import inference, loop


def start(path: str, which: str = "latest", changes: dict | None = None) -> tuple[str, Callable[[str], str]]:
  """A run that answers.

  Args:
    path: workdir.
    which: checkpoint, as in `inference.load`.
    changes: as there.

  Returns:
    (what it was trained on, a function: line -> answer, which raises a UserError for a line that is too long)

  Raises:
    UserError: a task that answers no text, and as `inference.load`.
  """
  mesh = loop.make_mesh(1)
  run = inference.load(path, mesh, which, changes)
  if run.task.read is None:
    raise UserError(f"--mode=chat is for models that answer, and the run in {path!r} is of task {run.config.task!r}")
  label = inference.labeller(run, mesh, 1)

  def answer(line):
    return " ".join(label(run.task.read([line]))[1][0][0].splitlines())

  return _greeting(run), answer


def _greeting(run) -> str:
  data, size = run.config.data, sum(x.size for x in jax.tree.leaves(run.state.params))
  files = f" {data.data_dir} ({' to '.join(data.text.languages)})" if data.data_dir else ""
  return (
    f"{run.config.model.name} ({size:,} parameters), trained on {data.name}{files}, {run.info.size:,} examples, "
    f"{run.step:,} steps; type a line, end with ctrl-D"
  )


def talk(greeting: str, answer: Callable[[str], str], lines, out) -> None:
  """Answers line by line until there are no more; a blank line gets a blank one.

  Args:
    greeting: told first, on standard error.
    answer: from `start`.
    lines: an open text file.
    out: likewise, where answers go.
  """
  ask = "> " if lines.isatty() else ""
  print(greeting, file=sys.stderr, flush=True)
  while True:
    print(ask, end="", file=out, flush=True)
    try:
      line = lines.readline()
    except UnicodeDecodeError as error:
      raise UserError(f"what is typed must be UTF-8 text: {first_line(error)}") from None
    if not line:
      break
    try:
      print(answer(line.strip()) if line.strip() else "", file=out, flush=True)
    except UserError as error:
      print(f"error: {error}", file=sys.stderr, flush=True)
