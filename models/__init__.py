"""Every model by name: one literal table, looked up by `create`. Modules take plain fields, never a config."""

import dataclasses
import importlib

from flax import linen as nn

from flaxonomy.errors import UserError, unknown

MODELS = {
  "deep_convnet": "vision.deep_convnet:DeepConvNet",
  "dcgan": "generative.dcgan:DCGAN",
}


def create(name: str, /, **fields) -> nn.Module:
  """The module of this name.

  Args:
    name: a key of `MODELS`.
    **fields: fields of the module.

  Raises:
    UserError: unknown model or field, with the nearest names.
  """
  if name not in MODELS:
    raise unknown("model", name, MODELS, "(config field 'model.name')")
  path, symbol = MODELS[name].split(":")
  module = getattr(importlib.import_module(f"flaxonomy.models.{path}"), symbol)
  known = {f.name: f for f in dataclasses.fields(module) if f.name not in ("parent", "name")}
  for field, value in fields.items():
    if field not in known:
      raise unknown(f"field of model {name!r}:", field, known, "(config field 'model.fields')")
    if not _like(value, default := known[field].default):
      raise UserError(
        f"field {field!r} of model {name!r} must be like {default!r}, not {value!r} (config field 'model.fields')"
      )
  return module(**fields)


def _like(value, default) -> bool:
  """Whether a value is of its default's type; counts are positive, rates from 0 to below 1."""
  if isinstance(default, bool) or default is None or not isinstance(default, (int, float, str, tuple)):
    return not isinstance(default, bool) or isinstance(value, bool)
  if isinstance(default, tuple):
    return isinstance(value, tuple) and all(_like(v, default[0]) for v in value)
  if isinstance(default, int):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
  if isinstance(default, float):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
  return isinstance(value, str)
