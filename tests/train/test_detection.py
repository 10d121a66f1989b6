"""The task "detection" from a folder to its figures, pictures and files, and every detector on eight images."""

import csv
import json

import pytest
import small_scenes

from flaxonomy.data.pipeline import Info
from flaxonomy.errors import UserError
from flaxonomy.train import export, inference, loop, tasks


@pytest.fixture(scope="module")
def root(tmp_path_factory):
  """Eight scenes in COCO's format, of 64 and of 128 pixels."""
  root = tmp_path_factory.mktemp("scenes")
  for side in (small_scenes.SIDE, 128):
    small_scenes.folder(root, side=side)
  return root


@pytest.fixture(scope="module")
def learned(root, tmp_path_factory):
  """{net: (workdir, result)} of runs that learned the eight scenes by heart, each made when it is first asked for."""
  made = {}

  def learn(net):
    if net not in made:
      workdir = tmp_path_factory.mktemp(net) / "run"
      made[net] = workdir, loop.run(small_scenes.config(root, net), workdir, quiet=True)
    return made[net]

  return learn


@pytest.mark.parametrize("net", small_scenes.NETS)
def test_every_detector_learns_eight_images_by_heart(learned, net):
  _, result = learned(net)
  assert result["metrics"]["test_AP50"] >= 0.95
  if net == "mask_rcnn":
    assert result["metrics"]["test_mask_AP50"] >= 0.6  # thin strokes of a few pixels take more steps than boxes


def test_a_run_leaves_pictures_curves_and_figures(learned):
  workdir, result = learned("ssd")
  assert set(result["metrics"]) == {f"test_{name}" for name in ("AP", "AP50", "AP75", "AR100", "VOC07", "VOC10")}
  assert {"detections.png", "precision_recall.png", "average_precision.csv"} <= {p.name for p in workdir.iterdir()}


def test_predict_draws_and_writes_cocos_format(learned, root):
  workdir, _ = learned("ssd")
  folder = inference.predict(workdir, [str(root / "64" / "3.png"), str(root / "64" / "5.png")])
  told = json.loads((folder / "predictions.json").read_text())
  truth = json.loads((root / "64" / "annotations" / "instances_train.json").read_text())
  assert [image["file_name"] for image in told["images"]] == [str(root / "64" / "3.png"), str(root / "64" / "5.png")]
  assert told["categories"] == truth["categories"]
  for i, scene in enumerate((3, 5)):
    found = sorted(row["category_id"] for row in told["annotations"] if row["image_id"] == i and row["score"] > 0.5)
    assert found == sorted(row["category_id"] for row in truth["annotations"] if row["image_id"] == scene)
  assert min(row["score"] for row in told["annotations"]) > 0.1
  rows = list(csv.DictReader((folder / "predictions.csv").open()))
  assert [int(row["objects"]) for row in rows] == [sum(a["image_id"] == i for a in told["annotations"]) for i in (0, 1)]
  assert {path.name for path in folder.glob("*.png")} == {"00000_3.png", "00001_5.png"}


def test_evaluating_gives_what_training_gave(learned):
  workdir, result = learned("ssd")
  assert inference.evaluate([workdir])["metrics"] == result["metrics"]
  stricter = inference.evaluate([workdir], changes={"detect.score": 0.9})["metrics"]
  assert stricter["test_AR100"] <= result["metrics"]["test_AR100"]


def test_what_is_exported_finds_the_same(learned):
  workdir, _ = learned("ssd")
  folder = export.export(workdir)  # which compares it with the model
  assert {"model.jaxexport", "params.safetensors", "public.safetensors"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("net", ["rcnn", "ssd"])
def test_what_is_given_boxes_is_not_exported(root, net):
  info = Info("scenes", ("one", "two"), (128, 128, 3), 8)
  task = tasks.build(small_scenes.config(root, net, data__image_size=(128, 128)), info, 1)
  assert (task.serve is None) == (net == "rcnn")


def test_preview_shows_boxes(root, tmp_path):
  path = inference.preview(small_scenes.config(root, "ssd", data__augment__flip_horizontal=True), tmp_path / "run")
  assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"model__name": "alexnet", "model__fields": {}}, "cannot train model 'alexnet'"),
    ({"data__fit": "cover"}, "fit"),
    ({"detect__score": 1.5}, "detect.score"),
  ],
)
def test_what_cannot_be_is_one_line(root, tmp_path, changes, message):
  with pytest.raises(UserError, match=message) as raised:
    loop.run(small_scenes.config(root, "ssd", **changes), tmp_path / "run", quiet=True)
  assert "\n" not in str(raised.value)
