"""Values of config fields: as their annotated types, and those types in words."""

import math
import types
import typing


def convert(value, kind):
  """The value as the annotated type.

  Raises:
    TypeError: it is of another.
    OverflowError: no run can use it.
  """
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    return None if value is None else convert(value, next(a for a in arguments if a is not type(None)))
  if origin is tuple:
    if not isinstance(value, (tuple, list)):
      raise TypeError
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
      raise TypeError
    kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    return tuple(convert(v, k) for v, k in zip(value, kinds))
  if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
    if not math.isfinite(value):
      raise OverflowError
    return float(value)
  if kind is dict and isinstance(value, dict):
    return _tuples(value)
  if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
    raise TypeError
  if kind is int and abs(value) >= 2**32:  # more than any counter or seed on a device holds
    raise OverflowError
  return value


def _tuples(value):
  """Lists as tuples, all the way down: JSON makes no difference."""
  if isinstance(value, (list, tuple)):
    return tuple(_tuples(v) for v in value)
  if isinstance(value, dict):
    return {k: _tuples(v) for k, v in value.items()}
  if isinstance(value, int) and abs(value) >= 2**64:
    raise OverflowError
  return value


def describe(kind) -> str:
  """An annotated type in words."""
  origin, arguments = typing.get_origin(kind), typing.get_args(kind)
  if origin in (typing.Union, types.UnionType):
    return " or None".join(describe(a) for a in arguments if a is not type(None)) + " or None"
  if origin is tuple:
    return f"a tuple of {arguments[0].__name__}" + ("" if arguments[-1] is Ellipsis else f", {len(arguments)} long")
  return kind.__name__
