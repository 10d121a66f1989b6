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

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxonomy.errors import unknown

State = tuple[jax.Array, ...]


def elman(z: jax.Array, u: jax.Array, state: State) -> State:
  """Elman: h' = tanh(W x + U h)."""
  return (jnp.tanh(z + u),)


def lstm(z: jax.Array, u: jax.Array, state: State) -> State:
  """LSTM: c' = f c + i g; h' = o tanh(c')."""
  _, c = state
  i, f, g, o = jnp.split(z + u, 4, -1)
  c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
  return nn.sigmoid(o) * jnp.tanh(c), c


def gru(z: jax.Array, u: jax.Array, state: State) -> State:
  """GRU: h' = (1 - z) n + z h, with n = tanh(W x + r (U h))."""
  (h,) = state
  (zr, zz, zn), (ur, uz, un) = jnp.split(z, 3, -1), jnp.split(u, 3, -1)
  r, update = nn.sigmoid(zr + ur), nn.sigmoid(zz + uz)
  return ((1 - update) * jnp.tanh(zn + r * un) + update * h,)


CELLS = {"rnn": (elman, 1, 1), "lstm": (lstm, 4, 2), "gru": (gru, 3, 1)}  # the step, its gates, arrays of state


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
  def __call__(self, x, lengths=None, state=None, *, train: bool) -> tuple[jax.Array, State]:
    """Runs over whole sequences, or over the next stretch of them.

    Args:
      x: [B, T, I] float.
      lengths: [B] int, of each sequence; what lies behind changes nothing. None: all T.
      state: before the first element, as returned; None: zeros.
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
      state = (zeros,) * CELLS[self.cell][2]
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
        y, end = layer(y, keep, tuple(s[i * directions + direction] for s in state))
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
  def __call__(self, x, keep, state) -> tuple[jax.Array, State]:
    """Args: x: [T, B, I]. keep: [T, B, 1] or None. state: each [B, H]. Returns: (outputs [T, B, H], last state)."""
    cell, gates, _ = CELLS[self.cell]
    limit = self.hidden_size**-0.5 if self.init_scale is None else self.init_scale
    init = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -limit, limit)
    wide = gates * self.hidden_size
    w = self.param("kernel_ih", init, (x.shape[-1], wide), jnp.float32).astype(self.dtype)
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

  Its gradient keeps each step's products and adds up the kernel's in one matrix product behind the loop, which autodiff
  would do step by step.

  Args:
    cell: (z [B, G H], u h + c [B, G H], state) -> state; the first array of the state is h.
    z: [T, B, G H] float32, W x + b.
    keep: [T, B, 1] float32, 0 where a step leaves the state as it is and puts out zeros; or None.
    u: [H, G H], in the type of the products.
    c: [G H] float32.
    state: of arrays [B, H] float32.

  Returns:
    (outputs [T, B, H], last state)
  """
  last, (outputs, *_) = lax.scan(functools.partial(_step, cell, u, c, False), state, (z, keep))
  return outputs, last


def _step(cell, u, c, kept, state, now):
  z, keep = now
  product = (state[0].astype(u.dtype) @ u).astype(jnp.float32) + c[None]
  new = _gated(cell, z, product, state, keep)
  output = new[0] if keep is None else new[0] * keep
  return new, (output, product, state) if kept else (output,)


def _gated(cell, z, product, state, keep):
  new = cell(z, product, state)
  return new if keep is None else tuple(jnp.where(keep > 0, after, before) for after, before in zip(new, state))


def _recur_fwd(cell, z, keep, u, c, state):
  last, (outputs, products, states) = lax.scan(functools.partial(_step, cell, u, c, True), state, (z, keep))
  return (outputs, last), (z, keep, u, products, states)


def _recur_bwd(cell, saved, given):
  z, keep, u, products, states = saved
  d_outputs, d_last = given

  def back(d_state, now):
    z, keep, product, state, d_output = now
    _, pull = jax.vjp(lambda z, product, state: _gated(cell, z, product, state, keep), z, product, state)
    d_output = d_output if keep is None else d_output * keep
    d_z, d_product, (d_h, *rest) = pull((d_state[0] + d_output, *d_state[1:]))
    d_h = d_h + (d_product.astype(u.dtype) @ u.T).astype(jnp.float32)
    return (d_h, *rest), (d_z, d_product)

  d_state, (d_z, d_products) = lax.scan(back, d_last, (z, keep, products, states, d_outputs), reverse=True)
  wide = d_products.shape[-1]
  h = states[0].reshape(-1, states[0].shape[-1]).astype(u.dtype)
  d_u = h.T @ d_products.reshape(-1, wide).astype(u.dtype)
  d_keep = None if keep is None else jnp.zeros_like(keep)
  return d_z, d_keep, d_u, d_products.sum((0, 1)), d_state


recur.defvjp(_recur_fwd, _recur_bwd)
