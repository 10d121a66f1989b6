"""What the scripts for one accelerator share: our compiled step as a function of a number of steps, and taking turns.

Here all variants live in one process, since a device is one process's; see interleave.py for CPUs.
"""

import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

ROUNDS, DISPATCH = 3, 10


def runner(function: Callable, state, resident) -> Callable[[int], int]:
  """A function that makes at least so many of our steps and says how many it made; compiled.

  Args:
    function: from `loop.train_function`, of DISPATCH steps.
    state: the one it starts from.
    resident: what every step is fetched from.
  """
  items = {"nothing": np.zeros((DISPATCH, 1), np.int32)}

  def run(steps):
    nonlocal state
    for _ in range(-(-steps // DISPATCH)):
      state, metrics = function(state, resident, items, np.int32(DISPATCH))
    jax.block_until_ready(metrics)
    return -(-steps // DISPATCH) * DISPATCH

  run(DISPATCH)
  return run


def rates(variants: dict[str, Callable[[int], int]], steps: int, size: int) -> dict[str, float]:
  """What variants make in a second, medians of ROUNDS rounds in which they take turns.

  Args:
    variants: {name: run}; run(steps) says how many steps it made, which may be more.
    steps: of each variant in a round.
    size: what one step is counted as: images, tokens.
  """
  found = {name: [] for name in variants}
  for _ in range(ROUNDS):
    for name, run in variants.items():
      began = time.perf_counter()
      found[name].append(size * run(steps) / (time.perf_counter() - began))
  return {name: statistics.median(values) for name, values in found.items()}


def ratio(found: dict[str, float]) -> str:
  """How ours compares with torch's, to be printed."""
  return f"  ours / torch {found['ours'] / found['torch']:.2f}" if "torch" in found else "  (no torch with CUDA)"
