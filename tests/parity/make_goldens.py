"""Makes tests/goldens/classifiers/*.npz: public image classifiers at sizes and settings that shared goldens lack.

  python tests/parity/make_goldens.py                     # all of them
  python tests/parity/make_goldens.py vgg13 xo_net        # these

Not run by the test suite; needs torch and torchvision's Python files, and nothing of this project but `seeded.py`, so
that whatever a file holds was computed by torch alone. Made with torch 2.13.0 and torchvision 0.28.0 on a CPU.

Who is compared with: `torchvision.models.*` as they come (`resnet50` with the kwarg "stride_in_1x1" has its strides
moved from the second to the first convolution of its bottlenecks, as in the paper); `akamaster.*`, the CIFAR ResNets
with the names of github.com/akamaster/pytorch_resnet_cifar10, option A, with "residual" false the paper's plain nets;
`torch.nn.*`, layouts of papers that torchvision lacks, written out in torch_layouts.py in torch's own layers.

The format is that of seeded.py: the weights are not in a file but are made again from its seed and its list of tensors.
Arrays in a file: "out/logits" and "mid/<stage>" in evaluation mode; "out/train_logits", "out/train_aux/<i>" in the
reference's order, "out/train_loss" and "grad_norms" (L2, one for each of meta["grad_names"]) of one step in train mode
with all dropout at 0; "out/bn_after/<norm>" the running statistics after it. meta["float32_error"]: each of these
against the same in float64, as max |difference| / max |value|; for grad_norms the largest relative difference of any
parameter, but for those whose gradient is zero in exact arithmetic.
"""

import copy
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import seeded
import torch
import torch_layouts
from torch import nn
from torch.nn import functional as F  # noqa: N812

try:
  import torchvision
except RuntimeError:
  # Its compiled operators load only beside the build of torch that they were compiled for. No classifier uses one, but
  # the package registers shapes for these two as it is imported, so they have to exist.
  OPERATORS = torch.library.Library("torchvision", "DEF")
  for operator in ("nms", "qnms"):
    OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
  import torchvision

FOLDER = Path(__file__).parents[1] / "goldens" / "classifiers"


def resnet50(stride_in_1x1=False, **kwargs):
  """torchvision's; `stride_in_1x1`: strides where the paper has them."""
  model = torchvision.models.resnet50(**kwargs)
  for module in model.modules():
    if stride_in_1x1 and isinstance(module, torchvision.models.resnet.Bottleneck):
      module.conv1.stride, module.conv2.stride = module.conv2.stride, (1, 1)
  return model


WRITTEN_HERE = {
  "torchvision.models.resnet50": resnet50,
  "akamaster.resnet20": lambda **kwargs: torch_layouts.CifarResNet(3, **kwargs),
  "akamaster.resnet56": lambda **kwargs: torch_layouts.CifarResNet(9, **kwargs),
  "torch.nn.alexnet_original": torch_layouts.alexnet_original,
  "torch.nn.googlenet_original": torch_layouts.GoogLeNetOriginal,
  "torch.nn.simple_convnet": torch_layouts.simple_convnet,
  "torch.nn.xo_net": torch_layouts.xo_net,
}


class Case(NamedTuple):
  """One file.

  Attributes:
    model, kwargs: what is built.
    shape: [C, H, W] of an image.
    seed: of the weights; those of the inputs follow from it.
    mids: {stage in the file: the reference's module} or the modules' names.
    gains: {end of a tensor's name: factor}: on He's deviation of a kernel, or the mean of a norm's scale.
    aux_weight: of each auxiliary classifier's cross-entropy; 0: none.
    train_batch, train_shape: of the training step; None: as `shape`.
    note: what a reader has to know besides.
  """

  model: str
  kwargs: dict
  shape: tuple[int, int, int]
  seed: int
  mids: dict | tuple
  gains: dict
  aux_weight: float = 0
  train_batch: int = 2
  train_shape: tuple[int, int, int] | None = None
  note: str = ""


