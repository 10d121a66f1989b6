"""Public names of the recurrent nets: torch's RNN, LSTM and GRU, whose tensors are numbered by layer and direction."""

import re

import jax.numpy as jnp

from flaxonomy.models.interop.family import Family


def _tensor(name, leaf):
  """("l0_reverse", "kernel_ih") -> "weight_ih_l0_reverse"."""
  return f"{leaf.replace('kernel', 'weight')}_{name}"


def _told(tensors):
  layers = [found for key in tensors if (found := re.fullmatch(r"weight_hh_l(\d+)(_reverse)?", key))]
  if not layers:
    return {}
  return {
    "hidden_size": tensors[layers[0][0]].shape[-1],
    "num_layers": 1 + max(int(found[1]) for found in layers),
    "bidirectional": any(found[2] for found in layers),
  }


def _example(family, module, tensors):
  first = tensors.get("weight_ih_l0")
  return (jnp.zeros((1, 1, 1 if first is None else first.shape[-1])),)


FAMILIES = {
  "Recurrent": Family(lambda module, path: path.replace("layer", "l"), _told, tensor=_tensor, example=_example),
}
