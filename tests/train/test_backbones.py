"""Detectors that start from a classifier's weights, or from a detector's for other classes; nothing is trained."""

import jax
import numpy as np
import pytest
import safetensors.numpy

from flaxonomy import models
from flaxonomy.configs import base
from flaxonomy.configs.base import Config, Data, Model, Optim
from flaxonomy.data.pipeline import Info
from flaxonomy.errors import UserError
from flaxonomy.models import interop
from flaxonomy.train import checkpoint, detection, loop, pretrained, tasks, weights, workdir

SIDE = 64
VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's numbers of vgg16's convolutions
WIDTHS = (8, 16, 32, 64, 64)  # of its stages, an eighth
CONVS = tuple(f"conv{i}_{j}" for i, depth in enumerate((2, 2, 3, 3, 3), 1) for j in range(1, depth + 1))
PYRAMID = {
  "depths": (1, 1), "bottleneck": False, "width": 8, "features": 8, "hidden_size": 16, "sizes": ((8,), (14,), (22,)),
  "before": (20, 20), "after": (10, 10), "frozen": False,
}  # fmt: skip
WHOLE = PYRAMID | {"depths": (1, 1, 1, 1), "sizes": ((8,), (14,), (22,), (28,), (36,))}
NETS = {  # by name: model, its fields
  "ssd": ("ssd300_vgg16", {"sources": 3, "scales": (12, 22, 40, 60), "shrink": 8}),
  "yolo_v1": ("yolo_v1", {"cell": 32, "hidden_size": 64, "shrink": 16}),
  "yolo_v2": ("yolo_v2", {"shrink": 16}),
  "yolo_v3": ("yolo_v3", {"shrink": 16}),
  "rcnn": ("rcnn_alexnet", {"body": "alexnet", "side": 67, "shrink": 8, "hidden_size": 64}),
  "fast_rcnn": ("fast_rcnn_vgg16", {"shrink": 8, "hidden_size": 64}),
  "vgg16": ("fasterrcnn_vgg16", {"features": WIDTHS, "hidden_size": 64, "before": (20, 20), "after": (10, 10)}),
  "faster_rcnn": ("fasterrcnn_resnet50_fpn", PYRAMID),
  "mask_rcnn": ("maskrcnn_resnet50_fpn", PYRAMID),
}
RNG = np.random.default_rng(0)


def detector(net: str, **fields) -> Config:
  """A small detector's config, with some fields changed."""
  model, known = NETS[net]
  config = Config(
    task="detection",
    model=Model(model, known | fields),
    data=Data("coco_json", batch_size=2, channels=3, image_size=(SIDE, SIDE), mean=(0.5,), std=(0.25,)),
    optim=Optim("sgd", lr=0.1),
  )
  return base.override(config, {"data.scenes.proposals": 8, "data.scenes.masks": True})


def scenes(count=3) -> Info:
  """What is known of a dataset of some classes."""
  return Info("scenes", tuple("abcdefghij"[:count]), (SIDE, SIDE, 3), 8)


def load(config, source, info=None, **changes) -> dict:
  """What a run would start from."""
  changes = {key.replace("__", "."): value for key, value in changes.items()}
  config = base.override(config, {"model.init_from": str(source)} | changes)
  return pretrained.load(config, info or scenes(), loop.make_mesh(1))


TRACED = {}


def leaves(config, info, mesh) -> dict:
  """What `pretrained._shapes` gives of a detector, but traced once and never again."""
  classes = len(info.class_names)
  key = config.model.name, repr(config.model.fields), classes
  if key not in TRACED:
    variables = jax.eval_shape(detection.build(config, (SIDE, SIDE, 3), classes).init, jax.random.PRNGKey(0))
    TRACED[key] = weights.flatten(variables, lambda leaf: leaf)
  return TRACED[key]


@pytest.fixture(autouse=True)
def traced_once(monkeypatch):
  monkeypatch.setattr(pretrained, "_shapes", leaves)


def shapes(config, info=None) -> dict:
  """{our path: shape} of a config's variables."""
  return {name: leaf.shape for name, leaf in leaves(config, info or scenes(), None).items()}


def drawn(named: dict) -> dict:
  return {name: RNG.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in named.items()}


def saved(path, arrays: dict):
  safetensors.numpy.save_file(arrays, path)
  return path


