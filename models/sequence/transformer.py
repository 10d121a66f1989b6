"""The Transformer: an encoder and a decoder of attention.

  transformer, transformer_big   Vaswani et al. 2017, "Attention Is All You Need"
  marian                         Junczys-Dowmunt et al. 2018, "Marian", as transformers has it

What codes differ in is a field: norms behind each part, as in the paper, or before it; norms behind the stacks, which
torch's nn.Transformer always has; sines and cosines in turn, as in the paper, or one after the other.

The paper gives no initial values. Kernels are Glorot's, uniform, as tensor2tensor and torch have them; embeddings have
deviation 1 / sqrt(D), so that they are of size 1 when multiplied by sqrt(D), and so are the first logits.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError, unknown
from flaxonomy.models.sequence import attention
from flaxonomy.models.stages import keep

POSITIONS = ("interleaved", "concatenated", "learned")


@functools.lru_cache(maxsize=8)
def _waves(length, size):
  """(sines, cosines), each [length][size / 2], in double precision: positions go up to thousands."""
  angles = [[t * 10000.0 ** (-2 * i / size) for i in range(size // 2)] for t in range(length)]
  return tuple([[wave(angle) for angle in row] for row in angles] for wave in (math.sin, math.cos))


def sinusoids(length: int, size: int, interleaved: bool = True) -> jax.Array:
  """Sines and cosines of wave lengths from 2 pi to 10,000 * 2 pi (section 3.5).

  Args:
    length: T.
    size: D, even.
    interleaved: in turn, as in the paper; False: all sines, then all cosines.

  Returns:
    [T, D] float32
  """
  if size % 2:
    raise UserError(f"sines and cosines need an even hidden_size, not {size}")
  sines, cosines = (jnp.asarray(each, jnp.float32) for each in _waves(length, size))
  return jnp.stack([sines, cosines], 2).reshape(length, size) if interleaved else jnp.concatenate([sines, cosines], 1)


class Transformer(nn.Module):
  """An encoder-decoder.

  Attributes:
    vocab_size: V, of both languages.
    num_layers: L, of the encoder and of the decoder.
    hidden_size: D.
    num_heads: of each layer.
    mlp_size: inner width of the feed-forward nets.
    max_length: tokens of a sequence.
    norm_first: norms before each part; False: behind it, as the paper has it.
    final_norms: norms behind both stacks.
    positions: "interleaved" or "concatenated" sinusoids, or "learned", for encoder and decoder each.
    shared_embeddings: one table for source and target; the head is tied to the target's in any case (section 3.4).
    scale_embeddings: times sqrt(D).
    head_bias: on the logits.
    activation: of the feed-forward nets.
    dropout: rate behind the embeddings and on what each part of a layer adds.
    attention_dropout, activation_dropout: rates on attention's weights and behind the activation.
    pad_id: source tokens that are padding where no mask is given; looking one up, even as the first target token, gives
      its embedding no gradient, as with torch's padding_idx. None: there are none.
    remat: layers compute their insides again for the gradient, which saves memory.
    scan: the layers of a stack are one loop, which compiles faster; parameters then have a leading axis of layers,
      under "encoder" and "decoder", and each stack is one stage.
    kernel: of the attention, "xla" or "cudnn".
    dtype: of the products and of what goes from layer to layer; logits are float32.
  """

  vocab_size: int = 37000
  num_layers: int = 6
  hidden_size: int = 512
  num_heads: int = 8
  mlp_size: int = 2048
  max_length: int = 512
  norm_first: bool = False
  final_norms: bool = False
  positions: str = "interleaved"
  shared_embeddings: bool = True
  scale_embeddings: bool = True
  head_bias: bool = False
  activation: str = "relu"
  dropout: float = 0.1
  attention_dropout: float = 0.0
  activation_dropout: float = 0.0
  pad_id: int | None = None
  remat: bool = False
  scan: bool = False
  kernel: str = "xla"
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    """Layers; what they are called is what weights are called."""
    if self.positions not in POSITIONS:
      raise unknown("kind of positions", self.positions, POSITIONS)
    table = functools.partial(nn.Embed, features=self.hidden_size, dtype=self.dtype)
    init = nn.initializers.normal(self.hidden_size**-0.5)
    self.embedding = table(self.vocab_size, embedding_init=init)
    if not self.shared_embeddings:
      self.source_embedding = table(self.vocab_size, embedding_init=init)
    if self.positions == "learned":
      self.encoder_positions, self.decoder_positions = table(self.max_length), table(self.max_length)
    layer = functools.partial(
      attention.Layer, self.hidden_size, self.num_heads, self.mlp_size, norm_first=self.norm_first,
      activation=self.activation, dropout=self.dropout, attention_dropout=self.attention_dropout,
      activation_dropout=self.activation_dropout, kernel=self.kernel, dtype=self.dtype,
    )  # fmt: skip
    self.encoder = layer() if self.scan else [layer() for _ in range(self.num_layers)]
    self.decoder = layer(cross=True) if self.scan else [layer(cross=True) for _ in range(self.num_layers)]
    if self.final_norms:
      self.encoder_norm, self.decoder_norm = (attention.layer_norm(1e-5, self.dtype) for _ in range(2))
    if self.head_bias:
      self.logits_bias = self.param("logits_bias", nn.initializers.zeros, (self.vocab_size,), jnp.float32)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, source, target, source_mask=None, target_mask=None, *, train: bool) -> dict:
    """Predicts each target token from the source and the target tokens before it.

    Args:
      source: [B, S] int.
      target: [B, T] int, from the start token on; the logits at t are of what follows it.
      source_mask: [B, S], 0 for padding; None: what `pad_id` says.
      target_mask: [B, T], needed for padding on the left only: nothing sees what comes later.
      train: with dropout.

    Returns:
      The stages of `encode` and `decode`, the last one "logits".
    """
    source_mask = self._mask(source, source_mask)
    stages = self.encode(source, source_mask, train=train)
    return stages | self.decode(target, stages["memory"], source_mask, target_mask, train=train)

  def encode(self, source, source_mask=None, *, train: bool) -> dict:
    """Stages "source", "encoder_0", ..., "memory", [B, S, D] each; arguments as for `__call__`."""
    self._check(source.shape[1], "source sequences")
    stages, mask = {}, self._mask(source, source_mask)
    see = None if mask is None else mask[:, None, None, :]
    table = self.embedding if self.shared_embeddings else self.source_embedding
    places = jnp.arange(source.shape[1])[None]
    x = keep(self, stages, "source", self._embed(table, "encoder", source, places, train))
    x, _ = self._through(stages, "encoder", self.encoder, lambda layer, x, own: layer(x, see, train=train), x)
    keep(self, stages, "memory", self.encoder_norm(x) if self.final_norms else x)
    return stages

  def decode(self, target, memory=None, memory_mask=None, target_mask=None, cache=None, *, train: bool) -> dict:
    """Predicts from the encoder's output.

    Args:
      target: [B, T] int, whole sequences from the start token on, or what follows the cache.
      memory: [B, S, D], from `encode`; not needed with a cache, which has it.
      memory_mask: [B, S], 0 for padding of the source.
      target_mask: as for `__call__`.
      cache: from `start` or an earlier call.
      train: with dropout.

    Returns:
      Stages "target", "decoder_0", ... [B, T, D], "decoded" with `final_norms`, "cache" if one was given, "logits"
      [B, T, V] float32.
    """
    self._check(target.shape[1], "target sequences")
    sight = attention.look_back(target, target_mask, cache)
    index, own = None, (None, None) if self.scan else ((None, None),) * self.num_layers
    if cache is not None:
      index, memory_mask, own = cache.index, cache.memory_mask, (cache.layers, cache.memory)
      own = own if self.scan else tuple(zip(*own))
    memory_mask = None if memory_mask is None else memory_mask.astype(bool)[:, None, None, :]

    def step(layer, x, own):
      held, seen = own
      seen = memory if seen is None else seen
      return layer(x, sight.mask, sight.causal, seen, memory_mask, held, index, train=train)

    stages = {}
    x = keep(self, stages, "target", self._embed(self.embedding, "decoder", target, sight.positions, train))
    x, layers = self._through(stages, "decoder", self.decoder, step, x, own)
    if self.final_norms:
      x = keep(self, stages, "decoded", self.decoder_norm(x))
    if cache is not None:
      stages["cache"] = sight.cache._replace(layers=layers)
    logits = attention.tied_head(x, self.embedding.embedding, self.dtype)
    keep(self, stages, "logits", logits + self.logits_bias[None, None] if self.head_bias else logits)
    return stages

  def start(self, source, source_mask=None, length: int | None = None) -> attention.Cache:
    """A cache with the source read and no target token yet.

    Args:
      source: as for `__call__`.
      source_mask: as for `__call__`.
      length: target tokens that it can hold; None: max_length.
    """
    length = self.max_length if length is None else length
    self._check(length, "caches")
    mask = self._mask(source, source_mask)
    memory = self.encode(source, mask, train=False)["memory"]
    size = self.hidden_size // self.num_heads
    layers = (self.num_layers, self.dtype, self.scan)
    cache = attention.empty_cache(len(source), length, self.num_heads, size, *layers)
    remember = lambda layer: layer.remember(memory)
    if self.scan:
      remember = nn.vmap(remember, {"params": 0}, split_rngs={"params": False}, axis_size=self.num_layers)
    memories = remember(self.decoder) if self.scan else tuple(map(remember, self.decoder))
    return cache._replace(memory=memories, memory_mask=mask)

  def _through(self, stages, name, stack, step, x, own=None):
    """Through a stack of layers, by step(layer, x, what is that layer's own) -> (x, what it leaves).

    Args: own: of each layer; with `scan` of all, with a leading axis. Returns: (x, what they leave, likewise)
    """
    if self.remat:
      step = nn.remat(step, prevent_cse=not self.scan)
    if self.scan:
      rngs = {"params": True, "dropout": True}
      loop = nn.scan(step, {"params": 0, "intermediates": 0}, split_rngs=rngs, length=self.num_layers)
      x, left = loop(stack, x, own)
      return keep(self, stages, name, x), left
    left = []
    for i, layer in enumerate(stack):
      x, leaves = step(layer, x, None if own is None else own[i])
      x = keep(self, stages, f"{name}_{i}", x)
      left.append(leaves)
    return x, tuple(left)

  def _check(self, length, what):
    if length > self.max_length:
      raise UserError(f"{what} of {length} tokens are longer than the model's max_length {self.max_length}")

  def _mask(self, source, mask):
    if mask is None and self.pad_id is not None:
      mask = source != self.pad_id
    return None if mask is None else mask.astype(bool)

  def _embed(self, table, stack, tokens, places, train):
    x = table(tokens)
    if self.pad_id is not None:
      x = jnp.where((tokens == self.pad_id)[..., None], jax.lax.stop_gradient(x), x)
    if self.scale_embeddings:
      x = x * self.hidden_size**0.5
    if self.positions == "learned":
      x = x + (self.encoder_positions if stack == "encoder" else self.decoder_positions)(places)
    else:
      x = x + sinusoids(self.max_length, self.hidden_size, self.positions == "interleaved")[places].astype(self.dtype)
    return self.drop(x, deterministic=not train)


TransformerBig = functools.partial(Transformer, hidden_size=1024, num_heads=16, mlp_size=4096, dropout=0.3)
Marian = functools.partial(
  Transformer, vocab_size=58101, positions="concatenated", head_bias=True, activation="silu", pad_id=58100
)  # the size of opus-mt-en-de
