"""GPT: sizes, what sees what, decoding with a cache, layers as a loop or recomputed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models import interop

RNG = jax.random.PRNGKey(0)
SMALL = {"vocab_size": 11, "num_layers": 2, "hidden_size": 8, "num_heads": 2, "max_length": 9}
DRY = {"embedding_dropout": 0.0, "dropout": 0.0, "attention_dropout": 0.0}
TOKENS = np.array([[3, 1, 4, 1, 5, 9, 2], [6, 5, 3, 5, 8, 9, 7]])


def initial(model):
  return jax.jit(lambda: model.init(RNG, TOKENS, train=False)["params"])()


def made(name="gpt2", **fields):
  """(model, parameters far from their small initial values)."""
  model = models.create(name, **SMALL, **fields)
  params = initial(model)
  rng = np.random.default_rng(0)
  return model, jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params)


def run(model, params):
  """A compiled function: (tokens, mask=None) -> logits."""
  return jax.jit(lambda tokens, mask=None: model.apply({"params": params}, tokens, mask=mask, train=False)["logits"])


@pytest.mark.parametrize(
  "name, parameters",
  [
    ("gpt", 116_534_784),
    ("gpt2", 124_439_808),
    ("gpt2_medium", 354_823_168),
    ("gpt2_large", 774_030_080),
    ("gpt2_xl", 1_557_611_200),
  ],
)
def test_sizes_are_those_of_the_published_models(name, parameters):
  for scan in (False, True):
    model = models.create(name, scan=scan)
    shapes = jax.eval_shape(functools.partial(model.init, train=False), RNG, jnp.zeros((1, 2), int))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_initial_values():
  """N(0, .02); what is added to the residual stream starts smaller by sqrt(2 L) in GPT-2."""
  for name, residual in (("gpt", 0.02), ("gpt2", 0.02 / np.sqrt(2 * 2))):
    model = models.create(name, vocab_size=50, num_layers=2, hidden_size=64, num_heads=2, max_length=40)
    params = initial(model)
    layer = params["block1"]
    for kernel in (layer["self_attn"]["out"]["kernel"], layer["mlp"]["fc2"]["kernel"]):
      assert abs(kernel.std() / residual - 1) < 0.05
    tables = [params[key]["embedding"] for key in ("tokens", "positions")]
    for kernel in (layer["self_attn"]["query"]["kernel"], layer["mlp"]["fc1"]["kernel"], *tables):
      assert abs(kernel.std() / 0.02 - 1) < 0.05
    assert not layer["mlp"]["fc1"]["bias"].any()


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_nothing_sees_what_comes_later(name):
  logits = run(*made(name))
  before = logits(TOKENS)
  for t in (1, 4):
    changed = TOKENS.copy()
    changed[:, t:] = (changed[:, t:] + 1) % 11
    after = logits(changed)
    np.testing.assert_array_equal(after[:, :t], before[:, :t])
    assert (np.abs(after[:, t:] - before[:, t:]).max(-1) > 1e-3).all()


def test_padding_changes_nothing():
  """On the right or on the left, whatever it holds."""
  logits = run(*made())
  alone = logits(TOKENS[:1, :4])
  for side, where in (("right", slice(0, 4)), ("left", slice(3, 7))):
    mask = np.zeros((2, 7), int)
    mask[0, where], mask[1] = 1, 1
    for filling in (0, 7):
      tokens = np.where(mask, TOKENS, filling)
      tokens[0, where] = TOKENS[0, :4]
      np.testing.assert_allclose(logits(tokens, mask)[0, where], alone[0], atol=2e-6, err_msg=side)
  np.testing.assert_allclose(logits(TOKENS, np.ones((2, 7), int)), logits(TOKENS), atol=2e-6)


@pytest.mark.parametrize("scan", [False, True])
def test_decoding_with_a_cache(scan):
  """Piece by piece, behind a prompt padded on either side: as the whole sequence."""
  model, params = made(scan=scan)
  expected = run(model, params)(TOKENS)
  step = jax.jit(lambda tokens, cache, mask: model.apply({"params": params}, tokens, cache, mask, train=False))
  cache, found = model.start(2, 8), []
  for begin, end in ((0, 4), (4, 5), (5, 6), (6, 7)):
    stages = step(TOKENS[:, begin:end], cache, np.ones((2, end - begin), int))
    cache = stages["cache"]
    found.append(stages["logits"])
  np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=5e-6)
  assert int(cache.index) == 7
  assert jax.tree.structure(cache) == jax.tree.structure(model.start(2, 8))
  for where in (slice(0, 2), slice(2, 4)):  # the first row has two tokens, and goes on
    tokens, mask = TOKENS[:, :4].copy(), np.ones((2, 4), int)
    mask[0], tokens[0] = 0, 10
    mask[0, where], tokens[0, where] = 1, TOKENS[0, :2]
    stages = step(tokens, model.start(2, 8), mask)
    stages = step(np.stack([TOKENS[0, 2:3], TOKENS[1, 4:5]]), stages["cache"], np.ones((2, 1), int))
    np.testing.assert_allclose(stages["logits"][:, 0], expected[[0, 1], [2, 4]], atol=5e-6)


def stacked(params):
  layers = [params[f"block{i}"] for i in range(SMALL["num_layers"])]
  rest = {key: value for key, value in params.items() if not key.startswith("block")}
  return rest | {"blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)}


def test_a_loop_over_layers_and_recomputing_them_change_nothing():
  """Logits, gradients, and the weights of attention."""
  model, params = made(**DRY)

  def gradient(model, params):
    loss = lambda params: jnp.square(model.apply({"params": params}, TOKENS, train=True)["logits"]).mean()
    return jax.jit(jax.value_and_grad(loss))(params)

  value, expected = gradient(model, params)
  close = lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()))
  for scan, remat in ((False, True), (True, True)):
    found = gradient(model.clone(scan=scan, remat=remat), stacked(params) if scan else params)
    close(found[0], value)
    jax.tree.map(close, found[1], stacked(expected) if scan else expected)
  apply = lambda model, params: model.apply({"params": params}, TOKENS, train=False, mutable=["intermediates"])[1]
  see = jax.jit(apply, static_argnums=0)
  kept = see(model, params)["intermediates"]["block1"]["self_attn"]["weights"][0]
  np.testing.assert_allclose(kept.sum(-1), 1, rtol=1e-6)
  looped = see(model.clone(scan=True), stacked(params))["intermediates"]["blocks"]["self_attn"]["weights"][0]
  np.testing.assert_allclose(looped[1], kept, atol=1e-6)


def test_layers_of_a_loop_have_their_own_dropout_and_initial_values():
  model = models.create("gpt2", **SMALL, scan=True)
  params = initial(model)
  kernel = params["blocks"]["mlp"]["fc1"]["kernel"]
  assert float(jnp.abs(kernel[0] - kernel[1]).min()) > 0
  call = jax.jit(lambda rng: model.apply({"params": params}, TOKENS, train=True, rngs={"dropout": rng})["logits"])
  one, two, again = (call(jax.random.PRNGKey(i)) for i in (0, 1, 0))
  np.testing.assert_array_equal(one, again)
  assert float(jnp.abs(one - two).max()) > 0


def test_half_precision():
  model, params = made()
  exact = run(model, params)(TOKENS)
  rough = run(model.clone(dtype=jnp.bfloat16), params)(TOKENS)
  assert rough.dtype == jnp.float32
  assert 0 < float(jnp.abs(rough - exact).max()) < 0.05 * float(jnp.abs(exact).max())


def test_stages():
  model, params = made()
  names = []

  def call(*cache):
    stages = model.apply({"params": params}, TOKENS, *cache, train=False)
    names.append(list(stages))  # what is returned from here is sorted
    return stages

  jax.eval_shape(call)
  stages = jax.eval_shape(call, model.start(2))
  assert names[0] == ["embedding", "block0", "block1", "norm", "logits"]
  assert names[1][-2:] == ["cache", "logits"]
  assert stages["cache"].mask.shape == (2, 9)


def test_too_long():
  model = models.create("gpt2", **SMALL)
  with pytest.raises(UserError, match="10 tokens are longer than the model's max_length 9"):
    model.init(RNG, np.zeros((1, 10), int), train=False)
  with pytest.raises(UserError, match="a cache of 10 tokens"):
    model.start(1, 10)


@pytest.mark.parametrize("name", ["gpt", "gpt2"])
def test_public_names_of_a_loop_are_those_of_its_layers(name):
  """There and back is exact."""
  model, params = made(name)
  tensors = interop.to_torch(name, {"params": params}, **SMALL)
  looped = interop.to_torch(name, {"params": stacked(params)}, **SMALL, scan=True)
  assert tensors.keys() == looped.keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(looped[key], value)
  for scan, expected in ((False, params), (True, stacked(params))):
    back = interop.from_torch(name, tensors, **SMALL, scan=scan)["params"]
    assert jax.tree.structure(back) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, back, expected)
