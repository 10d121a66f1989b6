"""DeepConvNet against the paper's layout in torch: logits, gradients, five steps of Adam."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seeded

from flaxonomy import models

LAYERS = {
  "0": "conv1_1",
  "2": "conv1_2",
  "5": "conv2_1",
  "7": "conv2_2",
  "10": "conv3_1",
  "12": "conv3_2",
  "16": "fc1",
  "18": "fc2",
}


def to_params(weights):
  """{torch name: array} to our params; fc1's rows go from [C, H, W] to [H, W, C] order."""
  params = {}
  for number, name in LAYERS.items():
    w = weights[f"{number}.weight"]
    if name == "fc1":
      w = w.reshape(-1, 64, 4, 4).transpose(0, 2, 3, 1).reshape(len(w), -1)
    params[name] = {"kernel": w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T, "bias": weights[f"{number}.bias"]}
  return jax.tree.map(jnp.asarray, params)


@pytest.fixture(scope="module")
def case(request):
  return seeded.load(request.config.rootpath / "tests/goldens/deepconvnet.npz")


@pytest.fixture(scope="module")
def loss(case):
  model = models.create("deep_convnet", dropout=0.0)
  x = jnp.asarray(case["in"]["x"].transpose(0, 2, 3, 1))

  def compute(params):
    logits = model.apply({"params": params}, x, train=True)["logits"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, case["in"]["t"].astype(np.int32)).mean(), logits

  return jax.jit(jax.value_and_grad(compute, has_aux=True))


def test_logits_and_gradients(case, loss):
  (value, logits), grads = loss(to_params(case["weights"]))
  np.testing.assert_allclose(logits, case["out"]["logits"], atol=1e-5 * np.abs(case["out"]["logits"]).max(), rtol=0)
  np.testing.assert_allclose(value, case["meta"]["adam_losses"][0], rtol=1e-5)
  for number, name in LAYERS.items():
    for torch_leaf, leaf in (("weight", "kernel"), ("bias", "bias")):
      ours, theirs = jnp.linalg.norm(grads[name][leaf].ravel()), case["grad"][f"{number}.{torch_leaf}"]
      np.testing.assert_allclose(ours, theirs, rtol=1e-4, err_msg=f"{name}/{leaf}")


def test_five_steps_of_adam(case, loss):
  params, tx = to_params(case["weights"]), optax.adam(1e-3)
  state, losses = tx.init(params), []
  for _ in case["meta"]["adam_losses"]:
    (value, _), grads = loss(params)
    losses.append(float(value))
    updates, state = tx.update(grads, state)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(losses, case["meta"]["adam_losses"], rtol=1e-5)
