"""The Transformer: sizes, positions, what sees what, decoding with a cache, what its fields do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models import interop
from flaxonomy.models.sequence import transformer

RNG = jax.random.PRNGKey(0)
SMALL = {"vocab_size": 11, "num_layers": 2, "hidden_size": 8, "num_heads": 2, "mlp_size": 12, "max_length": 9}
SOURCE = np.array([[3, 1, 4, 1, 5], [6, 5, 3, 5, 8]])
TARGET = np.array([[2, 7, 1, 8], [3, 1, 4, 1]])


def made(name="transformer", **fields):
  """(model, parameters far from their initial values)."""
  model = models.create(name, **SMALL | fields)
  params = jax.jit(lambda: model.init(RNG, SOURCE, TARGET, train=False)["params"])()
  rng = np.random.default_rng(0)
  return model, jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), params)


def run(model, params):
  """A compiled function: (source, target, source_mask=None, target_mask=None) -> logits."""
  return jax.jit(lambda *given: model.apply({"params": params}, *given, train=False)["logits"])


BODY, BIG = 44_140_544, 176_361_472  # of torch.nn.Transformer(), which has norms behind the stacks, and of the big one


@pytest.mark.parametrize(
  "name, fields, parameters",
  [
    ("transformer", {"final_norms": True}, BODY + 37_000 * 512),
    ("transformer_big", {"final_norms": True}, BIG + 37_000 * 1024),
    ("transformer", {}, 63_082_496),  # the paper's table 3 says 65 million
    ("transformer_big", {}, 214_245_376),  # 213 million
    ("transformer", {"shared_embeddings": False}, 63_082_496 + 37_000 * 512),
    ("marian", {}, 74_410_496 - 524_288 + 58_101),  # opus-mt-en-de without its sinusoids, with its bias
  ],
)
def test_sizes_are_those_of_the_references(name, fields, parameters):
  model = models.create(name, **fields)
  shapes = jax.eval_shape(lambda: model.init(RNG, SOURCE, TARGET, train=False))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


@pytest.mark.parametrize("interleaved", [True, False])
def test_sinusoids(interleaved):
  """Section 3.5, in double precision."""
  t, i = np.arange(300)[:, None], np.arange(32)[None]
  angles = t / 10000 ** (2 * i / 64)
  found = np.asarray(transformer.sinusoids(300, 64, interleaved))
  sines, cosines = (found[:, ::2], found[:, 1::2]) if interleaved else (found[:, :32], found[:, 32:])
  np.testing.assert_allclose(sines, np.sin(angles), atol=1e-7)
  np.testing.assert_allclose(cosines, np.cos(angles), atol=1e-7)


def test_nothing_sees_what_comes_later():
  logits = run(*made())
  before = logits(SOURCE, TARGET)
  changed = TARGET.copy()
  changed[:, 2:] = (changed[:, 2:] + 1) % 11
  after = logits(SOURCE, changed)
  np.testing.assert_array_equal(after[:, :2], before[:, :2])
  assert (np.abs(after[:, 2:] - before[:, 2:]).max(-1) > 1e-3).all()
  changed = SOURCE.copy()
  changed[:, -1] = 9
  assert (np.abs(logits(changed, TARGET) - before).max(-1) > 1e-3).all(), "but the whole source is seen"


def test_padding_changes_nothing():
  """Of the source, by a mask or by its id; of the target, on the left."""
  model, params = made(num_layers=1)
  logits = run(model, params)
  alone = logits(SOURCE[:1, :3], TARGET[:1])
  padded, mask = SOURCE.copy(), np.ones((2, 5), int)
  mask[0, 3:] = 0
  for filling in (0, 7):
    padded[0, 3:] = filling
    np.testing.assert_allclose(logits(padded, TARGET, mask)[0], alone[0], atol=5e-6)
  padded[0, 3:] = 10
  by_id = run(model.clone(pad_id=10), params)
  np.testing.assert_array_equal(by_id(padded, TARGET), logits(padded, TARGET, mask))
  assert float(jnp.abs(logits(padded, TARGET)[0] - alone[0]).max()) > 1e-2, "unless nothing says that it is padding"
  expected = logits(SOURCE, TARGET)
  shifted = np.concatenate([np.full((2, 2), 9), TARGET[:, :2]], 1)
  mask = np.array([[0, 0, 1, 1]] * 2)
  np.testing.assert_allclose(logits(SOURCE, shifted, None, mask)[:, 2:], expected[:, :2], atol=5e-6)


@pytest.mark.parametrize(
  "name, fields",
  [("transformer", {"norm_first": True, "final_norms": True}), ("marian", {}), ("marian", {"scan": True})],
)
def test_decoding_with_a_cache(name, fields):
  """Token by token: as the whole sequence, with a padded source."""
  model, params = made(name, **fields)
  mask = np.array([[1, 1, 1, 0, 0], [1] * 5])
  expected = run(model, params)(SOURCE, TARGET, mask)
  cache = jax.jit(lambda: model.apply({"params": params}, SOURCE, mask, 6, method="start"))()
  step = jax.jit(lambda *given: model.apply({"params": params}, given[0], cache=given[1], train=False, method="decode"))
  found = []
  for begin, end in ((0, 2), (2, 3), (3, 4)):
    stages = step(TARGET[:, begin:end], cache)
    assert jax.tree.structure(stages["cache"]) == jax.tree.structure(cache)
    cache = stages["cache"]
    found.append(stages["logits"])
  np.testing.assert_allclose(np.concatenate(found, 1), expected, atol=5e-6)
  assert int(cache.index) == 4


def stacked(params):
  rest = {key: value for key, value in params.items() if key[8:] not in ("0", "1")}
  layers = lambda stack: [params[f"{stack}_{i}"] for i in range(2)]
  return rest | {
    stack: jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers(stack)) for stack in ("encoder", "decoder")
  }


def test_a_loop_over_layers_and_recomputing_them_change_nothing():
  """Logits, gradients, and what the model starts with."""
  model, params = made(num_layers=2, dropout=0.0)

  def gradient(model, params):
    loss = lambda params: jnp.square(model.apply({"params": params}, SOURCE, TARGET, train=True)["logits"]).mean()
    return jax.jit(jax.value_and_grad(loss))(params)

  value, expected = gradient(model, params)
  # keys have no use for a bias: its gradient is nothing but rounding
  close = lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5 * float(jnp.abs(other).max()) + 1e-6)
  for scan, remat in ((False, True), (True, True)):
    found = gradient(model.clone(scan=scan, remat=remat), stacked(params) if scan else params)
    close(found[0], value)
    jax.tree.map(close, found[1], stacked(expected) if scan else expected)
  looped = made(num_layers=2, scan=True)[0]
  initial = jax.jit(lambda: looped.init(RNG, SOURCE, TARGET, train=False)["params"])()
  assert jax.tree.map(jnp.shape, initial) == jax.tree.map(jnp.shape, stacked(params))
  kernel = initial["decoder"]["mlp"]["fc1"]["kernel"]
  assert float(jnp.abs(kernel[0] - kernel[1]).min()) > 0


@pytest.mark.parametrize("name, fields", [("transformer", {"final_norms": True}), ("marian", {})])
def test_public_names_of_a_loop_are_those_of_its_layers(name, fields):
  """There and back is exact."""
  model, params = made(name, num_layers=2, **fields)
  fields = SMALL | {"num_layers": 2, **fields}
  tensors = interop.to_torch(name, {"params": params}, **fields)
  looped = interop.to_torch(name, {"params": stacked(params)}, **fields, scan=True)
  assert tensors.keys() == looped.keys()
  for key, value in tensors.items():
    np.testing.assert_array_equal(looped[key], value)
  back = interop.from_torch(name, tensors, **fields, scan=True)["params"]
  assert jax.tree.structure(back) == jax.tree.structure(stacked(params))
  jax.tree.map(np.testing.assert_array_equal, back, stacked(params))


def test_fields():
  """Each changes the logits; what it adds or takes is a parameter's name."""
  base, params = made(num_layers=1)
  before, names = run(base, params)(SOURCE, TARGET), set(params)
  for fields, more in (
    ({"norm_first": True}, set()),
    ({"positions": "concatenated"}, set()),
    ({"scale_embeddings": False}, set()),
    ({"activation": "silu"}, set()),
    ({"final_norms": True}, {"encoder_norm", "decoder_norm"}),
    ({"positions": "learned"}, {"encoder_positions", "decoder_positions"}),
    ({"shared_embeddings": False}, {"source_embedding"}),
    ({"head_bias": True}, {"logits_bias"}),
  ):
    model = base.clone(**fields)
    shapes = jax.eval_shape(lambda model=model: model.init(RNG, SOURCE, TARGET, train=False)["params"])
    assert set(shapes) == names | more
    rng = np.random.default_rng(1)
    added = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), {key: shapes[key] for key in more})  # noqa: B023
    after = model.apply({"params": params | added}, SOURCE, TARGET, train=False)["logits"]
    assert float(jnp.abs(after - before).max()) > 1e-2, fields


