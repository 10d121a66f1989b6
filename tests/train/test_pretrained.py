"""Starting from weights that are there: public files, exported ones, workdirs; heads, frozen layers, resuming."""

import json
import pickle
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from flaxonomy import models
from flaxonomy.configs import base
from flaxonomy.configs.base import Config, Data, Model, Optim, Train
from flaxonomy.errors import UserError
from flaxonomy.models import interop
from flaxonomy.train import checkpoint, export, loop, pretrained, weights, workdir

XO = ("xo_net", {"features": 3}, 9)  # a model, its fields, the side of its images: one convolution, one dense layer
RESNET = ("resnet20", {"blocks": 1, "width": 4}, 8)  # eight layers with batch norm


def config_of(model=XO, **changes) -> Config:
  """A run of a second on digits."""
  name, fields, side = model
  config = Config(
    model=Model(name, dict(fields)),
    data=Data("digits", image_size=(side, side), batch_size=16, eval_batch_size=100),
    optim=Optim("sgd", lr=0.05),
    train=Train(steps=2, eval_every=2, log_every=1, devices=2, cpu_devices=4, tensorboard=False),
  )
  return base.override(config, {key.replace("__", "."): value for key, value in changes.items()})


def drawn(model=XO, classes=10, channels=1, **fields) -> dict:
  """Variables of a model: random numbers that no run starts from."""
  name, known, side = model
  module = models.create(name, num_classes=classes, **known | fields)
  image = np.zeros((1, side, side, channels), np.float32)
  shapes = jax.eval_shape(lambda: module.init(jax.random.PRNGKey(0), image, train=False))
  rng = np.random.default_rng(1)
  return jax.tree.map(lambda leaf: rng.uniform(0.1, 0.3, leaf.shape).astype(np.float32), shapes)


def public(path, variables, model=XO):
  """A file of them under public names."""
  name, fields, _ = model
  safetensors.numpy.save_file(interop.to_torch(name, variables, **fields), path)
  return str(path)


def at_start(config) -> dict:
  """{path: array} of the state before the first step; averages under "ema"."""
  state = loop.initial_state(loop.prepare(config))
  tree = {"params": state.params, **state.collections} | ({} if state.ema is None else {"ema": state.ema})
  return weights.flatten(jax.device_get(tree))


def saved(folder) -> dict:
  """{path: array} of a run's newest checkpoint."""
  session = loop.prepare(workdir.load_config(folder))
  saves = checkpoint.Checkpoints(folder, read_only=True)
  state, _ = saves.restore(saves.newest(), loop.abstract_state(session.task, session.mesh))
  saves.close()
  return weights.flatten(jax.device_get({"params": state.params, **state.collections}))


def equal(one, other, but=()):
  """Bit for bit, but for paths that hold one of some words, all of which differ."""
  assert set(one) == set(other)
  for name, value in one.items():
    assert value.dtype == np.float32
    same = value.tobytes() == other[name].tobytes()
    assert same != any(word in name for word in but), name


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
  """The workdir of a run, exported."""
  folder = tmp_path_factory.mktemp("runs") / "parent"
  loop.run(config_of(seed=5), folder, quiet=True)
  export.export(str(folder))
  return folder


@pytest.mark.parametrize("kind", ["exported", "exported under public names", "workdir"])
def test_a_run_starts_from_another_to_the_last_bit(kind, parent, capsys):
  source = {"exported": "export/params.safetensors", "workdir": ""}.get(kind, "export/public.safetensors")
  expected = saved(parent)
  equal(at_start(config_of(model__init_from=str(parent / source))), expected)
  assert "warning" not in capsys.readouterr().err
  fresh = at_start(config_of())
  assert not any(np.array_equal(expected[name], fresh[name]) for name in expected)


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("ours", [False, True])
def test_statistics_are_taken_too(ours, cut, tmp_path):
  """With batch norm, under public names and our own, whole or with a part for every device."""
  path, variables = tmp_path / "w.safetensors", drawn(RESNET)
  if ours:
    safetensors.numpy.save_file(weights.flatten(variables), path)
  else:
    public(path, variables, RESNET)
  found = at_start(config_of(RESNET, model__init_from=str(path), train__zero=cut))
  assert sum("batch_stats" in name for name in found) == 14
  equal(found, weights.flatten(variables))


def test_a_run_really_trains_from_them(tmp_path):
  """With a rate of 0 the parameters of the last checkpoint are still the file's; with one above they are not."""
  variables = drawn()
  source = public(tmp_path / "w.safetensors", variables)
  loop.run(config_of(model__init_from=source, optim__lr=0.0), tmp_path / "still", quiet=True)
  loop.run(config_of(model__init_from=source), tmp_path / "moving", quiet=True)
  expected, still, moving = weights.flatten(variables), saved(tmp_path / "still"), saved(tmp_path / "moving")
  equal(still, expected)
  equal(moving, expected, but=("params",))


