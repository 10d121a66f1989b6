"""Errors that a user can mend. Every room may import this file; it imports nothing of the project.

A `UserError` is one line: what is wrong, where, the nearest names, what to type. `launch.py` prints it without a
traceback and exits with its code; from Python it is an ordinary exception. The codes, which status.json repeats:

  0 finished    2 user error    3 data    4 numbers    5 workdir busy    143, 130 stopped by SIGTERM, SIGINT
"""

import difflib
import sys
from collections.abc import Iterable


class UserError(Exception):
  """Something the user can put right. The message is one line; `exit_code` is what the launcher returns."""

  exit_code = 2


class DataError(UserError):
  """Data that cannot be read, or is not what it says."""

  exit_code = 3


class NumericError(UserError):
  """Numbers that are no longer finite."""

  exit_code = 4


class BusyError(UserError):
  """A workdir in which another run is going on."""

  exit_code = 5


class Preempted(Exception):
  """A run that a signal stopped. What it saved can be gone on with; `exit_code` is 128 + the signal's number."""

  def __init__(self, message: str, signum: int):
    super().__init__(message)
    self.exit_code = 128 + signum


def warn(line: str) -> None:
  """Tells the user something that does not stop the run: one line on standard error."""
  print(f"\nwarning: {line}" if sys.stderr.isatty() else f"warning: {line}", file=sys.stderr, flush=True)


def unknown(what: str, name: str, known: Iterable[str], hint: str = "") -> UserError:
  """An error for a name that is not among the known ones.

  Args:
    what: the kind of thing, as the user calls it: "optimizer", "config field".
    name: what was written.
    known: the names that exist.
    hint: what to type to see or mend it; appended.

  Returns:
    UserError: "unknown WHAT 'NAME'; did you mean 'A' or 'B'? ..." or, where nothing is near, the known names.
  """
  known = sorted(known)
  near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
  guess = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {_cut(', '.join(known), 1500)}"
  return UserError(f"unknown {what} {shown(name)}; {guess}" + (f" {hint}" if hint else ""))


def missing_extra(package: str, extra: str, purpose: str) -> UserError:
  """An error for an optional package that is not installed.

  Args:
    package: the import name.
    extra: the extra of this project that brings it.
    purpose: what needs it.

  Returns:
    UserError with the install line to type.
  """
  return UserError(
    f"{purpose} needs the package {package!r}, which is not installed; type: pip install 'flaxonomy[{extra}]'"
  )


def shown(value, most: int = 200) -> str:
  """What a user wrote, for a message of one line: its repr, cut if it is long, or its type where it has none."""
  try:
    return _cut(" ".join(repr(value).splitlines()), most)
  except Exception:  # such as integers of more than 4,300 digits
    return f"this {type(value).__name__}"


def _cut(text, most):
  return text if len(text) <= most else f"{text[: most - 3]}..."


def first_line(error: BaseException, most: int = 300) -> str:
  """The first line of what another library says, for a message of one line."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return (lines[0] if lines else type(error).__name__)[:most]
