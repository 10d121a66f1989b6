"""Timing variants against one another on a machine that is not ours alone.

Each variant is a process that says "ready" and then answers every line it is sent with one line. They take turns, in
the opposite order every second round, and whoever is not being timed is stopped, so that no thread pool of one spins
beside another and a slow minute of the machine falls on all alike. Ratios of one run mean something; times do not.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
from typing import Self


class Worker:
  """A process that is stopped except while it answers."""

  def __init__(self, command: list[str], env: dict[str, str]):
    """Starts it and waits until it is ready; see `ask` for errors."""
    self._log = tempfile.TemporaryFile("w+")
    pipe = subprocess.PIPE
    self._process = subprocess.Popen(
      command, env=os.environ | env, stdin=pipe, stdout=pipe, stderr=self._log, text=True
    )
    self._answer()
    self._process.send_signal(signal.SIGSTOP)

  def ask(self, line: str) -> str:
    """Wakes it, sends a line and returns the answer.

    Raises:
      SystemExit: it died; with the end of what it said.
    """
    self._process.send_signal(signal.SIGCONT)
    self._process.stdin.write(line + "\n")
    self._process.stdin.flush()
    answer = self._answer()
    self._process.send_signal(signal.SIGSTOP)
    return answer

  def _answer(self):
    line = self._process.stdout.readline()
    if not line:
      self._log.seek(0)
      sys.exit(f"{' '.join(self._process.args)}\ndied:\n{self._log.read()[-3000:]}")
    return line.strip()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_):
    self._process.kill()
    self._process.communicate()
    self._log.close()


class Times:
  """What a variant took in each round."""

  def __init__(self):
    self.rounds = []

  @property
  def median(self) -> float:
    return statistics.median(self.rounds)

  @property
  def least(self) -> float:
    return min(self.rounds)


def rounds(variants: dict[str, tuple[Worker, str]], count: int) -> dict[str, Times]:
  """Times variants in turn.

  Args:
    variants: {name: (worker, line)}; the worker answers the line with a number. A worker may serve several names.
    count: rounds, each of which asks every variant once.

  Returns:
    {name: Times}
  """
  times = {name: Times() for name in variants}
  for turn in range(count):
    for name in list(variants)[:: -1 if turn % 2 else 1]:
      worker, line = variants[name]
      times[name].rounds.append(float(worker.ask(line)))
  return times
