"""GPT: a stack of Transformer layers that reads left to right and predicts the next token.

  gpt             Radford et al. 2018, "Improving Language Understanding by Generative Pre-Training"
  gpt2, gpt2_*    Radford et al. 2019, "Language Models are Unsupervised Multitask Learners"

GPT-1 has its norms behind each part and none at the end, GPT-2 before each part and one at the end. Both have learned
positions, the tanh form of GELU, a head tied to the embeddings, and N(0, .02) kernels; GPT-2 divides those of its
residual projections by sqrt(2 L), for the number of additions ("1/sqrt(N)" in section 2.3).

Deviation from the released code of GPT-2: positions start from N(0, .02), as in transformers, not N(0, .01).
"""

import functools

import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError
from flaxonomy.models.sequence import attention
from flaxonomy.models.stages import keep

STD = 0.02


class GPT(nn.Module):
  """A decoder-only Transformer.

  Attributes:
    vocab_size: V.
    num_layers: L.
    hidden_size: D.
    num_heads: of each layer.
    max_length: positions that are learned, tokens of a sequence.
    norm_first: GPT-2's norms; False: GPT-1's.
    embedding_dropout: rate behind the embeddings.
    dropout: rate on what each part of a layer adds.
    attention_dropout: rate on the attention's weights.
    remat: layers compute their insides again for the gradient, which saves memory.
    scan: layers are one loop, which compiles faster; parameters then have a leading axis of layers, under "blocks",
      and the layers are one stage.
    kernel: of the attention, "xla" or "cudnn".
    dtype: of the products and of what goes from layer to layer; logits are float32.
  """

  vocab_size: int = 50257
  num_layers: int = 12
  hidden_size: int = 768
  num_heads: int = 12
  max_length: int = 1024
  norm_first: bool = True
  embedding_dropout: float = 0.1
  dropout: float = 0.1
  attention_dropout: float = 0.1
  remat: bool = False
  scan: bool = False
  kernel: str = "xla"
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, tokens, cache=None, mask=None, *, train: bool) -> dict:
    """Predicts what follows each token.

    Args:
      tokens: [B, T] int, whole sequences, or what follows the cache.
      cache: of the tokens before, from `start` or an earlier call.
      mask: [B, T], 0 for padding, at either end; what padding itself predicts means nothing.
      train: with dropout.

    Returns:
      Stages "embedding", "block0", ... [B, T, D], "norm" with `norm_first`, "cache" if one was given, "logits"
      [B, T, V] float32.
    """
    if tokens.shape[1] > self.max_length:
      raise UserError(f"sequences of {tokens.shape[1]} tokens are longer than the model's max_length {self.max_length}")
    sight = attention.look_back(tokens, mask, cache)
    embed = functools.partial(nn.Embed, features=self.hidden_size, dtype=self.dtype, embedding_init=_normal(STD))
    table = embed(self.vocab_size, name="tokens")
    x = table(tokens) + embed(self.max_length, name="positions")(sight.positions)
    stages = {}
    x = keep(self, stages, "embedding", nn.Dropout(self.embedding_dropout, deterministic=not train)(x))
    x, layers = self._layers(stages, x, sight, cache, train)
    if self.norm_first:
      x = keep(self, stages, "norm", attention.layer_norm(1e-5, self.dtype, "norm")(x))
    if cache is not None:
      stages["cache"] = sight.cache._replace(layers=layers)
    keep(self, stages, "logits", attention.tied_head(x, table.embedding, self.dtype))
    return stages

  @nn.nowrap
  def start(self, batch: int, length: int | None = None) -> attention.Cache:
    """An empty cache.

    Args:
      batch: B.
      length: tokens that it can hold; None: max_length.
    """
    length = self.max_length if length is None else length
    if length > self.max_length:
      raise UserError(f"a cache of {length} tokens is longer than the model's max_length {self.max_length}")
    size = self.hidden_size // self.num_heads
    return attention.empty_cache(batch, length, self.num_heads, size, self.num_layers, self.dtype, self.scan)

  def _layers(self, stages, x, sight, cache, train):
    index = None if cache is None else cache.index
    held = (None,) * self.num_layers if cache is None else cache.layers

    def step(block, x, held):
      return block(x, sight.mask, sight.causal, cache=held, index=index, train=train)

    if self.remat:
      step = nn.remat(step, prevent_cse=not self.scan)
    if self.scan:
      axes = {"params": 0, "intermediates": 0}
      step = nn.scan(step, axes, split_rngs={"params": True, "dropout": True}, length=self.num_layers)
      x, layers = step(self._block("blocks"), x, None if cache is None else held)
      return keep(self, stages, "blocks", x), layers
    layers = []
    for i in range(self.num_layers):
      x, kept = step(self._block(f"block{i}"), x, held[i])
      x = keep(self, stages, f"block{i}", x)
      layers.append(kept)
    return x, tuple(layers)

  def _block(self, name):
    out = STD * (2 * self.num_layers) ** -0.5 if self.norm_first else STD
    return attention.Layer(
      self.hidden_size, self.num_heads, 4 * self.hidden_size, norm_first=self.norm_first, activation="gelu_tanh",
      dropout=self.dropout, attention_dropout=self.attention_dropout, kernel=self.kernel, kernel_init=_normal(STD),
      out_init=_normal(out), dtype=self.dtype, name=name,
    )  # fmt: skip


def _normal(std):
  return nn.initializers.normal(std)


GPT1 = functools.partial(GPT, vocab_size=40478, max_length=512, norm_first=False)
GPT2Medium = functools.partial(GPT, num_layers=24, hidden_size=1024, num_heads=16)
GPT2Large = functools.partial(GPT, num_layers=36, hidden_size=1280, num_heads=20)
GPT2XL = functools.partial(GPT, num_layers=48, hidden_size=1600, num_heads=25)
