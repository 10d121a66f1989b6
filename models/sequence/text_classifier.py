"""Classifiers of texts: what is read becomes one vector, and that a class.

  bilstm_classifier        an LSTM in both directions, pooled by self-attention: Lin et al. 2017, "A Structured
                           Self-attentive Sentence Embedding", section 2.1 with r = 1; or by the largest value of each
                           feature, Conneau et al. 2017
  transformer_classifier   the encoder of Vaswani et al. 2017, pooled by the mean over the tokens, or by the first one,
                           as in Devlin et al. 2018

Padding, id 0, stands at the end and changes nothing. The first token always counts as one.

Deviations from Lin et al.: no penalty on the attention, which is for r > 1, and no hidden layer behind the pooling.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError, unknown
from flaxonomy.models.sequence import attention, rnn
from flaxonomy.models.sequence.transformer import sinusoids
from flaxonomy.models.stages import keep

EMBEDDING = nn.initializers.normal(0.1)  # of the size at which an LSTM is not saturated
SMALL = nn.initializers.normal(0.02)  # Devlin et al. 2018


class BiLSTMClassifier(nn.Module):
  """An LSTM in both directions over the true length of each text.

  Attributes:
    num_classes: C.
    vocab_size: V.
    embedding_size: E.
    hidden_size: H, of each direction.
    num_layers: of the LSTM.
    pool: "attention" or "max".
    attention_size: the inner width of the attention.
    dropout: rate behind the embeddings, between layers and before the head.
    dtype: of the products; states and logits are float32.
  """

  num_classes: int = 2
  vocab_size: int = 10000
  embedding_size: int = 128
  hidden_size: int = 128
  num_layers: int = 1
  pool: str = "attention"
  attention_size: int = 64
  dropout: float = 0.5
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens, *, train: bool) -> dict:
    """Classifies texts.

    Args:
      tokens: [B, T] int, 0 for padding.
      train: with dropout.

    Returns:
      Stages "embedding" [B, T, E], "layers" [B, T, 2 H], with pool "attention" that, [B, T], "pooled" [B, 2 H],
      "logits" [B, C] float32.
    """
    stages, drop = {}, nn.Dropout(self.dropout, deterministic=not train)
    mask = real(tokens)
    table = nn.Embed(self.vocab_size, self.embedding_size, dtype=self.dtype, embedding_init=EMBEDDING, name="tokens")
    x = drop(keep(self, stages, "embedding", jnp.where(mask[..., None], table(tokens), 0)))
    layers = rnn.Recurrent(
      "lstm", self.hidden_size, self.num_layers, True, dropout=self.dropout, dtype=self.dtype, name="layers"
    )
    x, _ = layers(x, mask.sum(1), train=train)
    x = keep(self, stages, "layers", x)
    if self.pool == "attention":
      inner = nn.Dense(self.attention_size, use_bias=False, dtype=self.dtype, name="attention_inner")
      outer = nn.Dense(1, use_bias=False, dtype=self.dtype, name="attention_outer")
      scores = attention.on_rows(lambda rows: outer(jnp.tanh(inner(rows))), x)[..., 0].astype(jnp.float32)
      weights = nn.softmax(jnp.where(mask, scores, attention.HIDDEN))
      x = (keep(self, stages, "attention", weights)[..., None] * x).sum(1)
    elif self.pool == "max":
      x = jnp.where(mask[..., None], x, attention.HIDDEN).max(1)
    else:
      raise unknown("pool", self.pool, ("attention", "max"), "(config field 'model.fields.pool')")
    return _head(self, stages, x, drop)


class TransformerClassifier(nn.Module):
  """An encoder of attention.

  Attributes:
    num_classes: C.
    vocab_size: V.
    num_layers: L.
    hidden_size: D.
    num_heads: of each layer.
    mlp_size: inner width of the feed-forward nets.
    max_length: tokens of a text.
    positions: "learned" or "sinusoidal".
    pool: "mean" over the tokens, or "first".
    norm_first: norms before each part, and one behind all; False: behind each part, as the paper has it.
    dropout: rate behind the embeddings, on what each part of a layer adds, and before the head.
    attention_dropout: rate on the attention's weights.
    kernel: of the attention, "xla" or "cudnn".
    dtype: of the products and of what goes from layer to layer; logits are float32.
  """

  num_classes: int = 2
  vocab_size: int = 10000
  num_layers: int = 2
  hidden_size: int = 128
  num_heads: int = 4
  mlp_size: int = 256
  max_length: int = 512
  positions: str = "learned"
  pool: str = "mean"
  norm_first: bool = True
  dropout: float = 0.1
  attention_dropout: float = 0.0
  kernel: str = "xla"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens, *, train: bool) -> dict:
    """Classifies texts.

    Args:
      tokens: [B, T] int, 0 for padding.
      train: with dropout.

    Returns:
      Stages "embedding", without positions, "layer_0", ... [B, T, D], "norm" with `norm_first`, "pooled" [B, D],
      "logits" [B, C] float32.
    """
    if tokens.shape[1] > self.max_length:
      raise UserError(f"texts of {tokens.shape[1]} tokens are longer than the model's max_length {self.max_length}")
    stages, drop = {}, nn.Dropout(self.dropout, deterministic=not train)
    mask = real(tokens)
    table = nn.Embed(self.vocab_size, self.hidden_size, dtype=self.dtype, embedding_init=SMALL, name="tokens")
    x = keep(self, stages, "embedding", jnp.where(mask[..., None], table(tokens), 0))
    x = drop(x + self._places(tokens.shape[1])[None])
    for i in range(self.num_layers):
      layer = attention.Layer(
        self.hidden_size, self.num_heads, self.mlp_size, norm_first=self.norm_first, activation="gelu",
        dropout=self.dropout, attention_dropout=self.attention_dropout, kernel=self.kernel, dtype=self.dtype,
        name=f"layer_{i}",
      )  # fmt: skip
      x = keep(self, stages, f"layer_{i}", layer(x, mask[:, None, None, :], train=train)[0])
    if self.norm_first:
      x = keep(self, stages, "norm", attention.layer_norm(1e-5, self.dtype, "norm")(x))
    if self.pool == "mean":
      x = jnp.where(mask[..., None], x, 0).sum(1) / mask.sum(1)[:, None]
    elif self.pool == "first":
      x = x[:, 0]
    else:
      raise unknown("pool", self.pool, ("first", "mean"), "(config field 'model.fields.pool')")
    return _head(self, stages, x, drop)

  def _places(self, length):
    """What is added to each place, [T, D]."""
    if self.positions == "learned":
      return self.param("positions", SMALL, (self.max_length, self.hidden_size), jnp.float32)[:length].astype(
        self.dtype
      )
    if self.positions == "sinusoidal":  # as small as the embeddings, which would else be lost beside it
      return (0.02 * 2**0.5 * sinusoids(length, self.hidden_size)).astype(self.dtype)
    raise unknown("kind of positions", self.positions, ("learned", "sinusoidal"))


def real(tokens: jax.Array) -> jax.Array:
  """Which tokens [B, T] are no padding, bool; the first one never is, so that there is something to pool."""
  return (tokens != 0) | (jnp.arange(tokens.shape[1]) == 0)[None]


def _head(module, stages, x, drop) -> dict:
  """Stages "pooled" and "logits" of what was pooled, [B, D]."""
  x = drop(keep(module, stages, "pooled", x.astype(jnp.float32)))
  logits = nn.Dense(module.num_classes, dtype=module.dtype, name="head")(x)
  keep(module, stages, "logits", logits.astype(jnp.float32))
  return stages
