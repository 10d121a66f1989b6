"""Public weights both ways: names, layouts, what is read from the tensors, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models import interop
from flaxonomy.models.interop import classifiers

FIVE, THREE = (2, 4, 6, 4, 3), (2, 3, 4)
SMALL = {  # at least one model of each family, with the fields that make it small and different in every size
  "alexnet": {"features": FIVE, "hidden_size": 5, "pool": 2},
  "alexnet_original": {"features": (2, 4, 6, 4, 4), "hidden_size": 5},
  "vgg11": {"features": FIVE, "hidden_size": 5, "pool": 2},
  "vgg16_bn": {"features": FIVE, "hidden_size": 5},
  "googlenet": {"shrink": 8},
  "googlenet_original": {"shrink": 8},
  "inception_v3": {"shrink": 16},
  "resnet18": {"width": 2},
  "resnet50": {"width": 2},
  "resnet20": {"width": 2},
  "deep_convnet": {"features": THREE, "hidden_size": 5},
  "simple_convnet": {"features": 3, "convs": 2, "kernel_size": 3, "hidden_size": 5},
  "xo_net": {},
}
SHAPES = {"alexnet_original": (227, 3), "inception_v3": (299, 3), "resnet20": (32, 3), "deep_convnet": (28, 1)}
SHAPES |= {"simple_convnet": (28, 1), "xo_net": (9, 1)}


def made(name, side=None, classes=3, **fields) -> dict:
  """Variables of a model with random numbers in place of its own."""
  known, channels = SHAPES.get(name, (224, 3))
  side = side or known
  model = models.create(name, num_classes=classes, **SMALL[name] | fields)
  shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), jnp.zeros((1, side, side, channels)), train=False))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)


def assert_equal(one, other):
  assert jax.tree.structure(one) == jax.tree.structure(other)
  jax.tree.map(np.testing.assert_array_equal, one, other)


def test_every_family_is_tried():
  assert {type(models.create(name)).__name__ for name in SMALL} == set(classifiers.FAMILIES)


@pytest.mark.parametrize("name", SMALL)
def test_there_and_back_is_exact(name):
  variables = made(name)
  tensors = interop.to_torch(name, variables, **SMALL[name])
  assert len({*tensors}) == len(jax.tree.leaves(variables)) + sum(key.endswith("tracked") for key in tensors)
  back = interop.from_torch(name, tensors, **SMALL[name])
  assert_equal(back, variables)
  assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(back))
  assert_equal(interop.to_torch(name, back, **SMALL[name]), tensors)
  assert all(value.flags.c_contiguous for value in tensors.values()), "safetensors would save another order"
  assert interop.model_of(name, tensors, **SMALL[name]).num_classes == 3


def test_layouts():
  """torch's kernels are O, I, h, w, its matrices out, in, and it flattens a map in the order C, H, W."""
  variables = made("deep_convnet")["params"]
  tensors = interop.to_torch("deep_convnet", {"params": variables}, **SMALL["deep_convnet"])
  for (y, x, i, o), value in np.ndenumerate(variables["conv1_2"]["kernel"]):
    assert tensors["2.weight"][o, i, y, x] == value
  for h, w, c, o in np.ndindex(4, 4, 4, 5):
    assert tensors["16.weight"][o, 16 * c + 4 * h + w] == variables["fc1"]["kernel"][16 * h + 4 * w + c, o]
  np.testing.assert_array_equal(tensors["18.weight"], variables["fc2"]["kernel"].T)
  np.testing.assert_array_equal(tensors["18.bias"], variables["fc2"]["bias"])


