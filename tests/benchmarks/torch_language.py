"""Language models in torch, for timing only: GPT as nanoGPT writes it, with a cache for decoding, and an LSTM."""

import torch
from torch import nn
from torch.nn import functional


class Block(nn.Module):
  """Norm, attention, norm, feed-forward net."""

  def __init__(self, size, heads):
    super().__init__()
    self.heads = heads
    self.norm1, self.norm2 = nn.LayerNorm(size), nn.LayerNorm(size)
    self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
    self.fc1, self.fc2 = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

  def forward(self, x, cache=None, begin=0):
    """x: [B, T, D]; cache: keys and values [2, B, N, L, D / N], written from `begin` on."""
    batch, steps, size = x.shape
    q, k, v = self.qkv(self.norm1(x)).view(batch, steps, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
    if cache is not None:
      cache[0, :, :, begin : begin + steps], cache[1, :, :, begin : begin + steps] = k, v
      k, v = cache[:, :, :, : begin + steps]
    y = functional.scaled_dot_product_attention(q, k, v, is_causal=steps > 1)
    x = x + self.out(y.transpose(1, 2).reshape(batch, steps, size))
    return x + self.fc2(functional.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


class GPT(nn.Module):
  """GPT-2 without dropout; the head is tied."""

  def __init__(self, vocab, layers, size, heads, length):
    super().__init__()
    self.tokens, self.positions = nn.Embedding(vocab, size), nn.Embedding(length, size)
    self.blocks = nn.ModuleList(Block(size, heads) for _ in range(layers))
    self.norm = nn.LayerNorm(size)
    for p in self.parameters():
      nn.init.normal_(p, std=0.02) if p.ndim > 1 else None

  def forward(self, tokens):
    """[B, T] to logits [B, T, V]."""
    x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
    for block in self.blocks:
      x = block(x)
    return functional.linear(self.norm(x), self.tokens.weight)

  @torch.inference_mode()
  def greedy(self, first, steps):
    """[B, 1] to [B, 1 + steps]."""
    batch, size = len(first), self.tokens.weight.shape[1]
    heads = self.blocks[0].heads
    caches = [torch.empty(2, batch, heads, steps, size // heads, device=first.device) for _ in self.blocks]
    tokens = torch.empty(batch, 1 + steps, dtype=torch.long, device=first.device)
    tokens[:, :1] = first
    for t in range(steps):
      x = functional.embedding(tokens[:, t : t + 1], self.tokens.weight) + self.positions.weight[t]
      for block, cache in zip(self.blocks, caches):
        x = block(x, cache, t)
      torch.argmax(functional.linear(self.norm(x)[:, 0], self.tokens.weight), 1, out=tokens[:, t + 1])
    return tokens


class LSTM(nn.Module):
  """Embedding, nn.LSTM, head."""

  def __init__(self, vocab, size, layers, batch_first):
    super().__init__()
    self.tokens, self.head = nn.Embedding(vocab, size), nn.Linear(size, vocab)
    self.layers, self.batch_first = nn.LSTM(size, size, layers, batch_first=batch_first), batch_first

  def forward(self, tokens):
    """[B, T] to logits [B, T, V]; time first inside unless `batch_first`."""
    x = self.tokens(tokens if self.batch_first else tokens.T)
    logits = self.head(self.layers(x)[0])
    return logits if self.batch_first else logits.transpose(0, 1)