VGG_HEAD, GOOGLE_HEAD = {"classifier.6.weight": 0.6}, {"fc.weight": 0.3, "fc2.weight": 0.3}
PLAIN = "shortcuts left out of every block: the paper's plain net"
LRN = "; conv1 is scaled so that response normalisation has something to do"
# Response normalisation matters for large maps only; what follows it brings them back to about 1.
LRN_ALEXNET = {"conv1.weight": 12, "conv3.weight": 0.1, "fc8.weight": 0.5}
ENTRANCE = ("branch1", "branch2_reduce", "branch3_reduce", "branch4")
LRN_GOOGLENET = {"conv1.weight": 30, **{f"inception3a.{name}.weight": 0.06 for name in ENTRANCE}, **GOOGLE_HEAD}
TV, AS_IS = "torchvision.models.", {"init_weights": False}
CASES = {
  "vgg13": Case(TV + "vgg13", {"num_classes": 10}, (3, 64, 64), 11, ("features.9", "features"), VGG_HEAD),
  "vgg11_bn": Case(TV + "vgg11_bn", {"num_classes": 10}, (3, 64, 64), 12, ("features.7", "features"), VGG_HEAD),
  "vgg13_bn": Case(TV + "vgg13_bn", {"num_classes": 10}, (3, 64, 64), 13, ("features.13", "features"), VGG_HEAD),
  "vgg19_bn": Case(TV + "vgg19_bn", {"num_classes": 10}, (3, 64, 64), 14, ("features.13", "features"), VGG_HEAD),
  "vgg11_odd": Case(TV + "vgg11", {"num_classes": 10}, (3, 45, 61), 15, ("features.5", "features"), VGG_HEAD),
  "alexnet_odd": Case(
    TV + "alexnet", {"num_classes": 5}, (3, 79, 101), 16, ("features.2", "features"), {"classifier.6.weight": 0.5}
  ),
  "resnet18_odd": Case(
    TV + "resnet18", {"num_classes": 7}, (3, 75, 97), 17, ("maxpool", "layer2", "layer4"),
    {"bn2.weight": 0.35, "fc.weight": 0.4},
  ),
  "resnet50_odd": Case(
    TV + "resnet50", {"num_classes": 12}, (3, 65, 64), 18, ("layer1", "layer2", "layer4"),
    {"bn3.weight": 0.3, "fc.weight": 0.35}, train_batch=4,
  ),
  "resnet50_stride_in_1x1": Case(
    TV + "resnet50", {"num_classes": 12, "stride_in_1x1": True}, (3, 64, 64), 19, ("layer2", "layer4"),
    {"bn3.weight": 0.3, "fc.weight": 0.35}, train_batch=4,
    note="the stride of each bottleneck moved from conv2 (3 x 3) to conv1 (1 x 1)",
  ),
  "googlenet_odd": Case(
    TV + "googlenet", {"num_classes": 6, "aux_logits": True, **AS_IS}, (3, 75, 83), 20,
    ("inception3a", "inception4d", "inception5b"), GOOGLE_HEAD, 0.3,
  ),
  "googlenet_odd_transform_input": Case(
    TV + "googlenet", {"num_classes": 6, "aux_logits": True, "transform_input": True, **AS_IS}, (3, 83, 75), 21,
    ("inception4a",), {"fc.weight": 0.8, "fc2.weight": 0.3}, 0.3, train_batch=4,
  ),
  "googlenet_odd_no_aux": Case(
    TV + "googlenet", {"num_classes": 6, "aux_logits": False, **AS_IS}, (3, 75, 83), 62, ("inception5b",),
    GOOGLE_HEAD, train_batch=4,
  ),
  "inception_v3_odd": Case(
    TV + "inception_v3", {"num_classes": 6, "aux_logits": False, "transform_input": True, **AS_IS}, (3, 107, 91),
    43, ("Mixed_5d", "Mixed_7c"), {"fc.weight": 1.5}, train_batch=8,
  ),
  "inception_v3_aux": Case(
    TV + "inception_v3", {"num_classes": 6, "aux_logits": True, **AS_IS}, (3, 107, 91), 24, ("Mixed_6e",),
    {}, 0.4, train_batch=4, train_shape=(3, 299, 347),
    note="train_x is larger than x: with its auxiliary classifier the reference trains on 299 pixels at least, and "
    "at 347 that sees 17 x 20, of which 1 x 2 are left to average",
  ),
  "cifar_resnet20": Case(
    "akamaster.resnet20", {}, (3, 32, 32), 25, ("layer1", "layer2", "layer3"), {"bn2.weight": 0.35}
  ),
  "cifar_resnet56": Case(
    "akamaster.resnet56", {}, (3, 32, 32), 26, ("layer1", "layer2", "layer3"), {"bn2.weight": 0.2}
  ),
  "cifar_plain20": Case(
    "akamaster.resnet20", {"residual": False}, (3, 32, 32), 27, ("layer1", "layer2", "layer3"), {}, note=PLAIN
  ),
  "alexnet_original": Case(
    "torch.nn.alexnet_original", {"num_classes": 10}, (3, 227, 227), 28,
    {"pool1": "pool1", "pool2": "pool2", "pool5": "pool5", "fc6": "relu6", "fc7": "relu7"}, LRN_ALEXNET,
    note="mid/fc6 and mid/fc7 behind their rectifiers" + LRN,
  ),
  "googlenet_original": Case(
    "torch.nn.googlenet_original", {"num_classes": 10, "aux_logits": True}, (3, 224, 224), 29,
    ("pool2", "inception3a", "inception4a", "inception5b"), LRN_GOOGLENET, 0.3,
    note="train_aux is (aux2, aux1)" + LRN,
  ),
  "googlenet_original_odd": Case(
    "torch.nn.googlenet_original", {"num_classes": 10, "aux_logits": False}, (3, 75, 83), 30,
    ("pool2", "inception4a", "inception5b"), LRN_GOOGLENET, note=LRN[2:],
  ),
  "simple_convnet": Case("torch.nn.simple_convnet", {}, (1, 28, 28), 31, ("pool1", "hidden"), {}),
  "simple_convnet_two": Case(
    "torch.nn.simple_convnet", {"kernel_size": 3, "convs": 2}, (1, 28, 28), 32, ("pool1", "hidden"), {}
  ),
  "xo_net": Case("torch.nn.xo_net", {}, (1, 9, 9), 33, ("pool1",), {}),
}  # fmt: skip

