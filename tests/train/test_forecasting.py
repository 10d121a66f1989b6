"""Forecasting: metrics and gradients against NumPy, pictures, prediction from a file, export, studies, refusals."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.configs import base
from flaxonomy.data import series
from flaxonomy.errors import DataError, UserError
from flaxonomy.train import command, evaluation, explain, export, inference, loop, report, study, tasks
from flaxonomy.train.tasks import forecasting

ADDING = {
  "data__name": "adding", "data__data_dir": None, "data__series__window": 12, "data__series__horizon": 1,
  "data__eval_split": "test[:3%]", "data__train_split": "train[:2%]",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs():
  return {}


@pytest.fixture(params=["csv", "adding"])
def trained(request, tiny_series, runs, tmp_path_factory):
  """A workdir of a forecaster of a series, and of one on the adding problem."""
  if request.param not in runs:
    runs[request.param] = tmp_path_factory.mktemp(request.param) / "run"
    loop.run(tiny_series(**(ADDING if request.param == "adding" else {})), runs[request.param], quiet=True)
  return runs[request.param]


@pytest.fixture
def waving(tiny_series, runs, tmp_path_factory):
  """The first of them."""
  if "csv" not in runs:
    runs["csv"] = tmp_path_factory.mktemp("csv") / "run"
    loop.run(tiny_series(), runs["csv"], quiet=True)
  return runs["csv"]


def forecasts(run, inputs) -> np.ndarray:
  """Of windows, by the plain model, standardised."""
  known = run.info.series
  model = tasks.module(run.config, horizon=known["horizon"], outputs=1)
  return np.asarray(model.apply(run.state.variables(), inputs, train=False)["forecast"], np.float64)[..., 0]


def test_metrics_of_a_series_against_numpy(waving, waves):
  """From the file itself, in the file's own units, on 31 windows in batches of 20."""
  run = inference.load(waving, loop.make_mesh(2))
  load = np.loadtxt(waves, delimiter=",", skiprows=1)[:, 1]
  first, last = load[:480], load[540:]
  at = np.arange(60 - 30 + 1)
  windows, truth = last[at[:, None] + np.arange(24)], last[at[:, None] + 24 + np.arange(6)]
  assert len(at) == 31
  found = forecasts(run, ((windows - first.mean()) / first.std()).astype(np.float32)[..., None])
  error = found * first.std() + first.mean() - truth
  expected = {
    "loss": np.square(error / first.std()).mean(),
    "mae": np.abs(error).mean(),
    "rmse": np.sqrt(np.square(error).mean()),
    "mase": np.abs(error).mean() / np.abs(first[1:] - first[:-1]).mean(),
    "seasonal_mase": np.abs(error).mean() / np.abs(first[24:] - first[:-24]).mean(),
    "naive_mae": np.abs(windows[:, -1:] - truth).mean(),
    "seasonal_naive_mae": np.abs(windows[:, :6] - truth).mean(),
  }
  row = report.read_metrics(waving)[-1]
  assert set(row) - {"step", "split", "seconds"} == set(expected) == set(run.task.measures)
  np.testing.assert_allclose([row[name] for name in expected], list(expected.values()), rtol=1e-4)
  again = inference.evaluate([str(waving)], changes={"data.eval_batch_size": 7, "data.on_device": False})["metrics"]
  np.testing.assert_allclose([again[f"test_{name}"] for name in expected], list(expected.values()), rtol=1e-4)


def test_mase_by_hand():
  """Training values 1, 3, 2, 6 change by 2, 1, 4 from one to the next, by 1 and 3 over two steps."""
  config = base.Data("csv", series=base.Series(window=3, horizon=3, period=2))
  known = series.described(config, None, np.array([1.0, 3, 2, 6]))
  assert (known.scale, known.seasonal_scale) == ((7 / 3,), (2.0,))
  inputs = np.array([[[1.0], [3.0], [2.0]]], np.float32)
  both = {name: np.asarray(x)[0, :, 0].tolist() for name, x in forecasting.baselines(inputs, known).items()}
  assert both == {"naive": [2, 2, 2], "seasonal_naive": [3, 2, 3]}
  batch = {"inputs": inputs, "targets": np.array([[[2.0], [2.0], [5.0]]], np.float32), "mask": np.ones(1, np.float32)}
  made = forecasting.score({"forecast": jnp.full((1, 3, 1), 3.0)}, batch, known)
  sums = jax.tree.map(lambda x: np.asarray(x, np.float64), made)
  found, std = forecasting.metrics(sums, known), known.std[0]
  np.testing.assert_allclose(found["mae"], 4 / 3 * std)
  np.testing.assert_allclose(found["mase"], 4 / 3 * std / (7 / 3))
  np.testing.assert_allclose(found["seasonal_mase"], 4 / 3 * std / 2)
  np.testing.assert_allclose(found["naive_mae"], 1 * std)
  np.testing.assert_allclose(found["seasonal_naive_mae"], 1 * std)
  np.testing.assert_allclose(found["rmse"], std * np.sqrt(2))


