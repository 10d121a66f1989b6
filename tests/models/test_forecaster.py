"""The forecaster: against NumPy, sizes, the gradient for each state by pieces of the recurrence, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models.sequence import rnn

KEY = jax.random.PRNGKey(0)
X = np.random.default_rng(0).normal(size=(3, 6, 2)).astype(np.float32)


def made(x=X, **fields):
  """(model, its variables)."""
  model = models.create("forecaster", **{"hidden_size": 5, "horizon": 4, "outputs": 2} | fields)
  return model, jax.jit(lambda: model.init(KEY, x, train=False))()


def test_against_numpy():
  """A vanilla RNN and its head; and the same as a change from the last value."""
  model, variables = made(cell="rnn")
  layer, head = (jax.device_get(variables["params"][name]) for name in ("layers", "head"))
  layer, h = layer["layer0"], np.zeros((3, 5))
  for t in range(6):
    h = np.tanh(X[:, t] @ layer["kernel_ih"] + layer["bias_ih"] + h @ layer["kernel_hh"] + layer["bias_hh"])
  expected = (h @ head["kernel"] + head["bias"]).reshape(3, 4, 2)
  stages = model.apply(variables, X, train=False)
  assert list(stages) == ["layers", "last", "forecast"]
  np.testing.assert_allclose(stages["last"], h, atol=1e-6)
  np.testing.assert_allclose(stages["forecast"], expected, atol=1e-6)
  changed = model.clone(residual=True).apply(variables, X, train=False)["forecast"]
  np.testing.assert_allclose(changed, expected + X[:, -1:], atol=1e-6)


@pytest.mark.parametrize("cell, gates", [("rnn", 1), ("lstm", 4), ("gru", 3)])
def test_sizes(cell, gates):
  model = models.create("forecaster", cell=cell, hidden_size=7, num_layers=2, horizon=3)
  shapes = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 9, 2)), train=False))
  expected = gates * 7 * (2 + 7 + 2) + gates * 7 * (7 + 7 + 2) + 7 * 3 + 3
  assert sum(x.size for x in jax.tree.leaves(shapes)) == expected


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_step_by_step_is_the_whole(cell):
  """With offsets of zero; and one at step t is what a state so moved makes of the rest."""
  model, variables = made(cell=cell, num_layers=2)
  apply = jax.jit(lambda offsets: model.apply({**variables, "perturbations": {"state": offsets}}, X, train=False))
  whole = model.apply(variables, X, train=False)
  for name, stage in apply(jnp.zeros((3, 6, 5))).items():
    np.testing.assert_allclose(stage, whole[name], atol=1e-6)
  offset = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)
  layers = rnn.Recurrent(cell, 5, 2)
  inner = {"params": variables["params"]["layers"]}
  _, (h, *rest) = layers.apply(inner, X[:, :4], train=False)
  y, _ = layers.apply(inner, X[:, 4:], None, (h.at[-1].add(offset), *rest), train=False)
  moved = apply(jnp.zeros((3, 6, 5)).at[:, 3].set(offset))
  np.testing.assert_allclose(moved["last"], y[:, -1], atol=1e-6)
  assert float(jnp.abs(moved["last"] - whole["last"]).max()) > 1e-3


def test_forget_bias():
  """On the LSTM's forget gate alone."""
  plain, more = (made(forget_bias=n)[1]["params"]["layers"]["layer0"] for n in (1, 3))
  base = made()[1]["params"]["layers"]["layer0"]
  for n, found in ((1, plain), (3, more)):
    expected = np.array(base["bias_ih"])
    expected[5:10] += n
    np.testing.assert_allclose(found["bias_ih"], expected, atol=1e-6)
    for name in ("bias_hh", "kernel_ih", "kernel_hh"):
      np.testing.assert_array_equal(found[name], base[name])
  for cell in ("gru", "rnn"):
    a, b = made(cell=cell)[1], made(cell=cell, forget_bias=2)[1]
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_dropout_and_half_precision():
  model, variables = made(dropout=0.9)
  wet = model.apply(variables, X, train=True, rngs={"dropout": KEY})["forecast"]
  dry = model.apply(variables, X, train=False)["forecast"]
  assert float(jnp.abs(wet - dry).max()) > 1e-2
  rough = model.clone(dtype=jnp.bfloat16).apply(variables, X, train=False)["forecast"]
  assert rough.dtype == jnp.float32
  assert 0 < float(jnp.abs(rough - dry).max()) < 0.05


def test_mistakes():
  with pytest.raises(UserError, match="unknown recurrent cell 'lstn'; did you mean 'lstm'"):
    made(cell="lstn")
  with pytest.raises(UserError, match=r"as many inputs \(2\) as outputs \(1\)"):
    made(residual=True, outputs=1)
