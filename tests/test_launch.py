"""The command line as a user meets it: every mode, and every mistake as one line, exit code 2, in under 5 s."""

import csv
import json
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

TINY = [
  "--config.train.steps=4",
  "--config.train.eval_every=2",
  "--config.data.batch_size=32",
  "--config.data.image_size=(8, 8)",
  "--config.model.fields.features=(4, 4, 8)",
  "--config.model.fields.hidden_size=8",
]


def launch(root, *arguments, cwd):
  return subprocess.run(
    [sys.executable, str(root / "launch.py"), *arguments], cwd=cwd, capture_output=True, text=True, timeout=120
  )


@pytest.fixture(scope="module")
def trained(pytestconfig, tmp_path_factory):
  """A folder with two tiny trained runs."""
  folder = tmp_path_factory.mktemp("launch")
  for seed in (0, 1):
    done = launch(pytestconfig.rootpath, *TINY, f"--config.seed={seed}", f"--workdir=runs/{seed}", cwd=folder)
    assert done.returncode == 0, done.stderr
  return folder


def test_train_says_where_everything_lies(root, trained):
  again = launch(root, "--workdir=runs/0", cwd=trained)
  assert again.returncode == 0
  assert "already complete at step 4" in again.stdout
  last = again.stdout.strip().splitlines()[-1]
  accuracy = json.loads((trained / "runs/0/result.json").read_text())["metrics"]["test_accuracy"]
  assert last.startswith(f"test accuracy {accuracy:.4f}, ")
  assert "everything lies in runs/0" in last


def test_more_steps_go_on(root, trained):
  more = launch(root, "--workdir=runs/1", "--config.train.steps=6", cwd=trained)
  assert more.returncode == 0, more.stderr
  assert "resuming at step 4" in more.stderr
  assert "schedule now ends at 6" in more.stdout
  assert json.loads((trained / "runs/1/result.json").read_text())["step"] == 6


def test_eval_of_one_and_of_an_ensemble(root, trained):
  one = launch(root, "--mode=eval", "--workdir=runs/0", cwd=trained)
  accuracy = json.loads((trained / "runs/0/result.json").read_text())["metrics"]["test_accuracy"]
  assert f"test accuracy {accuracy:.4f}" in one.stdout, one.stderr
  both = launch(root, "--mode=eval", "--workdir=runs/0,runs/1", cwd=trained)
  assert both.returncode == 0, both.stderr
  assert "ensemble of 2" in both.stdout


def test_ensemble_is_the_mean_of_softmax(trained):
  from flaxonomy.train import inference, loop

  folders = [str(trained / "runs" / name) for name in ("0", "1")]
  runs = [inference.load(folder, loop.make_mesh(1)) for folder in folders]
  feed = loop.open_test(runs[0].config, loop.make_mesh(1), runs[0].info)
  batch = feed.read(range(feed.size))
  probs = np.mean([run.task.predict_step(run.state, batch)["probs"] for run in runs], axis=0)
  expected = (probs.argmax(1) == batch["label"]).mean()
  assert inference.evaluate(folders)["metrics"]["test_accuracy"] == pytest.approx(expected)


def test_predict_writes_labels_and_pictures(root, trained):
  photos = trained / "photos"
  photos.mkdir()
  rng = np.random.default_rng(0)
  for i, shape in enumerate([(20, 30, 3), (8, 8), (300, 200, 4)]):
    Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(photos / f"{i}.png")
  done = launch(root, "--mode=predict", "--workdir=runs/0", f"--inputs={photos}", cwd=trained)
  assert done.returncode == 0, done.stderr
  with (trained / "runs/0/predictions/predictions.csv").open() as file:
    rows = list(csv.DictReader(file))
  assert [row["file"] for row in rows] == [str(photos / f"{i}.png") for i in range(3)]
  for row in rows:
    probs = np.array([float(row[str(c)]) for c in range(10)])
    assert abs(probs.sum() - 1) < 1e-3
    assert probs[int(row["label"])] == probs.max()  # printed with four digits: a tie may hide the larger one
  assert len(list((trained / "runs/0/predictions").glob("*.png"))) == 3
  again = launch(root, "--mode=predict", "--workdir=runs/0", f"--inputs={photos / '0.png'}", cwd=trained)
  assert "predictions_2" in again.stdout, again.stderr


