"""Holds models to golden files: python tests/parity/check.py FILE.npz ...

A file holds what a public implementation computed (see seeded.py), its weights or the seed that makes them, and in its
meta the implementation's name and arguments. The model of that name is built, the weights go through
flaxonomy.models.interop, and every output, intermediate and gradient is compared: a line each with the largest
difference as a share of the largest magnitude. Exit code 1 beyond tolerance or for a key that cannot be compared.
"""

import sys
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import classifiers
import detectors
import geometry
import layers
import recurrent
import seeded
import seq2seq
import transformers
import yolo

# Each knows its files by what they hold; all others are of classifiers.
FAMILIES = (detectors, recurrent, seq2seq, transformers)
CHECKS = layers.CHECKS | yolo.CHECKS | {"detection_ops": geometry.check_detection_ops}  # by a file's name
ABSENT = (  # what is not among our models: R-FCN's; of losses those of DQN, style transfer, GloVe, word2vec and VAEs
  "out/ps_roi_align",
  *(f"out/{name}" for name in (
    "dqn_huber", "dqn_mse", "dqn_target", "gatys_content", "gatys_style_E", "gram", "tv_l2", "glove_loss",
    "glove_weight", "keep_prob_paper", "keep_prob_wordc", "neg_dist", "sgns", "sparse_kl", "vae_bce", "vae_kl",
  )),
)  # fmt: skip


class Row(NamedTuple):
  """One comparison: error and tolerance as shares of the largest magnitude; error infinite if nothing was compared."""

  key: str
  error: float
  tolerance: float
  note: str = ""

  @property
  def good(self) -> bool:
    return self.error <= self.tolerance


def check(path) -> list[Row]:
  """All comparisons of one file.

  Args:
    path: of an .npz in the goldens' format.
  """
  case = seeded.load(path)
  stem = Path(path).stem
  family = next((each for each in FAMILIES if each.model_of(case)), classifiers)
  with jax.default_matmul_precision("highest"):
    found = CHECKS[stem](case) if stem in CHECKS else family.compare(case, stem)
  rows = [Row(key, *difference(ours, theirs, tolerance)) for key, (ours, theirs, tolerance) in found.items()]
  every = [f"{group}/{name}" for group in ("out", "mid", "grad") for name in case[group]]
  every = [key for key in every if key not in ABSENT]
  seen = {row.key for row in rows} | {"out/" + row.key for row in rows}
  return rows + [Row(key, np.inf, 0.0, "not compared") for key in every if key not in seen]


def difference(ours, theirs, tolerance) -> tuple[float, float]:
  """(largest difference as a share of the largest magnitude, tolerance); infinite where shapes or NaNs differ."""
  ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
  same = (ours == theirs) if ours.shape == theirs.shape else np.array(False)
  if ours.shape != theirs.shape or not (np.isfinite(ours) | same).all() or not (np.isfinite(theirs) | same).all():
    return np.inf, tolerance
  apart = np.abs(np.where(same, 0, ours - np.where(same, 0, theirs)))
  return float(apart.max(initial=0) / max(np.abs(theirs[np.isfinite(theirs)]).max(initial=0), 1e-30)), tolerance


def main(paths: list[str]) -> int:
  """Prints a line for each comparison; 0 if all are within tolerance."""
  if not paths:
    print(__doc__)
    return 2
  bad = 0
  for path in paths:
    try:
      rows = check(path)
    except Exception as error:  # a file of another kind is a failure of that file
      rows = [Row("", np.inf, 0.0, f"{type(error).__name__}: {error}")]
    for row in rows:
      mark = "ok " if row.good else "BAD"
      print(f"{mark} {Path(path).stem:24} {row.key:60} {row.error:9.1e} of {row.tolerance:.0e} {row.note}".rstrip())
    wrong = sum(not row.good for row in rows)
    print(f"{'BAD' if wrong else 'ok '} {path}: {len(rows) - wrong} of {len(rows)} within tolerance")
    bad += wrong
  return 1 if bad else 0


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
