"""Image classifiers against golden files: evaluation, training mode, losses, gradients, statistics after a step."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import seeded
import training

from flaxonomy import models
from flaxonomy.models import interop
from flaxonomy.train.tasks import classification

NAMES = {"deepconvnet": "deep_convnet"}  # files without a model in their meta
IGNORED = {"init_weights", "weights", "progress", "dropout"}  # arguments that do not change what is computed here
STAGES = {  # public names of what is no module of ours: what a stage is called there
  "AlexNet": {"features.2": "pool1", "features.5": "pool2", "features.7": "conv3", "features.9": "conv4",
              "features": "pool5", "features.12": "pool5", "classifier.1": "fc6", "classifier.4": "fc7"},
  "ResNet": {"maxpool": "stem", "layer1": "stage1", "layer2": "stage2", "layer3": "stage3", "layer4": "stage4"},
  "CifarResNet": {"layer1": "stage1", "layer2": "stage2", "layer3": "stage3"},
  "GoogLeNet": {"maxpool1": "pool1", "maxpool2": "pool2", "maxpool3": "pool3", "maxpool4": "pool4"},
  "InceptionV3": {"maxpool1": "pool1", "maxpool2": "pool2"},
}  # fmt: skip


def compare(case: dict, stem: str) -> dict:
  """{key: (ours, theirs, tolerance)} for all that a classifier's golden file holds.

  Args:
    case: from seeded.load.
    stem: the file's name.
  """
  meta = case["meta"]
  name = meta["model"].rpartition(".")[2] if "model" in meta else NAMES[stem]
  known = models.lookup(name)[1]
  fields = {key: value for key, value in meta.get("kwargs", {}).items() if key not in IGNORED}
  if unknown := sorted(set(fields) - set(known)):
    raise KeyError(f"model {name!r} has no field for {unknown}")
  fields |= {key: 0.0 for key in known if key.startswith("dropout")}
  tensors = case["weights"] or seeded.weights(meta)
  variables = interop.from_torch(name, tensors, **fields)
  fields["num_classes"] = interop.model_of(name, tensors, **fields).num_classes
  model = models.create(name, **fields)
  found = _evaluation(model, variables, case) if "x" in case["in"] else {}
  labels = case["in"].get("labels", case["in"].get("t"))
  if labels is not None:
    found |= _training(model, name, fields, variables, case, labels)
  return {key: (ours, theirs, _tolerance(meta, key)) for key, (ours, theirs) in found.items()}


def _tolerance(meta, key) -> float:
  """1e-5, or three times what float32 costs the reference itself, at most 1e-4.

  Gradient norms: a unit whose input is nearly 0, or two that are nearly equal in a pooling window, may take another
  side here than there, which moves a parameter's norm by up to 1e-2 (goldens of deep nets with a batch of 2); so
  1e-3, or ten times the reference's own error, and the median over the parameters within 1e-4.
  """
  errors = meta.get("float32_error", {})
  if key == "grad/median of all":
    return max(1e-4, errors.get("grad_norms", 0.0))
  if key.startswith("grad/"):
    return min(max(1e-3, 10 * errors.get("grad_norms", 0.0)), 1e-2)
  return min(max(1e-5, 3 * errors.get(key, 0.0)), 1e-4)


def _evaluation(model, variables, case) -> dict:
  x = jnp.asarray(case["in"]["x"].transpose(0, 2, 3, 1))

  @jax.jit
  def run(variables):
    return model.apply(variables, x, train=False, capture_intermediates=True, mutable=["intermediates"])

  stages, kept = run(variables)
  found = {"out/logits": (stages["logits"], case["out"]["logits"])}
  modules = _modules(model, kept["intermediates"])
  public = STAGES.get(type(model).__name__, {}) | (_vgg_pools(model) if hasattr(model, "batch_norm") else {})
  for key, theirs in case["mid"].items():
    ours = stages.get(public.get(key, key))
    if ours is None and key in modules:
      ours = modules[key]
      if theirs.min() >= 0:  # torch's rectifiers work in place, so that a module's kept output is the rectified one
        ours = jax.nn.relu(ours)
    if ours is not None:
      found[f"mid/{key}"] = (_sampled(ours, theirs), theirs)
  return found


def _vgg_pools(model) -> dict:
  """{public name: stage} of VGG's poolings, which are numbered through with its convolutions."""
  each, at, found = 3 if model.batch_norm else 2, -1, {}
  for i, depth in enumerate(model.depths, 1):
    at += each * depth + 1
    found[f"features.{at}"] = f"pool{i}"
  return found | {"features": "pool5"}


def _modules(model, kept, path=()) -> dict:
  """{public name: output} of every module that has a public name."""
  found = {}
  for key, value in kept.items():
    if key == "__call__":
      if path and not isinstance(value[0], dict):
        with contextlib.suppress(KeyError, AttributeError):  # no public module
          found[interop.torch_module(model, path)] = value[0]
    elif isinstance(value, dict):
      found |= _modules(model, value, (*path, key))
  return found


def _sampled(ours, theirs):
  """Our array [B, H, W, C] or [B, C] as torch lays it out, and its sample where that is what is stored."""
  ours = np.asarray(ours)
  ours = ours.transpose(0, 3, 1, 2) if ours.ndim == 4 else ours
  return ours if ours.shape == theirs.shape else seeded.sample(ours)


def _training(model, name, fields, variables, case, labels) -> dict:
  x = jnp.asarray(case["in"].get("train_x", case["in"]["x"]).transpose(0, 2, 3, 1))
  target = jax.nn.one_hot(jnp.asarray(labels, jnp.int32), fields["num_classes"])
  variables = jax.tree.map(jnp.asarray, variables)
  collections = {key: value for key, value in variables.items() if key != "params"}

  def loss(params):
    stages, after = model.apply({"params": params, **collections}, x, train=True, mutable=list(collections),
                                rngs={"dropout": jax.random.PRNGKey(0)})  # fmt: skip
    return classification.objective(model, stages, target).mean(), (stages, after)

  (value, (stages, after)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
  ours = {"out/train_logits": stages["logits"], "out/train_loss": value}
  # In the reference's order: the deeper classifier first.
  aux = [stages[key] for key in sorted(stages, reverse=True) if re.fullmatch(r"aux\d?", key)]
  ours |= {f"out/train_aux/{i}": logits for i, logits in enumerate(aux)}
  if "adam_losses" in case["meta"]:
    return training.gradients(interop.to_torch(name, {"params": grads}, **fields), case["grad"])
  statistics = interop.to_torch(name, after, **fields) if after else {}
  ours |= {f"out/bn_after/{key}": array for key, array in statistics.items()}
  found = {key: (ours[key], case["out"][key[4:]]) for key in ours if key[4:] in case["out"]}
  return found | training.gradients(interop.to_torch(name, {"params": grads}, **fields), case["grad"])
