"""A recurrent net that reads a window of a series and predicts what follows it.

Hochreiter and Schmidhuber 1997, "Long Short-Term Memory", for what lies far back (section 5.4, the adding problem);
Gers, Eck and Schmidhuber 2001, "Applying LSTM to Time Series Predictable through Time-Window Approaches", for
forecasts. The cells are those of rnn.py; the head is one dense layer on the last state.

Deviations from Gers et al.: the window is read element by element, where theirs is one input vector; all steps of the
horizon are predicted at once, where theirs are fed back one by one.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError
from flaxonomy.models.sequence import rnn
from flaxonomy.models.stages import keep


class Forecaster(nn.Module):
  """Recurrent layers and a dense head on their last state.

  Attributes:
    cell: a key of `rnn.CELLS`.
    hidden_size: H.
    num_layers: L.
    horizon: elements that are predicted.
    outputs: C', numbers in each of them.
    dropout: rate between layers and before the head.
    residual: what is predicted is the change from the window's last element.
    forget_bias: as in `rnn.Recurrent`.
    dtype: of the matrix products; states and forecasts are float32.
  """

  cell: str = "lstm"
  hidden_size: int = 64
  num_layers: int = 1
  horizon: int = 1
  outputs: int = 1
  dropout: float = 0.0
  residual: bool = False
  forget_bias: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict:
    """Predicts what follows each window.

    Where the variables hold "perturbations" named "state", [B, T, H], one is added to the last layer's h after each
    step, before the next one reads it: the gradient for it is that of h_t by every way through time.

    Args:
      x: [B, T, C] float.
      train: with dropout.

    Returns:
      Stages "layers" [B, T, H], "last" [B, H], "forecast" [B, horizon, C'] float32.
    """
    stages = {}
    layers = rnn.Recurrent(
      self.cell, self.hidden_size, self.num_layers, dropout=self.dropout, forget_bias=self.forget_bias,
      dtype=self.dtype, name="layers",
    )  # fmt: skip
    if self.has_variable("perturbations", "state"):
      h = _by_step(layers, x, self.get_variable("perturbations", "state"), train)
    else:
      h, _ = layers(x, train=train)
    last = keep(self, stages, "last", keep(self, stages, "layers", h)[:, -1])
    last = nn.Dropout(self.dropout, deterministic=not train)(last)
    forecast = nn.Dense(self.horizon * self.outputs, dtype=self.dtype, name="head")(last).astype(jnp.float32)
    forecast = forecast.reshape(-1, self.horizon, self.outputs)
    if self.residual:
      if x.shape[-1] != self.outputs:
        raise UserError(f"a residual forecast needs as many inputs ({x.shape[-1]}) as outputs ({self.outputs})")
      forecast += x[:, -1:].astype(jnp.float32)
    keep(self, stages, "forecast", forecast)
    return stages


def _by_step(layers, x, offsets, train) -> jax.Array:
  """Outputs [B, T, H] of recurrent layers called step by step, with offsets [B, T, H] added to the last one's h."""

  def step(layers, state, now):
    x, offset = now
    _, (h, *rest) = layers(x[:, None], None, state, train=train)
    h = h.at[-1].add(offset)
    return (h, *rest), h[-1]

  zeros = jnp.zeros((layers.num_layers, len(x), layers.hidden_size), jnp.float32)
  state = (zeros,) * rnn.CELLS[layers.cell].arrays
  over_time = nn.scan(
    step, variable_broadcast="params", split_rngs={"params": False, "dropout": True}, in_axes=1, out_axes=1
  )
  return over_time(layers, state, (x, offsets))[1]