# The papers' layouts as counted from their tables: (kwargs, shape, parameters).
COUNTS = {
  "akamaster.resnet20": ({}, (3, 32, 32), 269_722),
  "akamaster.resnet56": ({}, (3, 32, 32), 853_018),
  "torch.nn.alexnet_original": ({}, (3, 227, 227), 60_965_224),
  "torch.nn.googlenet_original": ({}, (3, 224, 224), 13_378_280),
  "torch.nn.simple_convnet": ({}, (1, 28, 28), 433_890),
}


def build(name: str, kwargs: dict, shape: tuple[int, int, int]) -> nn.Module:
  """The reference, its lazy layers made for images of that shape and its dropout at 0."""
  model = (WRITTEN_HERE.get(name) or getattr(torchvision.models, name.rpartition(".")[2]))(**kwargs)
  for module in model.modules():
    if isinstance(module, nn.Dropout):
      module.p = 0.0
  if any(isinstance(module, nn.modules.lazy.LazyModuleMixin) for module in model.modules()):
    with torch.no_grad():
      model.train()(torch.zeros(2, *shape))
  return model


def parameters(model):
  return sum(p.numel() for p in model.parameters())


def check_counts():
  for name, (kwargs, shape, count) in COUNTS.items():
    assert parameters(build(name, kwargs, shape)) == count, name
  assert parameters(build("torch.nn.googlenet_original", {"aux_logits": False}, (3, 224, 224))) == 6_998_552


def describe(model: nn.Module, gains: dict) -> list:
  """[name, shape, kind, a, b] of every tensor: what `seeded.tensor` is to make."""
  lines = []
  for name, tensor in model.state_dict().items():
    leaf, shape = name.rpartition(".")[2], list(tensor.shape)
    gain = next((factor for end, factor in gains.items() if name.endswith(end)), 1.0)
    if leaf == "num_batches_tracked":
      line = ["constant", 0, 0]
    elif leaf == "running_var":
      line = ["uniform", 0.5, 1.5]
    elif leaf in ("running_mean", "bias"):
      line = ["normal", 0, 0.1]
    elif len(shape) == 1:
      line = ["normal", gain, 0.1 * gain]
    else:
      line = ["normal", 0, float(f"{gain * math.sqrt(2 / math.prod(shape[1:])):.4g}")]
    lines.append([name, shape, *line])
  return lines