def vgg16(batch_norm=False) -> dict:
  """A small one's tensors as torchvision names and lays them."""
  inputs, named = 3, {}
  for number, conv in zip(VGG, CONVS):
    features = WIDTHS[int(conv[4]) - 1]
    named |= {f"features.{number}.weight": (features, inputs, 3, 3), f"features.{number}.bias": (features,)}
    inputs = features
  for number, (outputs, inputs) in {0: (64, 64 * 49), 3: (64, 64), 6: (10, 64)}.items():
    named |= {f"classifier.{number}.weight": (outputs, inputs), f"classifier.{number}.bias": (outputs,)}
  return drawn(named)


def norm(name, features) -> dict:
  return {f"{name}.{leaf}": (features,) for leaf in ("weight", "bias", "running_mean", "running_var")} | {
    f"{name}.num_batches_tracked": ()
  }


def resnet(blocks=(1, 1, 1, 1), width=8) -> dict:
  """One of small blocks as torchvision names and lays it."""
  named, inputs = {"conv1.weight": (width, 3, 7, 7), **norm("bn1", width), "fc.weight": (10, 8 * width)}, width
  for i, count in enumerate(blocks, 1):
    features = width * 2 ** (i - 1)
    for j in range(count):
      block = f"layer{i}.{j}"
      named |= {f"{block}.conv1.weight": (features, inputs, 3, 3), f"{block}.conv2.weight": (features, features, 3, 3)}
      named |= norm(f"{block}.bn1", features) | norm(f"{block}.bn2", features)
      if inputs != features:
        named |= {f"{block}.downsample.0.weight": (features, inputs, 1, 1), **norm(f"{block}.downsample.1", features)}
      inputs = features
  return drawn(named | {"fc.bias": (10,)})


def alexnet() -> dict:
  """An eighth of torchvision's, for crops of 67 pixels."""
  named, inputs = {}, 3
  for number, features, side in ((0, 8, 11), (3, 24, 5), (6, 48, 3), (8, 32, 3), (10, 32, 3)):
    named |= {f"features.{number}.weight": (features, inputs, side, side), f"features.{number}.bias": (features,)}
    inputs = features
  for number, (outputs, inputs) in {1: (64, 32), 4: (64, 64), 6: (10, 64)}.items():
    named |= {f"classifier.{number}.weight": (outputs, inputs), f"classifier.{number}.bias": (outputs,)}
  return drawn(named)


def same_convolution(ours, theirs):
  np.testing.assert_array_equal(ours, theirs.transpose(2, 3, 1, 0))


VGGS = {  # by detector: where it keeps convolutions and dense layers, what starts anew
  "ssd": (
    "", None, "conv4_3_boxes, conv4_3_logits, conv4_3_scale, conv8_1, conv8_2, conv8_2_boxes, conv8_2_logits, fc6, "
    "fc7, fc7_boxes, fc7_logits",
  ),
  "fast_rcnn": ("", "", "boxes, logits"),
  "vgg16": ("backbone/", "box_head/", "box_head/logits, box_head/offsets, rpn"),
}  # fmt: skip


@pytest.mark.parametrize("net", VGGS)
def test_vgg16_under_public_names(net, tmp_path, capsys):
  config, (convs, dense, anew) = detector(net), VGGS[net]
  tensors = vgg16()
  taken = load(config, saved(tmp_path / "vgg16.safetensors", tensors))
  said = capsys.readouterr().err
  assert said.endswith(f"but these layers start anew: {anew} (not taken from a classifier)\n")
  assert said.count("\n") == 1
  for number, conv in zip(VGG, CONVS):
    same_convolution(taken.pop(f"params/{convs}{conv}/kernel"), tensors[f"features.{number}.weight"])
    np.testing.assert_array_equal(taken.pop(f"params/{convs}{conv}/bias"), tensors[f"features.{number}.bias"])
  if dense is not None:
    x = RNG.normal(size=(7, 7, 64)).astype(np.float32)  # torch flattens channels first
    ours = x.ravel() @ taken.pop(f"params/{dense}fc6/kernel") + taken.pop(f"params/{dense}fc6/bias")
    theirs = tensors["classifier.0.weight"] @ x.transpose(2, 0, 1).ravel() + tensors["classifier.0.bias"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-2)
    np.testing.assert_array_equal(taken.pop(f"params/{dense}fc7/kernel"), tensors["classifier.3.weight"].T)
    np.testing.assert_array_equal(taken.pop(f"params/{dense}fc7/bias"), tensors["classifier.3.bias"])
  assert not taken


