"""Every model by name: one literal table, looked up by `create`. Modules take plain fields, never a config."""

import dataclasses
import functools
import importlib
import types
import typing

from flax import linen as nn

from flaxonomy.errors import UserError, unknown

MODELS = {
  "mlp": "vision.mlp:MLP",
  "simple_convnet": "vision.simple_convnet:SimpleConvNet",
  "xo_net": "vision.simple_convnet:XONet",
  "deep_convnet": "vision.deep_convnet:DeepConvNet",
  "alexnet": "vision.alexnet:AlexNet",
  "alexnet_original": "vision.alexnet:AlexNetOriginal",
  "vgg11": "vision.vgg:VGG11",
  "vgg13": "vision.vgg:VGG13",
  "vgg16": "vision.vgg:VGG16",
  "vgg19": "vision.vgg:VGG19",
  "vgg11_bn": "vision.vgg:VGG11BN",
  "vgg13_bn": "vision.vgg:VGG13BN",
  "vgg16_bn": "vision.vgg:VGG16BN",
  "vgg19_bn": "vision.vgg:VGG19BN",
  "googlenet": "vision.googlenet:GoogLeNet",
  "googlenet_original": "vision.googlenet:GoogLeNetOriginal",
  "inception_v3": "vision.inception:InceptionV3",
  "resnet18": "vision.resnet:ResNet18",
  "resnet34": "vision.resnet:ResNet34",
  "resnet50": "vision.resnet:ResNet50",
  "resnet101": "vision.resnet:ResNet101",
  "resnet152": "vision.resnet:ResNet152",
  "resnet20": "vision.resnet:ResNet20",
  "resnet32": "vision.resnet:ResNet32",
  "resnet44": "vision.resnet:ResNet44",
  "resnet56": "vision.resnet:ResNet56",
  "resnet110": "vision.resnet:ResNet110",
  "darknet19": "vision.darknet:Darknet19",
  "darknet53": "vision.darknet:Darknet53",
  "fasterrcnn_resnet50_fpn": "detection.faster_rcnn:FasterRCNN",
  "fasterrcnn_vgg16": "detection.faster_rcnn:FasterRCNNVGG16",
  "maskrcnn_resnet50_fpn": "detection.mask_rcnn:MaskRCNN",
  "ssd300_vgg16": "detection.ssd:SSD",
  "rcnn_alexnet": "detection.rcnn:RCNN",
  "fast_rcnn_vgg16": "detection.fast_rcnn:FastRCNN",
  "yolo_v1": "detection.yolo_v1:YOLOv1",
  "yolo_v2": "detection.yolo_v2:YOLOv2",
  "yolo_v3": "detection.yolo_v3:YOLOv3",
  "rnn": "sequence.rnn:RNN",
  "lstm": "sequence.rnn:LSTM",
  "gru": "sequence.rnn:GRU",
  "rnn_lm": "sequence.recurrent_lm:RNNLM",
  "lstm_lm": "sequence.recurrent_lm:LSTMLM",
  "gru_lm": "sequence.recurrent_lm:GRULM",
  "forecaster": "sequence.forecaster:Forecaster",
  "seq2seq": "sequence.seq2seq:Seq2Seq",
  "gpt": "sequence.gpt:GPT1",
  "gpt2": "sequence.gpt:GPT",
  "gpt2_medium": "sequence.gpt:GPT2Medium",
  "gpt2_large": "sequence.gpt:GPT2Large",
  "gpt2_xl": "sequence.gpt:GPT2XL",
  "transformer": "sequence.transformer:Transformer",
  "transformer_big": "sequence.transformer:TransformerBig",
  "marian": "sequence.transformer:Marian",
  "bilstm_classifier": "sequence.text_classifier:BiLSTMClassifier",
  "transformer_classifier": "sequence.text_classifier:TransformerClassifier",
  "dcgan": "generative.dcgan:DCGAN",
}


def create(name: str, /, **fields) -> nn.Module:
  """The module of this name.

  Args:
    name: a key of `MODELS`.
    **fields: fields of the module.

  Raises:
    UserError: unknown model or field, with the nearest names.
  """
  module, known = lookup(name)
  for field, value in fields.items():
    if field not in known:
      raise unknown(f"field of model {name!r}:", field, known, "(config field 'model.fields')")
    if not _like(value, default := known[field], _kinds(module)[field]):
      raise UserError(
        f"field {field!r} of model {name!r} must be like {default!r}, not {value!r} (config field 'model.fields')"
      )
  return module(**fields)


def lookup(name: str):
  """(what makes the module of this name, {field: default}).

  Raises:
    UserError: unknown model, with the nearest names.
  """
  if name not in MODELS:
    raise unknown("model", name, MODELS, "(config field 'model.name')")
  path, symbol = MODELS[name].split(":")
  make = getattr(importlib.import_module(f"flaxonomy.models.{path}"), symbol)
  given = make.keywords if isinstance(make, functools.partial) else {}
  cls = make.func if isinstance(make, functools.partial) else make
  known = {f.name: given.get(f.name, f.default) for f in dataclasses.fields(cls) if f.name not in ("parent", "name")}
  return make, known


def _kinds(make) -> dict:
  """{field: annotation} of a module, or of a partial of one."""
  return {f.name: f.type for f in dataclasses.fields(make.func if isinstance(make, functools.partial) else make)}


def _like(value, default, kind) -> bool:
  """Whether a value is of its default's type; counts are positive, rates from 0 to below 1, tuples of their length."""
  if isinstance(kind, types.UnionType):  # such as float | None
    other = next(a for a in typing.get_args(kind) if a is not type(None))
    return value is None or _like(value, {float: 0.5, str: ""}.get(other), other)
  length = typing.get_args(kind) if isinstance(default, tuple) else ()
  if length and isinstance(value, tuple) and length[-1] is not Ellipsis and len(value) != len(length):
    return False
  if isinstance(default, bool) or default is None or not isinstance(default, (int, float, str, tuple)):
    return not isinstance(default, bool) or isinstance(value, bool)
  if isinstance(default, tuple):
    return isinstance(value, tuple) and all(_like(v, default[0], type(default[0])) for v in value)
  if isinstance(default, int):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
  if isinstance(default, float):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1
  return isinstance(value, str)
