"""Explaining: gradients against NumPy, mistakes against a brute-force ranking, what is written and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from PIL import Image

from flaxonomy import models
from flaxonomy.configs import base
from flaxonomy.configs.base import Config, Data, Model, Optim, Train
from flaxonomy.errors import UserError
from flaxonomy.models import layers
from flaxonomy.models.stages import keep
from flaxonomy.train import command, explain, figures, inference, loop, step
from flaxonomy.train.sharding import DATA

EVERY = [*explain.PICTURES, "explain.json"]


class Pooled(nn.Module):
  """Nothing but averages behind the maps, so that Grad-CAM is known in closed form: it is CAM (section 3.1)."""

  @nn.compact
  def __call__(self, x, *, train):
    stages = {}
    x = keep(self, stages, "maps", nn.relu(layers.Conv(5, (3, 3), strides=2, padding=1, name="conv")(x)))
    x = keep(self, stages, "pooled", x.mean((1, 2)))
    return {"logits": nn.Dense(4, name="head")(x)} | stages


def pooled(params, x):
  """The same in NumPy, float64: (maps, logits)."""
  w, bias = (np.asarray(params["conv"][name], float) for name in ("kernel", "bias"))
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  maps = sum(x[:, i : i + 7 : 2, j : j + 7 : 2] @ w[i, j] for i in range(3) for j in range(3))
  maps = np.maximum(maps + bias, 0)
  return maps, maps.mean((1, 2)) @ np.asarray(params["head"]["kernel"], float)


def enlarged(x, n):
  """[h, w] to [n, n], linear between the centres of pixels."""
  places = lambda old: (np.arange(n) + 0.5) * old / n - 0.5
  x = np.stack([np.interp(places(x.shape[0]), np.arange(x.shape[0]), column) for column in x.T], 1)
  return np.stack([np.interp(places(x.shape[1]), np.arange(x.shape[1]), row) for row in x])


def test_saliency_and_grad_cam_are_numpys():
  """Over four devices, with padding, of the middle of larger images, normalised; of the class that was predicted."""
  data = Data(crop_size=(8, 8), eval_crops=10, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
  images = np.random.default_rng(0).integers(0, 256, (10, 12, 12, 3), np.uint8)
  model = Pooled()
  variables = model.init(jax.random.PRNGKey(1), jnp.zeros((1, 8, 8, 3)), train=False)
  classify = lambda variables, images: {"probs": jax.nn.one_hot(images[:, 0, 0, 0] % 4, 4)}
  mesh = loop.make_mesh()
  function = step.pmapped(explain.explainer(model, classify, data, "maps"), mesh, (P(), P(DATA)), P(DATA))
  seen = explain._batches(function, variables, images, mesh)
  x = (images[:, 2:10, 2:10] / 255 - np.array(data.mean)) / np.array(data.std)
  np.testing.assert_allclose(seen["view"], x, atol=1e-5)
  predicted = images[:, 0, 0, 0] % 4
  maps, _ = pooled(variables["params"], x)
  weights = np.asarray(variables["params"]["head"]["kernel"], float)[:, predicted].T / 16
  cam = np.maximum((maps * weights[:, None, None]).sum(-1), 0)
  np.testing.assert_allclose(seen["gradcam"], [enlarged(c, 8) for c in cam], rtol=1e-4, atol=1e-6)
  assert (cam == 0).any()
  assert (cam > 0).any()
  for i in range(3):
    moved = 1e-6 * np.eye(8 * 8 * 3).reshape(-1, 8, 8, 3)
    up, down = (pooled(variables["params"], x[i] + sign * moved)[1][:, predicted[i]] for sign in (1, -1))
    slope = ((up - down) / 2e-6).reshape(8, 8, 3)
    np.testing.assert_allclose(seen["saliency"][i], np.abs(slope).max(-1), rtol=1e-3, atol=1e-5)
  shown, channels = seen["stages"]["maps"]
  for i, (part, numbers) in enumerate(zip(shown, channels)):
    assert numbers.tolist() == np.argsort(-maps[i].mean((0, 1))).tolist()
    np.testing.assert_allclose(part, maps[i][..., numbers], rtol=1e-4, atol=1e-5)


def test_anatomy_of_models():
  """In the order of the computation, which is not that of the names."""
  found = {}
  for name, shape in (("resnet20", (1, 32, 32, 3)), ("deep_convnet", (1, 28, 28, 1)), ("mlp", (1, 28, 28, 1))):
    model, x = models.create(name), jnp.zeros(shape)
    found[name] = explain.anatomy(
      model, jax.eval_shape(lambda m=model, x=x: m.init(jax.random.PRNGKey(0), x, train=False)), x
    )
  assert list(found["resnet20"].stages) == ["stem", "stage1", "stage2", "stage3"]
  assert (found["resnet20"].last, found["resnet20"].stages["stage3"]) == ("stage3", (8, 8, 64))
  assert found["resnet20"].first == ("stem",)
  assert found["deep_convnet"].first == ("conv1_1",)
  assert found["mlp"] == explain.Anatomy({}, None)
  assert found["mlp"].last is None


def test_which_images_are_chosen():
  label = np.array([2, 0, 1, 0, 2, 1, 0, 2, 0])
  prediction = np.array([2, 1, 1, 0, 0, 2, 0, 2, 0])
  probability = np.array([0.9, 0.5, 0.9, 0.9, 0.8, 0.8, 0.9, 0.9, 0.9])
  found = explain.Predictions(np.arange(9), label, prediction, probability)
  assert found.mistakes().tolist() == [4, 5, 1]
  # The first right one of each class, the mistakes, and as eight are enough, second ones of classes 0 and 2.
  assert explain.choose(found).tolist() == [3, 2, 0, 4, 5, 1, 6, 7]
  many = explain.Predictions(np.arange(90), np.arange(90) % 30, np.arange(90) % 30 * (np.arange(90) < 60), np.ones(90))
  chosen = explain.choose(many)
  assert chosen.tolist() == [*range(12), 61, 62, 63, 64]
  assert all(part.dtype.kind == "i" for part in (chosen, found.mistakes()))


def test_pictures_of_weights_and_maps():
  kernel = np.random.default_rng(0).normal(size=(3, 3, 3, 70))
  drawn = explain._filters(kernel, "conv")
  assert len(drawn.axes) == 64
  one = kernel[..., 5]
  np.testing.assert_array_equal(
    drawn.axes[5].images[0].get_array(), np.round((one - one.min()) / (one.max() - one.min()) * 255)
  )
  grey = explain._filters(np.ones((2, 2, 1, 3)), "conv")
  assert [axis.images[0].get_array().shape for axis in grey.axes] == [(2, 2)] * 3
  image, strength = np.full((4, 4, 3), 200, np.uint8), np.eye(4)
  over, hot = explain.overlay(image, strength), explain.heat(strength)
  assert over[0, 0, 0] > over[0, 0, 2]
  assert over[0, 1, 0] < over[0, 1, 2]
  assert hot[0, 0].min() > hot[0, 1].max()
  with np.errstate(all="raise"):
    assert (explain.overlay(image, 0 * strength) == over[0, 1]).all()
    assert (explain.heat(0 * strength) == 0).sum() >= 32


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run on digits that errs often."""
  config = Config(
    model=Model("deep_convnet", {"features": (4, 4, 8), "hidden_size": 8, "dropout": 0.0}),
    data=Data("digits", batch_size=32, eval_batch_size=100),
    optim=Optim("sgd", lr=0.1),
    train=Train(steps=40, eval_every=40, devices=2, cpu_devices=4, accumulate=1, tensorboard=False),
  )
  folder = tmp_path_factory.mktemp("explain") / "run"
  loop.run(config, folder, quiet=True)
  return folder


