"""Four CPU devices, the compilation cache, and small configs for all tests. Runs before anything touches JAX."""

import functools
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")

from flaxonomy.configs.base import Config, Data, Decode, Model, Optim, Series, Text, Train, override, to_dict  # noqa: E402
from flaxonomy.train import compile_cache  # noqa: E402

compile_cache.enable()

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

TINY = {"features": (4, 4, 8), "hidden_size": 8, "dropout": 0.0}


@pytest.fixture
def root() -> Path:
  """The checkout."""
  return ROOT


@pytest.fixture
def shared_data() -> Path:
  """Prepared real datasets, where there are any."""
  folder = Path(os.environ.get("FLAXONOMY_SHARED_DATA", SHARED / "data"))
  if not folder.is_dir():
    pytest.skip(f"no real datasets at {folder}")
  return folder


@pytest.fixture
def tiny():
  """A function: overrides -> a config of a few seconds on digits, without dropout, plain SGD on two devices."""

  def make(**changes) -> Config:
    config = Config(
      model=Model("deep_convnet", dict(TINY)),
      data=Data("digits", batch_size=32, eval_batch_size=100),
      optim=Optim("sgd", lr=0.1),
      train=Train(steps=12, eval_every=6, log_every=1, devices=2, cpu_devices=4, accumulate=1, tensorboard=False),
    )
    return override(config, {key.replace("__", "."): value for key, value in changes.items()})

  return make


@pytest.fixture
def tiny_gan():
  """A function: overrides -> a GAN config of a few seconds."""

  def make(**changes) -> Config:
    config = Config(
      task="gan",
      model=Model("dcgan", {"nz": 8, "generator_features": 4, "discriminator_features": 4}),
      data=Data("digits", image_size=(8, 8), batch_size=32, eval_batch_size=100, mean=(0.5,), std=(0.5,)),
      optim=Optim("adam", lr=2e-4, b1=0.5),
      train=Train(steps=12, eval_every=6, log_every=1, devices=2, cpu_devices=4, tensorboard=False),
    )
    return override(config, {key.replace("__", "."): value for key, value in changes.items()})

  return make


@pytest.fixture(scope="session")
def novel(tmp_path_factory) -> Path:
  """A folder of three splits of made-up prose: words drawn from twelve, so that there is something to learn."""
  folder, rng = tmp_path_factory.mktemp("novel"), np.random.default_rng(0)
  words = ["the", "a", "old", "new", "king", "queen", "sees", "hears", "sings", "and", "then", "never"]
  for split, lines in (("train", 200), ("validation", 30), ("test", 30)):
    text = "".join(" ".join(rng.choice(words, 8)) + "\n" for _ in range(lines))
    (folder / f"{split}.txt").write_text(text)
  return folder


@pytest.fixture
def tiny_lm(novel):
  """A function: overrides -> a recurrent language model's config of a few seconds, on streams, with dropout."""

  def make(**changes) -> Config:
    config = Config(
      task="language_model",
      model=Model("gru_lm", {"hidden_size": 8, "num_layers": 2, "dropout": 0.2}),
      data=Data(
        "text", data_dir=str(novel), batch_size=8, eval_batch_size=4, eval_split="validation",
        text=Text("chars", length=16, streams=True),
      ),
      optim=Optim("adam", lr=1e-2, clip_norm=1.0),
      train=Train(steps=12, eval_every=6, log_every=1, devices=2, cpu_devices=4, tensorboard=False),
    )  # fmt: skip
    return override(config, {key.replace("__", "."): value for key, value in changes.items()})

  return make


@pytest.fixture(scope="session")
def waves(tmp_path_factory) -> Path:
  """A CSV file of two waves and noise, 24 steps a season."""
  path, t = tmp_path_factory.mktemp("waves") / "waves.csv", np.arange(600)
  load = 50 + 20 * np.sin(t * np.pi / 12) + 3 * np.sin(t / 7) + np.random.default_rng(0).normal(size=600)
  path.write_text("hour,load\n" + "".join(f"{i},{value:.4f}\n" for i, value in enumerate(load)))
  return path


@pytest.fixture
def tiny_series(waves):
  """A function: overrides -> a forecaster's config of a few seconds, with dropout."""

  def make(**changes) -> Config:
    config = Config(
      task="forecasting",
      model=Model("forecaster", {"cell": "gru", "hidden_size": 8, "dropout": 0.2}),
      data=Data(
        "csv", data_dir=str(waves), batch_size=16, eval_batch_size=20, series=Series(window=24, horizon=6, period=24)
      ),
      optim=Optim("adam", lr=1e-2, clip_norm=1.0),
      train=Train(
        steps=12, eval_every=6, log_every=1, loss="mse", devices=2, cpu_devices=4, tensorboard=False
      ),
    )  # fmt: skip
    return override(config, {key.replace("__", "."): value for key, value in changes.items()})

  return make


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> Path:
  """A folder of made-up sentences, of which one word in three tells the label."""
  folder, rng = tmp_path_factory.mktemp("reviews"), np.random.default_rng(0)
  words = {"bad": ["dull", "poor", "weak"], "good": ["bright", "rich", "fine"]}
  for split, count in (("train", 120), ("dev", 21)):
    rows = ["label\tsentence"]
    for label in rng.choice(list(words), count):
      own = [["a", "the", "film", "plot", "scene", "is"], words[label]]
      rows.append(f"{label}\t" + " ".join(rng.choice(own[rng.random() < 1 / 3]) for _ in range(rng.integers(1, 12))))
    (folder / f"{split}.tsv").write_text("\n".join(rows) + "\n")
  return folder


