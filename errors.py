"""Errors that a user can mend. Every room may import this file; it imports nothing of the project.

A `UserError` is one line: what is wrong, where, the nearest names, what to type. `launch.py` prints it without a
traceback and exits with its code; from Python it is an ordinary exception.
"""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """Something the user can put right. The message is one line; `exit_code` is what the launcher returns."""

  exit_code = 2


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
  guess = f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
  return UserError(f"unknown {what} {name!r}; {guess}" + (f" {hint}" if hint else ""))


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
