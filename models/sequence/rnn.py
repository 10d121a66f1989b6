"""Recurrent nets: vanilla, LSTM, GRU, in stacks, in one direction or both.

  rnn   Elman 1990, "Finding Structure in Time"
  lstm  Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", with the forget gate of Gers et al. 2000
  gru   Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder"
  both directions: Schuster and Paliwal 1997, "Bidirectional Recurrent Neural Networks"

As torch's modules, whose weights they take: two biases, gates in the order i, f, g, o and r, z, n.

Deviations from the papers, all torch's and cuDNN's: the LSTM has no peepholes and one cell a block; the GRU's reset
gate acts on U h + b after the product, where the paper has U (r h).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxonomy.errors import unknown

State = tuple[jax.Array, ...]


class Cell(NamedTuple):
  """What happens in one step.

  Attributes:
    join: (z = W x + b, u = U h + c, [B, G H] each) -> a, of which `step` is a function; linear.
    step: (a, state) -> the next state; the first array of a state is h.
    gates: G.
    arrays: of the state, [B, H] each.
  """

  join: Callable
  step: Callable
  gates: int
  arrays: int


def elman(a: jax.Array, state: State) -> State:
  """Elman: h' = tanh(W x + U h)."""
  return (jnp.tanh(a),)


def lstm(a: jax.Array, state: State) -> State:
  """LSTM: c' = f c + i g; h' = o tanh(c')."""
  _, c = state
  i, f, g, o = jnp.split(a, 4, -1)
  c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
  return nn.sigmoid(o) * jnp.tanh(c), c


def apart(z: jax.Array, u: jax.Array) -> jax.Array:
  """What a GRU sees, [B, 4 H]: sums for r and z, both shares of n."""
  (zr, zz, zn), (ur, uz, un) = jnp.split(z, 3, -1), jnp.split(u, 3, -1)
  return jnp.concatenate([zr + ur, zz + uz, zn, un], -1)


def gru(a: jax.Array, state: State) -> State:
  """GRU: h' = (1 - z) n + z h, with n = tanh(W x + r (U h))."""
  (h,) = state
  r, update, zn, un = jnp.split(a, 4, -1)
  r, update = nn.sigmoid(r), nn.sigmoid(update)
  return ((1 - update) * jnp.tanh(zn + r * un) + update * h,)


CELLS = {"rnn": Cell(jnp.add, elman, 1, 1), "lstm": Cell(jnp.add, lstm, 4, 2), "gru": Cell(apart, gru, 3, 1)}


class Recurrent(nn.Module):
  """A stack of recurrent layers.

  Attributes:
    cell: a key of `CELLS`.
    hidden_size: H, of each direction.
    num_layers: L; each sees what the one below puts out.
    bidirectional: D = 2 directions; the second reads each sequence from its own last element.
    dropout: rate between layers, not behind the last.
    init_scale: s; all parameters start from U(+-s). None: s = 1 / sqrt(H), as torch has it.
    forget_bias: added to the LSTM's first biases of the forget gate, so that it begins by remembering: Gers et al.
      2000; Jozefowicz et al. 2015, "An Empirical Exploration of Recurrent Network Architectures". 0 is torch's.
    dtype: of the matrix products; state and gates are float32.
  """

  cell: str = "lstm"
  hidden_size: int = 128
  num_layers: int = 1
  bidirectional: bool = False
  dropout: float = 0.0
  init_scale: float | None = None
  forget_bias: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, lengths=None, state=None, table=None, *, train: bool) -> tuple[jax.Array, State]:
    """Runs over whole sequences, or over the next stretch of them.

    Args:
      x: [B, T, I] float.
      lengths: [B] int, of each sequence; what lies behind changes nothing. None: all T.
      state: before the first element, as returned; None: zeros.
      table: [V, I], where x is [B, T, V] and what is read is x @ table: of few letters, whose rows one-hot x chooses,
        the first layer's products are fewer as x @ (table @ W).
      train: with dropout.

    Returns:
      (outputs [B, T, D H], zeros behind the lengths; state after each sequence's last element: h, and c of an LSTM,
      each [L D, B, H], layer by layer, forward before backward)
    """
    if self.cell not in CELLS:
      raise unknown("recurrent cell", self.cell, CELLS)
    batch, steps, _ = x.shape
    directions = 1 + self.bidirectional
    if state is None:
      zeros = jnp.zeros((self.num_layers * directions, batch, self.hidden_size), jnp.float32)
      state = (zeros,) * CELLS[self.cell].arrays
    keep = None if lengths is None else (jnp.arange(steps)[:, None] < lengths[None, :])[..., None].astype(jnp.float32)
    x, last = x.swapaxes(0, 1), []  # time first
    if keep is not None:
      x = jnp.where(keep > 0, x, 0)  # or a NaN behind a sequence would reach the kernels' gradients as 0 NaN
    for i in range(self.num_layers):
      if i:
        x = nn.Dropout(self.dropout, deterministic=not train)(x)
      outputs = []
      for direction in range(directions):
        name = f"layer{i}" + "_reverse" * direction
        layer = Layer(self.cell, self.hidden_size, self.init_scale, self.forget_bias, self.dtype, name=name)
        y = turned(x, lengths) if direction else x
        y, end = layer(y, keep, tuple(s[i * directions + direction] for s in state), None if i else table)
        outputs.append(turned(y, lengths) if direction else y)
        last.append(end)
      x = jnp.concatenate(outputs, -1)
    return x.swapaxes(0, 1), tuple(jnp.stack(each) for each in zip(*last))


