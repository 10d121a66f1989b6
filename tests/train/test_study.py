"""Studies: what they leave, stopping and going on, what they refuse; the pictures' numbers against others'."""

import importlib
import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.configs import base
from flaxonomy.data.pipeline import Info
from flaxonomy.errors import Preempted, UserError
from flaxonomy.train import basics, command, loop, report, study, tasks

PNG = b"\x89PNG"


@pytest.fixture
def golden(root):
  """torch's activations, and gradient norms of a perceptron of twenty layers."""
  return np.load(root / "tests/goldens/activations.npz")


@pytest.fixture
def small(tiny):
  """A study of two perceptrons, without a picture."""
  compare = {"slow": {"optim.lr": 0.01}, "wide": {"model.fields.hidden": (8, 8), "optim.name": "adam"}}
  return tiny(model__name="mlp", model__fields={"hidden": (4,)}, study__compare=compare, train__steps=4)


def test_a_study_leaves_its_runs_and_their_comparison(small, tmp_path, monkeypatch, capsys):
  """Stopped in its second run, gone on with, and called once more."""
  train, calls = loop.run, []

  def stopped(config, workdir, *, quiet=False):
    calls.append(workdir.name)
    if len(calls) == 2:
      raise Preempted("stopped", signal.SIGTERM)
    return train(config, workdir, quiet=quiet)

  monkeypatch.setattr(loop, "run", stopped)
  small = base.override(small, {"study.picture": "valley"})
  with pytest.raises(Preempted):
    study.run(small, tmp_path / "study", quiet=True)
  assert list(json.loads((tmp_path / "study/comparison.json").read_text())["runs"]) == ["slow"]
  drawn = (tmp_path / "study/valley.png").stat().st_mtime_ns
  found = study.run(small, tmp_path / "study", quiet=True)
  assert calls == ["slow", "wide", "slow", "wide"]
  assert (tmp_path / "study/valley.png").stat().st_mtime_ns == drawn
  assert found == json.loads((tmp_path / "study/comparison.json").read_text())
  assert found["files"] == ["comparison.png", "valley.png"]
  assert all((tmp_path / "study" / name).read_bytes().startswith(PNG) for name in found["files"])
  assert found["best"] == "accuracy"
  sizes = {label: row["parameters"] for label, row in found["runs"].items()}
  assert sizes == {"slow": 64 * 4 + 4 + 4 * 10 + 10, "wide": 64 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10}
  for label, row in found["runs"].items():
    result = json.loads((tmp_path / "study" / label / "result.json").read_text())
    assert (row["metrics"], row["step"]) == (result["metrics"], 4)
    assert result["config"]["study"] == {"compare": {}, "picture": None}
  assert result["config"]["optim"]["name"] == "adam"
  lines = study.table(found).splitlines()
  assert lines[0].split() == ["run", "parameters", "test", "accuracy", "test", "loss", "seconds"]
  assert lines[1].split()[:3] == ["slow", "310", f"{found['runs']['slow']['metrics']['test_accuracy']:.4f}"]
  said = command._train(command.Ask(small, [str(tmp_path / "study")], {}))
  assert len(calls) == 4, "nothing is left to do"
  assert "already complete" in capsys.readouterr().out
  assert lines[2] in said


def test_a_study_and_a_run_do_not_share_a_folder(small, tiny, tmp_path):
  (tmp_path / "run").mkdir()
  (tmp_path / "run/config.json").write_text("{}")
  with pytest.raises(UserError, match="holds a run, and a study needs a folder of its own"):
    study.run(small, tmp_path / "run")
  (tmp_path / "other").mkdir()
  (tmp_path / "other/notes").write_text("")
  with pytest.raises(UserError, match="holds files but no study"):
    study.run(small, tmp_path / "other")
  for name in ("study/one", "study/none"):
    (tmp_path / name).mkdir(parents=True)
  (tmp_path / "study/study.json").write_text("{}")
  (tmp_path / "study/one/config.json").write_text("{}")
  for refused in (study.refuse, lambda folder: command._train(command.Ask(tiny(), [str(folder)], {}))):
    with pytest.raises(UserError, match=r"holds a study, not a run; its runs are --workdir=\S*study/one$"):
      refused(tmp_path / "study")
  study.refuse(tmp_path / "run")


