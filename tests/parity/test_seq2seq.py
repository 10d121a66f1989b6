"""Encoder-decoders against the papers' equations in torch: every number of every golden file, weights both ways."""

import shutil

import check
import numpy as np
import pytest
import seeded
import seq2seq

from flaxonomy import models
from flaxonomy.models import interop

FOLDER = "tests/goldens/sequence"
TOLD = {  # what the weights say: encoder, decoder, attention
  "seq2seq_none": ("lstm", "lstm", "none"),
  "seq2seq_dot": ("lstm", "lstm", "dot"),
  "seq2seq_general": ("lstm", "lstm", "general"),
  "seq2seq_bahdanau": ("lstm", "gru", "additive"),
}


@pytest.mark.parametrize("stem", seq2seq.FILES)
def test_every_number(stem, root):
  rows = check.check(root / f"{FOLDER}/{stem}.npz")
  assert not [row for row in rows if not row.good]
  keys = {row.key for row in rows}
  assert "sgd_losses" in keys
  assert ("out/attn" in keys) == (stem != "seq2seq_none")


@pytest.mark.parametrize("stem", seq2seq.FILES)
def test_weights_there_and_back(stem, root):
  case = seeded.load(root / f"{FOLDER}/{stem}.npz")
  tensors = seq2seq.tensors_of(case)
  assert case["weights"].keys() - tensors.keys() == ({"Wc.weight"} if stem == "seq2seq_none" else set())
  told = interop.model_of("seq2seq", tensors)
  assert (told.encoder_cell, told.cell, told.attention) == TOLD[stem]
  assert (told.source_vocab_size, told.target_vocab_size, told.embedding_size, told.hidden_size) == (40, 40, 16, 24)
  back = interop.to_torch("seq2seq", interop.from_torch("seq2seq", tensors), attention=told.attention)
  assert back.keys() == tensors.keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(back[key], value)


def test_every_model_has_a_file():
  wanted = {name for name in models.MODELS if type(models.create(name)).__name__ == "Seq2Seq"}
  assert wanted == {"seq2seq"}
  assert set(TOLD) == set(seq2seq.FILES)


def test_an_encoder_that_stops_at_the_lengths_is_told_apart(root, monkeypatch):
  """It is the better one, and not what the references are."""
  monkeypatch.setattr(seq2seq, "FIELDS", {})
  rows = {row.key: row for row in check.check(root / f"{FOLDER}/seq2seq_dot.npz")}
  assert rows["out/logits"].error > 1e-3
  assert rows["out/attn"].error > 1e-3


@pytest.mark.parametrize("stem", ["bilstm", "seq2seq_dot", "gpt1", "marian"])
def test_a_file_is_known_by_what_it_holds(stem, root, tmp_path):
  shutil.copy(root / f"{FOLDER}/{stem}.npz", tmp_path / "another.npz")
  case = seeded.load(tmp_path / "another.npz")
  assert [bool(family.model_of(case)) for family in check.FAMILIES].count(True) == 1
  rows = check.check(tmp_path / "another.npz")
  assert len(rows) > 5
  assert all(row.good for row in rows)