@pytest.mark.parametrize("trained", ["adding"], indirect=True)
def test_metrics_of_the_adding_problem(trained):
  """Right within 0.04; nothing of naive forecasts, which would mean nothing."""
  run = inference.load(trained, loop.make_mesh(2))
  source, _ = series.open_split(run.config.data, "test[:3%]")
  error = np.abs(forecasts(run, source.records["inputs"]) - source.records["targets"][..., 0])
  row = report.read_metrics(trained)[-1]
  assert len(error) == 60
  assert set(run.task.measures) == {"loss", "mae", "rmse", "accuracy"}
  assert run.task.best == "accuracy"
  np.testing.assert_allclose(row["accuracy"], (error < 0.04).mean(), atol=1e-9)
  np.testing.assert_allclose([row["mae"], row["loss"]], [error.mean(), np.square(error).mean()], rtol=1e-4)


def test_gradient_norms_against_pieces_of_an_rnn(tiny_series):
  """dL/dh_T from the head, and back by dL/dh_t = W diag(1 - h^2) dL/dh_(t + 1), in NumPy."""
  session = loop.prepare(tiny_series(model__fields__cell="rnn", **ADDING))
  model = tasks.module(session.config, horizon=1, outputs=1)
  variables = jax.device_get(loop.initial_state(session).variables())
  batch = session.train.read(range(3))
  found = forecasting.gradient_norms(model, variables, batch["inputs"], batch["targets"])
  layer, head = variables["params"]["layers"]["layer0"], variables["params"]["head"]
  h = [np.zeros((3, 8))]
  for t in range(12):
    z = batch["inputs"][:, t] @ layer["kernel_ih"] + layer["bias_ih"] + h[-1] @ layer["kernel_hh"] + layer["bias_hh"]
    h.append(np.tanh(z))
  error = h[-1] @ head["kernel"] + head["bias"] - batch["targets"][:, 0]
  slope, norms = 2 * error @ head["kernel"].T, []
  for t in range(12, 0, -1):
    norms.append(np.sqrt(np.square(slope).sum(1)))
    slope = (slope * (1 - h[t] ** 2)) @ layer["kernel_hh"].T
  np.testing.assert_allclose(found, np.stack(norms[::-1], 1), rtol=1e-4)
  head["kernel"] = head["kernel"] * np.float32(1e-25)  # whose square is no float32
  tiny = forecasting.gradient_norms(model, variables, batch["inputs"], batch["targets"])
  assert tiny.shape == (3, 12)
  assert 0 < float(tiny.min()) < 1e-25


def test_traces_are_the_mean_of_those_that_were_followed(waving):
  norms = np.full((5, 3), np.nan)
  norms[1], norms[3] = [1, 0, 2], [3, 0, 4]
  np.testing.assert_array_equal(forecasting.traces({"gradient_norm": norms})["gradient_norm"], [2, 0, 3])
  (row,) = report.read_traces(waving).values()
  assert len(row) == 24
  assert min(row) > 0
  for damage in ("", "[1]", '{"a": 5}', '{"../a": [1]}', '{"a": ["b"]}'):
    (waving / "traces.json").write_text(damage)
    assert report.read_traces(waving) == {}
  report.write_traces(waving, {"gradient_norm": row})
  assert report.read_traces(waving) == {"gradient_norm": row}


def test_an_ensemble_is_the_mean_of_forecasts(waving):
  run = inference.load(waving, loop.make_mesh(4))
  feed = loop.open_test(run.config, loop.make_mesh(4), run.info)
  other = run.state.replace(params=jax.tree.map(lambda x: x * 0.5, run.state.params))
  function = evaluation.eval_function([run.task] * 2, feed, loop.make_mesh(4))
  found = evaluation.evaluate(function, run.task, feed, [run.state, other]).metrics["loss"]
  batch = feed.read(range(31))
  mean = np.mean([forecasts(run._replace(state=state), batch["inputs"]) for state in (run.state, other)], 0)
  np.testing.assert_allclose(found, np.square(mean - batch["targets"][..., 0]).mean(), rtol=1e-4)


def ask(mode, folder, **fields):
  return command.MODES[mode](command.Ask(base.Config(), [str(folder)], {}, **fields))


