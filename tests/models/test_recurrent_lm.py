"""Recurrent language models: sizes, initial values, where dropout falls, stretches with a cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models.sequence import decoding

RNG = jax.random.PRNGKey(0)
SMALL = {"vocab_size": 11, "hidden_size": 6, "num_layers": 2}
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])


def made(name, **fields):
  """(model, parameters large enough to matter)."""
  model = models.create(name, **SMALL | {"init_scale": 0.8} | fields)
  return model, jax.jit(lambda: model.init(RNG, TOKENS, train=False)["params"])()


def run(model, params):
  return jax.jit(lambda *given: model.apply({"params": params}, *given, train=False))


@pytest.mark.parametrize(
  "fields, parameters",
  [
    ({}, 4_653_200),  # 10000 200 + 2 (4 200 (200 + 200) + 2 4 200) + 200 10000 + 10000
    ({"hidden_size": 650}, 19_780_400),
    ({"hidden_size": 1500}, 66_034_000),
    ({"tied": True}, 4_653_200 - 2_000_000),
    ({"embedding_size": 50}, 4_653_200 - 150 * 10_000 - 150 * 800),
  ],
)
def test_sizes_are_those_of_zarembas_models(fields, parameters):
  model = models.create("lstm_lm", **fields)
  shapes = jax.eval_shape(lambda: model.init(RNG, TOKENS, train=False))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_initial_values():
  """U(+-s) everywhere, biases too."""
  model = models.create("lstm_lm", vocab_size=300, hidden_size=64, init_scale=0.05)
  for leaf in jax.tree.leaves(jax.jit(lambda: model.init(RNG, TOKENS, train=False))()):
    assert 0.04 < float(jnp.abs(leaf).max()) <= 0.05
    assert abs(float(leaf.std()) * np.sqrt(12) / 0.1 - 1) < 0.1
    assert abs(float(leaf.mean())) < 0.01


@pytest.mark.parametrize("name", ["rnn_lm", "lstm_lm", "gru_lm"])
def test_two_stretches_with_the_cache_are_the_whole(name):
  model, params = made(name)
  call = run(model, params)
  whole = call(TOKENS)
  assert set(whole) == {"embedding", "layers", "logits"}
  cache = model.start(2, 100)
  assert all(each.shape == (2, 2, 6) and not each.any() for each in cache)
  first = call(TOKENS[:, :3], cache)
  assert jax.tree.structure(first["cache"]) == jax.tree.structure(cache)
  second = call(TOKENS[:, 3:], first["cache"])
  found = np.concatenate([first["logits"], second["logits"]], 1)
  np.testing.assert_allclose(found, whole["logits"], atol=1e-6)
  afresh = call(TOKENS[:, 3:], cache)["logits"]
  assert float(jnp.abs(afresh - second["logits"]).max()) > 1e-3, "the cache matters"
  rows = decoding.take_rows(first["cache"], jnp.array([1, 1]))
  swapped = call(np.stack([TOKENS[1, 3:]] * 2), rows)["logits"]
  np.testing.assert_allclose(swapped, np.stack([second["logits"][1]] * 2), atol=1e-6)


def test_one_lstm_against_numpy():
  """Embedding, two layers, a tied head."""
  model, params = made("lstm_lm", tied=True)
  params = jax.device_get(params)
  sigmoid = lambda x: 1 / (1 + np.exp(-x))
  x = params["tokens"]["embedding"][TOKENS]
  for i in range(2):
    layer, h, c, out = params["layers"][f"layer{i}"], np.zeros((2, 6)), np.zeros((2, 6)), []
    for t in range(7):
      z = x[:, t] @ layer["kernel_ih"] + layer["bias_ih"] + h @ layer["kernel_hh"] + layer["bias_hh"]
      i_, f, g, o = np.split(z, 4, -1)
      c = sigmoid(f) * c + sigmoid(i_) * np.tanh(g)
      h = sigmoid(o) * np.tanh(c)
      out.append(h)
    x = np.stack(out, 1)
  logits = x @ params["tokens"]["embedding"].T + params["logits_bias"]
  np.testing.assert_allclose(run(model, params)(TOKENS)["logits"], logits, atol=1e-5)


def test_few_letters_go_by_way_of_the_table():
  """With fewer products, and the same outputs and gradients as embeddings one by one; for any number of rows."""
  model, params = made("lstm_lm", hidden_size=40)
  tokens = np.random.default_rng(0).integers(0, 11, (8, 20))

  def loss(params, offsets):
    logits = model.apply({"params": params} | offsets, tokens, train=False)["logits"]
    return (logits @ np.linspace(-1, 1, 11, dtype=np.float32)).sum()

  run = jax.jit(jax.value_and_grad(loss))
  one_by_one = {"perturbations": {"embedding": jnp.zeros((8, 20, 40))}}
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run(params, {}), run(params, one_by_one)
  )
  flops = [run.lower(params, offsets).cost_analysis()["flops"] for offsets in ({}, one_by_one)]
  assert flops[0] < 0.9 * flops[1]
  rows = jax.ShapeDtypeStruct(jax.export.symbolic_shape("b, 20"), np.int32)
  exported = jax.export.export(jax.jit(lambda tokens: model.apply({"params": params}, tokens, train=False)["logits"]))
  np.testing.assert_allclose(
    exported(rows).call(np.int32(tokens[:3])),
    model.apply({"params": params}, tokens[:3], train=False)["logits"],
    atol=1e-5,
  )


def test_greedy_decoding_is_that_of_the_whole_read_again():
  model, params = made("gru_lm")
  begin, rules = jnp.asarray(TOKENS[:, :2]), decoding.Rules(9)

  def step(tokens, cache):
    stages = model.apply({"params": params}, tokens, cache, train=False)
    return stages["logits"][:, -1], stages["cache"]

  whole = lambda tokens, context: model.apply({"params": params}, tokens, train=False)["logits"]
  found = jax.jit(lambda: decoding.greedy(step, model.start(2), begin, rules))()
  again = jax.jit(lambda: decoding.greedy(decoding.reread(whole), decoding.prefix(2, 9), begin, rules))()
  np.testing.assert_array_equal(found, again)
  assert len(set(found[:, 2:].ravel().tolist())) > 1


def test_dropout_falls_on_what_goes_up():
  """At almost all of it the head sees its bias alone, or what one element of 1000 shows of the rest."""
  model, params = made("lstm_lm", dropout=0.999)
  logits = lambda rng: model.apply({"params": params}, TOKENS, train=True, rngs={"dropout": rng})
  stages = jax.jit(logits)(RNG)
  assert float((stages["embedding"] == 0).mean()) > 0.9
  assert float((np.asarray(stages["logits"]) == np.asarray(params["head"]["bias"])).all(-1).mean()) > 0.9
  assert stages["layers"].any(), "what goes on in time stays"
  evaluated, dry = (run(m, params)(TOKENS)["logits"] for m in (model, model.clone(dropout=0.0)))
  np.testing.assert_array_equal(evaluated, dry)


def test_half_precision():
  model, params = made("lstm_lm")
  exact, rough = (run(m, params)(TOKENS)["logits"] for m in (model, model.clone(dtype=jnp.bfloat16)))
  assert rough.dtype == jnp.float32
  assert 0 < float(jnp.abs(rough - exact).max()) < 0.05 * float(jnp.abs(exact).max())


def test_mistakes_are_one_line():
  with pytest.raises(UserError, match="embedding_size 5 to be hidden_size 6"):
    made("lstm_lm", tied=True, embedding_size=5)
  for wrong in (lambda: made("lstm_lm", cell="lstn"), lambda: models.create("lstm_lm", cell="lstn").start(1)):
    with pytest.raises(UserError, match="unknown recurrent cell 'lstn'; did you mean 'lstm'"):
      wrong()