@pytest.fixture
def files(tmp_path):
  """Twenty image files, larger than digits."""
  (tmp_path / "files").mkdir()
  for i in range(20):
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (11, 13), np.uint8)).save(tmp_path / f"files/{i:02d}.png")
  return tmp_path / "files"


def test_mistakes_are_those_of_a_brute_force_ranking(trained, monkeypatch):
  drawn = []
  monkeypatch.setattr(
    figures, "panels", lambda *given, panels=figures.panels, **more: drawn.append(given) or panels(*given, **more)
  )
  said = command._explain(command.Ask(None, [str(trained)], {}, checkpoint="best"))
  assert sorted(p.name for p in (trained / "explain").iterdir()) == sorted(EVERY)
  assert all((trained / "explain" / name).read_bytes().startswith(b"\x89PNG") for name in explain.PICTURES)
  before = {name: (trained / "explain" / name).read_bytes() for name in EVERY}
  found = json.loads(before["explain.json"])
  assert found["files"] == list(explain.PICTURES)
  assert said.startswith(f"{found['count']} of 364 examples wrong, step 40; in {trained}/explain: filters.png, ")
  assert "\n" not in said
  mesh = loop.make_mesh(1)
  run = inference.load(trained, mesh)
  batch = loop.open_test(run.config, mesh, run.info).read(range(364))
  probs = np.asarray(jax.jit(run.task.predict_step)(run.state, {"image": batch["image"]})["probs"])
  right = [i for i in range(364) if probs[i].argmax() == batch["label"][i]]
  wrong = sorted(set(range(364)) - set(right), key=lambda i: (-probs[i].max(), i))
  assert len(wrong) > 40, "or the test shows nothing"
  assert (found["count"], found["examples"], found["step"]) == (len(wrong), 364, 40)
  names = run.info.class_names
  assert [(m["index"], m["label"], m["prediction"]) for m in found["mistakes"]] == [
    (i, names[batch["label"][i]], names[probs[i].argmax()]) for i in wrong
  ]
  np.testing.assert_allclose([m["probability"] for m in found["mistakes"]], probs[wrong].max(1), rtol=1e-4)
  _, saliency, gradcam, mistakes = drawn
  for i, ((image,), title) in enumerate(zip(mistakes[0], mistakes[1])):
    np.testing.assert_array_equal(image, batch["image"][wrong[i]])
    assert title.endswith(f"true: {names[batch['label'][wrong[i]]]}")
  assert len(mistakes[0]) == 40
  first = [next((i for i in right if batch["label"][i] == label), None) for label in range(10)]
  first = [i for i in first if i is not None]
  expected = (first + wrong)[:16]
  for pairs, titles, bad, _ in (saliency, gradcam):
    np.testing.assert_array_equal([image for image, _ in pairs], batch["image"][expected])
    assert bad == [False] * len(first) + [True] * (16 - len(first))
    assert titles[0].startswith(f"{names[probs[first[0]].argmax()]} (")
  explain.explain(trained)
  assert {name: (trained / "explain" / name).read_bytes() for name in EVERY} == before


