"""Losses as pure functions, each by element or by example: nothing is averaged here.

A task adds them up, with its masks, and divides once over all devices; where torch's default is the mean, take it. All
are in nats and in the inputs' type, which should be float32.
"""

import jax
import jax.numpy as jnp


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """-sum_k q(k) log p(k) against distributions q: logits and targets [..., C] to [...]."""
  return -(targets * jax.nn.log_softmax(logits)).sum(-1)


def nll(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
  """-log p(label): log-probabilities [..., C] and labels [...] to [...]; 0 for labels that are no class."""
  # A comparison, not a gather, whose gradient would be a scatter.
  classes = jax.lax.broadcasted_iota(labels.dtype, log_probs.shape, log_probs.ndim - 1)
  return -jnp.where(classes == labels[..., None], log_probs, 0).sum(-1)


def label_cross_entropy(
  logits: jax.Array,
  labels: jax.Array,
  smoothing: float = 0.0,
  class_weights: jax.Array | None = None,
  ignore: int | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Cross-entropy against labels, as the parts of a weighted mean: torch's loss is losses.sum() / weights.sum().

  Smoothing (Szegedy et al. 2015, section 7) spreads its share over all classes, the right one included, each with its
  own class's weight; the weight of an example is its label's. fairseq spreads the share over the wrong classes only.

  Args:
    logits: [..., C].
    labels: integers [...].
    smoothing: share of the target that is spread.
    class_weights: [C]; None: all 1.
    ignore: label of examples that do not count, such as -100 for padding or 255 for the rim of an object.

  Returns:
    (losses [...], weights [...]), both 0 where ignored.
  """
  log_probs = jax.nn.log_softmax(logits)
  if class_weights is None and not smoothing:
    counts = (labels >= 0) & (labels < logits.shape[-1]) & (True if ignore is None else labels != ignore)
    return nll(log_probs, jnp.where(counts, labels, -1)), counts.astype(logits.dtype)
  each = jnp.ones(logits.shape[-1:], logits.dtype) if class_weights is None else class_weights
  each = jnp.broadcast_to(each[(None,) * labels.ndim], logits.shape)
  weights = -nll(each, labels)
  spread = -(each * log_probs).sum(-1) / logits.shape[-1]
  losses = (1 - smoothing) * nll(each * log_probs, labels) + smoothing * spread
  if ignore is None:
    return losses, weights
  return jnp.where(labels == ignore, 0, losses), jnp.where(labels == ignore, 0, weights)


def binary_cross_entropy(probs: jax.Array, targets: jax.Array) -> jax.Array:
  """-(t log p + (1 - t) log(1 - p)), logarithms no less than -100 as in torch: [...] and [...] to [...].

  Where a logarithm is held at -100 its gradient is 0. With logits at hand use the other form, which needs no limit.
  """
  return -(targets * _log(probs) + (1 - targets) * _log(1 - probs))


def _log(x):
  """The logarithm, at least -100, and no NaN in the gradient at 0."""
  positive = x > 0
  return jnp.where(positive, jnp.maximum(jnp.log(jnp.where(positive, x, 1)), -100), -100)


def binary_cross_entropy_with_logits(logits: jax.Array, targets: jax.Array) -> jax.Array:
  """The same of p = sigmoid(logits), exact at any size: log(1 + e^x) - t x: [...] and [...] to [...]."""
  return jax.nn.softplus(logits) - targets * logits


def squared_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
  """(p - t)^2, without the half: [...] and [...] to [...]. torch's mse_loss is its mean over all elements."""
  return jnp.square(predictions - targets)


def absolute_error(predictions: jax.Array, targets: jax.Array) -> jax.Array:
  """|p - t|: [...] and [...] to [...]. torch's l1_loss is its mean over all elements."""
  return jnp.abs(predictions - targets)


def huber(predictions: jax.Array, targets: jax.Array, delta: float = 1.0) -> jax.Array:
  """d^2 / 2 up to |d| = delta, then delta (|d| - delta / 2), d = p - t (Huber 1964): [...] and [...] to [...].

  Its gradient is d clipped to +-delta: with 1, the clipped error of DQN.
  """
  d = predictions - targets
  near = jnp.clip(d, -delta, delta)
  return near * (d - near / 2)


def smooth_l1(predictions: jax.Array, targets: jax.Array, beta: float = 1.0) -> jax.Array:
  """`huber` with delta beta over beta: slope 1 far out, d^2 / (2 beta) up to |d| = beta: [...] and [...] to [...].

  Girshick 2015, Fast R-CNN, equation 3, with beta 1; torchvision's R-CNNs take 1 / 9.
  """
  return huber(predictions, targets, beta) / beta


def kl(log_p: jax.Array, q: jax.Array) -> jax.Array:
  """KL(q || p) = sum_k q(k) (log q(k) - log p(k)): log-probabilities and probabilities [..., C] to [...].

  The order of torch's kl_div, whose "batchmean" is the mean of this. Classes with q = 0 add nothing.
  """
  return (jax.scipy.special.xlogy(q, q) - q * log_p).sum(-1)
