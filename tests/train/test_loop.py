"""The loop: what it leaves, resuming bit for bit, running twice in one process, other tasks through it unchanged."""

import concurrent.futures
import json
import re
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from flaxonomy.configs import base
from flaxonomy.errors import UserError
from flaxonomy.train import checkpoint, evaluation, inference, loop, report

PICTURES = {
  "classification": {"confusion.png", "predictions.png"}, "gan": {"samples.png"},
  "language_model": {"surprise.png", "places.png"}, "forecasting": {"forecast.png", "gradient_norm.png"},
  "text_classification": {"confusion.png", "saliency.png"},
}  # fmt: skip
OTHERS = {
  "language_model": {"tokenizer_text.json"}, "text_classification": {"tokenizer_text.json"},
  "forecasting": {"traces.json"},
}  # fmt: skip


def test_a_run_leaves_everything(every_task, tmp_path):
  config = every_task()
  split = evaluation.split_name(config)
  result = loop.run(config, tmp_path / "run", quiet=True)
  names = {p.name for p in (tmp_path / "run").iterdir()}
  pictures = PICTURES[config.task]
  assert names == {
    ".lock",
    "checkpoints",
    "config.json",
    "curves.png",
    "data.json",
    "metrics.jsonl",
    "report.html",
    "result.json",
  } | {"status.json"} | pictures | OTHERS.get(config.task, set())
  saved = json.loads((tmp_path / "run/result.json").read_text())
  assert saved == result
  assert set(saved) == {"metrics", "step", "seconds", "config"}
  assert saved["step"] == 12
  assert all(name.startswith(f"{split}_") for name in saved["metrics"])
  trained = [row["step"] for row in report.read_metrics(tmp_path / "run") if row["split"] == "train"]
  assert trained == list(range(1, 13))
  evaluations = [row["step"] for row in report.read_metrics(tmp_path / "run") if row["split"] == split]
  assert evaluations == [6, 12]
  page = (tmp_path / "run/report.html").read_text()
  assert page.count("data:image/png;base64,") == len(pictures) + 1
  assert "<script" not in page
  assert "http" not in page.replace("http-equiv", "")


