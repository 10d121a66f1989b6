"""The Mackey-Glass series, chaos from one line: x'(t) = beta x(t - tau) / (1 + x(t - tau)^n) - gamma x(t).

Mackey and Glass 1977, "Oscillation and Chaos in Physiological Control Systems", with the constants of the forecasting
literature: beta .2, gamma .1, n 10, tau 17. From x = 1.2 and before, by Runge and Kutta's fourth-order rule in steps of
.1; between two steps the delayed value is the cubic through both values and slopes. One value is kept for each unit of
time, after the first 1,000. Products alone, no power function, so that every machine makes the same series.
"""

import numpy as np
import tensorflow_datasets as tfds

BETA, GAMMA, TAU, START = 0.2, 0.1, 17, 1.2
STEPS = 10  # in a unit of time
BURN_IN, SIZE = 1_000, 10_000
SPLITS = {"train": (0, 8_000), "validation": (8_000, 9_000), "test": (9_000, 10_000)}


class MackeyGlass(tfds.core.GeneratorBasedBuilder):
  """10,000 values in the order of time: `value` float32, 8,000 to train, then 1,000 each to validate and test."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    features = tfds.features.FeaturesDict({"value": tfds.features.Scalar(np.float32)})
    return tfds.core.DatasetInfo(builder=self, description=__doc__, features=features, disable_shuffling=True)

  def _split_generators(self, dl_manager):
    values = series(BURN_IN + SIZE)[BURN_IN:]
    return {name: self._generate_examples(values[begin:end]) for name, (begin, end) in SPLITS.items()}

  def _generate_examples(self, values):
    yield from enumerate({"value": value} for value in values.astype(np.float32))


def series(count: int) -> np.ndarray:
  """x(1) to x(count), float64."""
  delay, h = TAU * STEPS, 1 / STEPS
  x, slope = [START] * (delay + 1), [0.0] * (delay + 1)  # up to time 0; what comes before it is constant
  for i in range(count * STEPS):
    now, before, after = x[-1], x[i], x[i + 1]
    first = _slope(now, before)
    left = _slope(START, START) if i == delay else slope[i]  # behind time 0, where the constant ends
    middle = (before + after) / 2 + h / 8 * (left - slope[i + 1])
    second = _slope(now + h / 2 * first, middle)
    third = _slope(now + h / 2 * second, middle)
    fourth = _slope(now + h * third, after)
    x.append(now + h / 6 * (first + 2 * second + 2 * third + fourth))
    slope.append(_slope(x[-1], after))
  return np.array(x[delay + STEPS :: STEPS])


def _slope(now: float, before: float) -> float:
  """x'(t) of x(t) and x(t - tau)."""
  square = before * before
  fourth = square * square
  return BETA * before / (1 + fourth * fourth * square) - GAMMA * now