@pytest.fixture
def tiny_text(reviews):
  """A function: overrides -> the config of a classifier of texts of a few seconds, in three buckets, with dropout."""

  def make(**changes) -> Config:
    config = Config(
      task="text_classification",
      model=Model("bilstm_classifier", {"embedding_size": 8, "hidden_size": 4, "attention_size": 4, "dropout": 0.2}),
      data=Data(
        "labelled", data_dir=str(reviews), batch_size=8, eval_batch_size=8, eval_split="dev",
        text=Text("words", buckets=(4, 8, 12)),
      ),
      optim=Optim("adam", lr=1e-2),
      train=Train(steps=12, eval_every=6, log_every=1, devices=2, cpu_devices=4, tensorboard=False),
    )  # fmt: skip
    return override(config, {key.replace("__", "."): value for key, value in changes.items()})

  return make


@pytest.fixture
def tiny_translation():
  """A function: overrides -> the config of a small translator of dates, with dropout."""

  def make(**changes) -> Config:
    config = Config(
      task="translation",
      model=Model("seq2seq", {"embedding_size": 8, "hidden_size": 8, "attention": "general", "dropout": 0.2}),
      data=Data(
        "dates", train_split="train[:128]", eval_split="test[:21]", batch_size=16, eval_batch_size=8,
        text=Text("chars", length=56),
      ),
      optim=Optim("adam", lr=1e-2),
      train=Train(steps=12, eval_every=6, log_every=1, devices=2, cpu_devices=4, tensorboard=False),
      decode=Decode(max_ratio=0.0, max_extra=12),
    )  # fmt: skip
    return override(config, {key.replace("__", "."): value for key, value in changes.items()})

  return make


KINDS = {"classification": "tiny", "gan": "tiny_gan", "language_model": "tiny_lm"}  # fixtures of tasks that differ
TASKS = KINDS | {  # of all tasks
  "forecasting": "tiny_series", "text_classification": "tiny_text", "translation": "tiny_translation",
}  # fmt: skip


@pytest.fixture(params=KINDS)
def any_task(request):
  """A function as `tiny`, for each kind of state and step in turn: what is promised of a run is promised of all."""
  return _maker(request)


@pytest.fixture(params=TASKS)
def every_task(request):
  """The same for every task, for the promises that its own code could break."""
  return _maker(request)


def _maker(request):
  make = request.getfixturevalue(TASKS[request.param])
  return functools.partial(make, model__fields__dropout=0.5) if request.param == "classification" else make


@pytest.fixture
def photos(tmp_path):
  """Config changes to a folder of forty small images, one of which, cat/7.png, cannot be read."""
  for i in range(40):
    path = tmp_path / f"photos/{'cat' if i % 2 else 'dog'}/{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), 6 * i, np.uint8)).save(path)
  (tmp_path / "photos/cat/7.png").write_bytes(b"no image")
  return {"data__name": "folder", "data__data_dir": str(tmp_path / "photos"), "data__image_size": (8, 8)}


@pytest.fixture
def assert_same_run():
  """A function: two workdirs hold the same rows of metrics and the same last state, to the last bit."""
  from flaxonomy.train import report

  def check(one, other):
    assert report.read_metrics(one) == report.read_metrics(other)
    assert last_state(one) == last_state(other)

  return check


def last_state(folder) -> tuple[int, str]:
  """The last saved step of a workdir and a hash of every bit of its state."""
  from flaxonomy.train import checkpoint, loop, workdir

  session = loop.prepare(workdir.load_config(folder))
  saves = checkpoint.Checkpoints(folder, read_only=True)
  state, _ = saves.restore(saves.newest(), loop.abstract_state(session.task, session.mesh))
  leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(jax.device_get(state))]
  found = saves.newest(), hashlib.sha256(b"".join(leaves)).hexdigest()
  saves.close()
  return found


@pytest.fixture
def start(root, tmp_path):
  """A function: (config, *arguments, patch="", env={}) -> a process of launch.py on it, in tmp_path.

  `patch` is Python that the config file runs, to slow down a place that a signal is to hit.
  """
  started = []

  def start(config, *arguments, patch="", env=None):
    path = tmp_path / f"config_{len(started)}.py"
    path.write_text(
      f"import json\nfrom flaxonomy.configs import base\n{patch}\n\n"
      f"def get_config():\n  return base.from_dict(json.loads({json.dumps(to_dict(config))!r}))\n"
    )
    command = [sys.executable, str(root / "launch.py"), f"--config={path}", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, env=os.environ | (env or {}), **pipes)
    started.append(process)
    return process

  yield start
  for process in started:
    process.kill()
    process.communicate()