def test_a_last_layer_for_other_classes_starts_anew(tmp_path, capsys):
  """As it would without the file; the rest is the file's."""
  source = public(tmp_path / "w.safetensors", drawn(classes=7))
  found = at_start(config_of(model__init_from=source))
  said = capsys.readouterr().err
  assert f"warning: from {source!r}, but these layers start anew: fc (7 classes there, 10 here)\n" in said
  assert said.count("\n") == 1
  expected = weights.flatten(drawn(classes=7)) | {k: v for k, v in at_start(config_of()).items() if "/fc/" in k}
  equal(found, expected)


def test_classes_of_other_names_start_anew(parent, tmp_path, capsys):
  """A workdir knows its classes: as many others are others."""
  other = tmp_path / "other"
  shutil.copytree(parent, other)
  data = json.loads((other / "data.json").read_text())
  data["class_names"] = data["class_names"][::-1]
  (other / "data.json").write_text(json.dumps(data))
  found = at_start(config_of(model__init_from=str(other)))
  assert "start anew: fc (other classes there, 10 here)\n" in capsys.readouterr().err
  equal(found, saved(parent) | {k: v for k, v in at_start(config_of()).items() if "/fc/" in k})


def test_layers_start_anew_where_asked(parent, capsys):
  config = config_of(model__init_from=str(parent))
  found = at_start(base.override(config, {"model.init_new": ("^fc/kernel",)}))
  assert "start anew: fc (as asked)\n" in capsys.readouterr().err
  fresh = {key: value for key, value in at_start(config_of()).items() if key == "params/fc/kernel"}
  equal(found, saved(parent) | fresh)
  for pattern, said in (("^fd/", "'model.init_new': '\\^fd/'; known: conv1"), ("(", "is not a regular expression")):
    with pytest.raises(UserError, match=said):
      at_start(base.override(config, {"model.init_new": (pattern,)}))
  with pytest.raises(UserError, match="'model.init_from', which is not set"):
    config_of(model__init_new=("^fc/",))


def test_frozen_layers_stay(tmp_path):
  source, expected = public(tmp_path / "w.safetensors", drawn()), weights.flatten(drawn())
  config = config_of(model__init_from=source, optim__freeze=("^conv",), optim__weight_decay=0.1)
  loop.run(config, tmp_path / "run", quiet=True)
  equal(saved(tmp_path / "run"), expected, but=("params/fc",))


def test_resuming_does_not_need_the_file(tmp_path, assert_same_run):
  source = tmp_path / "w.safetensors"
  config = config_of(model__init_from=public(source, drawn()), train__steps=4)
  loop.run(config, tmp_path / "whole", quiet=True)
  loop.run(base.override(config, {"train.steps": 2}), tmp_path / "parts", quiet=True)
  source.unlink()
  loop.run(config, tmp_path / "parts", quiet=True)
  assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_the_average_starts_from_them_too(tmp_path):
  source, variables = public(tmp_path / "w.safetensors", drawn()), drawn()
  found = at_start(config_of(model__init_from=source, train__ema_decay=0.99))
  equal(found, weights.flatten(variables | {"ema": variables["params"]}))


def test_an_averaged_run_gives_its_average(tmp_path):
  loop.run(config_of(train__ema_decay=0.5), tmp_path / "run", quiet=True)
  found = at_start(config_of(model__init_from=str(tmp_path / "run")))
  session = loop.prepare(config_of(train__ema_decay=0.5))
  saves = checkpoint.Checkpoints(tmp_path / "run", read_only=True)
  state, _ = saves.restore(saves.newest(), loop.abstract_state(session.task, session.mesh))
  saves.close()
  equal(found, weights.flatten(jax.device_get({"params": state.ema, **state.collections})))


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
def test_half_precision(tmp_path, kind):
  half = jax.tree.map(lambda x: x.astype(kind), drawn())
  expected = weights.flatten(jax.tree.map(np.float32, half))
  safetensors.numpy.save_file(weights.flatten(half), tmp_path / "ours.safetensors")
  tensors = {key: value.astype(kind) for key, value in interop.to_torch("xo_net", drawn()).items()}
  safetensors.numpy.save_file(tensors, tmp_path / "public.safetensors")
  for name in ("ours", "public"):
    equal(at_start(config_of(model__init_from=str(tmp_path / f"{name}.safetensors"))), expected)


