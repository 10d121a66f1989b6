"""The perceptron: its formula in NumPy, stages, what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy import models
from flaxonomy.errors import UserError

RNG = jax.random.PRNGKey(0)
X = np.random.default_rng(0).normal(size=(3, 2, 2, 1)).astype(np.float32)


@pytest.mark.parametrize("name, f", [("tanh", np.tanh), ("relu", lambda x: np.maximum(x, 0))])
def test_is_its_formula(name, f):
  model = models.create("mlp", num_classes=3, hidden=(5, 4), activation=name, initializer="xavier_uniform")
  params = jax.device_get(model.init(RNG, X, train=False)["params"])
  params["fc2"]["bias"] = np.float32([0.1, -0.2, 0.3, 0.0])
  out = model.apply({"params": params}, X, train=True)
  first = f(X.reshape(3, 4) @ params["fc1"]["kernel"])
  second = f(first @ params["fc2"]["kernel"] + params["fc2"]["bias"])
  assert list(out) == ["hidden1", "hidden2", "logits"]
  np.testing.assert_allclose(out["hidden1"], first, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(out["hidden2"], second, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(out["logits"], second @ params["fc3"]["kernel"], rtol=1e-5, atol=1e-6)


def test_size_and_types():
  """784 100 + 100 + 4 (100 100 + 100) + 100 10 + 10 parameters; logits stay float32."""
  model = models.create("mlp", dtype=jnp.bfloat16)
  x = jnp.zeros((2, 28, 28, 1))
  variables = jax.eval_shape(lambda: model.init(RNG, x, train=False))
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 119_910
  out = jax.eval_shape(lambda v: model.apply(v, x, train=False), variables)
  assert (out["hidden5"].dtype, out["logits"].dtype) == (jnp.bfloat16, jnp.float32)


def test_every_layer_is_drawn_by_the_initializer():
  model = models.create("mlp", hidden=(300, 300), num_classes=300, initializer="std_0.01")
  params = model.init(RNG, jnp.zeros((1, 300)), train=False)["params"]
  for name in ("fc1", "fc2", "fc3"):
    assert abs(float(params[name]["kernel"].std()) / 0.01 - 1) < 0.02
    assert not params[name]["bias"].any()


@pytest.mark.parametrize(
  "field, message",
  [
    ({"activation": "rellu"}, "unknown activation 'rellu'; did you mean 'relu'"),
    ({"initializer": "he_norm"}, "unknown initializer 'he_norm'; did you mean 'he_normal'"),
    ({"hidden": (100, 0)}, "must be like"),
  ],
)
def test_mistakes_are_one_line(field, message):
  with pytest.raises(UserError) as raised:
    models.create("mlp", **field).init(RNG, X, train=False)
  assert message in str(raised.value)
  assert "\n" not in str(raised.value)
