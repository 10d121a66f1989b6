"""Attention against its formula in NumPy; masks, caches, dropout on the weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.errors import UserError
from flaxonomy.models.sequence import attention

RNG = jax.random.PRNGKey(0)
B, T, S, D, N = 2, 3, 5, 8, 2


def dense(params, x):
  return x @ params["kernel"] + params["bias"]


def by_hand(params, x, memory, allowed) -> tuple[np.ndarray, np.ndarray]:
  """(output [B, T, D], weights [B, N, T, S]) of Vaswani et al. 2017, equation 1, head by head, query by query."""
  q, k, v = dense(params["query"], x), dense(params["key"], memory), dense(params["value"], memory)
  weights = np.zeros((len(x), N, x.shape[1], memory.shape[1]))
  found = np.zeros(x.shape)
  size = D // N
  for b, n, t in np.ndindex(weights.shape[:3]):
    part = slice(n * size, (n + 1) * size)
    scores = np.array([q[b, t, part] @ k[b, s, part] / np.sqrt(size) for s in range(memory.shape[1])])
    scores = np.where(allowed[b, t], np.exp(scores), 0)
    weights[b, n, t] = scores / scores.sum()
    found[b, t, part] = weights[b, n, t] @ v[b, :, part]
  return dense(params["out"], found), weights


@pytest.fixture(scope="module")
def given():
  """(module, parameters with biases, x, memory)"""
  rng = np.random.default_rng(0)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  params = {name: {"kernel": draw(D, D) / 2, "bias": draw(D)} for name in ("query", "key", "value", "out")}
  return attention.MultiHeadAttention(D, N), params, draw(B, T, D), draw(B, S, D)


ALL, PADDED = np.ones((B, T, S), bool), np.arange(S)[None, None] < np.array([5, 2])[:, None, None]
CASES = {
  "itself": (False, False, np.ones((B, T, T), bool)),
  "itself, causal": (False, True, np.broadcast_to(np.tri(T, dtype=bool), (B, T, T))),
  "a memory": (True, False, ALL),
  "a padded memory": (True, False, np.broadcast_to(PADDED, (B, T, S))),
}


@pytest.mark.parametrize("case", CASES)
def test_the_papers_equation(given, case):
  """By the kernel and written out, as for pictures and dropout."""
  module, params, x, memory = given
  other, causal, allowed = CASES[case]
  memory = memory if other else x
  mask = jnp.asarray(allowed[:, None]) if "padded" in case else None
  call = lambda **more: module.apply({"params": params}, x, memory, mask, causal, train=False, **more)
  expected, weights = by_hand(params, x, memory, allowed)
  found, seen = call()
  np.testing.assert_allclose(found, expected, atol=2e-6)
  assert seen.key.shape == seen.value.shape == (B * N, memory.shape[1], D // N)
  (found, _), kept = call(mutable=["intermediates"])
  np.testing.assert_allclose(found, expected, atol=2e-6)
  np.testing.assert_allclose(kept["intermediates"]["weights"][0], weights, atol=1e-6)


def test_initial_variables_are_parameters_alone(given):
  module, params, x, _ = given
  shapes = jax.eval_shape(lambda: module.init(RNG, x, train=False))
  assert jax.tree.map(lambda leaf: leaf.shape, shapes) == {"params": jax.tree.map(lambda leaf: leaf.shape, params)}


def test_keys_and_values_once_for_many_queries(given):
  module, params, x, memory = given
  seen = module.apply({"params": params}, memory, method="keys_values")
  expected, _ = by_hand(params, x, memory, ALL)
  found, again = module.apply({"params": params}, x, seen, train=False)
  np.testing.assert_allclose(found, expected, atol=2e-6)
  assert again is seen


def test_a_row_that_sees_nothing_is_finite(given):
  """Such as a batch's padding examples; and so are its gradients, by the kernel and written out."""
  module, params, x, memory = given

  def total(params, mutable):
    y = module.apply({"params": params}, x, memory, jnp.zeros((B, 1, 1, S), bool), train=False, mutable=mutable)
    return (y[0] if not mutable else y[0][0]).sum()

  for mutable in (False, ["intermediates"]):
    grads = jax.jit(jax.grad(functools.partial(total, mutable=mutable)))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_dropout_silences_weights(given):
  """Each of S equal weights is kept with chance 1 - rate, and grows by 1 / (1 - rate); values are 1."""
  _, params, *_ = given
  params = jax.tree.map(jnp.zeros_like, params)
  params["value"]["bias"] += 1
  params["out"]["kernel"] = jnp.eye(D)
  x = jnp.zeros((4, 50, D))
  module = attention.MultiHeadAttention(D, N, dropout=0.3)
  found = module.apply({"params": params}, x, train=True, rngs={"dropout": RNG})[0]
  heads = found.reshape(4, 50, N, D // N)
  assert np.ptp(heads, axis=-1).max() == 0, "a head's values are weighed alike"
  kept = np.asarray(heads[..., 0]) * 0.7 * 50
  np.testing.assert_allclose(kept, kept.round(), atol=1e-4)
  assert abs(kept.mean() - 35) < 1
  assert abs(kept.std() - np.sqrt(50 * 0.7 * 0.3)) < 0.4
  np.testing.assert_allclose(module.apply({"params": params}, x, train=False)[0], 1, rtol=1e-6)


def test_positions_count_tokens():
  """Padding on either side, with and without a cache."""
  tokens = jnp.zeros((3, 4), int)
  mask = jnp.array([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]])
  expected = [[0, 1, 2, 3], [0, 0, 0, 1], [0, 1, 1, 1]]
  sight = attention.look_back(tokens, mask, None)
  np.testing.assert_array_equal(sight.positions, expected)
  assert sight.causal
  np.testing.assert_array_equal(sight.mask[:, 0, 0], mask)
  cache = attention.empty_cache(3, 6, N, D // N, 1, jnp.float32)
  sight = attention.look_back(tokens, mask, cache)
  np.testing.assert_array_equal(sight.positions, expected)
  sight = attention.look_back(tokens[:, :1], None, sight.cache)
  np.testing.assert_array_equal(sight.positions[:, 0], [4, 2, 2])
  np.testing.assert_array_equal(sight.mask[:, 0, 0], np.pad(mask, ((0, 0), (0, 2))) + (np.arange(6) == 4) > 0)
  assert (int(sight.cache.index), sight.causal) == (5, False)


@pytest.mark.parametrize("scan", [False, True])
def test_rows_of_a_cache(scan):
  """All that is a hypothesis's own follows it; the source stays."""
  cache = attention.empty_cache(3, 4, N, 5, 2, jnp.float32, scan)
  layer = np.arange(2)[:, None] if scan else 0
  numbers = lambda rows: (np.repeat(rows, N) + layer)[..., None, None]  # of the row, and of the layer
  cache = cache._replace(
    layers=jax.tree.map(lambda x: jnp.broadcast_to(numbers(range(3)), x.shape), cache.layers),
    mask=jnp.eye(3, 4, dtype=bool),
    memory=(attention.KeyValue(jnp.ones((3 * N, 2, 5)), jnp.ones((3 * N, 2, 5))),),
    memory_mask=jnp.eye(3, 2, dtype=bool),
  )
  rows = [2, 0, 0, 1]
  found = attention.take_rows(cache, jnp.array(rows))
  assert jax.tree.structure(found) == jax.tree.structure(cache)
  for leaf in jax.tree.leaves(found.layers):
    assert leaf.shape[-3:] == (4 * N, 4, 5)
    np.testing.assert_array_equal(leaf, np.broadcast_to(numbers(rows), leaf.shape))
  np.testing.assert_array_equal(found.mask, np.eye(3, 4, dtype=bool)[rows])
  assert found.memory is cache.memory
  assert found.memory_mask is cache.memory_mask


def test_rows_that_share_a_memory(given):
  """As with a copy for each, also where some of it is hidden."""
  module, params, x, memory = given
  x = jnp.concatenate([x, x[::-1] + 1], 1).reshape(2 * B, *x.shape[1:])
  allowed = np.arange(S)[None] < np.arange(1, B + 1)[:, None]
  call = lambda memory, mask: module.apply({"params": params}, x, memory, mask[:, None, None], train=False)[0]
  expected = call(jnp.repeat(memory, 2, 0), np.repeat(allowed, 2, 0))
  seen = module.apply({"params": params}, memory, method="keys_values")
  np.testing.assert_allclose(call(seen, allowed), expected, atol=1e-6)


@pytest.mark.parametrize(
  "module, message",
  [
    (attention.MultiHeadAttention(D, 3), "hidden_size 8 cannot be divided into 3 heads"),
    (attention.MultiHeadAttention(D, N, kernel="cuda"), "unknown attention kernel 'cuda'; did you mean 'cudnn'"),
    (attention.FeedForward(4, "gelu_tan"), "unknown activation 'gelu_tan'; did you mean 'gelu_tanh'"),
  ],
)
def test_mistakes_are_one_line(module, message):
  with pytest.raises(UserError, match=message):
    module.init(RNG, jnp.zeros((1, 2, D)), train=False)
