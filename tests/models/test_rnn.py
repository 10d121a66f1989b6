"""Recurrent nets: sizes, lengths, states carried on, the hand-written gradient against autodiff, one step by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models.sequence import rnn

RNG = np.random.default_rng(0)
KEY = jax.random.PRNGKey(0)


def normal(*shape):
  return RNG.normal(size=shape).astype(np.float32)


def made(name, inputs=3, **fields):
  """(model, its variables)."""
  model = models.create(name, **{"hidden_size": 4} | fields)
  return model, jax.jit(lambda: model.init(KEY, jnp.zeros((1, 1, inputs)), train=False))()


@pytest.mark.parametrize("name, both, count", [("rnn", 0, 640), ("lstm", 0, 2560), ("lstm", 1, 5120), ("gru", 0, 1920)])
def test_sizes(name, both, count):
  """Ten inputs and twenty units, as torch counts them: two biases."""
  model = models.create(name, hidden_size=20, bidirectional=bool(both))
  variables = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, 1, 10)), train=False))
  assert sum(x.size for x in jax.tree.leaves(variables)) == count


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_what_stands_behind_a_sequence_changes_nothing(name):
  """Not even NaN, in outputs, states and gradients; and each sequence is as if it were alone."""
  model, variables = made(name, num_layers=2, bidirectional=True)
  x, lengths, weight = normal(3, 5, 3), np.array([5, 2, 0]), normal(3, 5, 8)
  behind = np.arange(5)[None, :, None] >= lengths[:, None, None]

  @jax.jit
  def run(variables, x):
    def loss(variables, x):
      y, state = model.apply(variables, x, lengths, train=False)
      return (y * weight).sum() + sum(jnp.square(s).sum() for s in state), (y, state)

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(variables, x)

  expected = run(variables, np.where(behind, 0, x))
  jax.tree.map(np.testing.assert_array_equal, run(variables, np.where(behind, np.nan, x)), expected)
  (_, (y, state)), (_, d_x) = expected
  assert np.isfinite(d_x).all()
  assert (np.asarray(y)[np.broadcast_to(behind, y.shape)] == 0).all()
  assert (np.asarray(d_x)[np.broadcast_to(behind, d_x.shape)] == 0).all()
  assert all((np.asarray(s)[:, 2] == 0).all() for s in state)  # nothing was read: the state that it began with
  alone_y, alone = model.apply(variables, x[1:2, :2], train=False)
  np.testing.assert_allclose(y[1:2, :2], alone_y, atol=1e-6)
  for ours, theirs in zip(state, alone):
    np.testing.assert_allclose(ours[:, 1:2], theirs, atol=1e-6)


def test_a_length_of_nothing_keeps_the_given_state():
  model, variables = made("lstm")
  state = normal(1, 2, 4), normal(1, 2, 4)
  y, last = model.apply(variables, normal(2, 3, 3), np.array([0, 3]), state, train=False)
  assert (np.asarray(y[0]) == 0).all()
  for before, after in zip(state, last):
    np.testing.assert_array_equal(after[:, 0], before[:, 0])
    assert (np.asarray(after[:, 1]) != before[:, 1]).all()


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_two_stretches_are_the_whole(name):
  model, variables = made(name, num_layers=2)
  x, state = normal(2, 6, 3), (normal(2, 2, 4),) * rnn.CELLS[name].arrays
  run = jax.jit(lambda x, state: model.apply(variables, x, None, state, train=False))
  whole, last = run(x, state)
  first, between = run(x[:, :4], state)
  second, end = run(x[:, 4:], between)
  np.testing.assert_allclose(np.concatenate([first, second], 1), whole, atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), end, last)


def plain(cell, z, keep, u, c, state):
  """`recur` without a gradient of its own."""

  def step(state, now):
    z, keep = now
    new = cell.step(cell.join(z, state[0] @ u + c[None]), state)
    new = tuple(keep * after + (1 - keep) * before for after, before in zip(new, state))
    return new, keep * new[0]

  last, outputs = lax.scan(step, state, (z, jnp.ones((len(z), 1, 1)) if keep is None else keep))
  return outputs, last


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", rnn.CELLS)
def test_the_gradient_is_that_of_autodiff(name, masked):
  cell = rnn.CELLS[name]
  steps, batch, hidden = 4, 3, 2
  keep = np.float32(np.arange(steps)[:, None] < np.array([4, 2, 0]))[..., None] if masked else None
  z, u, c = normal(steps, batch, cell.gates * hidden), normal(hidden, cell.gates * hidden), normal(cell.gates * hidden)
  state = tuple(normal(batch, hidden) for _ in range(cell.arrays))
  weight, weights = normal(steps, batch, hidden), [normal(batch, hidden) for _ in range(cell.arrays)]

  def loss(run, z, u, c, state):
    outputs, last = run(cell, z, keep, u, c, state)
    return (outputs * weight).sum() + sum((a * b).sum() for a, b in zip(last, weights))

  both = [jax.jit(jax.value_and_grad(functools.partial(loss, run), (0, 1, 2, 3))) for run in (rnn.recur, plain)]
  ours, theirs = (run(z, u, c, state) for run in both)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), ours, theirs)
  assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(theirs))


def sigmoid(x):
  return 1 / (1 + np.exp(-np.float64(x)))


def test_one_lstm_step_by_hand():
  """Gers et al. 2000, without peepholes: input gate, forget gate, cell's input, output gate."""
  model, variables = made("lstm", hidden_size=2)
  params = jax.tree.map(np.asarray, variables["params"]["layer0"])
  x, h, c = normal(1, 1, 3), normal(1, 1, 2), normal(1, 1, 2)
  y, (last_h, last_c) = model.apply(variables, x, None, (h, c), train=False)
  z = x[0] @ params["kernel_ih"] + params["bias_ih"] + h[0] @ params["kernel_hh"] + params["bias_hh"]
  i, f, g, o = z.reshape(4, 2)
  new_c = sigmoid(f) * c[0, 0] + sigmoid(i) * np.tanh(g)
  np.testing.assert_allclose(last_c[0, 0], new_c, atol=1e-6)
  np.testing.assert_allclose(last_h[0, 0], sigmoid(o) * np.tanh(new_c), atol=1e-6)
  np.testing.assert_array_equal(y[0], last_h[0])