@pytest.mark.parametrize(
  "name, some",
  [
    ("alexnet", {"features.0.weight": (2, 3, 11, 11), "features.10.bias": (3,), "classifier.1.weight": (5, 12)}),
    ("vgg11", {"features.16.weight": (3, 4, 3, 3), "classifier.0.weight": (5, 12), "classifier.6.bias": (3,)}),
    ("vgg16_bn", {"features.41.running_var": (3,), "features.40.weight": (3, 3, 3, 3)}),
    (
      "googlenet",
      {
        "conv1.conv.weight": (8, 3, 7, 7), "conv2.bn.weight": (8,), "conv3.conv.weight": (24, 8, 3, 3),
        "inception3a.branch2.0.conv.weight": (12, 24, 1, 1), "inception3a.branch3.1.conv.weight": (4, 2, 3, 3),
        "inception5b.branch4.1.bn.running_mean": (16,), "aux1.fc1.weight": (128, 256), "aux2.conv.bn.bias": (16,),
      },
    ),
    ("inception_v3", {"Mixed_6b.branch7x7_2.conv.weight": (8, 8, 1, 7), "AuxLogits.conv1.bn.running_var": (48,)}),
    ("resnet18", {"layer2.0.downsample.0.weight": (4, 2, 1, 1), "layer4.1.bn2.bias": (16,), "fc.weight": (3, 16)}),
    ("resnet50", {"layer1.0.downsample.1.bias": (8,), "layer3.5.conv3.weight": (32, 8, 1, 1), "bn1.weight": (2,)}),
    ("resnet20", {"layer3.2.conv2.weight": (8, 8, 3, 3), "linear.weight": (3, 8)}),
  ],
)  # fmt: skip
def test_names_are_the_public_ones(name, some):
  tensors = interop.to_torch(name, made(name), **SMALL[name])
  for key, shape in some.items():
    assert tensors[key].shape == shape, key


def test_what_the_tensors_tell():
  """Number of classes, auxiliary classifiers, and channels of the images."""
  for name, head in (("googlenet", "aux1"), ("inception_v3", "AuxLogits")):
    tensors = interop.to_torch(name, made(name, classes=7), **SMALL[name])
    whole = interop.model_of(name, tensors, **SMALL[name])
    assert (whole.num_classes, whole.aux_logits) == (7, True)
    tensors = {key: value for key, value in tensors.items() if not key.startswith(("aux", "AuxLogits"))}
    bare = interop.model_of(name, tensors, **SMALL[name])
    assert (bare.num_classes, bare.aux_logits) == (7, False)
    params = interop.from_torch(name, tensors, **SMALL[name])["params"]
    assert head not in params
    assert params["fc"]["bias"].shape == (7,)
    with pytest.raises(UserError, match=f"missing: {head}"):
      interop.from_torch(name, tensors, aux_logits=True, **SMALL[name])
  grey = jax.tree.map(lambda x: x[:, :, :1] if x.ndim == 4 and x.shape[2] == 3 else x, made("alexnet"))
  fields = SMALL["alexnet"]
  assert grey["params"]["conv1"]["kernel"].shape[2] == 1
  tensors = interop.to_torch("alexnet", grey, **fields)
  assert_equal(interop.from_torch("alexnet", tensors, **fields), grey)


@pytest.mark.parametrize("kind", [np.float16, jnp.bfloat16, np.float64])
def test_other_precisions_become_float32(kind):
  tensors = interop.to_torch("resnet20", made("resnet20"), **SMALL["resnet20"])
  given = {key: value.astype(kind) for key, value in tensors.items()}
  expected = {key: np.float32(value) for key, value in given.items()}
  variables = interop.from_torch("resnet20", given, **SMALL["resnet20"])
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
  assert_equal(interop.to_torch("resnet20", variables, **SMALL["resnet20"]) | expected, expected)


def test_batches_tracked():
  """Not wanted on import, whatever it is; int64 0 on export."""
  tensors = interop.to_torch("resnet20", made("resnet20"), **SMALL["resnet20"])
  counters = {key: value for key, value in tensors.items() if key.endswith("num_batches_tracked")}
  assert set(counters) == {key.replace("running_mean", "num_batches_tracked") for key in tensors if "_mean" in key}
  assert {(value.dtype, value.shape, int(value)) for value in counters.values()} == {(np.dtype(np.int64), (), 0)}
  without = {key: value for key, value in tensors.items() if key not in counters}
  counted = tensors | {key: np.int64(12_345) for key in counters}
  for given in (without, counted):
    assert_equal(interop.from_torch("resnet20", given, **SMALL["resnet20"]), made("resnet20"))


