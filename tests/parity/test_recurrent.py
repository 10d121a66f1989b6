"""Recurrent nets against torch's modules: every number of every golden file, and the weights there and back."""

import check
import numpy as np
import pytest
import recurrent
import seeded

from flaxonomy import models
from flaxonomy.models import interop

FOLDER = "tests/goldens/sequence"


@pytest.mark.parametrize("stem", recurrent.FILES)
def test_every_number(stem, root):
  rows = check.check(root / f"{FOLDER}/{stem}.npz")
  assert not [row for row in rows if not row.good]
  assert {row.tolerance for row in rows} == {1e-5}


@pytest.mark.parametrize("stem", recurrent.FILES)
def test_weights_there_and_back(stem, root):
  case = seeded.load(root / f"{FOLDER}/{stem}.npz")
  name, weights = recurrent.model_of(case), case["weights"]
  assert name == stem.removeprefix("bi")
  back = interop.to_torch(name, interop.from_torch(name, weights))
  assert back.keys() == weights.keys()
  for key, value in weights.items():
    np.testing.assert_array_equal(back[key], value)
    assert back[key].dtype == np.float32
  told = interop.model_of(name, weights)
  assert (told.hidden_size, told.num_layers, told.bidirectional) == (12, 2, stem.startswith("bi"))


def test_every_recurrent_model_has_a_file():
  wanted = {name for name in models.MODELS if type(models.create(name)).__name__ == "Recurrent"}
  assert wanted == set(recurrent.GATES.values()) == {stem.removeprefix("bi") for stem in recurrent.FILES}


def test_a_wrong_gate_order_is_caught(root):
  """Keras has z, r, n: with the two swapped nothing fits."""
  case = seeded.load(root / f"{FOLDER}/gru.npz")
  swapped = {key: np.concatenate([np.split(w, 3)[i] for i in (1, 0, 2)]) for key, w in case["weights"].items()}
  found = recurrent.compare(case | {"weights": swapped}, "gru")
  errors = {key: check.difference(*pair)[0] for key, pair in found.items()}
  assert min(errors[key] for key in ("out/y", "out/y_packed", "out/state/0", "out/state_packed/0")) > 1e-2
