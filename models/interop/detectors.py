"""Public names of the detectors: torchvision's."""

from flaxonomy.models.detection import ssd
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


FAMILIES = {"SSD": Family(_ssd, _ssd_told, stem="conv1_1", side=300, tensor=_ssd_tensor)}
