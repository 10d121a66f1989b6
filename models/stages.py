"""Named stages: what a model shows of its way from input to output."""

import jax
from flax import linen as nn


def keep(module: nn.Module, stages: dict, name: str, x: jax.Array) -> jax.Array:
  """Notes a stage under its name and gives it back.

  Where the variables hold a "perturbations" entry of this name, it is added first. It never is in training; its
  gradient is the gradient of an output with respect to the stage, as Grad-CAM needs it (train/explain.py).

  Args:
    module: whose `__call__` asks.
    stages: {name: array}, gains an entry.
    name: of the stage.
    x: [B, ...].
  """
  if module.has_variable("perturbations", name):
    x = x + module.get_variable("perturbations", name)
  stages[name] = x
  return x