def test_dropout_is_between_layers_only():
  x = normal(2, 3, 3)
  one, variables = made("gru", dropout=0.5)
  train = one.apply(variables, x, train=True, rngs={"dropout": KEY})
  jax.tree.map(np.testing.assert_array_equal, train, one.apply(variables, x, train=False))
  two, variables = made("gru", num_layers=2, dropout=0.5)
  y, (state,) = two.apply(variables, x, train=True, rngs={"dropout": KEY})
  _, (expected,) = two.apply(variables, x, train=False)
  np.testing.assert_array_equal(state[0], expected[0])  # the first layer saw all of x
  assert (np.asarray(state[1]) != expected[1]).any()
  assert (np.asarray(y) != 0).all()  # nothing is dropped behind the last


def test_products_in_bfloat16_leave_the_state_in_float32():
  model, variables = made("lstm")
  x = normal(2, 3, 3)
  y, state = model.clone(dtype=jnp.bfloat16).apply(variables, x, train=False)
  assert {leaf.dtype for leaf in jax.tree.leaves((y, state, variables))} == {np.dtype(np.float32)}
  np.testing.assert_allclose(y, model.apply(variables, x, train=False)[0], atol=0.02)


def test_an_unknown_cell():
  with pytest.raises(UserError, match="unknown recurrent cell 'lstn'; did you mean 'lstm'") as raised:
    made("lstm", cell="lstn")
  assert "\n" not in str(raised.value)
