"""Image classifiers: parameters as the papers' tables count them, stages, training and evaluation, starting weights.

Counts are those of torchvision's models, and of the papers' layer tables where it has none. Most of it is about shapes
alone, and compiles nothing.
"""

import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models.vision import googlenet, inception, resnet, vgg

RNG = jax.random.PRNGKey(0)
CLASSIFIERS = [  # of images
  name for name, path in models.MODELS.items() if path.startswith("vision.") and "num_classes" in models.lookup(name)[1]
]
COUNTS = {  # at 1000 classes where the paper's are ImageNet's, else 10
  "mlp": 119_910, "simple_convnet": 433_890, "xo_net": 86, "deep_convnet": 123_552,
  "alexnet": 61_100_840, "alexnet_original": 60_965_224,
  "vgg11": 132_863_336, "vgg13": 133_047_848, "vgg16": 138_357_544, "vgg19": 143_667_240,
  "vgg11_bn": 132_868_840, "vgg13_bn": 133_053_736, "vgg16_bn": 138_365_992, "vgg19_bn": 143_678_248,
  "googlenet": 13_004_888, "googlenet_original": 13_378_280, "inception_v3": 27_161_264,
  "resnet18": 11_689_512, "resnet34": 21_797_672, "resnet50": 25_557_032, "resnet101": 44_549_160,
  "resnet152": 60_192_808,
  "darknet19": 20_842_376, "darknet53": 41_609_928,
  "resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018, "resnet110": 1_727_962,
}  # fmt: skip
FIELDS = [  # what fields make of them
  ("alexnet_original", {"groups": 1}, 62_378_344),
  ("googlenet", {"aux_logits": False}, 6_624_904),
  ("googlenet_original", {"aux_logits": False}, 6_998_552),
  ("inception_v3", {"aux_logits": False}, 23_834_568),
  ("resnet50", {"stride_in_1x1": True}, 25_557_032),
  ("resnet18", {"small_images": True}, 11_689_512 - 64 * 3 * (7 * 7 - 3 * 3)),
  ("resnet20", {"residual": False}, 269_722),
  ("simple_convnet", {"kernel_size": 3, "convs": 2}, 30 * 10 + 30 * 271 + 30 * 144 * 100 + 100 + 1010),
]  # fmt: skip
IMAGES = {  # of the papers, where they are not 224 x 224 x 3
  "mlp": (28, 28, 1), "simple_convnet": (28, 28, 1), "deep_convnet": (28, 28, 1), "xo_net": (9, 9, 1),
  "alexnet_original": (227, 227, 3), "inception_v3": (299, 299, 3),
}  # fmt: skip


def image(name):
  cifar = name in ("resnet20", "resnet32", "resnet44", "resnet56", "resnet110")
  return IMAGES.get(name, (32, 32, 3) if cifar else (224, 224, 3))


def variables_of(name, **fields):
  model = models.create(name, **fields)
  return model, jax.eval_shape(lambda: model.init(RNG, jnp.zeros((1, *image(name))), train=False))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def stages_of(name, batch=2, train=False, **fields):
  """{stage: shape behind the batch} of a model; "logits" is float32 and last."""
  model, variables = variables_of(name, **fields)
  order = []

  def run(variables):
    kept = [key for key in variables if key != "params"] if train else False
    rngs = {"dropout": RNG} if train else None
    made = model.apply(variables, jnp.zeros((batch, *image(name))), train=train, mutable=kept, rngs=rngs)
    stages = made[0] if train else made
    order.extend(stages)  # JAX gives dicts back sorted
    return stages

  stages = jax.eval_shape(run, variables)
  assert all(x.shape[0] == batch for x in stages.values())
  assert (order[-1], stages["logits"].dtype) == ("logits", jnp.float32)
  return {key: stages[key].shape[1:] for key in order}


def test_every_classifier_is_counted():
  assert set(COUNTS) == set(CLASSIFIERS)


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_the_papers(name):
  """And so is the depth in its name: convolutions but for shortcuts, and dense layers."""
  variables = variables_of(name)[1]
  assert count(variables["params"]) == COUNTS[name]
  paths = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"])]
  if depth := re.fullmatch(r"(?:vgg|resnet|darknet)(\d+)(?:_bn)?", name):
    assert sum(path.endswith("kernel") and "shortcut" not in path for path in paths) == int(depth[1])
  assert len(jax.tree.leaves(variables.get("batch_stats", {}))) == 2 * sum(path.endswith("scale") for path in paths)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("name, fields, expected", FIELDS)
