"""Public names of the image classifiers: torchvision's, akamaster's CIFAR ResNets, and plain ones for all others.

For each family: our module's path to the public one, what a checkpoint tells of its model, and which dense layers see a
flattened map.
"""

import math
import re

from flaxonomy.models.interop.family import Family


def _plain(module, path):
  """Our own names, for layouts that nobody has published: ConvUnit's inner convolution bears its unit's name."""
  return re.sub(r"/conv$", "", path).replace("/", ".") if path.count("/") else path


def _classes(head):
  """Tells num_classes from the last layer's bias."""
  return lambda tensors: {"num_classes": len(tensors[head])} if head in tensors else {}


ALEXNET = {
  "conv1": "features.0", "conv2": "features.3", "conv3": "features.6", "conv4": "features.8", "conv5": "features.10",
  "fc6": "classifier.1", "fc7": "classifier.4", "fc8": "classifier.6",
}  # fmt: skip


def _alexnet(module, path):
  return ALEXNET[path]


def _alexnet_convs(module):
  return [f"conv{i}" for i in range(1, 6)]


def _vgg(module, path):
  """Layers are numbered through, with their rectifiers (and norms) and the poolings between the stages."""
  dense = {"fc6": "classifier.0", "fc7": "classifier.3", "fc8": "classifier.6"}
  if path in dense:
    return dense[path]
  kind, stage, number = re.fullmatch(r"(conv|norm)(\d)_(\d)", path).groups()
  before = numbered(module.depths, int(stage), int(number), 3 if module.batch_norm else 2)
  return f"features.{before + (kind == 'norm')}"


def _vgg_convs(module):
  return [f"conv{i}_{depth}" for i, depth in enumerate(module.depths, 1)]


def numbered(depths, stage: int, number: int, each: int = 2) -> int:
  """The place of a convolution of VGG in one list of all, `each` for a convolution and 1 for a pooling."""
  return sum(each * depth + 1 for depth in depths[: stage - 1]) + each * (number - 1)


def _resnet(module, path):
  rules = (
    (r"^stem$", "conv1"), (r"^stem_norm$", "bn1"), (r"^head$", "fc" if hasattr(module, "depths") else "linear"),
    (r"shortcut_norm$", "downsample.1"), (r"shortcut$", "downsample.0"), (r"/norm(\d)$", r"/bn\1"),
  )  # fmt: skip
  for pattern, public in rules:
    path = re.sub(pattern, public, path)
  path = re.sub(r"^stage(\d)_block(\d+)", lambda found: f"layer{found[1]}.{int(found[2]) - 1}", path)
  return path.replace("/", ".")


def _googlenet(module, path):
  if module.original:
    return _plain(module, path)
  path = re.sub(r"^conv2(?=/|$)", "conv3", path).replace("conv2_reduce", "conv2")
  path = re.sub(r"branch([23])_reduce", r"branch\1.0", path)
  path = re.sub(r"branch([23])(?=/|$)", r"branch\1.1", path)
  path = re.sub(r"branch4", "branch4.1", path)
  return re.sub(r"/norm$", "/bn", path).replace("/", ".")


def _googlenet_told(tensors):
  return _classes("fc.bias")(tensors) | {"aux_logits": any(key.startswith("aux1.") for key in tensors)}


def _inception(module, path):
  return re.sub(r"/norm$", "/bn", path).replace("/", ".")


def _inception_told(tensors):
  return _classes("fc.bias")(tensors) | {"aux_logits": any(key.startswith("AuxLogits.") for key in tensors)}


DEEP_CONVNET = {  # a torch Sequential of the book's layers
  "conv1_1": "0", "conv1_2": "2", "conv2_1": "5", "conv2_2": "7", "conv3_1": "10", "conv3_2": "12", "fc1": "16",
  "fc2": "18",
}  # fmt: skip


def _fc6(module):
  return {"fc6": module.features[-1]}


def _by_bias(names, convs):
  """Tells widths from the biases of each stage's last convolution and of fc6, and the pooling from fc6's inputs."""

  def sizes(module, tensors):
    layers = [names(module, path) for path in (*convs(module), "fc6")]
    *features, hidden = (_shape(tensors, f"{layer}.bias")[0] for layer in layers)
    if not (hidden and all(features)):
      return {}
    pool = math.isqrt(_shape(tensors, f"{layers[-1]}.weight")[-1] // features[-1])
    told = {"features": tuple(features), "hidden_size": hidden}
    return told | ({"pool": pool} if pool and hasattr(module, "pool") else {})

  return sizes


def _resnet_sizes(module, tensors):
  blocks = [{found[1] for key in tensors if (found := re.match(rf"layer{i}\.(\d+)\.", key))} for i in (1, 2, 3, 4)]
  width = _shape(tensors, "conv1.weight")[0]
  if not (width and all(blocks)):
    return {}
  return {"depths": tuple(map(len, blocks)), "bottleneck": "layer1.0.conv3.weight" in tensors, "width": width}


def _shape(tensors, name) -> tuple:
  return tensors[name].shape or (0,) if name in tensors else (0,)


def _googlenet_flattened(module):
  return dict.fromkeys(("aux1/fc1", "aux2/fc1"), 128 // module.shrink)


FAMILIES = {
  "AlexNet": Family(_alexnet, _classes("classifier.6.bias"), _fc6, sizes=_by_bias(_alexnet, _alexnet_convs)),
  "AlexNetOriginal": Family(
    _plain, _classes("fc8.bias"), _fc6, side=227, sizes=_by_bias(_plain, _alexnet_convs)
  ),
  "VGG": Family(_vgg, _classes("classifier.6.bias"), _fc6, "conv1_1", sizes=_by_bias(_vgg, _vgg_convs)),
  "GoogLeNet": Family(_googlenet, _googlenet_told, _googlenet_flattened, "conv1/conv"),
  "InceptionV3": Family(_inception, _inception_told, stem="Conv2d_1a_3x3/conv", side=299),
  "ResNet": Family(_resnet, _classes("fc.bias"), stem="stem", sizes=_resnet_sizes),
  "CifarResNet": Family(_resnet, _classes("linear.bias"), stem="stem", side=32),
  "DeepConvNet": Family(
    lambda module, path: DEEP_CONVNET[path], _classes("18.bias"), lambda module: {"fc1": module.features[-1]},
    "conv1_1", 28, 1
  ),
  "SimpleConvNet": Family(_plain, _classes("fc2.bias"), lambda module: {"fc1": module.features}, side=28, channels=1),
  "XONet": Family(_plain, _classes("fc.bias"), lambda module: {"fc": module.features}, side=9, channels=1),
}  # fmt: skip