@pytest.mark.parametrize(
  "compare, message",
  [
    ({"a/b": {}}, "'a/b' cannot name a folder"),
    ({"..": {}}, "'..' cannot name a folder"),
    ({"comparison.png": {}}, "'comparison.png' cannot name a folder"),
    ({3: {}}, "3 cannot name a folder"),
    ({"a": 0.1}, "'a' must be changes such as {'optim.lr': 0.1}, not 0.1"),
    ({"a": {"study.picture": "valley"}}, "'a' cannot change the study itself"),
    ({"a": {}, "b": {"optim.lrr": 0.1}}, "run 'b' of the study: unknown config field 'optim.lrr'"),
    ({"a": {}, "b": {"optim.name": "adan"}}, "run 'b' of the study: unknown optimizer 'adan'"),
    ({"a": {}, "b": {"data.batch_size": 33}}, "run 'b' of the study: config field 'data.batch_size' (33)"),
    ({"a": {}, "b": {"model.fields.activation": "rellu"}}, "run 'b' of the study: unknown activation 'rellu'"),
  ],
)
def test_mistakes_are_told_before_the_first_run(compare, message, small, tmp_path, monkeypatch):
  monkeypatch.setattr(loop, "run", lambda *_, **__: pytest.fail("a run was started"))
  small.study.compare = compare
  with pytest.raises(UserError) as raised:
    study.run(small, tmp_path / "study")
  assert message in str(raised.value)
  assert "\n" not in str(raised.value)
  assert not (tmp_path / "study").exists()


def test_an_unknown_picture_and_an_empty_study(tiny, tmp_path):
  with pytest.raises(UserError, match="unknown picture 'valey'; did you mean 'valley'"):
    study.run(tiny(study__picture="valey"), tmp_path / "study")
  with pytest.raises(UserError, match="there is no study to make"):
    study.run(tiny(), tmp_path / "study")
  assert not (tmp_path / "study").exists()


SHAPES = {"mnist": (28, 28, 1), "digits": (8, 8, 1), "cifar10": (32, 32, 3)}


@pytest.mark.parametrize(
  "name", ["activations", "initialisers", "optimizers", "receptive_field", "augmentation", "skip_connections"]
)
def test_every_run_of_the_basics_can_be_built(name):
  config = importlib.import_module(f"flaxonomy.configs.basics_{name}").get_config()
  assert base.from_dict(json.loads(json.dumps(base.to_dict(config)))) == config
  assert config.study.picture is None or basics.picture(config.study.picture)
  runs = study.variants(config)
  assert len(runs) > 1
  for run in runs.values():
    *size, channels = SHAPES[run.data.name]
    info = Info(run.data.name, tuple("0123456789"), (*(run.data.image_size or size), channels), 100)
    assert tasks.build(run, info, 2).best == "accuracy"