def test_parameters_by_fields(name, fields, expected):
  assert count(variables_of(name, **fields)[1]["params"]) == expected


def test_maps_of_the_small_ones():
  assert stages_of("simple_convnet") == {
    "conv1": (24, 24, 30), "pool1": (12, 12, 30), "hidden": (100,), "logits": (10,),
  }  # fmt: skip
  assert stages_of("xo_net") == {"conv1": (7, 7, 3), "pool1": (3, 3, 3), "logits": (2,)}
  two = stages_of("simple_convnet", kernel_size=3, convs=2)
  assert list(two) == ["conv1", "conv2", "pool1", "hidden", "logits"]
  assert two["conv2"] == stages_of("simple_convnet")["conv1"]  # two windows of 3 see what one of 5 sees


@pytest.mark.parametrize("name, pool1, pool2", [("alexnet", 64, 192), ("alexnet_original", 96, 256)])
def test_maps_of_alexnet(name, pool1, pool2):
  assert stages_of(name) == {
    "pool1": (27, 27, pool1), "pool2": (13, 13, pool2), "conv3": (13, 13, 384),
    "conv4": (13, 13, 256 if name == "alexnet" else 384), "pool5": (6, 6, 256), "fc6": (4096,), "fc7": (4096,),
    "logits": (1000,),
  }  # fmt: skip


