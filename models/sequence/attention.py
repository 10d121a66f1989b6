"""Attention and the layer around it: what the Transformer and its kin share.

Vaswani et al. 2017, "Attention Is All You Need", section 3. Masks are True where a query may look. Matrix products see
[B T, D]: CPUs are slow with products in 3-D.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxonomy.errors import UserError, unknown
from flaxonomy.models.activations import ACTIVATIONS

KERNELS = ("xla", "cudnn")
HIDDEN = -0.7 * float(jnp.finfo(jnp.float32).max)  # a masked score; finite, so that a row of nothing else has no NaN


class KeyValue(NamedTuple):
  """Keys and values, [B N, S, D / N] each, of what can be looked at.

  So they go into matrix products as they are: in any other form XLA's CPU backend copies a cache for every token.
  """

  key: jax.Array
  value: jax.Array


class Cache(NamedTuple):
  """What decoding keeps from one call to the next; of fixed length L. Its caller writes no more than L tokens.

  Attributes:
    layers: of each layer, or one with a leading axis of layers under `scan`; S = L slots.
    mask: [B, L] bool, slots that hold a token, no padding.
    index: [] int32, the next slot.
    memory: of each layer, or stacked alike, of the encoder's output; none without an encoder. Of fewer rows than the
      rest while several hypotheses of each source are written.
    memory_mask: [B, S] bool or None; its rows are the memory's.
  """

  layers: tuple[KeyValue, ...] | KeyValue
  mask: jax.Array
  index: jax.Array
  memory: tuple[KeyValue, ...] | KeyValue = ()
  memory_mask: jax.Array | None = None


def empty_cache(batch: int, length: int, num_heads: int, size: int, num_layers: int, dtype, scan=False) -> Cache:
  """A cache without tokens; `size` is that of a head."""
  shape = (batch * num_heads, length, size)
  one = lambda *lead: KeyValue(jnp.zeros((*lead, *shape), dtype), jnp.zeros((*lead, *shape), dtype))
  layers = one(num_layers) if scan else tuple(one() for _ in range(num_layers))
  return Cache(layers, jnp.zeros((batch, length), bool), jnp.zeros((), jnp.int32))


def take_rows(cache: Cache, rows: jax.Array) -> Cache:
  """A cache with these rows, [B'] int: what a beam search does with its hypotheses.

  The memory stays as it is, since all hypotheses of a source share it. So these must stand together, as many of each.
  """
  take = lambda x: x.reshape(cache.mask.shape[0], -1, *x.shape[1:])[rows].reshape(-1, *x.shape[1:])
  take = jax.vmap(take) if isinstance(cache.layers, KeyValue) else take  # over the layers
  return cache._replace(layers=jax.tree.map(take, cache.layers), mask=cache.mask[rows])


def grow(cache: Cache, length: int) -> Cache:
  """A cache of `length` slots, or of those it has, if they are more."""
  more = max(length - cache.mask.shape[1], 0)
  pad = lambda x: jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, more), (0, 0)])
  return cache._replace(layers=jax.tree.map(pad, cache.layers), mask=jnp.pad(cache.mask, [(0, 0), (0, more)]))


class Sight(NamedTuple):
  """What causal attention needs to know of its tokens: see `look_back`."""

  mask: jax.Array | None
  causal: bool
  positions: jax.Array
  cache: Cache | None


def look_back(tokens: jax.Array, mask: jax.Array | None, cache: Cache | None) -> Sight:
  """The masks and positions of tokens that see those before them, and themselves.

  Positions count tokens that are no padding, so that padding on the left changes nothing either.

  Args:
    tokens: [B, T], the whole sequence, or what follows the cache.
    mask: [B, T] bool or int, 0 for padding; None: all are tokens.
    cache: of the tokens before; None: these are the first.

  Returns:
    mask: bool, for [B, N, T, S], or None.
    causal: whether the mask leaves the order of time to the attention.
    positions: [B or 1, T] int.
    cache: with its mask and index moved on; the layers are the old ones.
  """
  batch, steps = tokens.shape
  if cache is None:
    if mask is None:
      return Sight(None, True, jnp.arange(steps)[None], None)
    mask = mask.astype(bool)
    return Sight(mask[:, None, None, :], True, _places(mask), None)
  now = jnp.ones((batch, steps), bool) if mask is None else mask.astype(bool)
  seen = lax.dynamic_update_slice(cache.mask, now, (0, cache.index))
  before = jnp.arange(seen.shape[1])[None, :] <= cache.index + jnp.arange(steps)[:, None]
  positions = cache.mask.sum(1, keepdims=True) + _places(now)
  allowed = before[None, None] & seen[:, None, None, :]
  return Sight(allowed, False, positions, cache._replace(mask=seen, index=cache.index + steps))


def _places(mask):
  return jnp.maximum(jnp.cumsum(mask, 1) - 1, 0)


def on_rows(layer: Callable, x: jax.Array) -> jax.Array:
  """A layer on [..., D] as on [rows, D]."""
  return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


def tied_head(x: jax.Array, table: jax.Array, dtype) -> jax.Array:
  """Logits [B, T, V] float32 of x [B, T, D] by the table of embeddings [V, D] (Press and Wolf 2017)."""
  product = lambda rows: lax.dot_general(
    rows.astype(dtype), table.astype(dtype), (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32
  )
  return on_rows(product, x)


def layer_norm(epsilon: float, dtype, name: str | None = None) -> nn.LayerNorm:
  """Layer norm (Ba et al. 2016) with the variance taken about the mean, as torch has it."""
  return nn.LayerNorm(epsilon, dtype=dtype, use_fast_variance=False, name=name)


class MultiHeadAttention(nn.Module):
  """Multi-head attention (section 3.2.2), to itself or to a memory.

  With the collection "intermediates" mutable the weights, [B, N, T, S] float32, are sown there as "weights".

  Attributes:
    hidden_size: D.
    num_heads: N, of D / N each.
    dropout: rate on the weights.
    kernel: what computes it without dropout: "xla", or "cudnn", for half precision on NVIDIA GPUs.
    kernel_init, out_init: of the projections to queries, keys and values, and of that behind.
    dtype: of the products; the softmax is float32.
  """

  hidden_size: int
  num_heads: int
  dropout: float = 0.0
  kernel: str = "xla"
  kernel_init: Callable = nn.initializers.xavier_uniform()
  out_init: Callable = nn.initializers.xavier_uniform()
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    """Projections."""
    if self.hidden_size % self.num_heads:
      raise UserError(f"hidden_size {self.hidden_size} cannot be divided into {self.num_heads} heads (num_heads)")
    if self.kernel not in KERNELS:
      raise unknown("attention kernel", self.kernel, KERNELS)
    dense = lambda init: nn.Dense(self.hidden_size, dtype=self.dtype, kernel_init=init)
    self.query, self.key, self.value = (dense(self.kernel_init) for _ in range(3))
    self.out = dense(self.out_init)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, x, memory=None, mask=None, causal=False, cache=None, index=None, *, train: bool):
    """Looks from x at the memory.

    Args:
      x: [B, T, D], what asks.
      memory: [B, S, D], or its `keys_values`, perhaps of fewer rows, for as many rows of x each; None: x itself.
      mask: bool, [B or 1, N or 1, T or 1, S], for a memory of fewer rows with 1 for T; None: all may be seen.
      causal: the t-th query sees the first t + 1 elements at most.
      cache: KeyValue of L slots; x's keys and values go into those from `index`, and all L are looked at.
      index: [] int32.
      train: with dropout.

    Returns:
      ([B, T, D], the KeyValue that was looked at)
    """
    if isinstance(memory, KeyValue):  # rows that share a memory ask as one
      query = self._heads(self.query, x.reshape(memory.key.shape[0] // self.num_heads, -1, x.shape[-1]))
      seen = memory
    else:
      query, seen = self._heads(self.query, x), self.keys_values(x if memory is None else memory)
    if cache is not None:
      put = lambda old, new: lax.dynamic_update_slice(old, new.astype(old.dtype), (0, index, 0))
      seen = jax.tree.map(put, cache, seen)
    y = self._split(self._attend(query, seen, mask, causal, train)).swapaxes(1, 2)
    return on_rows(self.out, y.reshape(x.shape)), seen

  def keys_values(self, memory) -> KeyValue:
    """What of a memory [B, S, D] is looked at; for decoding, where it stays the same."""
    return KeyValue(self._heads(self.key, memory), self._heads(self.value, memory))

  def _heads(self, layer, x):
    """[B, T, D] through a layer, to [B N, T, D / N]."""
    split = on_rows(layer, x).reshape(*x.shape[:2], self.num_heads, -1)
    return split.swapaxes(1, 2).reshape(-1, x.shape[1], split.shape[-1])

  def _split(self, x):
    """[B N, ...] to [B, N, ...]."""
    return x.reshape(-1, self.num_heads, *x.shape[1:])

  def _attend(self, query, seen, mask, causal, train):
    """[B N, T, D / N]"""
    dropped = train and self.dropout > 0
    if self.kernel != "xla" and not dropped and not self.is_mutable_collection("intermediates"):
      heads_last = [self._split(x).swapaxes(1, 2) for x in (query, *seen)]
      y = jax.nn.dot_product_attention(*heads_last, mask=mask, is_causal=causal, implementation=self.kernel)
      return y.swapaxes(1, 2).reshape(query.shape)
    scores = jnp.einsum("rth,rsh->rts", query, seen.key, preferred_element_type=jnp.float32)
    scores = self._split(scores * query.shape[-1] ** -0.5)
    if causal:
      order = jnp.tri(*scores.shape[2:], dtype=bool)[None, None]
      mask = order if mask is None else order & mask
    if mask is not None:
      scores = jnp.where(mask, scores, HIDDEN)
    weights = nn.softmax(scores)
    self.sow("intermediates", "weights", weights)
    weights = self.drop(weights, deterministic=not train).reshape(-1, *weights.shape[2:])
    return jnp.einsum("rts,rsh->rth", weights.astype(self.dtype), seen.value)


class FeedForward(nn.Module):
  """Two dense layers, position by position (section 3.3)."""

  mlp_size: int
  activation: str = "relu"
  dropout: float = 0.0  # between the layers
  kernel_init: Callable = nn.initializers.xavier_uniform()
  out_init: Callable = nn.initializers.xavier_uniform()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    """Args: x: [B, T, D]. Returns: the same shape."""
    if self.activation not in ACTIVATIONS:
      raise unknown("activation", self.activation, ACTIVATIONS)
    y = x.reshape(-1, x.shape[-1])
    y = nn.Dense(self.mlp_size, dtype=self.dtype, kernel_init=self.kernel_init, name="fc1")(y)
    y = nn.Dropout(self.dropout, deterministic=not train)(ACTIVATIONS[self.activation](y))
    return nn.Dense(x.shape[-1], dtype=self.dtype, kernel_init=self.out_init, name="fc2")(y).reshape(x.shape)


class Layer(nn.Module):
  """Self-attention, perhaps attention to a memory, and a feed-forward net, each added to what it sees (section 3.1).

  Attributes:
    hidden_size, num_heads, mlp_size: D, N and the inner width.
    cross: with attention to a memory.
    norm_first: LN before each part, x + f(LN(x)) (Xiong et al. 2020), not after it, LN(x + f(x)), as the paper has it.
    activation: a key of `ACTIVATIONS`.
    dropout: rate on each part's output.
    attention_dropout, activation_dropout: rates on attention's weights and behind the activation.
    epsilon: of the norms.
    kernel: of the attention.
    kernel_init: of all kernels but those whose output is added, which have `out_init`.
    dtype: of the products, and of x.
  """

  hidden_size: int
  num_heads: int
  mlp_size: int
  cross: bool = False
  norm_first: bool = False
  activation: str = "relu"
  dropout: float = 0.0
  attention_dropout: float = 0.0
  activation_dropout: float = 0.0
  epsilon: float = 1e-5
  kernel: str = "xla"
  kernel_init: Callable = nn.initializers.xavier_uniform()
  out_init: Callable = nn.initializers.xavier_uniform()
  dtype: jnp.dtype = jnp.float32

  def setup(self):
    """The parts."""
    inits = {"kernel_init": self.kernel_init, "out_init": self.out_init, "dtype": self.dtype}
    attention = lambda: MultiHeadAttention(
      self.hidden_size, self.num_heads, self.attention_dropout, self.kernel, **inits
    )
    self.self_attn, self.self_norm = attention(), layer_norm(self.epsilon, self.dtype)
    if self.cross:
      self.cross_attn, self.cross_norm = attention(), layer_norm(self.epsilon, self.dtype)
    self.mlp = FeedForward(self.mlp_size, self.activation, self.activation_dropout, **inits)
    self.mlp_norm = layer_norm(self.epsilon, self.dtype)
    self.drop = nn.Dropout(self.dropout)

  def __call__(self, x, mask=None, causal=False, memory=None, memory_mask=None, cache=None, index=None, *, train: bool):
    """Args: as in `MultiHeadAttention`; the cache is that of self-attention. Returns: (x [B, T, D], cache or None)."""
    look = functools.partial(self.self_attn, mask=mask, causal=causal, cache=cache, index=index, train=train)
    y, seen = look(self._before(self.self_norm, x))
    x = self._after(self.self_norm, x, y, train)
    if self.cross:
      y, _ = self.cross_attn(self._before(self.cross_norm, x), memory, memory_mask, train=train)
      x = self._after(self.cross_norm, x, y, train)
    y = self.mlp(self._before(self.mlp_norm, x), train=train)
    return self._after(self.mlp_norm, x, y, train), None if cache is None else seen

  def _before(self, norm, x):
    return norm(x) if self.norm_first else x

  def _after(self, norm, x, y, train):
    x = x + self.drop(y, deterministic=not train)
    return x if self.norm_first else norm(x)

  def remember(self, memory) -> KeyValue:
    """Keys and values of a memory [B, S, D], which `__call__` takes in its place."""
    return self.cross_attn.keys_values(memory)