def test_the_embedding_of_padding_learns_from_the_head_alone():
  """As with torch's padding_idx, even where padding is the token to start with, as Marian's is."""
  model, params = made(pad_id=10, num_layers=1)
  target = TARGET.copy()
  target[:, 0] = 10

  def total(embedding, model):
    logits = model.apply({"params": params | {"embedding": embedding}}, SOURCE, target, train=False)["logits"]
    return jnp.square(logits[..., :10]).sum()  # without the head's row

  gradient = jax.jit(jax.grad(total), static_argnums=1)
  found = gradient(params["embedding"], model)["embedding"]
  assert not found[10].any()
  assert all(row.any() for row in found[:9])
  assert gradient(params["embedding"], model.clone(pad_id=None))["embedding"][10].any()


def test_half_precision():
  model, params = made()
  exact = run(model, params)(SOURCE, TARGET)
  rough = run(model.clone(dtype=jnp.bfloat16), params)(SOURCE, TARGET)
  assert rough.dtype == jnp.float32
  assert 0 < float(jnp.abs(rough - exact).max()) < 0.1 * float(jnp.abs(exact).max())


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"positions": "learnt"}, "unknown kind of positions 'learnt'; did you mean 'learned'"),
    ({"hidden_size": 9, "num_heads": 3}, "even hidden_size, not 9"),
    ({"num_heads": 3}, "cannot be divided into 3 heads"),
    ({"max_length": 4}, "source sequences of 5 tokens are longer than the model's max_length 4"),
  ],
)
def test_mistakes_are_one_line(fields, message):
  model = models.create("transformer", **SMALL | fields)
  with pytest.raises(UserError, match=message):
    jax.eval_shape(lambda: model.init(RNG, SOURCE, TARGET, train=False))
