"""DeepConvNet trained as torch trains it: the losses of five steps of Adam. test_classifiers.py holds the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import seeded

from flaxonomy import models
from flaxonomy.models import interop


def test_five_steps_of_adam(root):
  case = seeded.load(root / "tests/goldens/deepconvnet.npz")
  model = models.create("deep_convnet", dropout=0.0)
  x, labels = jnp.asarray(case["in"]["x"].transpose(0, 2, 3, 1)), case["in"]["t"].astype(np.int32)

  def loss(params):
    logits = model.apply({"params": params}, x, train=True)["logits"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state)
    return value, optax.apply_updates(params, updates), state

  params = jax.tree.map(jnp.asarray, interop.from_torch("deep_convnet", case["weights"])["params"])
  tx = optax.adam(1e-3)
  state, losses = tx.init(params), []
  for _ in case["meta"]["adam_losses"]:
    value, params, state = step(params, state)
    losses.append(float(value))
  np.testing.assert_allclose(losses, case["meta"]["adam_losses"], rtol=1e-5)
