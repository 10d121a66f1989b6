"""The Transformer and its kin against transformers and torch: every number of every golden file."""

import check
import numpy as np
import pytest
import seeded
import transformers

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models import interop
from flaxonomy.models.sequence import attention

FOLDER = "tests/goldens/sequence"
SHARED = {  # sizes of a model that has a file
  "gpt2_medium": "gpt2", "gpt2_large": "gpt2", "gpt2_xl": "gpt2", "transformer_big": "transformer",
}  # fmt: skip
FILES = ("gpt1", "gpt2", "transformer_postln", "transformer_preln", "marian")


def load(root, stem):
  return seeded.load(root / f"{FOLDER}/{stem}.npz")


@pytest.mark.parametrize("stem", FILES)
def test_every_number(stem, root):
  case = load(root, stem)
  rows = check.check(root / f"{FOLDER}/{stem}.npz")
  assert not [row for row in rows if not row.good]
  keys = {row.key for row in rows}
  assert ("sgd_losses" in case["meta"]) == ("sgd_losses" in keys)


def test_every_model_has_a_file(root):
  held = {transformers.model_of(load(root, stem)) for stem in FILES}
  families = {"GPT", "Transformer"}
  wanted = {name for name in models.MODELS if type(models.create(name)).__name__ in families}
  assert wanted == held | set(SHARED)
  assert set(SHARED.values()) <= held


def test_a_wrong_activation_or_norm_is_caught(root, monkeypatch):
  """GELU exact instead of by a tanh, which differ by 5e-4; an epsilon of 1e-6 instead of 1e-5."""
  case = load(root, "gpt1")
  case["grad"] = {}
  wrong = {"out/logits", "mid/hidden/1"}
  for field, value in (("activation", "gelu"), ("epsilon", 1e-6)):
    with monkeypatch.context() as patch:
      setup = attention.Layer.setup

      def changed(self, field=field, value=value, setup=setup):
        object.__setattr__(self, field, value)
        setup(self)

      patch.setattr(attention.Layer, "setup", changed)
      found = transformers.compare(case, "gpt1")
    bad = {key for key, row in found.items() if check.difference(*row)[0] > row[2]}
    assert wrong <= bad, field
    assert "mid/hidden/0" not in bad


@pytest.mark.parametrize("stem", FILES)
def test_there_and_back_is_exact(stem, root):
  """The same names, tied ones and constants included, and the same numbers."""
  case = load(root, stem)
  name, fields, params = transformers.load(case, stem)
  tensors = interop.to_torch(name, {"params": params}, **fields)
  assert tensors.keys() == case["weights"].keys()
  for key, value in tensors.items():
    assert value.flags.c_contiguous
    np.testing.assert_allclose(value, case["weights"][key], atol=5e-6 if key == "pe" else 0, err_msg=key)


def test_what_the_tensors_tell(root):
  tell = lambda name, stem, **fields: interop.model_of(name, load(root, stem)["weights"], **fields)
  model = tell("gpt2", "gpt2", num_heads=4)
  assert (model.vocab_size, model.num_layers, model.hidden_size, model.max_length) == (97, 3, 64, 40)
  model = tell("transformer", "transformer_postln")
  assert (model.vocab_size, model.num_layers, model.hidden_size, model.mlp_size) == (60, 2, 32, 64)
  assert (model.max_length, model.positions, model.final_norms) == (64, "interleaved", True)
  model = tell("marian", "marian")
  assert (model.vocab_size, model.num_layers, model.hidden_size, model.mlp_size) == (99, 2, 64, 128)
  assert (model.max_length, model.positions) == (32, "learned"), "the file's are five times the sinusoids"


def test_sinusoids_of_marian(root):
  """Its file's, which are five times what the model computes, so that they matter beside its other weights."""
  weights = load(root, "marian")["weights"]
  tables = {key: value / 5 for key, value in weights.items() if "embed_positions" in key}
  assert len(tables) == 2
  weights = weights | tables
  assert interop.model_of("marian", weights).positions == "concatenated"
  assert "encoder_positions" not in interop.from_torch("marian", weights)["params"]
  fields = {"positions": "concatenated", "num_heads": 4}
  with pytest.raises(UserError, match="model.encoder.embed_positions.weight is not what the model computes"):
    interop.from_torch("marian", load(root, "marian")["weights"], **fields)


@pytest.mark.parametrize("stem, source", [("gpt1", "tokens_embed"), ("gpt2", "wte")])
def test_tied_weights_and_other_spellings(stem, source, root):
  """The head may be missing, or must be the embeddings; the hub's files lack a prefix and hold masks."""
  name, fields, params = transformers.load(load(root, stem), stem)
  weights = load(root, stem)["weights"]
  bare = {key.removeprefix("transformer."): value for key, value in weights.items() if key != "lm_head.weight"}
  bare |= {"h.0.attn.bias": np.ones((1, 1, 40, 40)), "h.0.attn.masked_bias": np.array(-1e4)}
  found = interop.from_torch(name, bare, num_heads=4)["params"]
  for path, leaf in transformers.flatten_dict(found).items():
    np.testing.assert_array_equal(leaf, transformers.flatten_dict(params)[path])
  untied = weights | {"lm_head.weight": weights["lm_head.weight"] + 1}
  with pytest.raises(UserError, match=f"lm_head.weight is not transformer.{source}.weight again"):
    interop.from_torch(name, untied, num_heads=4)


def test_what_does_not_fit_is_named_as_in_public(root):
  weights = load(root, "gpt2")["weights"]
  del weights["transformer.h.1.attn.c_attn.bias"]
  weights["transformer.h.0.attn.c_attn.weight"] = np.zeros((64, 128), np.float32)
  with pytest.raises(UserError) as raised:
    interop.from_torch("gpt2", weights, num_heads=4)
  assert "1 missing: transformer.h.1.attn.c_attn.bias" in str(raised.value)
  assert "1 of another shape: transformer.h.0.attn.c_attn.weight (64, 128) for (64, 192)" in str(raised.value)
  with pytest.raises(UserError, match="missing: "):
    interop.from_torch("transformer", load(root, "gpt2")["weights"])