@pytest.mark.parametrize("name, depths", [("vgg16", (2, 2, 3, 3, 3)), ("vgg11_bn", (1, 1, 2, 2, 2))])
def test_maps_of_vgg(name, depths):
  expected = {}
  for i, (depth, features) in enumerate(zip(depths, (64, 128, 256, 512, 512)), 1):
    side = 224 >> (i - 1)
    expected |= {f"conv{i}_{j}": (side, side, features) for j in range(1, depth + 1)}
    expected[f"pool{i}"] = (side // 2, side // 2, features)
  assert stages_of(name) == expected | {"fc6": (4096,), "fc7": (4096,), "logits": (1000,)}


GOOGLENET = {"3a": 256, "3b": 480, "4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832, "5a": 832, "5b": 1024}


@pytest.mark.parametrize("name", ["googlenet", "googlenet_original"])
def test_maps_of_googlenet(name):
  """Table 1's column "output size"; the auxiliary classifiers are there in training alone."""
  sides = {"3": 28, "4": 14, "5": 7}
  expected = {f"inception{key}": (sides[key[0]],) * 2 + (depth,) for key, depth in GOOGLENET.items()}
  expected |= {"pool1": (56, 56, 64), "pool2": (28, 28, 192), "pool3": (14, 14, 480), "pool4": (7, 7, 832)}
  expected |= {"pooled": (1024,), "logits": (1000,)}
  assert stages_of(name) == expected
  assert stages_of(name, train=True) == expected | {"aux1": (1000,), "aux2": (1000,)}
  assert "aux1" not in stages_of(name, train=True, aux_logits=False)


def test_maps_of_inception_v3():
  sides = {"5": 35, "6": 17, "7": 8}
  depths = {"5b": 256, "5c": 288, "5d": 288, "7a": 1280, "7b": 2048, "7c": 2048}
  depths |= dict.fromkeys(("6a", "6b", "6c", "6d", "6e"), 768)
  expected = {f"Mixed_{key}": (sides[key[0]],) * 2 + (depth,) for key, depth in depths.items()}
  expected |= {"pool1": (73, 73, 64), "pool2": (35, 35, 192), "pooled": (2048,), "logits": (1000,)}
  assert stages_of("inception_v3") == expected
  assert stages_of("inception_v3", train=True) == expected | {"aux": (1000,)}


@pytest.mark.parametrize("name, factor", [("resnet18", 1), ("resnet50", 4)])
def test_maps_of_resnet(name, factor):
  expected = {f"stage{i}": (56 >> i - 1, 56 >> i - 1, factor * 64 << i - 1) for i in (1, 2, 3, 4)}
  expected |= {"stem": (56, 56, 64), "pooled": (512 * factor,), "logits": (1000,)}
  assert stages_of(name) == expected
  assert stages_of("resnet18", small_images=True)["stem"] == (224, 224, 64)


def test_maps_of_darknet():
  """Tables 6 of Darknet-19 and 1 of Darknet-53; that one's images are 256 x 256."""
  coarse = {"stage4": (14, 14, 512), "stage5": (7, 7, 1024), "pooled": (1024,), "logits": (1000,)}
  assert stages_of("darknet19") == coarse
  assert stages_of("darknet53") == {"stage3": (28, 28, 256)} | coarse
  with pytest.raises(UserError, match="Darknet sees images whose sides are multiples of 32 pixels, not 40 x 64"):
    jax.eval_shape(lambda: models.create("darknet19").init(RNG, jnp.zeros((1, 40, 64, 3)), train=False))


def test_maps_of_cifar_resnet():
  assert stages_of("resnet20") == {
    "stem": (32, 32, 16), "stage1": (32, 32, 16), "stage2": (16, 16, 32), "stage3": (8, 8, 64), "pooled": (64,),
    "logits": (10,),
  }  # fmt: skip


def test_where_the_stride_of_a_bottleneck_lies():
  """In the 3 x 3 convolution as torchvision has it, or in the first as the paper: seen by what norm1 gets."""
  x = jnp.zeros((1, 8, 8, 4))
  for first, side in ((False, 8), (True, 4)):
    block = resnet.Bottleneck(2, 2, stride_in_1x1=first)
    kept = jax.eval_shape(
      lambda b=block: b.init_with_output(RNG, x, train=False, capture_intermediates=True, mutable=True)
    )[1]["intermediates"]
    assert kept["conv1"]["__call__"][0].shape == (1, side, side, 2)
    assert kept["conv2"]["__call__"][0].shape == (1, 4, 4, 2)


SMALL = {  # of each class of models: a module, the side of its images, and whether dropout and batch norm are in it
  "alexnet": (models.create("alexnet", num_classes=5, features=(4,) * 5, hidden_size=8, pool=1), 63, True, False),
  "alexnet_original": (
    models.create("alexnet_original", num_classes=5, features=(4,) * 5, hidden_size=8), 67, True, False,
  ),
  "vgg11_bn": (vgg.VGG((1,) * 5, True, 5, (4,) * 5, 8, 1), 32, True, True),
  "googlenet": (googlenet.GoogLeNet(num_classes=5, shrink=16), 32, True, True),
  "inception_v3": (inception.InceptionV3(num_classes=5, shrink=32), 75, True, True),
  "resnet": (resnet.ResNet((1, 1, 1, 1), True, 5, 4), 32, False, True),
  "cifar_resnet": (resnet.CifarResNet(1, 5, 4), 16, False, True),
  "darknet19": (models.create("darknet19", num_classes=5, shrink=32), 32, False, True),
  "deep_convnet": (models.create("deep_convnet", num_classes=5, features=(4, 4, 4), hidden_size=8), 16, True, False),
  "simple_convnet": (models.create("simple_convnet", num_classes=5, features=4, hidden_size=8), 12, False, False),
  "xo_net": (models.create("xo_net", num_classes=5), 9, False, False),
}  # fmt: skip


@pytest.mark.parametrize("name", SMALL)
def test_in_bfloat16(name):
  """A training pass: finite, computed in bfloat16, but logits, parameters and statistics in float32.

  Evaluation asks for no randomness, training does where there is dropout.
  """
  model, side, dropout, statistics = SMALL[name]
  model = model.clone(dtype=jnp.bfloat16)
  x = np.random.default_rng(0).normal(size=(2, side, side, 1 if name == "xo_net" else 3)).astype(np.float32)
  shapes = jax.eval_shape(lambda: model.init(RNG, x, train=False))
  assert ("batch_stats" in shapes) == statistics
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.float32)}
  variables = jax.tree.map(drawn, shapes)

  def run(rngs):
    return model.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)

  # At level 0 it compiles in two thirds of the time.
  stages, after = jax.jit(run).lower({"dropout": RNG}).compile({"xla_backend_optimization_level": 0})({"dropout": RNG})
  in_float32(stages)
  assert all(np.isfinite(np.float32(value)).all() for value in stages.values())
  in_float32(jax.eval_shape(lambda: model.apply(variables, x, train=False)))
  old, new = (jax.tree.leaves(tree.get("batch_stats", {})) for tree in (variables, after))
  assert len(old) == len(new)
  for before, now in zip(old, new):
    assert (now.dtype, now.shape) == (jnp.float32, before.shape)
    assert np.isfinite(now).all()
    assert not np.array_equal(before, now)
  if dropout:
    with pytest.raises(Exception, match="dropout"):
      jax.eval_shape(run, {})
  else:
    jax.eval_shape(run, {})