def compute(model: nn.Module, case: Case, inputs: dict) -> dict[str, np.ndarray]:
  """Every array of a file, whole, in the model's own precision. Changes the model's running statistics."""
  results, handles = {}, []
  mids = case.mids if isinstance(case.mids, dict) else {name: name for name in case.mids}

  def keeper(key):
    return lambda module, args, output: results.__setitem__(key, output.detach().clone())  # in-place layers follow

  for stage, name in mids.items():
    handles.append(model.get_submodule(name).register_forward_hook(keeper(f"mid/{stage}")))
  with torch.no_grad():
    results["out/logits"] = model.eval()(inputs["x"])
  for handle in handles:
    handle.remove()
  outputs = model.train()(inputs["train_x"])
  logits, *aux = outputs if isinstance(outputs, tuple) else (outputs,)
  assert bool(aux) == bool(case.aux_weight)
  loss = F.cross_entropy(logits, inputs["labels"])
  loss = loss + case.aux_weight * sum(F.cross_entropy(a, inputs["labels"]) for a in aux)
  loss.backward()
  results |= {"out/train_logits": logits, "out/train_loss": loss}
  results |= {f"out/train_aux/{i}": a for i, a in enumerate(aux)}
  norms = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d) and "aux" not in name.lower()]
  for name in norms[:1] + norms[-1:]:
    for leaf in ("running_mean", "running_var"):
      results[f"out/bn_after/{name}.{leaf}"] = getattr(model.get_submodule(name), leaf)
  results["grad_norms"] = torch.stack([p.grad.double().norm() for p in model.parameters()])
  model.zero_grad(set_to_none=True)
  return {key: value.detach().numpy() for key, value in results.items()}


def make(name: str, case: Case) -> dict[str, np.ndarray]:
  """What the file of that name holds: arrays by key, "meta" among them."""
  model = build(case.model, case.kwargs, case.train_shape or case.shape)
  meta = {"case": name, "seed": case.seed, "params": parameters(model), "tensors": describe(model, case.gains)}
  meta |= {"tied": {}, "model": case.model, "kwargs": case.kwargs, "note": note(case, model)}
  weights = seeded.weights(meta)
  model.load_state_dict({key: torch.from_numpy(np.array(value)) for key, value in weights.items()})
  classes, train = meta["tensors"][-1][1][0], [case.train_batch, *(case.train_shape or case.shape)]
  makers = {
    "x": ("image", {"seed": 10 * case.seed + 1, "shape": [2, *case.shape]}),
    "train_x": ("image", {"seed": 10 * case.seed + 2, "shape": train}),
    "labels": ("tokens", {"seed": 10 * case.seed + 3, "shape": train[:1], "low": 0, "high": classes}),
  }
  inputs = {key: torch.from_numpy(getattr(seeded, maker)(**given)) for key, (maker, given) in makers.items()}
  exact = copy.deepcopy(model).double()
  single = compute(model, case, inputs)
  double = compute(exact, case, {key: x.double() if x.is_floating_point() else x for key, x in inputs.items()})
  error = {key: np.abs(single[key] - double[key]).max() / np.abs(double[key]).max() for key in single}
  norms = double["grad_norms"]
  error["grad_norms"] = (np.abs(single["grad_norms"] - norms) / norms)[norms > 1e-6 * norms.max()].max()
  meta |= {"sha256": seeded.digest(weights), "float32_error": {key: float(f"{e:.2g}") for key, e in error.items()}}
  meta |= {"inputs": makers, "sampled": {}}
  stored = {}
  for key, value in single.items():
    stored[key] = seeded.sample(value)
    if stored[key].size < value.size:
      whole = value.astype(np.float64)
      meta["sampled"][key] = {"shape": list(value.shape), "mean": float(whole.mean()), "std": float(whole.std())}
  meta["versions"] = {"torch": torch.__version__, "torchvision": torchvision.__version__.partition("+")[0]}
  meta["grad_names"] = [key for key, _ in model.named_parameters()]
  return stored | {"meta": np.array(json.dumps(meta))}


def note(case, model):
  parts = ["eval: out/logits, mid/*", "train mode with dropout 0: out/train_*, grad"]
  if case.aux_weight:
    parts += [f"loss = CE(main) + {case.aux_weight} * sum of CE(aux)", "train_aux order as the reference returns it"]
  if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
    parts.append("out/bn_after = running statistics after that one train forward (first and last norm)")
  return "; ".join([*parts, case.note] if case.note else parts)


def main(names):
  check_counts()
  FOLDER.mkdir(parents=True, exist_ok=True)
  for name in names or CASES:
    stored = make(name, CASES[name])
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, **stored)
    worst = max(json.loads(str(stored["meta"]))["float32_error"].items(), key=lambda item: item[1])
    print(f"{name}: {path.stat().st_size} bytes, largest logit {np.abs(stored['out/logits']).max():.3g}, "
          f"loss {stored['out/train_loss']:.3g}, float32 error {worst[1]:.1e} in {worst[0]}", flush=True)  # fmt: skip


if __name__ == "__main__":
  main(sys.argv[1:])