@pytest.mark.parametrize("name, told", list(zip(basics.CURVES, ("sigmoid", "tanh", "relu", "leaky_relu_01", "elu"))))
def test_curves_are_torchs(name, told, golden):
  value, slope = basics.curves(name, jnp.asarray(golden["in/x"]))
  np.testing.assert_allclose(value, golden[f"out/{told}"], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(slope, golden[f"out/d_{told}"], rtol=1e-5, atol=1e-6)


SCALES = {"std1": 1.0, "std.01": 0.01, "xavier": 0.1, "he": np.sqrt(0.02)}  # of a layer of 100 by 100


@pytest.mark.parametrize("activation", basics.SATURATING)
@pytest.mark.parametrize("init", SCALES)
def test_gradients_vanish_and_explode_as_torchs(activation, init, golden):
  kernels, x = jnp.float32(golden["in/mlp_W"] * SCALES[init]), jnp.asarray(golden["in/mlp_x"])
  expected = golden[f"out/vanish/{activation}_{init}_gradnorm"]
  norms = np.asarray(basics.gradient_norms(kernels, x, activation))
  spread = np.asarray(basics.layer_outputs(kernels, x, activation), float).std((1, 2), ddof=1)
  close = {"rtol": 1e-3} if (activation, init) != ("tanh", "std1") else {"rtol": 0.05}
  np.testing.assert_allclose(spread, golden[f"out/vanish/{activation}_{init}_actstd"], **close)
  if (activation, init) == ("tanh", "std1"):  # chaos: every rounding grows from layer to layer
    np.testing.assert_allclose(np.log10(norms), np.log10(expected), atol=0.7)
  elif (activation, init) == ("relu", "std1"):
    assert np.isposinf(expected).all()
    assert np.isposinf(norms).all()
  else:
    small = expected < 1e-16  # whose squares underflow, sooner or later
    np.testing.assert_allclose(norms[~small], expected[~small], rtol=2e-3)
    assert (norms[small] < 2e-16).all()


def test_a_loss_that_overflows_has_no_gradient():
  norms = basics.gradient_norms(basics.weights("std_1", 50), basics.inputs(4), "relu")
  assert np.isposinf(norms).all()


def test_activations_shrink_by_what_the_initialisers_promise():
  """Without saturation a layer of 100 multiplies the second moment by 100 var(w), halved by a rectifier."""
  shrink = {"std_1": 50, "std_0.01": 0.005, "xavier_uniform_fan_in": 1 / 6, "xavier_normal": 1 / 2, "he_normal": 1}
  for init, factor in shrink.items():
    outputs = np.asarray(basics.layer_outputs(basics.weights(init, 5), basics.inputs(1000), "relu"), float)
    assert abs(np.log((outputs[-1] ** 2).mean() / factor**5)) < 0.6, init
  saturated = np.asarray(basics.layer_outputs(basics.weights("std_1", 5), basics.inputs(1000), "sigmoid"))
  assert ((saturated < 0.05) | (saturated > 0.95)).mean() > 0.6


def sgd(p, g, s, t):
  return p - 0.95 * g


def momentum(p, g, s, t):
  s["v"] = 0.9 * s.get("v", 0) - 0.1 * g
  return p + s["v"]


def adagrad(p, g, s, t):
  s["h"] = s.get("h", 0) + g * g
  return p - 1.5 * g / (np.sqrt(s["h"]) + 1e-7)


def adadelta(p, g, s, t):
  s["h"] = 0.9 * s.get("h", 0) + 0.1 * g * g
  move = np.sqrt(s.get("d", 0) + 1e-2) / np.sqrt(s["h"] + 1e-2) * g
  s["d"] = 0.9 * s.get("d", 0) + 0.1 * move * move
  return p - move


def rmsprop(p, g, s, t):
  s["h"] = 0.9 * s.get("h", 0) + 0.1 * g * g
  return p - 0.3 * g / (np.sqrt(s["h"]) + 1e-7)


def adam(p, g, s, t):
  """As in the book: the corrections of both moments folded into the rate."""
  s["m"] = s.get("m", 0) + 0.1 * (g - s.get("m", 0))
  s["v"] = s.get("v", 0) + 0.001 * (g * g - s.get("v", 0))
  return p - 0.3 * np.sqrt(1 - 0.999**t) / (1 - 0.9**t) * s["m"] / (np.sqrt(s["v"]) + 1e-7)


@pytest.mark.parametrize("formula", [sgd, momentum, adagrad, adadelta, rmsprop, adam], ids=lambda f: f.__name__)
def test_ways_through_the_valley_are_the_books(formula):
  """Saito 2016, section 6.1, and Zeiler 2012, in NumPy."""
  point, state, way = np.array([-7.0, 2.0]), {}, [np.array([-7.0, 2.0])]
  for t in range(1, 31):
    point = formula(point, point * np.array([0.1, 2.0]), state, t)
    way.append(point)
  made = np.stack(basics.walk(basics.VALLEY[formula.__name__]), 1)
  np.testing.assert_allclose(made, np.stack(way), atol=2e-4)


def test_two_small_convolutions_see_what_a_large_one_sees():
  """5 x 5 pixels each, Simonyan and Zisserman 2014, section 2.3; the pair mostly the middle, and for less."""
  inside = np.zeros((11, 11), bool)
  inside[3:8, 3:8] = True
  one, two = basics.seen(5, 1, draws=16), basics.seen(3, 2, draws=16)
  for seen in (one, two):
    np.testing.assert_array_equal(seen > 0, inside)
  border = inside.copy()
  border[4:7, 4:7] = False
  assert one[5, 5] / one[border].mean() < 1.5
  assert two[5, 5] / two[border].mean() > 1.8
  assert basics.cost(5, 1, 64) == (25 * 64**2 + 64, 25 * 64**2)
  assert basics.cost(3, 2, 64) == (18 * 64**2 + 2 * 64, 18 * 64**2)


@pytest.mark.parametrize("name", ["vanishing_gradient", "initialisers"])
def test_pictures_are_drawn(name, tmp_path, monkeypatch):
  monkeypatch.setattr(basics, "DEPTHS", (20,))
  monkeypatch.setattr(basics, "HISTOGRAM_INITS", ("std_1", "he_normal"))
  made = basics.picture(name)()
  report.save_figures(tmp_path, made)
  assert all((tmp_path / file).read_bytes().startswith(PNG) for file in made)
  if name == "vanishing_gradient":
    panel = next(axis for axis in made["vanishing_gradient.png"].axes if axis.get_title().startswith("relu"))
    marked = [line for line in panel.lines if line.get_marker() == "^" and len(line.get_xdata())]
    assert [len(line.get_xdata()) for line in marked] == [20], "what overflows is shown at the top"
