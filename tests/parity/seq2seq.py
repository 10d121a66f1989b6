"""Encoder-decoders against the papers' equations in torch: logits, attention, loss, gradients, five steps of SGD."""

import functools

import jax
import jax.numpy as jnp
import training

from flaxonomy.models import interop
from flaxonomy.train import losses

FILES = ("seq2seq_none", "seq2seq_dot", "seq2seq_general", "seq2seq_bahdanau")
FIELDS = {"read_padding": True}  # the references' encoders are not told the lengths
TOLERANCE = 1e-5
GRADIENTS = 1e-4
LR = 0.1  # the files do not say: with it, and a momentum of .9, their losses are met


def model_of(case: dict) -> str | None:
  """The model of a file, by the names of its weights; None if it is of another kind."""
  return "seq2seq" if {"se.weight", "te.weight"} <= case["weights"].keys() else None


def tensors_of(case: dict) -> dict:
  """Its weights but for those that have no gradient: the net without attention carries a Wc that it does not use."""
  return {key: value for key, value in case["weights"].items() if key in case["grad"]}


def compare(case: dict, stem: str) -> dict:
  """{key: (ours, theirs, tolerance)} for all that a golden file holds.

  Args:
    case: from seeded.load.
    stem: the file's name; what differs from file to file is seen in the weights.
  """
  tensors = tensors_of(case)
  model = interop.model_of("seq2seq", tensors, **FIELDS)
  params = jax.tree.map(jnp.asarray, interop.from_torch("seq2seq", tensors, **FIELDS)["params"])
  source, target = (jnp.asarray(case["in"][key], jnp.int32) for key in ("src", "tgt"))
  labels = jax.nn.one_hot(target[:, 1:], model.target_vocab_size)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def step(params):
    stages = model.apply({"params": params}, source, target[:, :-1], train=False)
    return losses.cross_entropy(stages["logits"], labels).mean(), stages

  (value, stages), grads = step(params)
  ours = {"logits": stages["logits"], "loss": value}
  ours |= {"attn": stages["attention"]} if "attention" in stages else {}
  found = {f"out/{key}": (array, case["out"][key], TOLERANCE) for key, array in ours.items()}
  grads = interop.to_torch("seq2seq", {"params": grads}, attention=model.attention)
  found |= {key: (*pair, GRADIENTS) for key, pair in training.gradients(grads, case["grad"]).items()}
  theirs = case["meta"]["sgd_losses"]
  return found | {"sgd_losses": (training.descent(step, params, len(theirs), LR), theirs, GRADIENTS)}