RNN = functools.partial(Recurrent, cell="rnn")
LSTM = functools.partial(Recurrent, cell="lstm")
GRU = functools.partial(Recurrent, cell="gru")


class Layer(nn.Module):
  """One layer in one direction; see `Recurrent`. Parameters: kernel_ih [I, G H], kernel_hh [H, G H], two biases."""

  cell: str
  hidden_size: int
  init_scale: float | None = None
  forget_bias: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, keep, state, table=None) -> tuple[jax.Array, State]:
    """Args: x: [T, B, I], or [T, B, V] with a table [V, I]. keep: [T, B, 1] or None. state: each [B, H].

    Returns: (outputs [T, B, H], last state)
    """
    cell = CELLS[self.cell]
    limit = self.hidden_size**-0.5 if self.init_scale is None else self.init_scale
    init = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)
    wide = cell.gates * self.hidden_size
    inputs = x.shape[-1] if table is None else table.shape[-1]
    w = self.param("kernel_ih", init, (inputs, wide), jnp.float32).astype(self.dtype)
    if table is not None:
      w = table.astype(self.dtype) @ w
    u = self.param("kernel_hh", init, (self.hidden_size, wide), jnp.float32).astype(self.dtype)
    first = functools.partial(_remembering, init, self.forget_bias) if self.cell == "lstm" else init
    b, c = self.param("bias_ih", first, (wide,), jnp.float32), self.param("bias_hh", init, (wide,), jnp.float32)
    flat = x.reshape(-1, x.shape[-1]).astype(self.dtype)  # all steps at once; CPUs are slow with products in 3-D
    z = (flat @ w).astype(jnp.float32).reshape(*x.shape[:2], wide) + b[None, None]
    return recur(cell, z, keep, u, c, state)


def _remembering(init, forget_bias, key, shape, dtype):
  """An LSTM's biases [4 H] by an initialiser, with more in the forget gate."""
  i, f, g, o = jnp.split(init(key, shape, dtype), 4)
  return jnp.concatenate([i, f + forget_bias, g, o])


def turned(x, lengths):
  """[T, B, C] with each sequence's first `lengths` elements in the opposite order; the rest stays."""
  if lengths is None:
    return x[::-1]
  t = jnp.arange(x.shape[0])[:, None]
  from_ = jnp.where(t < lengths[None, :], lengths[None, :] - 1 - t, t)
  return jnp.take_along_axis(x, from_[..., None], 0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def recur(cell, z, keep, u, c, state):
  """The recurrence alone: the inputs' share z comes from outside.

  Its gradient keeps what each step's gates are functions of and adds up the kernel's in one matrix product behind the
  loop, which autodiff would do step by step.

  Args:
    cell: Cell.
    z: [T, B, G H] float32, W x + b.
    keep: [T, B, 1] float32, 1 and from some step on 0, where the state stays as it is and zeros are put out; or None.
    u: [H, G H], in the type of the products.
    c: [G H] float32.
    state: of arrays [B, H] float32.

  Returns:
    (outputs [T, B, H], last state)
  """
  return _recur_fwd(cell, z, keep, u, c, state)[0]


def _gated(cell, keep, a, state):
  new = cell.step(a, state)
  return new if keep is None else tuple(jnp.where(keep > 0, after, before) for after, before in zip(new, state))


def _recur_fwd(cell, z, keep, u, c, state):
  def step(state, now):
    z, keep = now
    a = cell.join(z, (state[0].astype(u.dtype) @ u).astype(jnp.float32) + c[None])
    new = _gated(cell, keep, a, state)
    return new, (new[0] if keep is None else new[0] * keep, a, state[1:])

  last, (outputs, sums, rest) = lax.scan(step, state, (z, keep))
  return (outputs, last), (z, keep, u, state[0], outputs, sums, rest)


def _recur_bwd(cell, saved, given):
  z, keep, u, h, outputs, sums, rest = saved
  d_outputs, d_last = given
  before = jnp.concatenate([h[None], outputs[:-1]])  # the h that each step began with
  back_u = lax.optimization_barrier(u.T)  # turned once; XLA's CPU backend would read u across at every step
  shares = lambda z, d: jax.linear_transpose(cell.join, z, z)(d)

  def back(d_state, now):
    z, keep, a, h, rest, d_output = now
    _, pull = jax.vjp(functools.partial(_gated, cell, keep), a, (h, *rest))
    d_output = d_output if keep is None else d_output * keep
    d_a, (d_h, *d_rest) = pull((d_state[0] + d_output, *d_state[1:]))
    d_h = d_h + (shares(z, d_a)[1].astype(u.dtype) @ back_u).astype(jnp.float32)
    return (d_h, *d_rest), d_a

  d_state, d_sums = lax.scan(back, d_last, (z, keep, sums, before, rest, d_outputs), reverse=True)
  d_z, d_product = shares(z, d_sums)
  d_u = before.reshape(-1, h.shape[-1]).T.astype(u.dtype) @ d_product.reshape(-1, u.shape[-1]).astype(u.dtype)
  return d_z, None if keep is None else jnp.zeros_like(keep), d_u, d_product.sum((0, 1)), d_state


recur.defvjp(_recur_fwd, _recur_bwd)
