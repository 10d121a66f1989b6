"""Every model of the table: parameter counts of the papers, stages, errors. Shapes only, nothing is computed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy import models
from flaxonomy.errors import UserError

RNG = jax.random.PRNGKey(0)


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


def shapes_of(model, *shape):
  return jax.eval_shape(lambda: model.init(RNG, jnp.zeros(shape), train=False))["params"]


def test_deep_convnet_is_the_papers():
  model = models.create("deep_convnet")
  params = shapes_of(model, 1, 28, 28, 1)
  assert count(params) == 123_552
  out = jax.eval_shape(lambda p: model.apply({"params": p}, jnp.zeros((2, 28, 28, 1)), train=False), params)
  assert {name: x.shape[1:] for name, x in out.items()} == {
    "stage1": (14, 14, 16), "stage2": (8, 8, 32), "stage3": (4, 4, 64), "hidden": (50,), "logits": (10,),
  }  # fmt: skip


def test_dcgan_has_the_references_size():
  params = shapes_of(models.create("dcgan"), 1, 100)
  assert count(params["generator"]) == 3_576_704
  assert count(params["discriminator"]) == 2_765_568


@pytest.mark.parametrize("side", [8, 16, 32, 64])
def test_dcgan_makes_images_of_its_size(side):
  model = models.create("dcgan", image_size=side, generator_features=4, discriminator_features=4)
  variables = jax.eval_shape(lambda: model.init(RNG, jnp.zeros((1, 100)), train=False))
  made = jax.eval_shape(lambda v: model.apply(v, jnp.zeros((3, 100)), train=False, method="generate"), variables)
  assert made.shape == (3, side, side, 3)
  judged = jax.eval_shape(lambda v, x: model.apply(v, x, train=False, method="discriminate"), variables, made)
  assert judged.shape == (3,)


def test_dropout_is_the_books():
  """Silences in training, scales by 1 - rate afterwards (Saito 2016, section 6.4.3): not inverted."""
  from flaxonomy.models.vision.deep_convnet import Dropout

  x = jnp.ones((1000,))
  trained = Dropout(0.3).apply({}, x, train=True, rngs={"dropout": RNG})
  assert set(np.unique(trained)) == {0.0, 1.0}
  assert abs(float(trained.mean()) - 0.7) < 0.05
  np.testing.assert_allclose(Dropout(0.3).apply({}, x, train=False), 0.7, rtol=1e-6)


def test_initialisation_is_hes():
  kernel = models.create("deep_convnet").init(RNG, jnp.zeros((1, 28, 28, 1)), train=False)["params"]["fc1"]["kernel"]
  assert abs(float(kernel.std()) / np.sqrt(2 / 1024) - 1) < 0.01
  assert float(jnp.abs(kernel).max()) > 2.3 * np.sqrt(2 / 1024), "He's normal is not truncated"


def test_unknown_names_list_what_is_near():
  with pytest.raises(UserError, match="unknown model 'dcgans'; did you mean 'dcgan'"):
    models.create("dcgans")
  with pytest.raises(UserError, match="'feature'; did you mean 'features'"):
    models.create("deep_convnet", feature=3)
  with pytest.raises(UserError, match="must be like 0.5, not '0.5'"):
    models.create("deep_convnet", dropout="0.5")


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_can_be_made(name):
  assert models.create(name) == models.create(name)