def test_files_are_explained_without_data(trained, files, tmp_path, capsys):
  (tmp_path / "closed").write_text("no folder")
  gone = {"data.data_dir": str(tmp_path / "closed")}
  with pytest.raises(UserError, match="closed"):
    explain.explain(trained, changes=gone)
  found = explain.explain(trained, [str(files)], changes=gone)
  assert found == {"step": 40, "examples": None, "count": None, "mistakes": None, "files": list(explain.PICTURES[:-1])}
  assert sorted(p.name for p in (trained / "explain").iterdir()) == sorted([*explain.PICTURES[:-1], "explain.json"])
  told = capsys.readouterr().err.strip().splitlines()
  assert len(told) == 2
  assert told[0].startswith("warning: mistakes.png is left out: ")
  assert told[1] == "warning: the first 16 of 20 images are explained"


def test_no_mistakes(trained, monkeypatch):
  every = np.arange(364)
  drawn = []
  monkeypatch.setattr(figures, "message", lambda text, message=figures.message: drawn.append(text) or message(text))
  monkeypatch.setattr(
    explain,
    "predictions",
    lambda run, feed, mesh: explain.Predictions(
      every, feed.read(every)["label"], feed.read(every)["label"], np.ones(364)
    ),
  )
  found = explain.explain(trained)
  assert (found["count"], found["mistakes"]) == (0, [])
  assert drawn == ["no mistakes among 364 examples of test"]
  assert "mistakes.png" in found["files"]


def test_a_model_without_maps(tiny, tmp_path, capsys):
  loop.run(tiny(model__name="mlp", model__fields={"hidden": (4,)}, train__steps=2), tmp_path / "run", quiet=True)
  (tmp_path / "run/explain").mkdir()
  (tmp_path / "run/explain/gradcam.png").write_text("of an earlier call")
  capsys.readouterr()
  assert explain.explain(tmp_path / "run")["files"] == ["saliency.png", "mistakes.png"]
  assert sorted(p.name for p in (tmp_path / "run/explain").iterdir()) == [
    "explain.json",
    "mistakes.png",
    "saliency.png",
  ]
  left = "filters.png, activations.png, gradcam.png"
  assert capsys.readouterr().err == f"warning: model 'mlp' has no maps to show; left out: {left}\n"


def test_colours_crops_shards_and_an_example_that_cannot_be_read(tiny, photos, tmp_path):
  """In bfloat16, the state cut over the devices."""
  changes = {"model__name": "simple_convnet", "model__fields": {"features": 4, "kernel_size": 3, "hidden_size": 256}}
  changes |= {"data__channels": 3, "data__crop_size": (6, 6), "data__on_error": "skip"}
  changes |= {
    "data__mean": (0.4, 0.5, 0.6),
    "data__train_split": "test",
    "data__on_device": False,
    "data__eval_split": "train",
  }
  config = tiny(**photos, **changes, train__zero=True, train__dtype="bfloat16", train__steps=2)
  loop.run(config, tmp_path / "run", quiet=True)
  found = explain.explain(tmp_path / "run")
  assert found["files"] == list(explain.PICTURES)
  sizes = len(list((tmp_path / "photos").rglob("*.png")))
  test = inference.load(tmp_path / "run", loop.make_mesh()).info.size
  assert found["examples"] == sizes - test - 1, "the damaged one does not count"


def test_what_is_refused(tiny_gan, tmp_path):
  (tmp_path / "gan").mkdir()
  (tmp_path / "gan/config.json").write_text(json.dumps(base.to_dict(tiny_gan())))
  for call, message in (
    (lambda: explain.explain(tmp_path / "gan"), "is for classifiers of images, and the run in .* is of task 'gan'"),
    (lambda: explain.explain(tmp_path / "none"), "holds no run"),
    (lambda: explain.explain(tmp_path / "gan", [str(tmp_path / "no.png")]), "no such image file"),
    (lambda: command.run("explain", command.Ask(None, [], {}), False, (None,)), "--mode=explain is for one process"),
  ):
    with pytest.raises(UserError, match=message) as raised:
      call()
    assert "\n" not in str(raised.value)
  assert not (tmp_path / "gan/explain").exists()