def test_export_is_what_the_model_computes(root, trained):
  import jax
  import safetensors.numpy

  from flaxonomy.train import inference, loop, weights

  done = launch(root, "--mode=export", "--workdir=runs/0", cwd=trained)
  assert done.returncode == 0, done.stderr
  folder = trained / "runs/0/export"
  assert {p.name for p in folder.iterdir()} == {
    "model.jaxexport",
    "params.safetensors",
    "public.safetensors",
    "config.json",
    "labels.txt",
    "README.md",
  }
  function = jax.export.deserialize(bytearray((folder / "model.jaxexport").read_bytes()))
  assert set(function.platforms) == {"cpu", "cuda", "tpu"}
  variables = weights.unflatten(safetensors.numpy.load_file(folder / "params.safetensors"))
  run = inference.load(trained / "runs/0", loop.make_mesh(1))
  for size in (1, 5):
    x = np.random.default_rng(size).integers(0, 256, (size, 8, 8, 1), np.uint8)
    ours = run.task.predict_step(run.state, {"image": x})["probs"]
    np.testing.assert_allclose(function.call(variables, x)["probs"], ours, atol=1e-6)


def test_preview_and_training_after_it(root, tmp_path):
  done = launch(root, "--mode=preview", *TINY, "--config.data.augment.rotate=20", "--workdir=new", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert [p.name for p in (tmp_path / "new").iterdir()] == ["preview.png"]
  assert Image.open(tmp_path / "new/preview.png").size[0] > 500


def test_cache_folder_that_cannot_be_made(root, tmp_path, monkeypatch):
  monkeypatch.setenv("FLAXONOMY_CACHE", "/proc/nope")
  done = launch(root, cwd=tmp_path)
  assert done.returncode == 2
  assert len(done.stderr.strip().splitlines()) == 1, done.stderr
  assert "cache folder '/proc/nope'" in done.stderr


def test_cache_that_others_can_write_to_is_refused(root, tmp_path, monkeypatch):
  monkeypatch.setenv("FLAXONOMY_CACHE", str(tmp_path / "cache"))
  (tmp_path / "cache/compiled").mkdir(parents=True)
  (tmp_path / "cache/compiled").chmod(0o777)
  done = launch(root, cwd=tmp_path)
  assert done.returncode == 2
  assert "others can write to" in done.stderr


def test_list_has_every_config_with_a_description(root, tmp_path):
  lines = launch(root, "--list", cwd=tmp_path).stdout.splitlines()
  names = {p.name for p in (root / "configs").glob("*.py")} - {"__init__.py", "base.py", "values.py"}
  assert {line.split()[0] for line in lines} == {f"configs/{name}" for name in names}
  assert all(len(line.split(maxsplit=1)[1]) > 20 for line in lines)


def test_help_lists_the_flags(root, tmp_path):
  done = launch(root, "--help", cwd=tmp_path)
  assert done.returncode == 0
  assert all(f"--{flag}" in done.stdout for flag in ("config", "workdir", "mode", "inputs", "checkpoint"))


GAN = ["--config.data.image_size=(16, 16)", "--config.data.std=(0.5,)"]
MISTAKES = {
  "misspelt field": (["--config.optim.lrr=1"], "'optim.lrr'; did you mean 'optim.lr'"),
  "group of fields": (["--config.optim=adam"], "'optim' is a group; set one of its fields: optim.name"),
  "wrong type": (["--config.optim.lr=fast"], "config.optim.lr=fast"),
  "wrong tuple": (["--config.data.image_size=(8,)"], "'data.image_size' must be a tuple of int, 2 long or None"),
  "impossible value": (["--config.data.batch_size=0"], "'data.batch_size' must be at least 1, not 0"),
  "config file": (["--config=configs/digit.py"], "unknown config file 'configs/digit.py'; did you mean"),
  "broken config file": (["--config=broken.py"], "config file 'broken.py' line 2: NameError"),
  "config file without syntax": (["--config=syntax.py"], "config file 'syntax.py' line 1: SyntaxError"),
  "config of another kind": (["--config=dict.py"], "must return a Config, not dict"),
  "flag": (["--wokdir=x"], "Unknown command line flag 'wokdir'. Did you mean: workdir"),
  "argument": (["train"], "unexpected argument 'train'"),
  "mode": (["--mode=trian"], "<train|eval|predict|sample|chat|export|explain|preview|doctor>"),
  "task": (["--config.task=classificaton"], "unknown task 'classificaton'; did you mean 'classification' or"),
  "model": (["--config.model.name=deepconvnet"], "unknown model 'deepconvnet'; did you mean 'deep_convnet' or"),
  "model field": (["--config.model.fields.droput=.1"], "'droput'; did you mean 'dropout'?"),
  "unknown field of model fields": (["--config.model.fields={'droput': .1}"], "'droput'; did you mean 'dropout'?"),
  "type of model field": (["--config.model.fields.dropout=high"], "'dropout' of model 'deep_convnet' must be like 0.5"),
  "dataset": (["--config.data.name=digit"], "unknown dataset 'digit'; did you mean 'digits'"),
  "TFDS dataset": (["--config.data.name=mnst"], "unknown dataset 'mnst'; did you mean 'mnist'"),
  "not prepared": (["--config.data.name=mnist", "--config.data.data_dir=."], "download_and_prepare()"),
  "model of another task": (["--config.model.name=dcgan"], "task 'classification' cannot train model 'dcgan'"),
  "task of another model": (
    ["--config.task=gan", *GAN, "--config.data.mean=(0.5,)"],
    "task 'gan' cannot train model 'deep_convnet'",
  ),
  "range of the images": (["--config.task=gan", *GAN], "needs images in [-1, 1]"),
  "metric": (["--config.train.best_metric=acuracy"], "unknown metric 'acuracy'; did you mean 'accuracy'?"),
  "range": (["--config.train.ema_decay=7"], "'train.ema_decay' must be from 0 to below 1, not 7.0"),
  "range of model field": (["--config.model.fields.hidden_size=-5"], "'hidden_size' of model 'deep_convnet'"),
  "settled model field": (["--config.model.fields.num_classes=3"], "'model.fields.num_classes' follows from the data"),
  "unread field": (["--config.optim.rho=0.9"], "optimizer 'adam' does not read config field 'optim.rho'"),
  "damaged run": (["--mode=eval", "--workdir=damaged"], "data.json"),
  "split": (["--config.data.eval_split=tset"], "'tset'; did you mean 'test'?"),
  "optimizer": (["--config.optim.name=adan"], "unknown optimizer 'adan'; did you mean 'adam'"),
  "schedule": (["--config.optim.schedule=cosin"], "unknown schedule 'cosin'; did you mean 'cosine'?"),
  "pattern": (["--config.optim.freeze=('conv(',)"], "pattern 'conv(' is not a regular expression"),
  "pattern without match": (["--config.optim.freeze=('kernel','conv9')"], "'optim.freeze': 'conv9'"),
  "batch and devices": (["--config.data.batch_size=101"], "must be divisible by 2 devices"),
  "devices": (["--config.train.devices=9"], "'train.devices' is 9, but there are 2 devices"),
  "dtype": (["--config.train.dtype=float8"], "unknown train.dtype 'float8'"),
  "foreign folder": (["--workdir=taken"], "holds files but no run"),
  "file as folder": (["--workdir=syntax.py"], "is a file"),
  "distributed without its flags": (["--distributed", "--num_processes=2"], "--coordinator and --process_id too"),
  "flags without distributed": (
    ["--process_id=1"],
    "--coordinator, --num_processes and --process_id need --distributed",
  ),
  "distributed on its own": (["--distributed"], "add --coordinator=HOST:PORT --num_processes=N --process_id=I"),
  "distributed export": (["--mode=export", "--distributed"], "--mode=export is for one process"),
  "policy": (["--config.train.on_nan=skipp"], "unknown train.on_nan 'skipp'; did you mean 'skip'?"),
  "bucket": (["--workdir=gs://bucket/run"], "a bucket has no locks"),
  "home of nobody": (["--workdir=~nobody_here/run"], "cannot be: Could not determine home directory"),
  "no run": (["--mode=eval", "--workdir=nothing"], "holds no run"),
  "no inputs": (["--mode=predict", "--workdir=nothing"], "--mode=predict needs --inputs="),
  "two workdirs": (["--workdir=a,b"], "takes one --workdir, not 2"),
  "missing extra": (["--config.train.tensorboard=True", *TINY], "pip install 'flaxonomy[tensorboard]'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, root, tmp_path, monkeypatch):
  arguments, expected = MISTAKES[name]
  (tmp_path / "broken.py").write_text("def get_config():\n  return nothing\n")
  (tmp_path / "syntax.py").write_text("def get_config(:\n")
  (tmp_path / "dict.py").write_text("def get_config():\n  return {}\n")
  (tmp_path / "damaged").mkdir()
  (tmp_path / "damaged/config.json").write_text("{}")
  (tmp_path / "taken").mkdir()
  (tmp_path / "taken/thesis.tex").write_text("mine")
  if name == "missing extra":  # a package of that name that cannot be found
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['tensorboardX'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
  before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
  began = _processor_seconds()
  done = launch(root, *arguments, cwd=tmp_path)
  seconds = _processor_seconds() - began
  assert done.returncode == 2, done.stderr
  assert done.stdout == ""
  lines = done.stderr.strip().splitlines()
  assert len(lines) == 1, done.stderr
  assert lines[0].startswith("error: ")
  assert expected in lines[0]
  assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and "__pycache__" not in p.parts} == before
  assert not (tmp_path / "runs").exists()
  assert seconds < 5


def _processor_seconds() -> float:
  """Processor time of all finished child processes; unlike the clock it does not count what else the machine does."""
  used = resource.getrusage(resource.RUSAGE_CHILDREN)
  return used.ru_utime + used.ru_stime


def test_doctor(root, tmp_path):
  """A line for everything it looks at, in under 30 s of processor time, and nothing left behind."""
  began = _processor_seconds()
  done = launch(root, "--mode=doctor", cwd=tmp_path)
  assert _processor_seconds() - began < 30
  assert done.returncode == 0, done.stdout + done.stderr
  lines = done.stdout.strip().splitlines()
  looks = ["versions", "devices", "precision", "determinism", "disk", "checkpoint", "data", "step"]
  assert [line.split()[:2] for line in lines[:-1]] == [["ok", look] for look in looks]
  assert lines[-1] == "doctor: all is well"
  assert list(tmp_path.iterdir()) == []


def test_doctor_finds_what_is_wrong(root, tmp_path):
  done = launch(root, "--mode=doctor", "--config.data.name=digitz", cwd=tmp_path)
  assert done.returncode == 2
  assert "BAD  data         unknown dataset 'digitz'; did you mean 'digits'" in done.stdout
  assert done.stderr.strip() == "error: doctor: data will not do; the lines above say why"


def test_a_workdir_is_read_as_data(root, trained, tmp_path):
  """Evaluating, predicting and exporting run nothing that someone has put into a workdir."""
  folder = tmp_path / "run"
  shutil.copytree(trained / "runs/0", folder)
  marker = tmp_path / "marker"
  trap = f"open({str(marker)!r}, 'w')"
  for name in ("config", "sitecustomize", "conftest", "flaxonomy", "digits", "deep_convnet", "json"):
    (folder / f"{name}.py").write_text(trap)
  evil = f"cbuiltins\nexec\n(V{trap}\ntR.".encode()  # a pickle that runs the trap
  for place in ("state.pkl", "checkpoints/4/state/extra.pkl", "export.pkl"):
    (folder / place).write_bytes(evil)
  Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "photo.png")
  for arguments in (["--mode=eval"], ["--mode=predict", f"--inputs={tmp_path}/photo.png"], ["--mode=export"]):
    done = launch(root, *arguments, f"--workdir={folder}", cwd=folder)
    assert done.returncode == 0, done.stderr
  assert not marker.exists()


@pytest.mark.parametrize("values", [{"name": "../../etc/passwd"}, {"name": "os:path"}])
def test_names_in_a_workdir_stay_inside(root, trained, tmp_path, values):
  folder = tmp_path / "run"
  shutil.copytree(trained / "runs/0", folder)
  config = json.loads((folder / "config.json").read_text())
  config["data"] |= values
  (folder / "config.json").write_text(json.dumps(config))
  done = launch(root, "--mode=eval", f"--workdir={folder}", cwd=tmp_path)
  assert done.returncode == 2, done.stderr
  assert "unknown dataset" in done.stderr
