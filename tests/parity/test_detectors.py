"""Detectors against torchvision: every number of every golden file."""

import check
import detectors
import pytest
import seeded

from flaxonomy import models
from flaxonomy.models.interop import detectors as families

FOLDER = "tests/goldens/detection"
FILES = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "ssd300_vgg16")
QUICK = ("ssd300_vgg16",)  # compiled in seconds; the others run with -m goldens


@pytest.mark.parametrize(
  "stem", [stem if stem in QUICK else pytest.param(stem, marks=pytest.mark.goldens) for stem in FILES]
)
def test_every_number(stem, root):
  rows = check.check(root / f"{FOLDER}/{stem}.npz")
  assert len(rows) > 50
  assert not [row for row in rows if not row.good]


def test_every_number_of_the_geometry(root):
  rows = check.check(root / "tests/goldens/detection_ops.npz")
  assert len(rows) == 32
  assert not [row for row in rows if not row.good]


def test_every_model_has_a_file(root):
  assert sorted(FILES) == sorted(path.stem for path in (root / FOLDER).glob("*.npz"))
  held = {detectors.model_of(seeded.load(root / f"{FOLDER}/{stem}.npz")) for stem in FILES}
  assert held == {name for name in models.MODELS if type(models.create(name)).__name__ in families.FAMILIES}
