"""Sequence to sequence: one recurrent net reads the source, another writes the target, with attention or without.

  none      Sutskever, Vinyals, Le 2014, "Sequence to Sequence Learning with Neural Networks": the decoder begins with
            what the encoder ends with; the source is read backwards (`reverse_source`). 384,144,000 parameters with 4
            layers of 1000, 160,000 source and 80,000 target words
  additive  Bahdanau, Cho, Bengio 2014, "Neural Machine Translation by Jointly Learning to Align and Translate": scored
            with the state before the step; the context goes into the step and into the readout
  dot, general, concat
            Luong, Pham, Manning 2015, "Effective Approaches to Attention-based Neural Machine Translation", 3.1: scored
            with the state after the step; h~ = tanh(Wc [c; h]) is read out and, with `input_feeding` (3.3), goes into
            the next step

Deviations from the papers: the cells are those of rnn.py, with their initialisation; everything else starts as Luong's.
Bahdanau's readout sees the state before the step (A.2.2), here the one after it; without `maxout` it is linear. Luong's
local attention is not here.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError, unknown
from flaxonomy.models.sequence.rnn import CELLS, Recurrent, turned
from flaxonomy.models.stages import keep

PAD = 0  # behind every source
LUONG = ("dot", "general", "concat")
ATTENTIONS = ("none", *LUONG, "additive")


def UNIFORM(key, shape, dtype=jnp.float32):
  """U(+-.1): Luong et al. 2015, section 4.1."""
  return jax.random.uniform(key, shape, dtype, -0.1, 0.1)


class Seq2Seq(nn.Module):
  """An encoder and a decoder.

  Sources end in padding, id 0; target ids have no special meaning here.

  Attributes:
    source_vocab_size: ids of the source, padding included.
    target_vocab_size: V, ids of the target.
    embedding_size: of both.
    hidden_size: H, of the decoder and of each direction of the encoder.
    num_layers: L, of each.
    cell: of the decoder, a key of `rnn.CELLS`.
    encoder_cell: of the encoder; None: the decoder's. A GRU behind an LSTM takes over h, an LSTM begins with c = 0.
    bidirectional: an encoder in both directions, C = 2 H wide, else H. The decoder begins with h = tanh(W h'), h' what
      the backward direction ends with (Bahdanau et al. 2014, A.2.2), and with its c.
    attention: one of `ATTENTIONS`.
    input_feeding: Luong's h~ goes into the next step.
    maxout: Bahdanau's readout through the larger of every two of H hidden units.
    reverse_source: the encoder reads each source from its last word to its first.
    read_padding: the encoder reads on over the padding, as zeros, to the end of the longest source.
    dropout: rate on embeddings, between layers and before the readout (Zaremba et al. 2014).
    dtype: of the matrix products; states, softmax and logits are float32.
  """

  source_vocab_size: int = 10000
  target_vocab_size: int = 10000
  embedding_size: int = 128
  hidden_size: int = 256
  num_layers: int = 1
  cell: str = "lstm"
  encoder_cell: str | None = None
  bidirectional: bool = False
  attention: str = "general"
  input_feeding: bool = False
  maxout: bool = False
  reverse_source: bool = False
  read_padding: bool = False
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  def setup(self):  # noqa: D102
    self._check()
    dense = functools.partial(nn.Dense, kernel_init=UNIFORM, dtype=self.dtype)
    embed = functools.partial(nn.Embed, embedding_init=UNIFORM, dtype=self.dtype)
    stack = functools.partial(
      Recurrent, hidden_size=self.hidden_size, num_layers=self.num_layers, dropout=self.dropout, dtype=self.dtype
    )
    self.source_embedding = embed(self.source_vocab_size, self.embedding_size)
    self.target_embedding = embed(self.target_vocab_size, self.embedding_size)
    self.encoder = stack(self.encoder_cell or self.cell, bidirectional=self.bidirectional)
    self.decoder = stack(self.cell)
    if self.bidirectional:
      self.bridge = [dense(self.hidden_size) for _ in range(self.num_layers)]
    if self.attention in ("general", "concat", "additive"):
      self.key = dense(self.hidden_size, use_bias=False)
    if self.attention in ("concat", "additive"):
      self.query = dense(self.hidden_size, use_bias=False)
      self.score = dense(1, use_bias=False)
    if self.attention in LUONG:
      self.combine = dense(self.hidden_size, use_bias=False)
    if self.maxout:
      self.readout_hidden = dense(self.hidden_size)
    self.readout = dense(self.target_vocab_size)
    self.drop = nn.Dropout(self.dropout)

  def _check(self):
    if self.attention not in ATTENTIONS:
      raise unknown("attention", self.attention, ATTENTIONS, "(config field 'model.fields')")
    for cell in (self.cell, self.encoder_cell or self.cell):
      if cell not in CELLS:
        raise unknown("recurrent cell", cell, CELLS, "(config field 'model.fields')")
    if self.attention == "dot" and self.bidirectional:
      raise UserError("attention 'dot' needs an encoder as wide as the decoder: 'general', or bidirectional = False")
    if self.input_feeding and self.attention not in LUONG:
      raise UserError(f"input_feeding goes with attention {', '.join(LUONG)}, not with {self.attention!r}")
    if self.maxout and (self.attention != "additive" or self.hidden_size % 2):
      raise UserError("maxout goes with attention 'additive' and an even hidden_size")

  def __call__(self, source, target, *, train: bool) -> dict[str, jax.Array]:
    """Teacher forcing: reads the source and writes each word of the target behind the true words before it.

    Args:
      source: [B, S] int, 0 behind each sequence's end.
      target: [B, T] int, what the decoder is given: begins with the start token.
      train: with dropout.

    Returns:
      {"encoder": [B, S, C], "decoder": [B, T, H] what is read out, h~ or the state, "attention": [B, T, S], each row a
      distribution over the source in the order given, not with attention "none"; "logits": [B, T, V] float32}
    """
    memory, state = self.encode(source, train=train)
    stages, _ = self.decode(target, state, memory, train=train)
    return {"encoder": memory["values"]} | stages

  def encode(self, source, *, train: bool):
    """Reads the source.

    Args:
      source: [B, S] int.
      train: with dropout.

    Returns:
      (memory {"values": [B, S, C], "keys": [B, S, H] of the scores, "mask": [B, S]}; the decoder's first state {"cell":
      h, and c of an LSTM, each [B, L, H], "fed": [B, H] with input feeding}). All begin with B, for decoders that
      choose among hypotheses.
    """
    mask = source != PAD
    lengths = mask.sum(1)
    x = jnp.where(mask[..., None], self.source_embedding(source), 0)
    x = self._reversed(self.drop(x, deterministic=not train), lengths)
    values, last = self.encoder(x, None if self.read_padding else lengths, train=train)
    values = keep(self, {}, "encoder", self._reversed(values, lengths).astype(self.dtype))
    keys = _flat(self.key, values) if hasattr(self, "key") else values
    state = {"cell": self._first(last)}
    if self.input_feeding:
      state["fed"] = jnp.zeros((source.shape[0], self.hidden_size))
    return {"values": values, "keys": keys, "mask": mask}, state

  def decode(self, target, state, memory, *, train: bool):
    """Writes behind the true words, from any state on.

    Args:
      target: [B, T] int.
      state: as `encode` or this returns it.
      memory: as `encode` returns it.
      train: with dropout.

    Returns:
      (stages "decoder", "attention", "logits" of `__call__`, state after the last word)
    """
    x = self.drop(self.target_embedding(target), deterministic=not train)
    if target.shape[1] > 1 and (self.input_feeding or self.attention == "additive"):
      loop = nn.scan(
        lambda self, state, x, memory: self._stretch(x[:, None], state, memory, train),
        variable_broadcast="params",
        split_rngs={"params": False, "dropout": True},
        in_axes=(1, nn.broadcast),
        out_axes=1,
      )
      state, written = loop(self, state, x, memory)
      hidden, context, weights = jax.tree.map(lambda y: y[:, :, 0], written)
    else:
      state, (hidden, context, weights) = self._stretch(x, state, memory, train)
    stages = {}
    out = hidden = keep(self, stages, "decoder", hidden)
    if self.attention == "additive":
      out = jnp.concatenate([hidden, context, x], -1)
    if self.maxout:
      out = _flat(self.readout_hidden, out)
      out = out.reshape(*out.shape[:-1], -1, 2).max(-1)
    logits = _flat(self.readout, self.drop(out, deterministic=not train)).astype(jnp.float32)
    return stages | ({} if weights is None else {"attention": weights}) | {"logits": logits}, state

  def step(self, token, state, memory):
    """Writes one word, for decoders.

    Args:
      token: [B] int, the last word.
      state: as in `decode`.
      memory: as `encode` returns it.

    Returns:
      (the stages of `decode` without their T, the next state)
    """
    stages, state = self.decode(token[:, None], state, memory, train=False)
    return {name: x[:, 0] for name, x in stages.items()}, state

  def _stretch(self, x, state, memory, train):
    """Some words, one where something of a step goes into the next.

    Args: x: [B, T, E]. Returns: (state, (what is read out [B, T, H], context [B, T, C], attention [B, T, S]))
    """
    context = weights = None
    if self.attention == "additive":
      context, weights = self._attend(state["cell"][0][:, -1:], memory)
      x = jnp.concatenate([x, context], -1)
    if self.input_feeding:
      x = jnp.concatenate([x, state["fed"][:, None]], -1)
    hidden, cell = self.decoder(x, None, tuple(s.swapaxes(0, 1) for s in state["cell"]), train=train)
    state = {"cell": tuple(s.swapaxes(0, 1) for s in cell)}
    if self.attention in LUONG:
      context, weights = self._attend(hidden, memory)
      hidden = jnp.tanh(_flat(self.combine, jnp.concatenate([context, hidden], -1)).astype(jnp.float32))
    if self.input_feeding:
      state["fed"] = hidden[:, -1]
    return state, (hidden, context, weights)

  def _attend(self, states, memory):
    """The decoder's states [B, T, H] on the memory: (context [B, T, C], weights [B, T, S]), both float32."""
    if hasattr(self, "query"):  # v tanh(W s + U h)
      sums = jnp.tanh(_flat(self.query, states)[:, :, None] + memory["keys"][:, None])
      scores = _flat(self.score, sums)[..., 0]
    else:
      scores = _product("bth,bsh->bts", states.astype(self.dtype), memory["keys"])
    mask = memory["mask"][:, None]
    weights = nn.softmax(jnp.where(mask, scores.astype(jnp.float32), -1e30))
    weights = jnp.where(mask, weights, 0)  # an empty source has no distribution
    return _product("bts,bsc->btc", weights.astype(self.dtype), memory["values"]), weights

  def _first(self, last):
    """The decoder's first state from what the encoder ends with, [L D, B, H] each: tuple of [B, L, H]."""
    last = [s.reshape(self.num_layers, -1, *s.shape[1:])[:, -1].swapaxes(0, 1) for s in last]
    if self.bidirectional:
      bridged = [layer(last[0][:, i]) for i, layer in enumerate(self.bridge)]
      last[0] = jnp.tanh(jnp.stack(bridged, 1).astype(jnp.float32))
    arrays = CELLS[self.cell].arrays
    return tuple([*last, jnp.zeros_like(last[0])][:arrays])

  def _reversed(self, x, lengths):
    """[B, S, ...], with `reverse_source` each sequence from its last element to its first, then what is behind."""
    return turned(x.swapaxes(0, 1), lengths).swapaxes(0, 1) if self.reverse_source else x


def _flat(layer, x):
  """A dense layer on [..., I] as one product in 2-D: CPUs are slow with products in 3-D."""
  return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def _product(axes, a, b):
  return jnp.einsum(axes, a, b, preferred_element_type=jnp.float32)