def test_auxiliary_classifiers_may_be_lacking(tmp_path, capsys):
  """In the file, as in torchvision's, or in the model; those for other classes start anew like the last layer."""
  net = ("googlenet", {"shrink": 16}, 32)
  session = loop.prepare(config_of())

  def load(path, **changes):
    config = config_of(net, model__init_from=path, **changes)
    info = session.info._replace(image_shape=(32, 32, 1))
    return pretrained.load(config, info, session.mesh), capsys.readouterr().err

  bare = drawn(net, aux_logits=False)
  taken, said = load(public(tmp_path / "bare.safetensors", bare, net))
  assert "start anew: aux1, aux2 (not there)\n" in said
  equal(taken, weights.flatten(bare))
  whole = drawn(net)
  taken, said = load(public(tmp_path / "whole.safetensors", whole, net), model__fields__aux_logits=False)
  assert not said
  equal(taken, {key: value for key, value in weights.flatten(whole).items() if "aux" not in key})
  taken, said = load(public(tmp_path / "seven.safetensors", drawn(net, classes=7), net))
  assert "start anew: aux1/fc2, aux2/fc2, fc (7 classes there, 10 here)\n" in said
  assert set(weights.flatten(whole)) - set(taken) == {
    f"params/{name}/{leaf}" for name in ("fc", "aux1/fc2", "aux2/fc2") for leaf in ("kernel", "bias")
  }


def bad_sources(path, parent):
  """{name: (source, what the error says)}."""
  (path / "w.pt").write_bytes(pickle.dumps({"a": 1}))
  (path / "cut.safetensors").write_bytes((parent / "export/params.safetensors").read_bytes()[:-7])
  (path / "empty").mkdir()
  shutil.copytree(parent, path / "unsaved", ignore=shutil.ignore_patterns("checkpoints"))
  own = weights.read(parent / "export/params.safetensors")
  del own["params/conv1/kernel"]
  safetensors.numpy.save_file(own | {"params/more/kernel": np.zeros(3, np.float32)}, path / "own.safetensors")
  wide = public(path / "wide.safetensors", drawn(features=5), ("xo_net", {"features": 5}, 9))
  other = public(path / "other.safetensors", drawn(RESNET), RESNET)
  colour = public(path / "colour.safetensors", drawn(channels=3))
  return {
    "no such file": (str(path / "none.safetensors"), r"cannot read weights '.*none.safetensors': .*No such file"),
    "nothing": (str(path / "none"), r"^config field 'model.init_from': no run lies at '.*none'; train it first"),
    "pickle": (str(path / "w.pt"), "are a pickle: loading one can run any code"),
    "cut off": (str(path / "cut.safetensors"), "cannot read weights"),
    "no run": (str(path / "empty"), r"holds no run \(no config.json\)"),
    "no checkpoint": (str(path / "unsaved"), "no checkpoint"),
    "architecture": (other, r"weights of model 'xo_net'; 3 missing: conv1.bias, .*; 36 unexpected: .*, \.\.\.; 1 of"),
    "widths": (wide, r"3 of another shape: .*, conv1.weight \(5, 1, 3, 3\) for \(3, 1, 3, 3\), "),
    "channels": (colour, r"does not fit: params/conv1/kernel is \(3, 3, 3, 3\) there, \(3, 3, 1, 3\) here$"),
    "our own names": (
      str(path / "own.safetensors"),
      "does not fit: params/conv1/kernel is not there; params/more/kernel is not here$",
    ),
  }  # fmt: skip


@pytest.mark.parametrize(
  "which",
  [
    "no such file", "nothing", "pickle", "cut off", "no run", "no checkpoint", "architecture", "widths", "channels",
    "our own names",
  ],
)  # fmt: skip
def test_mistakes_are_one_line_and_leave_nothing(which, parent, tmp_path):
  source, said = bad_sources(tmp_path, parent)[which]
  with pytest.raises(UserError, match=said) as raised:
    loop.run(config_of(model__init_from=source), tmp_path / "deep/run", quiet=True)
  assert "\n" not in str(raised.value)
  assert len(str(raised.value)) < 1500
  assert not (tmp_path / "deep").exists()


def test_a_run_of_another_model_is_refused(parent, tmp_path):
  config = config_of(RESNET, model__init_from=str(parent), data__image_size=(9, 9))
  with pytest.raises(UserError, match=r"does not fit: .* is not there;.*; and \d+ more$") as raised:
    loop.run(config, tmp_path / "run", quiet=True)
  assert "\n" not in str(raised.value)
  config = config_of(("mlp", {}, 9), model__init_from=public(tmp_path / "w", drawn()))
  with pytest.raises(UserError, match="model 'mlp' has no public namesake; these have: "):
    loop.run(config, tmp_path / "run", quiet=True)
  assert not (tmp_path / "run").exists()


def test_adversarial_nets_start_from_a_run(tiny_gan, tmp_path):
  """Both of them, with their statistics."""
  loop.run(tiny_gan(train__steps=2, train__eval_every=2, seed=5), tmp_path / "run", quiet=True)
  expected = saved(tmp_path / "run")
  config = tiny_gan(model__init_from=str(tmp_path / "run"), train__steps=1)
  equal(at_start(config), expected)
  assert {name.split("/")[1] for name in expected} == {"generator", "discriminator"}
  loop.run(config, tmp_path / "child", quiet=True)
  moved = saved(tmp_path / "child")
  assert all(np.abs(moved[name] - value).max() < 1e-3 for name, value in expected.items() if "params" in name)
  assert any((moved[name] != value).any() for name, value in expected.items() if "params" in name)