@pytest.mark.parametrize("most", [1, 4])
def test_stopping_anywhere_and_resuming_changes_no_bit(most, every_task, assert_same_run, tmp_path):
  """Twelve steps at once against a run stopped at step 5, which is no multiple of anything, and resumed."""
  config = every_task(train__steps_per_dispatch=most, train__ema_decay=0.9)
  loop.run(config, tmp_path / "whole", quiet=True)
  loop.run(base.override(config, {"train.steps": 5}), tmp_path / "parts", quiet=True)
  loop.run(config, tmp_path / "parts", quiet=True)
  left_out = (5, evaluation.split_name(config))
  kept = [row for row in report.read_metrics(tmp_path / "parts") if (row["step"], row["split"]) != left_out]
  report.write_text(tmp_path / "parts/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in kept))
  assert_same_run(tmp_path / "parts", tmp_path / "whole")


PROGRAM = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 4)
from flaxonomy.configs import base
from flaxonomy.train import loop
import json
loop.run(base.from_dict(json.loads(sys.argv[1])), sys.argv[2], quiet=True)
"""


def test_a_second_run_in_a_process_equals_a_fresh_process(tiny, tiny_gan, assert_same_run, tmp_path):
  first, second = tiny_gan(), tiny(model__fields__dropout=0.5, optim__name="adam")
  loop.run(first, tmp_path / "first", quiet=True)
  loop.run(second, tmp_path / "second", quiet=True)
  arguments = [json.dumps(base.to_dict(second)), str(tmp_path / "fresh")]
  subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=True, cwd=tmp_path)
  assert_same_run(tmp_path / "second", tmp_path / "fresh")


def test_run_changes_neither_its_config_nor_jax(tiny, tmp_path):
  config = tiny()
  before, settings = base.to_dict(config), dict(jax.config.values)
  loop.run(config, tmp_path / "run", quiet=True)
  assert base.to_dict(config) == before
  assert dict(jax.config.values) == settings


def test_a_finished_run_is_returned_and_left_alone(tiny, tmp_path):
  config = tiny()
  result = loop.run(config, tmp_path / "run", quiet=True)
  before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()}
  assert loop.run(config, tmp_path / "run", quiet=True) == result
  assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*") if p.is_file()} == before


def test_a_workdir_of_another_config_is_refused_and_left_alone(tiny, tmp_path):
  config = tiny()
  loop.run(config, tmp_path / "run", quiet=True)
  before = {p: p.read_bytes() for p in (tmp_path / "run").glob("*.json")}
  with pytest.raises(UserError, match=r"belongs to another config: optim.lr = 0.1 there, 0.2 here; .*--workdir"):
    loop.run(base.override(config, {"optim.lr": 0.2}), tmp_path / "run", quiet=True)
  assert {p: p.read_bytes() for p in (tmp_path / "run").glob("*.json")} == before


def test_checkpoints_between_evaluations(tiny, tmp_path):
  """They have no metric, and are not taken for the best."""
  config = tiny(train__checkpoint_every=3, train__keep_last=1, train__keep_best=1)
  loop.run(config, tmp_path / "run", quiet=True)
  saves = checkpoint.Checkpoints(tmp_path / "run", best="accuracy", read_only=True)
  assert saves.steps()[-1] == 12
  assert saves.best_step() in (6, 12)
  saves.close()


def test_a_run_does_not_go_on_with_other_data(tiny, tmp_path):
  from PIL import Image

  def images(*classes):
    for name in classes:
      for i in range(20):
        path = tmp_path / "photos" / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(path)

  changes = {"data__name": "folder", "data__data_dir": str(tmp_path / "photos"), "data__image_size": (8, 8)}
  config = tiny(**changes, data__batch_size=8, data__augment__rotate=10)
  images("cat", "dog")
  loop.run(base.override(config, {"train.steps": 6}), tmp_path / "run", quiet=True)
  images("bee")
  with pytest.raises(UserError, match=r"was trained on other data: class_names was \('cat', 'dog'\), is now \('bee',"):
    loop.run(config, tmp_path / "run", quiet=True)
  with pytest.raises(UserError, match="differs in class names"):
    inference.evaluate([str(tmp_path / "run")])


@pytest.mark.parametrize("field, value", [("data.name", "digitz"), ("data.batch_size", 33), ("model.name", "deepconv")])
def test_an_error_leaves_no_workdir(tiny, tmp_path, field, value):
  with pytest.raises(UserError):
    loop.run(base.override(tiny(), {field: value}), tmp_path / "run", quiet=True)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("devices, eval_batch", [(1, 100), (2, 99), (4, 1000)])
@pytest.mark.parametrize("on_device", [True, False])
def test_evaluation_counts_every_example_once(tiny, devices, eval_batch, on_device):
  config = tiny(train__devices=devices, data__eval_batch_size=eval_batch, data__on_device=on_device)
  session = loop.prepare(config)
  state = loop.initial_state(session)
  found = evaluation.evaluate(
    evaluation.eval_function([session.task], session.test, session.mesh), session.task, session.test, [state]
  )
  labels = session.test.read(range(session.test.size))["label"]
  assert found.sums["count"] == len(labels)
  np.testing.assert_array_equal(found.sums["confusion"].sum(1), np.bincount(labels, minlength=10))
  np.testing.assert_allclose(found.metrics["accuracy"], np.trace(found.sums["confusion"]) / len(labels))


def test_metrics_against_sklearn(tiny):
  from sklearn import metrics

  session = loop.prepare(tiny())
  rng = np.random.default_rng(0)
  probs = rng.dirichlet(np.ones(12), 50).astype(np.float32)
  label = rng.integers(0, 12, 50)
  mask = np.ones(50, np.float32)
  mask[45:] = 0
  sums = jax.device_get(session.task.score({"probs": probs}, {"label": label, "mask": mask}))
  ours, seen = session.task.metrics(sums), slice(0, 45)
  np.testing.assert_allclose(ours["accuracy"], metrics.accuracy_score(label[seen], probs[seen].argmax(1)))
  np.testing.assert_allclose(ours["loss"], metrics.log_loss(label[seen], probs[seen], labels=range(12)), rtol=1e-5)
  top5 = metrics.top_k_accuracy_score(label[seen], probs[seen], k=5, labels=range(12))
  np.testing.assert_allclose(ours["top5_accuracy"], top5)
  np.testing.assert_array_equal(
    sums["confusion"], metrics.confusion_matrix(label[seen], probs[seen].argmax(1), labels=range(12))
  )


def test_progress_on_a_terminal_and_elsewhere(capsys):
  import io

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  live, plain = Terminal(), io.StringIO()
  for stream in (live, plain):
    progress = report.Progress(100, 0, 32, stream, every=0.0)
    progress._every = 0.0
    progress.waited = 100.0
    progress.update(50, {"loss": 1.5, "accuracy": 0.25})
  assert live.getvalue().startswith("\r\x1b[Kstep 50/100  loss 1.5000  accuracy 0.2500  ")
  assert not live.getvalue().endswith("\n")
  assert re.search(r"left  data wait \d+%\n$", plain.getvalue())
  assert "examples/s" in plain.getvalue()


def test_rows_after_the_resumed_step_are_dropped(tmp_path):
  log = report.Metrics(tmp_path, 0, tensorboard=False)
  for step in range(1, 5):
    log.write(step, "train", {"loss": float(step)})
  log.close()
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 5, "spl')  # cut off by a crash
  report.Metrics(tmp_path, 2, tensorboard=False).close()
  assert [row["step"] for row in report.read_metrics(tmp_path)] == [1, 2]


def test_tensorboard_events(tiny, tmp_path):
  pytest.importorskip("tensorboardX")
  loop.run(tiny(train__tensorboard=True, train__steps=2), tmp_path / "run", quiet=True)
  assert list((tmp_path / "run/tensorboard").glob("events.*"))


def test_a_run_of_the_first_version_goes_on(tiny, root, tmp_path):
  """Six steps made before there were checksums, kept as files; six more here equal twelve made here."""
  folder = tmp_path / "run"
  shutil.copytree(root / "tests/goldens/first_run", folder)
  config = tiny()
  assert loop.run(config, folder, quiet=True)["step"] == 12
  loop.run(config, tmp_path / "whole", quiet=True)
  losses = [[r["loss"] for r in report.read_metrics(path)] for path in (folder, tmp_path / "whole")]
  np.testing.assert_allclose(*losses, rtol=1e-5)  # made by another machine, perhaps
  assert (folder / "checkpoints/6").is_dir()


def test_other_numbers_of_devices_go_on(tiny, tmp_path):
  """Four, two, one and four devices again: the state is read as it was, the losses are those of four throughout."""
  config = tiny(train__devices=4, train__checkpoint_every=3, train__eval_every=12)
  loop.run(config, tmp_path / "whole", quiet=True)
  for steps, devices in ((3, 4), (6, 2), (9, 1), (12, 4)):
    part = base.override(config, {"train.steps": steps, "train.devices": devices})
    loop.run(part, tmp_path / "parts", quiet=True)
  losses = [
    [r["loss"] for r in report.read_metrics(tmp_path / name) if r["split"] == "train"] for name in ("parts", "whole")
  ]
  np.testing.assert_allclose(*losses, rtol=1e-5)


def test_accumulated_steps_resume(tiny, assert_same_run, tmp_path):
  config = tiny(train__accumulate=4, train__checkpoint_every=3, train__eval_every=12)
  loop.run(config, tmp_path / "whole", quiet=True)
  loop.run(base.override(config, {"train.steps": 3, "train.eval_every": 3}), tmp_path / "parts", quiet=True)
  loop.run(config, tmp_path / "parts", quiet=True)
  rows = [row for row in report.read_metrics(tmp_path / "parts") if (row["step"], row["split"]) != (3, "test")]
  report.write_text(tmp_path / "parts/metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
  assert_same_run(tmp_path / "parts", tmp_path / "whole")


def test_a_run_in_a_thread(tiny, tmp_path):
  """Where Python lets nobody handle signals."""
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    assert pool.submit(loop.run, tiny(train__steps=2), tmp_path / "run", quiet=True).result()["step"] == 2


def test_signal_handlers_are_put_back(tiny, tmp_path):
  before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
  loop.run(tiny(train__steps=2), tmp_path / "run", quiet=True)
  assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
  assert signal.set_wakeup_fd(-1) == -1


def test_names_of_pictures_stay_inside(tmp_path):
  from matplotlib.figure import Figure

  for name in ("../x.png", "/x.png", "a/b.png", "..", ""):
    with pytest.raises(ValueError, match="plain"):
      report.save_figures(tmp_path, {name: Figure()})
  assert not list(tmp_path.parent.glob("*.png*"))
