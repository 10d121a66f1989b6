"""Layers, activations, losses and initialisers against torch: every number of four golden files."""

import layers
import numpy as np
import pytest
import seeded


@pytest.mark.parametrize("stem", layers.CHECKS)
def test_every_number(stem, request):
  case = seeded.load(request.config.rootpath / f"tests/goldens/{stem}.npz")
  checked = layers.CHECKS[stem](case)
  assert set(checked) == set(case["out"])
  far = {}
  for key, (ours, theirs, tolerance) in checked.items():
    assert ours.shape == theirs.shape, key
    error = np.abs(ours - theirs).max() / np.abs(theirs).max()
    if not error <= tolerance:
      far[key] = error, tolerance
  assert not far