def test_predict(waving, waves, tmp_path):
  """What follows the last row, as the model makes it of the last window; of another column where one is named."""
  said = ask("predict", waving, inputs=[str(waves)])
  run = inference.load(waving, loop.make_mesh(1))
  load, known = np.loadtxt(waves, delimiter=",", skiprows=1)[:, 1], run.info.series
  window = ((load[-24:] - known["mean"][0]) / known["std"][0]).astype(np.float32)[None, :, None]
  assert f"{waving}/predictions/predictions.csv" in said
  header, *rows = csv.reader((waving / "predictions/predictions.csv").open())
  assert header == ["steps_ahead", "forecast", "naive", "seasonal_naive"]
  rows = np.array(rows, float)
  np.testing.assert_array_equal(rows[:, 0], np.arange(1, 7))
  np.testing.assert_allclose(rows[:, 1], forecasts(run, window)[0] * known["std"][0] + known["mean"][0], rtol=1e-5)
  np.testing.assert_allclose(rows[:, 2], load[-1], rtol=1e-6)
  np.testing.assert_allclose(rows[:, 3], load[-24:-18], rtol=1e-6)
  assert (waving / "predictions/forecast.png").read_bytes().startswith(b"\x89PNG")
  short = tmp_path / "short.csv"
  short.write_text("load\n" + "1\n" * 23)
  for inputs, kind, message in (
    ([str(short)], UserError, "has 23 values, and the model reads a window of 24"),
    ([str(short), str(waves)], UserError, "must be one CSV file, not 2"),
    ([str(tmp_path / "none.csv")], UserError, "needs a CSV file"),
  ):
    with pytest.raises(kind, match=message):
      ask("predict", waving, inputs=inputs)
  short.write_text("hour,load\n1,\n")
  with pytest.raises(DataError, match="row 2, column 'load' is empty"):
    ask("predict", waving, inputs=[str(short)])


def test_modes_that_are_for_others(trained, tiny_series, tmp_path):
  with pytest.raises(UserError, match="--mode=explain is for classifiers"):
    explain.explain(trained)
  with pytest.raises(UserError, match="--mode=preview shows training images, and task 'forecasting' has none"):
    inference.preview(tiny_series(), tmp_path / "preview")
  if inference.load(trained, loop.make_mesh(1)).info.name == "adding":
    with pytest.raises(UserError, match="what this run learned is none that goes on"):
      ask("predict", trained, inputs=["x.csv"])


def test_export_takes_the_series_own_units(trained):
  folder, run = export.export(str(trained)), inference.load(trained, loop.make_mesh(1))
  function = jax.export.deserialize(bytearray((folder / "model.jaxexport").read_bytes()))
  feed = loop.open_test(run.config, loop.make_mesh(1), run.info)
  batch, known = feed.read(range(4)), run.info.series
  assert function.in_avals[-1].shape[1:] == batch["inputs"].shape[1:]
  x = batch["inputs"] * np.float32(known["std"][0]) + np.float32(known["mean"][0])
  found = function.call(run.state.variables(), x)["forecast"]
  expected = forecasts(run, batch["inputs"])[..., None] * known["std"][0] + known["mean"][0]
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_a_study_lays_traces_over_each_other(tiny_series, tmp_path):
  compare = {"one": {"seed": 1}, "two": {"seed": 2}}
  found = study.run(tiny_series(study__compare=compare, train__steps=2), tmp_path / "study", quiet=True)
  assert found["files"] == ["comparison.png", "gradient_norm.png"]
  assert found["best"] == "mae"
  assert (tmp_path / "study/gradient_norm.png").read_bytes().startswith(b"\x89PNG")
  assert study.finished(tiny_series(study__compare=compare, train__steps=2), tmp_path / "study") == found


def test_a_run_goes_on_with_its_own_series_alone(tiny_series, waves, tmp_path):
  config = tiny_series(train__steps=2)
  loop.run(config, tmp_path / "run", quiet=True)
  other = tmp_path / "other.csv"
  other.write_text(waves.read_text().replace("\n599,", "\n0,").replace("50.", "51."))
  changed = base.override(config, {"data.data_dir": str(other), "train.steps": 3})
  with pytest.raises(UserError, match="trained on other data: series was"):
    loop.run(changed, tmp_path / "run", quiet=True)
  path = tmp_path / "run/data.json"
  saved = json.loads(path.read_text())
  for damage in (5, {"inputs": 1}, saved["series"] | {"std": [0]}, None):
    path.write_text(json.dumps(saved | {"series": damage}))
    with pytest.raises(UserError, match="data.json' is damaged|tells none"):
      inference.load(tmp_path / "run", loop.make_mesh(2))


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"train__loss": "softmax"}, "learns by squared error; set config field 'train.loss' to 'mse'"),
    ({"model__name": "mlp", "model__fields": {}}, "task 'forecasting' cannot train model 'mlp'"),
    ({"model__fields__horizon": 3}, "'model.fields.horizon' follows from the data"),
    ({"train__best_metric": "-maes"}, "unknown metric 'maes'; did you mean"),
    ({"data__name": "digits"}, "unknown series 'digits'; did you mean"),
    ({"data__eval_split": "tst"}, "unknown split 'tst'; did you mean 'test'"),
  ],
)
def test_mistakes(tiny_series, changes, message):
  with pytest.raises(UserError, match=message):
    loop.prepare(tiny_series(**changes))


def test_it_learns(tiny_series, tmp_path):
  """Two waves and noise of deviation 1: better than both naive forecasts, whose errors are about 13 and 2.6."""
  config = tiny_series(train__steps=200, train__eval_every=200, model__fields__dropout=0.0)
  found = loop.run(base.override(config, {"optim.lr": 2e-2}), tmp_path / "run", quiet=True)["metrics"]
  assert found["test_mae"] < 0.8 * min(found["test_naive_mae"], found["test_seasonal_naive_mae"])
