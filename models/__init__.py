"""Every model by name: one literal table, looked up by `create`. Modules take plain fields, never a config."""

import dataclasses
import importlib

from flax import linen as nn

from flaxonomy.errors import UserError, unknown

MODELS = {
  "deep_convnet": "vision.deep_convnet:DeepConvNet",
  "dcgan": "generative.dcgan:DCGAN",
}


def create(name: str, **fields) -> nn.Module:
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
    default = known[field].default
    kind = (int, float) if isinstance(default, float) else type(default)
    if isinstance(default, (bool, int, float, str, tuple)) and not isinstance(value, kind):
      raise UserError(
        f"field {field!r} of model {name!r} must be like {default!r}, not {value!r} (config field 'model.fields')"
      )
  return module(**fields)
