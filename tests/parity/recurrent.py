"""Recurrent nets against torch's: outputs and states of whole and of packed sequences, norms of gradients."""

import jax
import jax.numpy as jnp
import training

from flaxonomy.models import interop

FILES = ("rnn", "birnn", "lstm", "bilstm", "gru", "bigru")
GATES = {1: "rnn", 3: "gru", 4: "lstm"}
TOLERANCE = 1e-5


def model_of(case: dict) -> str | None:
  """The model of a file, by the gates of its weights; None if it is of another kind."""
  weight = case["weights"].get("weight_hh_l0")
  return None if weight is None else GATES.get(len(weight) // weight.shape[1])


def compare(case: dict, stem: str) -> dict:
  """{key: (ours, theirs, tolerance)} for all that a recurrent net's golden file holds.

  All start from the given state. The gradient is that of the mean square of the whole sequences' outputs.

  Args:
    case: from seeded.load.
    stem: the file's name.
  """
  name = model_of(case)
  model = interop.model_of(name, case["weights"])
  params = jax.tree.map(jnp.asarray, interop.from_torch(name, case["weights"])["params"])
  x, lengths, *state = (jnp.asarray(case["in"][key]) for key in ("x", "lengths", "h0", "c0"))
  state = tuple(state) if model.cell == "lstm" else (state[0],)  # every file has a c0

  def loss(params):
    y, last = model.apply({"params": params}, x, None, state, train=False)
    return jnp.square(y).mean(), (y, last, model.apply({"params": params}, x, lengths, state, train=False))

  (_, (y, last, (packed, packed_last))), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  ours = {"y": y, "y_packed": packed}
  ours |= {f"state/{i}": array for i, array in enumerate(last)}
  ours |= {f"state_packed/{i}": array for i, array in enumerate(packed_last)}
  grads = interop.to_torch(name, {"params": grads})
  found = {f"out/{key}": (array, case["out"][key], TOLERANCE) for key, array in ours.items()}
  return found | {key: (*pair, TOLERANCE) for key, pair in training.gradients(grads, case["grad"]).items()}
