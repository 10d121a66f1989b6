"""Classifiers of texts: padding changes nothing, pooling in NumPy, sizes, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models.sequence import rnn

RNG = jax.random.PRNGKey(0)
SMALL = {
  "bilstm_classifier": {
    "num_classes": 3, "vocab_size": 11, "embedding_size": 6, "hidden_size": 5, "num_layers": 2, "attention_size": 4,
  },
  "transformer_classifier": {
    "num_classes": 3, "vocab_size": 11, "num_layers": 2, "hidden_size": 8, "num_heads": 2, "mlp_size": 12,
    "max_length": 9,
  },
}  # fmt: skip
EACH = [
  ("bilstm_classifier", {"pool": "attention"}),
  ("bilstm_classifier", {"pool": "max"}),
  ("transformer_classifier", {}),
  ("transformer_classifier", {"pool": "first", "positions": "sinusoidal", "norm_first": False}),
]
TOKENS = np.array([[1, 4, 5, 9, 2], [1, 7, 0, 0, 0], [1, 3, 3, 8, 0]])


def made(name, **fields):
  """(model, parameters large enough to matter)."""
  model = models.create(name, **SMALL[name] | fields)
  params = jax.jit(lambda: model.init(RNG, TOKENS, train=False)["params"])()
  return model, jax.tree.map(lambda x: x * 3, params)


def run(model, params, tokens):
  return jax.jit(lambda p: model.apply({"params": p}, tokens, train=False))(params)


@pytest.mark.parametrize("name, fields", EACH)
def test_padding_changes_nothing(name, fields):
  """Neither how much of it there is nor what its embedding is, in value and gradient; nor who else is in the batch."""
  model, params = made(name, **fields)
  garbage = {**params, "tokens": {"embedding": params["tokens"]["embedding"].at[0].set(jnp.nan)}}
  long = np.pad(TOKENS, ((0, 0), (0, 4)))

  def loss(params, tokens):
    logits = model.apply({"params": params}, tokens, train=False)["logits"]
    return (logits * jnp.arange(1.0, 4)[None]).sum(), logits

  found = jax.jit(jax.grad(loss, has_aux=True))
  (slope, logits), (other_slope, other_logits) = found(params, TOKENS), found(garbage, long)
  np.testing.assert_allclose(logits, other_logits, rtol=1e-5, atol=1e-6)
  largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(slope))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * largest), slope, other_slope)
  assert not slope["tokens"]["embedding"][0].any()
  assert float(jnp.abs(slope["tokens"]["embedding"][7]).max()) > 1e-3
  alone = run(model, params, TOKENS[1:2, :2])["logits"]
  np.testing.assert_allclose(logits[1:2], alone, rtol=1e-5, atol=1e-6)
  assert float(jnp.abs(logits[0] - logits[1]).max()) > 1e-2


@pytest.mark.parametrize("name, fields", EACH)
def test_rows_of_padding_alone_are_finite(name, fields):
  """As an evaluation's last batch has them: their loss is multiplied by 0."""
  model, params = made(name, **fields)
  assert np.isfinite(run(model, params, np.zeros((2, 4), int))["logits"]).all()


def test_lstm_and_attention_by_hand():
  model, params = made("bilstm_classifier")
  stages = run(model, params, TOKENS)
  assert set(stages) == {"embedding", "layers", "attention", "pooled", "logits"}
  table = np.asarray(params["tokens"]["embedding"])
  np.testing.assert_array_equal(stages["embedding"], np.where(TOKENS[..., None] > 0, table[TOKENS], 0))
  layers = rnn.Recurrent("lstm", 5, 2, True)
  outputs, _ = layers.apply({"params": params["layers"]}, table[TOKENS], np.array([5, 2, 4]), train=False)
  np.testing.assert_allclose(stages["layers"], outputs, rtol=1e-5, atol=1e-6)
  inner, outer = (np.asarray(params[f"attention_{k}"]["kernel"]) for k in ("inner", "outer"))
  for i, length in enumerate((5, 2, 4)):
    h = np.asarray(outputs)[i, :length]
    scores = (np.tanh(h @ inner) @ outer)[:, 0]
    weights = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(stages["attention"][i, :length], weights, rtol=1e-4)
    assert not stages["attention"][i, length:].any()
    np.testing.assert_allclose(stages["pooled"][i], weights @ h, rtol=1e-4, atol=1e-6)
    head = params["head"]
    np.testing.assert_allclose(stages["logits"][i], weights @ h @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "name, pool, pooled",
  [
    ("bilstm_classifier", "max", lambda h: h.max(0)),
    ("transformer_classifier", "mean", lambda h: h.mean(0)),
    ("transformer_classifier", "first", lambda h: h[0]),
  ],
)
def test_other_pools(name, pool, pooled):
  model, params = made(name, pool=pool)
  stages = run(model, params, TOKENS)
  assert "attention" not in stages
  last = np.asarray(stages["layers" if name == "bilstm_classifier" else "norm"])
  for i, length in enumerate((5, 2, 4)):
    np.testing.assert_allclose(stages["pooled"][i], pooled(last[i, :length]), rtol=1e-5, atol=1e-6)


def test_the_transformer_knows_places_and_neighbours():
  for positions in ("learned", "sinusoidal"):
    model, params = made("transformer_classifier", positions=positions)
    turned = TOKENS[:1, [0, 2, 1, 3, 4]]
    logits, other = (run(model, params, tokens)["logits"] for tokens in (TOKENS[:1], turned))
    assert float(jnp.abs(logits - other).max()) > 1e-4, positions


def test_dropout_is_for_training():
  for name in SMALL:
    model, params = made(name, dropout=0.5)
    call = jax.jit(lambda rng, m=model, p=params: m.apply({"params": p}, TOKENS, train=True, rngs={"dropout": rng}))
    one, other = (call(jax.random.PRNGKey(i))["logits"] for i in (0, 1))
    assert float(jnp.abs(one - other).max()) > 1e-3


@pytest.mark.parametrize(
  "name, parameters",
  [  # 10000 128; 2 (4 128 (128 + 128) + 2 4 128); 256 64 + 64; 256 2 + 2
    ("bilstm_classifier", 1_280_000 + 264_192 + 16_448 + 514),
    # 10000 128; 512 128; 2 (4 (128 + 1) 128 + 2 2 128 + 128 256 + 256 + 256 128 + 128); 2 128; 128 2 + 2
    ("transformer_classifier", 1_280_000 + 65_536 + 264_960 + 256 + 258),
  ],
)
def test_sizes(name, parameters):
  model = models.create(name)
  shapes = jax.eval_shape(lambda: model.init(RNG, TOKENS, train=False))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize(
  "name, fields, message",
  [
    ("bilstm_classifier", {"pool": "maxx"}, "unknown pool 'maxx'; did you mean 'max'"),
    ("transformer_classifier", {"pool": "max"}, "unknown pool 'max'"),
    ("transformer_classifier", {"positions": "sine"}, "unknown kind of positions 'sine'"),
    ("transformer_classifier", {"max_length": 4}, "texts of 5 tokens are longer than the model's max_length 4"),
  ],
)
def test_mistakes_are_one_line(name, fields, message):
  model = models.create(name, **SMALL[name] | fields)
  with pytest.raises(UserError, match=message):
    jax.eval_shape(lambda: model.init(RNG, TOKENS, train=False))
