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


@pytest.mark.parametrize(
  "name, fields, message",
  [
    ("resnet19", {}, "unknown model 'resnet19'; did you mean "),
    ("vgg16bn", {}, "did you mean 'vgg16_bn'"),
    ("inception", {}, "did you mean 'inception_v3'"),
    ("resnet18", {"dropout": 0.5}, "unknown field of model 'resnet18': 'dropout'; known: axis_name, bottleneck, "),
    ("googlenet", {"aux_logit": True}, "did you mean 'aux_logits'"),
    ("googlenet", {"aux_logits": 1}, "must be like True, not 1"),
    ("resnet50", {"bottleneck": 0}, "must be like True, not 0"),
    ("resnet50", {"num_classes": 0}, "must be like 1000, not 0"),
    ("resnet50", {"num_classes": True}, "must be like 1000, not True"),
    ("vgg11", {"pool": 2.0}, "must be like 7, not 2.0"),
    ("vgg11", {"dropout": 1.0}, "must be like 0.5, not 1.0"),
    ("vgg11", {"features": 64}, r"must be like \(64, 128, 256, 512, 512\), not 64"),
    ("vgg11", {"features": (8, 8, 8, 8, -8)}, "must be like"),
    ("vgg11", {"features": (8, 8)}, "features"),  # would be a net of two stages
    ("alexnet", {"features": (8, 8, 8, 8)}, "features"),
    ("resnet18", {"depths": (2, 2, 2)}, "depths"),
    ("googlenet", {"dropout": "0.2"}, "dropout"),
    ("googlenet", {"dropout": 1.5}, "dropout"),
    ("resnet18", {"axis_name": 3}, "axis_name"),
  ],
)
def test_mistakes_are_one_line(name, fields, message):
  with pytest.raises(UserError, match=message) as raised:
    models.create(name, **fields)
  assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
  "name, fields, side",
  [("alexnet_original", {"groups": 3}, 67), ("googlenet", {"shrink": 32}, 32), ("inception_v3", {"shrink": 64}, 75)],
)
def test_widths_that_cannot_be_divided(name, fields, side):
  """Groups that do not divide the channels; so great a divisor that a branch has no channels left."""
  with pytest.raises(UserError) as raised:
    shapes_of(models.create(name, **fields), 1, side, side, 3)
  assert "\n" not in str(raised.value)


def test_fields_of_variants():
  """`lookup` knows what a variant of a model gives to its class, and a caller may give another value."""
  known = models.lookup("vgg16_bn")[1]
  assert (known["depths"], known["batch_norm"], known["num_classes"]) == ((2, 2, 3, 3, 3), True, 1000)
  assert models.lookup("resnet110")[1]["blocks"] == 18
  assert models.create("resnet110", blocks=3) == models.create("resnet20")
  assert models.create("vgg16", batch_norm=True) == models.create("vgg16_bn")
  assert models.create("googlenet", dropout=None, axis_name="data", dtype=jnp.bfloat16).axis_name == "data"


@pytest.mark.parametrize("name", [name for name in models.MODELS if "dtype" in models.lookup(name)[1]])
def test_compute_type_is_the_last_field(name):
  """The house's order: architecture first."""
  assert list(models.lookup(name)[1])[-1] == "dtype"
