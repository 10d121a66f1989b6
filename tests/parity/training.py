"""What golden files tell of training: norms of gradients, and the losses of some steps."""

import numpy as np
import optax


def gradients(ours: dict, theirs: dict) -> dict:
  """{key: (our norm, theirs)} by parameter, and the median error; 0 where both are but rounding beside the largest.

  Args:
    ours: {public name: array}.
    theirs: {public name: norm}.
  """
  largest = max((float(value) for value in theirs.values()), default=0.0)
  found = {}
  for key, value in theirs.items():
    norm = np.linalg.norm(np.float64(ours[key]).ravel()) if key in ours else np.nan
    if value < 1e-6 * largest and norm < 1e-6 * largest:
      norm = value = 0.0
    found[f"grad/{key}"] = (norm, value)
  apart = [abs(norm - value) / max(value, 1e-30) for norm, value in found.values()]
  return found | ({"grad/median of all": (1 + np.median(apart), 1.0)} if found else {})


def descent(gradient, params, steps: int, lr: float, momentum: float = 0.9) -> np.ndarray:
  """The loss before each of so many steps of SGD, [steps].

  Args:
    gradient: params -> ((loss, anything), gradients).
    params: to begin with.
    steps: how many.
    lr, momentum: as torch has them.
  """
  tx = optax.sgd(lr, momentum)
  state, found = tx.init(params), []
  for _ in range(steps):
    (value, _), grads = gradient(params)
    updates, state = tx.update(grads, state)
    params = optax.apply_updates(params, updates)
    found.append(float(value))
  return np.array(found)
