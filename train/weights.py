"""Weights in files: safetensors and nothing else, since that format holds arrays and cannot hold code.

Names are "collection/module/leaf" paths. A file is looked at before it is believed: what kind it is, that every tensor
lies inside it, that names are plain paths and do not collide.
"""

import re
from pathlib import Path

import numpy as np
import safetensors.numpy

from flaxonomy.errors import UserError, first_line

_NAME = re.compile(r"[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*")
_KINDS = {  # first bytes of what people have instead
  b"PK\x03\x04": "a zip archive, as torch.save writes it (a pickle: loading one can run any code)",
  b"\x80": "a pickle: loading one can run any code",
  b"\x93NUMPY": "a NumPy array",
  b"\x89HDF": "HDF5",
}


def read(path: str | Path) -> dict[str, np.ndarray]:
  """The arrays of a safetensors file by name.

  Args:
    path: of the file.

  Raises:
    UserError: no such file, another format, a damaged one, or names that are no plain paths.
  """
  path = Path(path)
  try:
    with path.open("rb") as file:
      begin = file.read(8)
    kind = next((kind for first, kind in _KINDS.items() if begin.startswith(first)), None)
    if kind and not _plausible(begin, path.stat().st_size):
      raise UserError(f"weights {str(path)!r} are {kind}; convert them to safetensors where you trust them")
    arrays = safetensors.numpy.load_file(path)
  except UserError:
    raise
  except Exception as error:  # the library raises its own kind, OSError, or KeyError for types that NumPy lacks
    raise UserError(f"cannot read weights {str(path)!r}: {first_line(error)}") from None
  for name in arrays:
    if len(name) > 500 or not _NAME.fullmatch(name) or ".." in name.split("/"):
      raise UserError(f"weights {str(path)!r}: {name[:80]!r} is no plain path of letters, digits and _ . - /")
  unflatten(arrays)
  return arrays


def _plausible(begin: bytes, size: int) -> bool:
  """Whether the first eight bytes can be the length of a safetensors header in a file of so many bytes."""
  return len(begin) == 8 and int.from_bytes(begin, "little") <= size - 8


def flatten(tree: dict, leaf=np.ascontiguousarray, prefix: str = "") -> dict[str, np.ndarray]:
  """{"params/conv1_1/kernel": array, ...} of nested dicts; `leaf` is applied to each."""
  flat = {}
  for key, value in tree.items():
    flat |= flatten(value, leaf, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: leaf(value)}
  return flat


def unflatten(flat: dict[str, np.ndarray]) -> dict:
  """The nested dicts of `flatten`.

  Raises:
    UserError: a name is the beginning of another's path.
  """
  tree = {}
  for path, value in flat.items():
    *parents, last = path.split("/")
    holder = tree
    for key in parents:
      holder = holder.setdefault(key, {})
      if not isinstance(holder, dict):
        break
    if not isinstance(holder, dict) or last in holder:
      raise UserError(f"weights hold {path!r} beside another name that is the beginning of it, or goes on from it")
    holder[last] = value
  return tree