@pytest.mark.parametrize("frozen", [True, False])
def test_resnets_norms_are_put_where_they_lie(frozen, tmp_path, capsys):
  tensors = resnet()
  config = detector("faster_rcnn", **WHOLE | {"frozen": frozen})
  taken = load(config, saved(tmp_path / "resnet.safetensors", tensors))
  said = "start anew: box_head, pyramid, rpn (not taken from a classifier)\n"
  assert capsys.readouterr().err.endswith(said)
  assert set(taken) == {name for name in shapes(config) if "/backbone/" in name}
  learned, kept = ("frozen", "frozen") if frozen else ("params", "batch_stats")
  last = {"weight": learned, "bias": learned, "running_mean": kept, "running_var": kept}
  leaves = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
  for theirs, ours in (("bn1", "stem_norm"), ("layer2.0.bn2", "stage2_block1/norm2"),
                       ("layer4.0.downsample.1", "stage4_block1/shortcut_norm")):  # fmt: skip
    for leaf in leaves:
      found = taken[f"{last[leaf]}/backbone/{ours}/{leaves[leaf]}"]
      np.testing.assert_array_equal(found, tensors[f"{theirs}.{leaf}"])
  same_convolution(taken["params/backbone/stem/kernel"], tensors["conv1.weight"])
  same_convolution(taken["params/backbone/stage3_block1/shortcut/kernel"], tensors["layer3.0.downsample.0.weight"])


def test_alexnet(tmp_path, capsys):
  tensors = alexnet()
  taken = load(detector("rcnn"), saved(tmp_path / "alexnet.safetensors", tensors))
  said = "start anew: net/fc8, regression, svm (not taken from a classifier)\n"
  assert capsys.readouterr().err.endswith(said)
  for number, name in zip((0, 3, 6, 8, 10), range(1, 6)):
    same_convolution(taken[f"params/net/conv{name}/kernel"], tensors[f"features.{number}.weight"])
  np.testing.assert_array_equal(taken["params/net/fc6/kernel"], tensors["classifier.1.weight"].T)
  assert len(taken) == 14


def test_stages_that_a_detector_lacks_are_left_out(tmp_path, capsys):
  """Two of a ResNet's four, three of VGG's five; fc6 sees other maps then."""
  taken = load(detector("mask_rcnn"), saved(tmp_path / "r.safetensors", resnet()))
  assert {name.split("/")[2] for name in taken} == {"stem", "stem_norm", "stage1_block1", "stage2_block1"}
  assert "start anew: box_head, mask_head, pyramid, rpn (not taken from a classifier)\n" in capsys.readouterr().err
  source = saved(tmp_path / "v.safetensors", vgg16())
  with pytest.raises(UserError, match=r"fit: params/fc6/kernel is \(3136, 64\) there, \(1568, 64\) here$"):
    load(detector("fast_rcnn", stages=3), source)
  taken = load(detector("fast_rcnn", stages=3), source, model__init_new=("^fc6/",))
  assert {name.split("/")[1] for name in taken} == {*CONVS[:7], "fc7"}


def classifier(model, fields) -> Config:
  data = Data("digits", channels=3, image_size=(SIDE, SIDE), batch_size=2)
  return Config(model=Model(model, fields), data=data, optim=Optim("sgd", lr=0.1))


CLASSIFIERS = {  # by detector: the small classifier that it is built on
  "ssd": ("vgg16", {"features": WIDTHS, "hidden_size": 16}),
  "rcnn": ("alexnet", {"features": (8, 24, 48, 32, 32), "hidden_size": 64, "pool": 1}),
  "faster_rcnn": ("resnet18", {"depths": (1, 1, 1, 1), "width": 8}),
  "yolo_v2": ("darknet19", {"shrink": 16}),
  "yolo_v3": ("darknet53", {"shrink": 16}),
}


