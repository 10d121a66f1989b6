"""Image classifiers against torchvision and the papers' layouts: every number of every golden file.

The quick files run with all other tests, one of each family at full size where that takes seconds; the rest, mostly
compilation, with `pytest -m goldens`.
"""

import check
import classifiers
import jax
import numpy as np
import pytest
import seeded

from flaxonomy import models
from flaxonomy.models import interop, norm
from flaxonomy.models.interop import classifiers as families

FOLDER = "tests/goldens/classifiers"
QUICK = (
  "alexnet", "vgg16_bn", "googlenet_transform_input", "inception_v3", "resnet18", "cifar_resnet20",
  "simple_convnet", "simple_convnet_two", "xo_net", "deepconvnet",
)  # fmt: skip
FILES = (
  "alexnet", "alexnet_odd", "alexnet_original",
  "vgg11", "vgg11_bn", "vgg11_odd", "vgg13", "vgg13_bn", "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
  "googlenet", "googlenet_odd", "googlenet_odd_no_aux", "googlenet_odd_transform_input", "googlenet_original",
  "googlenet_original_odd", "googlenet_transform_input",
  "inception_v3", "inception_v3_aux", "inception_v3_odd",
  "resnet18", "resnet18_odd", "resnet34", "resnet50", "resnet50_odd", "resnet50_stride_in_1x1", "resnet101",
  "resnet152",
  "cifar_plain20", "cifar_resnet20", "cifar_resnet56",
  "simple_convnet", "simple_convnet_two", "xo_net", "deepconvnet",
)  # fmt: skip
SHARED = {  # nets without a file of their own: built by the same lines as these, from another number of blocks
  "resnet32": "resnet56", "resnet44": "resnet56", "resnet110": "resnet56",
}  # fmt: skip


def path_of(root, stem):
  return root / (f"{FOLDER}/{stem}.npz" if stem != "deepconvnet" else f"tests/goldens/{stem}.npz")


def model_of(path):
  meta = seeded.load(path)["meta"]
  return meta["model"].rpartition(".")[2] if "model" in meta else classifiers.NAMES[path.stem]


@pytest.mark.parametrize(
  "stem", [stem if stem in QUICK else pytest.param(stem, marks=pytest.mark.goldens) for stem in FILES]
)
def test_every_number(stem, root):
  rows = check.check(path_of(root, stem))
  assert rows
  assert not [row for row in rows if not row.good]


def test_every_model_has_a_file(root):
  """And every file is checked. The plain net is resnet20 without its shortcuts, by a field."""
  folder = sorted(path.stem for path in (root / FOLDER).glob("*.npz"))
  assert sorted(FILES) == sorted([*folder, "deepconvnet"])
  assert set(QUICK) < set(FILES)
  held = {model_of(path_of(root, stem)) for stem in FILES}
  wanted = {name for name in models.MODELS if type(models.create(name)).__name__ in families.FAMILIES}
  assert held <= set(models.MODELS)
  assert wanted - held == set(SHARED)
  quick = {type(models.create(model_of(path_of(root, stem)))).__name__ for stem in QUICK}
  assert quick == {type(models.create(name)).__name__ for name in wanted} - {"AlexNetOriginal"}
  for name, other in SHARED.items():
    one, two = models.create(name), models.create(other)
    assert one.clone(blocks=two.blocks) == two
    assert other in held


def changed(root, tmp_path, stem, **arrays):
  """A copy of a file with some arrays replaced or added."""
  with np.load(path_of(root, stem)) as stored:
    kept = {key: stored[key] for key in stored.files}
  path = tmp_path / f"{stem}.npz"
  np.savez(path, **kept | {key: value(kept) if callable(value) else value for key, value in arrays.items()})
  return path


def test_one_number_that_is_off_is_bad(root, tmp_path):
  """By 3e-5 of the largest."""

  def off(kept):
    logits = kept["out/logits"].copy()
    logits.flat[3] += 3e-5 * np.abs(logits).max()
    return logits

  rows = {row.key: row for row in check.check(changed(root, tmp_path, "xo_net", **{"out/logits": off}))}
  assert [key for key, row in rows.items() if not row.good] == ["out/logits"]
  assert rows["out/logits"].error == pytest.approx(3e-5, rel=0.1)
  one_nan = lambda kept: np.where(np.arange(4) == 1, np.nan, kept["out/logits"].ravel()[:4]).reshape(2, 2)
  rows = check.check(changed(root, tmp_path, "xo_net", **{"out/logits": one_nan}))
  assert [row.key for row in rows if row.error == np.inf] == ["out/logits"]


def test_what_cannot_be_compared_is_bad(root, tmp_path):
  more = {"out/nothing": np.zeros(3), "mid/nowhere": np.zeros(3), "out/logits": np.zeros((2, 3))}
  rows = {row.key: row for row in check.check(changed(root, tmp_path, "xo_net", **more))}
  bad = {key for key, row in rows.items() if not row.good}
  assert bad == set(more)
  assert {rows[key].error for key in bad} == {np.inf}
  assert {rows[key].note for key in ("out/nothing", "mid/nowhere")} == {"not compared"}


def test_a_wrong_epsilon_in_one_norm_of_resnet18_is_caught(root, monkeypatch):
  """The hardest mistake to see: 1e-3 instead of 1e-5 in one of twenty."""
  apply = norm.BatchNorm.__call__

  def wrong(self, x, *, train):
    if self.path[-2:] == ("stage3_block2", "norm1"):
      object.__setattr__(self, "epsilon", 1e-3)
    return apply(self, x, train=train)

  case = seeded.load(path_of(root, "resnet18"))
  case["in"] = {"x": case["in"]["x"]}  # evaluation is enough, and a third of the time
  monkeypatch.setattr(norm.BatchNorm, "__call__", wrong)
  found = classifiers.compare(case, "resnet18")
  bad = [
    key for key, (ours, theirs, tolerance) in found.items() if check.difference(ours, theirs, tolerance)[0] > tolerance
  ]
  assert "out/logits" in bad
  assert "mid/layer4" in bad
  assert not {"mid/layer1", "mid/layer2"} & set(bad)


def test_the_command_line(root, tmp_path, capsys):
  good = str(path_of(root, "xo_net"))
  assert check.main([good]) == 0
  said = capsys.readouterr().out
  assert f"ok  {good}: " in said
  assert "BAD" not in said
  bad = changed(root, tmp_path, "xo_net", **{"out/logits": lambda kept: kept["out/logits"] * np.float32(1.001)})
  assert check.main([good, str(bad)]) == 1
  said = capsys.readouterr().out
  assert [line.split()[2] for line in said.splitlines() if line.startswith("BAD xo_net")] == ["out/logits"]
  assert f"BAD {bad}: " in said
  assert check.main([str(tmp_path / "none.npz"), good]) == 1
  assert "FileNotFoundError" in capsys.readouterr().out
  assert check.main([]) == 2


def test_weights_are_those_of_the_file(root):
  """The seed makes the tensors whose hash the reference's run left in the file."""
  for stem in ("xo_net", "resnet18", "cifar_resnet20"):
    meta = seeded.load(path_of(root, stem))["meta"]
    tensors = seeded.weights(meta)
    assert seeded.digest(tensors) == meta["sha256"]
    params = interop.from_torch(model_of(path_of(root, stem)), tensors)["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == meta["params"]
