"""The adding problem: what two marked numbers of a long sequence add up to. A memory must keep them until its end.

Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", section 5.4. Each element is a pair: a number from [-1, 1],
and a marker that is 1 for two of them, -1 for the first and the last element, else 0. One of the first ten elements is
marked, and one of the first T / 2 - 1 others. The target is 0.5 + (X1 + X2) / 4, and a sequence counts as right with an
error below 0.04. Where the first element is marked, its number is 0.

Deviations: all sequences have one length, where the paper's have T to T + T / 10; below twenty elements the first
marked one is in the first half. Everything follows from one stream of raw bits, which NumPy promises for ever.
"""

import numpy as np

SIZES = {"train": 20_000, "test": 2_000}
TOLERANCE = 0.04
SHORTEST = 4


def examples(split: str, length: int) -> tuple[np.ndarray, np.ndarray]:
  """All sequences of a split.

  Args:
    split: a key of SIZES.
    length: T, even or odd, SHORTEST at least.

  Returns:
    (inputs [N, T, 2] float32, targets [N] float32)
  """
  count = SIZES[split]
  bits = np.random.PCG64([list(SIZES).index(split), length]).random_raw(count * (length + 2))
  uniform = ((bits >> 11) * 2.0**-53).reshape(count, length + 2)
  value, marker, row = 2 * uniform[:, :length] - 1, np.zeros((count, length)), np.arange(count)
  marker[:, [0, -1]] = -1
  first = (uniform[:, length] * min(10, length // 2)).astype(int)
  second = (uniform[:, length + 1] * (length // 2 - 1)).astype(int)
  second += second >= first  # the first one is no longer there to be marked
  marker[row, first] = marker[row, second] = 1
  value[marker[:, 0] == 1, 0] = 0
  target = 0.5 + (value[row, first] + value[row, second]) / 4
  return np.stack([value, marker], -1).astype(np.float32), target.astype(np.float32)
