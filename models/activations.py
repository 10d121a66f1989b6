"""Activations by name. At 0, where some have no derivative, it is torch's: 0 for relu, the slope for leaky relus."""

import functools
import math

import jax
import jax.numpy as jnp


def leaky_relu(x: jax.Array, slope: float = 0.01) -> jax.Array:
  """The value where positive, slope times it elsewhere, 0 included (Maas et al. 2013); jax.nn's has slope 1 at 0."""
  return jnp.where(x > 0, x, slope * x)


def gelu(x: jax.Array) -> jax.Array:
  """X times the normal distribution function of x, exact (Hendrycks and Gimpel 2016): BERT's and BART's."""
  return 0.5 * x * jax.lax.erfc(-x * math.sqrt(0.5))


def gelu_tanh(x: jax.Array) -> jax.Array:
  """The same by a tanh: GPT's. It differs from the exact one by up to 5e-4."""
  return jax.nn.gelu(x, approximate=True)


def identity(x: jax.Array) -> jax.Array:
  """Nothing."""
  return x


ACTIVATIONS = {
  "identity": identity,
  "sigmoid": jax.nn.sigmoid,
  "tanh": jnp.tanh,
  "relu": jax.nn.relu,
  "leaky_relu": leaky_relu,  # slope .01
  "leaky_relu_0.1": functools.partial(leaky_relu, slope=0.1),  # Redmon et al. 2016, YOLO
  "leaky_relu_0.2": functools.partial(leaky_relu, slope=0.2),  # Radford et al. 2015, DCGAN
  "elu": jax.nn.elu,
  "selu": jax.nn.selu,
  "gelu": gelu,
  "gelu_tanh": gelu_tanh,
  "silu": jax.nn.silu,
  "softplus": jax.nn.softplus,
}
