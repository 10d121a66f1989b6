"""Public names of encoder-decoders of recurrent nets, as torch's tutorials and the papers' symbols have them.

se, te the embeddings, enc and dec torch's recurrent nets, out the readout; Luong's Wa and Wc, Bahdanau's W, U and v.
With additive attention, which goes into the step, the decoder's first layer is a cell of torch's: dec.weight_ih.
"""

import re

import jax.numpy as jnp

from flaxonomy.models.interop.family import LEAVES, Family

MODULES = {
  "source_embedding": "se", "target_embedding": "te", "encoder": "enc", "decoder": "dec", "query": "W", "score": "v",
  "combine": "Wc", "readout_hidden": "maxout", "readout": "out",
}  # fmt: skip
GATES = {1: "rnn", 3: "gru", 4: "lstm"}


def _names(module, path):
  """("decoder/layer0") -> "dec.l0"."""
  if path == "key":
    return "Wa" if module.attention == "general" else "U"
  if path.startswith("bridge"):
    return path.replace("_", ".")
  name, _, layer = path.partition("/layer")
  single = name == "decoder" and module.attention == "additive" and layer == "0"
  return MODULES[name] + (f".l{layer}" if layer and not single else "")


def _tensor(name, leaf):
  """("dec.l0", "kernel_ih") -> "dec.weight_ih_l0"."""
  if not leaf.endswith(("_ih", "_hh")):
    return f"{name}.{LEAVES[leaf]}"
  stack, _, layer = name.partition(".")
  return f"{stack}.{leaf.replace('kernel', 'weight')}" + (f"_{layer}" if layer else "")


def _told(tensors):
  """All sizes, the cells and the attention; not whether padding is read or the source reversed."""
  try:
    source, target, enc = (tensors[f"{key}.weight{rest}"] for key, rest in (("se", ""), ("te", ""), ("enc", "_hh_l0")))
    dec = tensors["dec.weight_ih" if "U.weight" in tensors and "Wc.weight" not in tensors else "dec.weight_ih_l0"]
  except KeyError:  # what is missing is said later
    return {}
  hidden, width = enc.shape[-1], source.shape[-1]
  combined = "Wc.weight" in tensors
  kinds = {"Wa.weight": "general", "U.weight": "concat" if combined else "additive"}
  found = [kind for key, kind in kinds.items() if key in tensors]
  return {
    "source_vocab_size": len(source), "target_vocab_size": len(target), "embedding_size": width, "hidden_size": hidden,
    "num_layers": sum(bool(re.fullmatch(r"enc\.weight_hh_l\d+", key)) for key in tensors),
    "cell": GATES.get(len(dec) // hidden, "lstm"),
    "encoder_cell": GATES.get(len(enc) // hidden, "lstm"),
    "bidirectional": "enc.weight_hh_l0_reverse" in tensors,
    "attention": found[0] if found else "dot" if combined else "none",
    "input_feeding": combined and dec.shape[-1] == width + hidden,
    "maxout": "maxout.weight" in tensors,
  }  # fmt: skip


def _example(family, module, tensors):
  return jnp.ones((1, 1), jnp.int32), jnp.ones((1, 1), jnp.int32)


FAMILIES = {"Seq2Seq": Family(_names, _told, tensor=_tensor, example=_example)}
