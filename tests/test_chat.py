"""Chat as a user meets it: a small run trained from the command line, then lines through a pipe."""

import subprocess
import sys

TINY = [
  "--config.train.steps=2", "--config.train.eval_every=2", "--config.data.train_split=train[:64]",
  "--config.data.eval_split=test[:5]", "--config.data.batch_size=32", "--config.model.fields.hidden_size=8",
  "--config.train.cpu_devices=1", "--config.optim.warmup_steps=0",
]  # fmt: skip


def launch(root, *arguments, cwd, typed=""):
  command = [sys.executable, str(root / "launch.py"), *arguments]
  return subprocess.run(command, cwd=cwd, input=typed, capture_output=True, text=True, timeout=120)


def test_a_line_in_a_line_out(root, tmp_path):
  config = root / "configs/dates_seq2seq.py"
  done = launch(root, f"--config={config}", *TINY, "--workdir=run", cwd=tmp_path)
  assert done.returncode == 0, done.stderr
  assert "test exact match 0.0000" in done.stdout
  done = launch(root, "--mode=chat", "--workdir=run", cwd=tmp_path, typed="1 May 2001\n\n2 June 2002\n3 Jul")
  assert done.returncode == 0, done.stderr
  lines = done.stdout.split("\n")
  assert len(lines) == 5  # an answer to each line, and an end
  assert lines[1] == lines[4] == ""
  assert all(set(line) <= set("0123456789-") for line in lines)
  assert "seq2seq (" in done.stderr
  assert "trained on dates, 64 examples, 2 steps; type a line, end with ctrl-D" in done.stderr
  nobody = launch(root, "--mode=chat", "--workdir=run", cwd=tmp_path)
  assert (nobody.returncode, nobody.stdout) == (0, "")
  asked = launch(root, "--mode=explain", "--workdir=run", cwd=tmp_path)
  assert asked.returncode == 2
  assert "--mode=explain is for classifiers of images" in asked.stderr