def test_a_tree_of_gradients_will_do():
  grads = {"params": made("resnet20")["params"]}
  tensors = interop.to_torch("resnet20", grads, **SMALL["resnet20"])
  assert not any("running" in key or "tracked" in key for key in tensors)
  np.testing.assert_array_equal(tensors["linear.weight"], grads["params"]["head"]["kernel"].T)


def test_what_does_not_fit_is_listed_in_one_line():
  fields = SMALL["alexnet"]
  tensors = interop.to_torch("alexnet", made("alexnet"), **fields)
  del tensors["features.3.bias"], tensors["classifier.4.weight"]
  tensors["features.6.weight"] = np.zeros((6, 4, 5, 5), np.float32)
  tensors["fc.weight"] = np.zeros((1, 1), np.float32)
  with pytest.raises(UserError) as raised:
    interop.from_torch("alexnet", tensors, **fields)
  message = str(raised.value)
  assert "\n" not in message
  for said in (
    "not the weights of model 'alexnet'", "2 missing: ", "features.3.bias", "classifier.4.weight",
    "1 unexpected: fc.weight", "1 of another shape: features.6.weight (6, 4, 5, 5) for (6, 4, 3, 3)",
  ):  # fmt: skip
    assert said in message


def test_another_models_weights_are_cut_to_one_line():
  tensors = interop.to_torch("resnet20", made("resnet20"), **SMALL["resnet20"])
  with pytest.raises(UserError, match=r"\d+ missing: .*\d+ unexpected: ") as raised:
    interop.from_torch("resnet50", tensors)
  assert "\n" not in str(raised.value)
  assert len(str(raised.value)) < 1500


def test_an_empty_file():
  with pytest.raises(UserError, match="4 missing: "):
    interop.from_torch("xo_net", {})


@pytest.mark.parametrize("name", ["mlp", "dcgan"])
def test_models_without_a_namesake(name):
  for call in (lambda: interop.from_torch(name, {}), lambda: interop.to_torch(name, {})):
    with pytest.raises(UserError, match=f"model '{name}' has no public namesake; these have: (.*)") as raised:
      call()
    listed = str(raised.value).partition("these have: ")[2].split(", ")
    assert set(listed) == {n for n in models.MODELS if type(models.create(n)).__name__ in interop.FAMILIES}
    assert not interop.has_namesake(name)
  assert all(interop.has_namesake(name) for name in listed)


def test_unknown_names():
  with pytest.raises(UserError, match="unknown model 'resnet19'; did you mean 'resnet1"):
    interop.from_torch("resnet19", {})
  with pytest.raises(UserError, match="unknown field of model 'resnet18': 'widht'; did you mean 'width'"):
    interop.to_torch("resnet18", {}, widht=3)


@pytest.mark.parametrize("name, side", [("deep_convnet", 8), ("simple_convnet", 12), ("alexnet_original", 67)])
def test_models_of_other_image_sizes(name, side):
  """The first dense layer of a net without adaptive pooling is as large as the map before it."""
  variables = made(name, side)
  tensors = interop.to_torch(name, variables, **SMALL[name])
  assert_equal(interop.from_torch(name, tensors, **SMALL[name]), variables)


def test_maps_that_are_not_square_are_refused():
  """Which of [4, 5] and [5, 4] was flattened cannot be seen in a matrix."""
  model = models.create("deep_convnet", **SMALL["deep_convnet"])
  shapes = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), jnp.zeros((1, 28, 36, 1)), train=False))
  with pytest.raises(UserError, match="square") as raised:
    interop.to_torch("deep_convnet", jax.tree.map(lambda x: np.zeros(x.shape), shapes), **SMALL["deep_convnet"])
  assert "\n" not in str(raised.value)