def run(folder, config, info):
  """A workdir with one checkpoint of random numbers, and these as {our path: array}."""
  folder.mkdir()
  task = tasks.build(config, info, 1)
  shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0))
  state = jax.tree.map(lambda x: jax.numpy.asarray(RNG.uniform(0.5, 1.5, x.shape).astype(x.dtype)), shapes)
  workdir.create(folder, config, info)
  saves = checkpoint.Checkpoints(folder)
  saves.save(1, state, {"step": 1}, base.to_dict(config))
  saves.poll(wait=True)
  saves.close()
  return weights.flatten(jax.device_get({"params": state.params, **state.collections}))


@pytest.mark.parametrize("net", CLASSIFIERS)
def test_exports_and_runs_of_classifiers(net, tmp_path):
  """Both give what a public file gives, where there is one, and a detector's state takes it."""
  config, source = detector(net), classifier(*CLASSIFIERS[net])
  if net == "faster_rcnn":
    config = detector(net, **WHOLE | {"frozen": True})
  info = Info("digits", tuple("0123456789"), (SIDE, SIDE, 3), 8)
  arrays = run(tmp_path / "run", source, info)
  sources = [saved(tmp_path / "ours.safetensors", arrays), tmp_path / "run"]
  if interop.has_namesake(source.model.name):
    tensors = interop.to_torch(source.model.name, weights.unflatten(arrays), **source.model.fields)
    sources.append(saved(tmp_path / "public.safetensors", tensors))
  one, *others = (load(config, source) for source in sources)
  for other in others:
    assert set(one) == set(other)
    for name in one:
      np.testing.assert_array_equal(one[name], other[name])
  first = jax.eval_shape(tasks.build(config, scenes(), 1).init, jax.random.PRNGKey(0))
  assert shapes(config) == weights.flatten({"params": first.params, **first.collections}, lambda leaf: leaf.shape)
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  zeros = jax.tree.map(lambda x: jax.device_put(np.zeros(x.shape, x.dtype), sharding), first)
  state = pretrained.put(zeros, one)
  found = weights.flatten(jax.device_get({"params": state.params, **state.collections}))
  assert {name for name, value in found.items() if value.any()} == set(one)
  assert one["frozen/backbone/stem_norm/var"].all() if net == "faster_rcnn" else True


def test_a_detectors_own_norms_may_be_frozen(tmp_path, capsys):
  learned, frozen = (detector("faster_rcnn", frozen=way) for way in (False, True))
  arrays = drawn(shapes(learned))
  taken = load(frozen, saved(tmp_path / "own.safetensors", arrays))
  assert not capsys.readouterr().err
  assert set(taken) == set(shapes(frozen))
  for name, value in arrays.items():
    there = name if "norm" not in name else f"frozen/{name.partition('/')[2]}"
    np.testing.assert_array_equal(taken[there], value)


HEADS = {  # by detector: layers whose shapes depend on the classes
  "ssd": "conv4_3_logits, conv8_2_logits, fc7_logits",
  "yolo_v1": "fc2",
  "yolo_v2": "conv23",
  "yolo_v3": "conv59, conv67, conv75",
  "rcnn": "net/fc8, regression, svm",
  "fast_rcnn": "boxes, logits",
  "faster_rcnn": "box_head/logits, box_head/offsets",
  "mask_rcnn": "box_head/logits, box_head/offsets, mask_head/logits",
}


@pytest.mark.parametrize("net", HEADS)
def test_heads_for_other_classes_start_anew(net, tmp_path, capsys):
  """The rest is the file's, bit for bit; for as many classes all is."""
  config = detector(net)
  arrays = drawn(shapes(config, scenes(5)))
  source = saved(tmp_path / "own.safetensors", arrays)
  taken = load(config, source)
  assert capsys.readouterr().err.endswith(f"start anew: {HEADS[net]} (5 classes there, 3 here)\n")
  left = set(arrays) - set(taken)
  assert left == {name for name in arrays if any(f"/{head}/" in f"/{name}" for head in HEADS[net].split(", "))}
  assert all(np.array_equal(value, arrays[name]) for name, value in taken.items())
  if net in ("ssd", "rcnn"):
    assert set(load(config, source, scenes(5))) == set(arrays)
    assert not capsys.readouterr().err


