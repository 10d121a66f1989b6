"""Recurrent language models: embeddings, a stack of recurrent layers, a head that predicts the next token.

  rnn_lm    Mikolov et al. 2010, "Recurrent neural network based language model"
  lstm_lm   Zaremba, Sutskever, Vinyals 2014, "Recurrent Neural Network Regularization"; by letters, Karpathy's char-rnn
  gru_lm    the same with the cell of Cho et al. 2014

Dropout falls on what goes up, never on what goes on in time (Zaremba et al., equation 3). The fields are those of
Zaremba's small model; the medium one has hidden_size 650, dropout .5, init_scale .05, the large one 1500, .65 and .04.

Deviation from Mikolov et al.: one embedding and one matrix more, as the cells of rnn.py have it.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError, unknown
from flaxonomy.models.sequence import attention, rnn
from flaxonomy.models.stages import keep


class RecurrentLM(nn.Module):
  """A recurrent language model.

  Attributes:
    vocab_size: V.
    cell: a key of `rnn.CELLS`.
    hidden_size: H.
    num_layers: L.
    embedding_size: E; None: H.
    dropout: rate behind the embeddings, between layers and before the head.
    tied: the head's matrix is the table of embeddings (Press and Wolf 2017); its bias stays.
    init_scale: s; all parameters start from U(+-s), biases too, as in the code of Zaremba et al. and of char-rnn.
    dtype: of the products; states and logits are float32.
  """

  vocab_size: int = 10000
  cell: str = "lstm"
  hidden_size: int = 200
  num_layers: int = 2
  embedding_size: int | None = None
  dropout: float = 0.0
  tied: bool = False
  init_scale: float = 0.1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens, cache=None, *, train: bool) -> dict:
    """Predicts what follows each token.

    Args:
      tokens: [B, T] int, whole sequences, or what follows the cache.
      cache: from `start` or an earlier call; None: nothing came before.
      train: with dropout.

    Returns:
      Stages "embedding" [B, T, E], "layers" [B, T, H], "cache" if one was given, "logits" [B, T, V] float32.
    """
    size = self.hidden_size if self.embedding_size is None else self.embedding_size
    if self.tied and size != self.hidden_size:
      raise UserError(f"a tied head needs embedding_size {size} to be hidden_size {self.hidden_size}")
    uniform = functools.partial(jax.random.uniform, minval=-self.init_scale, maxval=self.init_scale)
    stages = {}
    drop = nn.Dropout(self.dropout, deterministic=not train)
    table = nn.Embed(self.vocab_size, size, dtype=self.dtype, embedding_init=uniform, name="tokens")
    x = keep(self, stages, "embedding", drop(table(tokens)))
    layers = rnn.Recurrent(
      self.cell, self.hidden_size, self.num_layers, dropout=self.dropout, init_scale=self.init_scale, dtype=self.dtype,
      name="layers",
    )  # fmt: skip
    state = None if cache is None else _turned(cache)
    if self._few(tokens, size, train):
      x, state = layers(nn.one_hot(tokens, self.vocab_size), None, state, table.embedding, train=train)
    else:
      x, state = layers(x, None, state, train=train)
    x = drop(keep(self, stages, "layers", x))
    if cache is not None:
      stages["cache"] = _turned(state)
    if self.tied:
      bias = self.param("logits_bias", uniform, (self.vocab_size,), jnp.float32)
      logits = attention.tied_head(x, table.embedding, self.dtype) + bias[None, None]
    else:
      head = nn.Dense(self.vocab_size, dtype=self.dtype, kernel_init=uniform, bias_init=uniform, name="head")
      logits = attention.on_rows(head, x)
    keep(self, stages, "logits", logits.astype(jnp.float32))
    return stages

  def _few(self, tokens, size, train) -> bool:
    """Whether V letters by way of the table (see `rnn.Recurrent`) take fewer products than T embeddings, for any B."""
    steps = tokens.shape[1]
    plain = not (train and self.dropout) and not self.has_variable("perturbations", "embedding")
    return plain and self.vocab_size * (steps + size) < steps * size

  @nn.nowrap
  def start(self, batch: int, length: int | None = None) -> tuple[jax.Array, ...]:
    """The state before the first token, zeros [B, L, H]: h, and c of an LSTM; it serves any length."""
    if self.cell not in rnn.CELLS:
      raise unknown("recurrent cell", self.cell, rnn.CELLS)
    shape = (batch, self.num_layers, self.hidden_size)
    return tuple(jnp.zeros(shape, jnp.float32) for _ in range(rnn.CELLS[self.cell].arrays))


def _turned(state):
  """States [L, B, H] as caches [B, L, H], all of which begin with B, or back."""
  return tuple(each.swapaxes(0, 1) for each in state)


RNNLM = functools.partial(RecurrentLM, cell="rnn")
LSTMLM = functools.partial(RecurrentLM, cell="lstm")
GRULM = functools.partial(RecurrentLM, cell="gru")
