"""Public names of the detectors: torchvision's."""

import re

from flaxonomy.models.detection import ssd
from flaxonomy.models.interop.classifiers import FAMILIES as CLASSIFIERS
from flaxonomy.models.interop.classifiers import numbered
from flaxonomy.models.interop.family import LEAVES, Family

PLAIN = {  # of the layers with parameters, where torchvision numbers its Sequentials through
  **{f"conv{i}_{j}": f"backbone.features.{numbered(ssd.DEPTHS, i, j)}"
     for i, depth in enumerate(ssd.DEPTHS[:4], 1) for j in range(1, depth + 1)},
  **{f"conv5_{j}": f"backbone.extra.0.{2 * j - 1}" for j in (1, 2, 3)},
  "fc6": "backbone.extra.0.7.1", "fc7": "backbone.extra.0.7.3",
  **{f"{name}_{j}": f"backbone.extra.{i}.{2 * (j - 1)}" for i, name in enumerate(ssd.EXTRA, 1) for j in (1, 2)},
}  # fmt: skip
HEADS = {"logits": "head.classification_head", "boxes": "head.regression_head"}


def _ssd(module, path):
  source, _, kind = path.rpartition("_")
  return f"{HEADS[kind]}.module_list.{ssd.SOURCES.index(source)}" if kind in HEADS else PLAIN.get(path, "backbone")


def _ssd_tensor(name, leaf):
  return "backbone.scale_weight" if leaf == "conv4_3_scale" else f"{name}.{LEAVES[leaf]}"


def _ssd_told(tensors):
  first = f"{HEADS['logits']}.module_list.0.bias"
  return {"num_classes": len(tensors[first]) // ssd.PLACES[0]} if first in tensors else {}


RCNN = (
  (r"^pyramid/inner(\d)$", r"backbone.fpn.inner_blocks.\1.0"),
  (r"^pyramid/layer(\d)$", r"backbone.fpn.layer_blocks.\1.0"),
  (r"^rpn/conv$", "rpn.head.conv.0.0"), (r"^rpn/scores$", "rpn.head.cls_logits"),
  (r"^rpn/offsets$", "rpn.head.bbox_pred"), (r"^box_head/(fc\d)$", r"roi_heads.box_head.\1"),
  (r"^box_head/logits$", "roi_heads.box_predictor.cls_score"),
  (r"^box_head/offsets$", "roi_heads.box_predictor.bbox_pred"),
  (r"^mask_head/conv5$", "roi_heads.mask_predictor.conv5_mask"),
  (r"^mask_head/conv([1-4])$", lambda found: f"roi_heads.mask_head.{int(found[1]) - 1}.0"),
  (r"^mask_head/logits$", "roi_heads.mask_predictor.mask_fcn_logits"),
)  # fmt: skip
OLD = (  # names in the files that torchvision publishes, before these convolutions were Sequentials
  (r"(fpn\.(?:inner|layer)_blocks\.\d)(?=\.\w+$)", r"\1.0"), (r"rpn\.head\.conv(?=\.\w+$)", "rpn.head.conv.0.0"),
  (r"mask_head\.mask_fcn(\d)", lambda found: f"mask_head.{int(found[1]) - 1}.0"),
)  # fmt: skip


def _rcnn(module, path):
  top, _, rest = path.partition("/")
  if top == "backbone":
    return f"backbone.body.{CLASSIFIERS['ResNet'].names(module, rest)}"
  return _renamed(RCNN, path)


def _rcnn_told(tensors):
  last = "roi_heads.box_predictor.cls_score.bias"
  return {"num_classes": len(tensors[last])} if last in tensors else {}


def _rcnn_cleaned(tensors):
  return {_renamed(OLD, key): value for key, value in tensors.items()}


def _renamed(rules, name):
  for pattern, new in rules:
    name = re.sub(pattern, new, name)
  return name


_RCNN = Family(
  _rcnn, _rcnn_told, lambda module: {"box_head/fc6": module.features}, "backbone/stem", 64, cleaned=_rcnn_cleaned
)
FAMILIES = {
  "FasterRCNN": _RCNN,
  "MaskRCNN": _RCNN,
  "SSD": Family(_ssd, _ssd_told, stem="conv1_1", side=300, tensor=_ssd_tensor),
}