def drawn(leaf):
  """Numbers of a size that keeps signals alive: kernels by He, 1 else."""
  if len(leaf.shape) == 1:
    return np.ones(leaf.shape, np.float32)
  fan_in = leaf.size // leaf.shape[-1]
  return np.random.default_rng(0).normal(0, (2 / fan_in) ** 0.5, leaf.shape).astype(np.float32)


def in_float32(stages):
  """Classifiers' logits are float32, and all else is not."""
  heads = {key for key in stages if re.fullmatch(r"logits|aux\d?", key)}
  for key, value in stages.items():
    assert value.dtype == (jnp.float32 if key in heads else jnp.bfloat16), key


class Start(dict):
  """{"module/leaf": key -> its starting value} of a model's parameters; nothing is drawn before it is called."""

  def __init__(self, model, side, channels=3):
    param = nn.Module.param

    def noted(module, name, init, *args, **kwargs):
      self["/".join([*module.path, name])] = lambda key: init(key, *args)
      return param(module, name, init, *args, **kwargs)

    with mock.patch.object(nn.Module, "param", noted):
      jax.eval_shape(lambda: model.init(RNG, jnp.zeros((1, side, side, channels)), train=False))

  def draw(self, pattern):
    """{path: value} of those whose paths match from end to end."""
    names = [name for name in self if re.fullmatch(pattern, name)]
    assert names
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles at once
    return dict(zip(names, jax.jit(lambda: [self[name](key) for name in names])()))


def assert_deviation(kernel, deviation, normal=True):
  """Its deviation; normal numbers are not cut at two deviations, uniform ones end at the root of 3."""
  assert kernel.size > 1000
  assert abs(float(kernel.std()) / deviation - 1) < 0.08
  assert abs(float(kernel.mean())) < 0.1 * deviation
  most = float(jnp.abs(kernel).max()) / deviation
  assert most > 2.5 if normal else most <= 3**0.5 + 1e-3


def test_alexnet_starts_as_the_paper_has_it():
  """Section 5: deviation .01; biases 1 in conv2, conv4, conv5 and the hidden dense layers, else 0."""
  start = Start(models.create("alexnet_original", num_classes=20, features=(8, 16, 24, 24, 16), hidden_size=64), 227)
  biases = start.draw(".*bias")
  assert {name for name, x in biases.items() if (x == 1).all()} == {
    f"{n}/bias" for n in ("conv2", "conv4", "conv5", "fc6", "fc7")
  }
  assert {name for name, x in biases.items() if (x == 0).all()} == {"conv1/bias", "conv3/bias", "fc8/bias"}
  for kernel in start.draw(".*kernel").values():
    assert_deviation(kernel, 0.01)


def test_torchvisions_alexnet_starts_as_torch_does():
  """U(+-1 / sqrt(fan_in)), of deviation sqrt(1 / (3 fan_in))."""
  model = models.create("alexnet", num_classes=20, features=(8, 16, 24, 24, 16), hidden_size=64, pool=1)
  for kernel in Start(model, 67).draw(".*kernel").values():
    assert_deviation(kernel, (1 / 3 / (kernel.size / kernel.shape[-1])) ** 0.5, normal=False)


def test_vgg_starts_as_torchvisions():
  """He by outputs for the convolutions, deviation .01 for the dense layers, no biases."""
  start = Start(vgg.VGG((1,) * 5, False, 20, (40, 16, 16, 16, 16), 64), 32)
  for name, kernel in start.draw(".*kernel").items():
    assert_deviation(kernel, (2 / 9 / kernel.shape[-1]) ** 0.5 if name.startswith("conv") else 0.01)
  assert not any(x.any() for x in start.draw(".*bias").values())