def test_a_run_on_digits_starts_one_on_a_single_class(tmp_path, capsys):
  config = detector("mask_rcnn")
  arrays = run(tmp_path / "digits", config, scenes(10))
  taken = load(config, tmp_path / "digits", scenes(1))
  assert f"start anew: {HEADS['mask_rcnn']} (10 classes there, 1 here)\n" in capsys.readouterr().err
  assert {"box_head/fc7", "mask_head/conv5", "rpn/scores"} <= {
    name.split("/", 1)[1].rpartition("/")[0] for name in taken
  }
  assert len(arrays) - len(taken) == 6


def test_patterns_find_the_svms(tmp_path, capsys):
  """Their leaves and those of the regressions have the same names."""
  config = detector("rcnn")
  arrays = drawn(shapes(config))
  source = saved(tmp_path / "own.safetensors", arrays)
  taken = load(config, source, model__init_new=("^svm/",))
  assert set(arrays) - set(taken) == {f"svm/{leaf}" for leaf in ("weights", "bias", "fitted")}
  assert "start anew: svm (as asked)\n" in capsys.readouterr().err
  taken = load(config, source, model__init_new=("^regression/weights", "^net/conv1/"))
  assert set(arrays) - set(taken) == {"regression/weights", "params/net/conv1/kernel", "params/net/conv1/bias"}


def mistakes() -> dict:
  """{what: (detector, arrays of the file, what is said)}."""
  pyramid, ssd = detector("faster_rcnn", **WHOLE), detector("ssd")
  ours = lambda name, **fields: drawn(_variables(models.create(name, **fields)))
  small = {"features": WIDTHS, "hidden_size": 16}
  return {
    "a deeper ResNet": (
      pyramid, resnet((1, 1, 2, 1)), r"fit: \w+/stage3_block2/\w+/\w+ is not here; .*; and 5 more$"
    ),
    "a wider ResNet": (pyramid, resnet(width=16), r"/mean is \(16,\) there, \(8,\) here; .*; and \d+ more$"),
    "VGG16 for a ResNet": (pyramid, vgg16(), "not the weights of model 'fasterrcnn_resnet50_fpn'; .* missing: "),
    "AlexNet for VGG16": (ssd, alexnet(), "not the weights of model 'vgg16'; .* missing: "),
    "a part of VGG16": (
      ssd, {key: value for key, value in vgg16().items() if key not in ("features.0.bias", "classifier.0.weight")},
      r"not the weights of model 'vgg16'; 2 missing: features.0.bias, classifier.0.weight$",
    ),
    "VGG11": (ssd, ours("vgg11", **small), r"fit: params/conv1_2/\w+ is not there; .*; and \d+ more$"),
    "VGG19": (ssd, ours("vgg19", **small), r"fit: params/conv3_4/\w+ is not here; .*; and 1 more$"),
    "norms": (ssd, ours("vgg16_bn", **small), r"fit: (params|batch_stats)/norm1_1/\w+ is not here; .*; and \d+ more$"),
    "another body": (
      detector("rcnn", body="alexnet_original"), alexnet(),
      r"params/net/conv1/kernel is \(11, 11, 3, 8\) there, \(11, 11, 3, 12\) here; ",
    ),
    "no weights of a net": (detector("fast_rcnn"), {"a.b": np.ones(2, "f")}, "weights of model 'vgg16'; 32 missing: "),
    "another net of ours": (pyramid, {"params/fc/kernel": np.ones(2, "f")}, r"/mean is not there; .*; and \d+ more$"),
    "heads of another width": (
      detector("fast_rcnn"), drawn(shapes(detector("fast_rcnn", hidden_size=32))),
      r"fit: params/boxes/kernel is \(32, 16\) there, \(64, 16\) here; .*; and 1 more$",
    ),
  }  # fmt: skip


def _variables(module) -> dict:
  image = np.zeros((1, SIDE, SIDE, 3), np.float32)
  variables = jax.eval_shape(lambda: module.init(jax.random.PRNGKey(0), image, train=False))
  return weights.flatten(variables, lambda leaf: leaf.shape)


def test_mistakes_are_one_line(tmp_path):
  for what, (config, arrays, said) in mistakes().items():
    with pytest.raises(UserError, match=said) as raised:
      load(config, saved(tmp_path / "w.safetensors", arrays))
    assert "\n" not in str(raised.value), what
    assert len(str(raised.value)) < 1500, what