def test_resnet_starts_as_he():
  """By outputs; scales of norms 1, biases 0."""
  for start in (Start(resnet.ResNet((1, 1, 1, 1), True, 20, 16), 32), Start(resnet.CifarResNet(1, 20, 16), 32)):
    for kernel in start.draw("(stem|stage[23]_block1/conv2)/kernel").values():
      if kernel.size > 1000:
        assert_deviation(kernel, (2 / (kernel.shape[0] ** 2 * kernel.shape[3])) ** 0.5)
    assert all((x == 1).all() for x in start.draw(".*scale").values())
    assert not any(x.any() for x in start.draw(".*bias").values())
    assert not any("conv" in name and "bias" in name for name in start)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_zero_init_residual_starts_the_last_scale_at_0(bottleneck):
  start = Start(resnet.ResNet((2, 1, 1, 1), bottleneck, 5, 4, zero_init_residual=True), 16)
  last = "norm3" if bottleneck else "norm2"
  for name, scale in start.draw(".*scale").items():
    assert (scale == (0.0 if name.endswith(f"{last}/scale") else 1.0)).all(), name


def test_zero_init_residual_makes_a_block_its_shortcut():
  x = np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype(np.float32)
  y, _ = resnet.Block(4, zero_init_residual=True).init_with_output(RNG, x, train=False)
  np.testing.assert_array_equal(y, np.maximum(x, 0))


def test_shortcuts_without_parameters():
  """Option A: every second pixel, and zeros for the new channels on both sides, with the branch at 0."""
  x = np.random.default_rng(0).normal(size=(1, 5, 4, 3)).astype(np.float32)
  y, variables = resnet.Block(8, 2, "A", zero_init_residual=True).init_with_output(RNG, x, train=False)
  assert y.shape == (1, 3, 2, 8)
  np.testing.assert_array_equal(y[..., 2:5], np.maximum(x[:, ::2, ::2], 0))
  assert not y[..., [0, 1, 5, 6, 7]].any()
  assert not any("shortcut" in name for name in variables["params"])


def test_googlenet_starts_as_its_two_sources():
  """torchvision's: deviation .01, batch norm for biases. Caffe's: Xavier, biases .2, and true 5 x 5 windows."""
  ours = Start(googlenet.GoogLeNet(shrink=4), 32)
  for kernel in ours.draw("(conv2|inception4a/branch2|aux1)/.*kernel").values():
    assert_deviation(kernel, 0.01)
  assert ours.draw("inception4a/branch3/conv/kernel").popitem()[1].shape[:2] == (3, 3)
  assert not any("/conv/bias" in name for name in ours)
  caffe = Start(googlenet.GoogLeNet(original=True, shrink=4), 80)
  for kernel in caffe.draw("inception4a/branch[23]/conv/kernel").values():
    fans = kernel.shape[0] ** 2 * (kernel.shape[2] + kernel.shape[3])
    assert_deviation(kernel, (2 / fans) ** 0.5, normal=False)
  assert kernel.shape[:2] == (5, 5)
  assert all((x == np.float32(0.2)).all() for x in caffe.draw(".*conv/bias").values())
  assert not any("norm" in name for name in caffe)


def test_inception_starts_as_torchvisions():
  start = Start(inception.InceptionV3(shrink=8), 75)
  expected = {
    "Mixed_6b/branch7x7_2/conv/kernel": 0.1, "AuxLogits/conv0/conv/kernel": 0.1, "AuxLogits/conv1/conv/kernel": 0.01,
    "AuxLogits/fc/kernel": 0.001, "fc/kernel": 0.1,
  }  # fmt: skip
  for name, kernel in start.draw("|".join(expected)).items():
    assert_deviation(kernel, expected[name])


def test_images_normalised_for_imagenet_are_renormalised():
  """torchvision's transform_input: from (pixel - mean) / std to (pixel - .5) / .5."""
  pixel = np.random.default_rng(0).uniform(size=(2, 3, 3, 3)).astype(np.float32)
  given = (pixel - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
  np.testing.assert_allclose(googlenet.renormalised(given), 2 * pixel - 1, atol=1e-6)


@pytest.mark.parametrize(
  "make, side", [(lambda n: googlenet.GoogLeNet(shrink=n), 32), (lambda n: inception.InceptionV3(shrink=n), 75)]
)
def test_shrinking_divides_every_width(make, side):
  shapes = jax.eval_shape(lambda: make(4).init(RNG, jnp.zeros((1, side, side, 3)), train=False)["params"])
  whole = jax.eval_shape(lambda: make(1).init(RNG, jnp.zeros((1, side, side, 3)), train=False)["params"])
  for small, large in zip(jax.tree.leaves(shapes), jax.tree.leaves(whole)):
    assert small.shape[-1] in (large.shape[-1] // 4, 1000)
