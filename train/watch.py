"""What happens to a run from outside: signals, and standing still.

SIGTERM and SIGINT ask the loop to save and stop; a second one, or 25 s gone by, leaves at once. Schedulers kill 30 s
after they ask. Python runs signal handlers only between two bytecodes of the main thread, which may be compiling for
minutes; so the handlers do nothing, and a thread reads the signals' numbers from the pipe that Python's C handler
writes them to at once.

With several processes SIGTERM belongs to JAX, whose coordination service tells all of them and names one step at which
to stop: a Python handler would hide the signal from it. There a second SIGTERM changes nothing, and SIGINT is passed
on as SIGTERM. The 25 s count from the step at which all agree: before that, and in other modes than training, a process
of several does not see the signal.
"""

import contextlib
import faulthandler
import os
import select
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

DEADLINE = 25.0  # seconds from the first signal to the door
STILL = 300.0  # seconds without a step that count as standing still, if ten times the usual is not longer
RESTING = 3600.0  # the same where no steps are made: reading data, compiling, evaluating, saving


class Watch:
  """A context in which signals stop the run in order. Handlers are put back as they were found."""

  def __init__(self, leaving: Callable[[int, str], None]):
    """Nothing happens before the context is entered.

    Args:
      leaving: (exit code, reason) is called in another thread just before the process is ended at once.
    """
    self._leaving = leaving
    self.signum = None  # of the signal that stops the run
    self._alone = jax.process_count() == 1
    self._asked, self._agreed = 0, False
    self._leave_by = None
    self._beat, self._stepping = time.monotonic(), False
    self._lengths = []

  def __enter__(self):
    self._out, self._in = os.pipe()
    os.set_blocking(self._in, False)
    self._before = {}
    if threading.current_thread() is threading.main_thread():
      ours = (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,)
      self._before = {s: signal.signal(s, lambda signum, frame: None) for s in ours}
      self._wakeup = signal.set_wakeup_fd(self._in, warn_on_full_buffer=False)
    self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
    self._thread.start()
    return self

  def __exit__(self, *_):
    if self._before:
      signal.set_wakeup_fd(self._wakeup)
      for signum, handler in self._before.items():
        signal.signal(signum, handler)
    os.write(self._in, b"\0")
    self._thread.join()
    os.close(self._in)
    os.close(self._out)

  def stop(self) -> bool:
    """Whether to stop here. With several processes each must ask equally often; all are told at the same question."""
    if self._alone:
      return self.signum is not None
    self._asked += 1
    if not self._agreed and multihost_utils.reached_preemption_sync_point(self._asked):
      self._agreed, self.signum = True, self.signum or signal.SIGTERM
      self._leave_by = time.monotonic() + DEADLINE
    return self._agreed

  def beat(self) -> None:
    """Says that a step has been made."""
    now = time.monotonic()
    if self._stepping:
      self._lengths = [*self._lengths[-99:], now - self._beat]
    self._beat, self._stepping = now, True

  @contextlib.contextmanager
  def rest(self):
    """A context in which no steps are made."""
    before, self._stepping = self._stepping, False
    self._beat = time.monotonic()
    yield
    self._beat, self._stepping = time.monotonic(), before

  def _run(self):
    while True:
      if select.select([self._out], [], [], 1.0)[0]:
        for signum in os.read(self._out, 64):
          if signum == 0:
            return
          if signum in (signal.SIGINT, signal.SIGTERM):
            self._signalled(signum)
      now, beat = time.monotonic(), self._beat
      if self._leave_by is not None and now > self._leave_by:
        self._leave(128 + self.signum, f"not done in {DEADLINE:.0f} s; the newest checkpoint stands")
      still = max(STILL, 10 * statistics.median(self._lengths or [0.0])) if self._stepping else RESTING
      if now - beat > still:
        faulthandler.dump_traceback(all_threads=True)
        self._leave(1, f"no step for {now - beat:.0f} s, where each thread stands is printed above")

  def _signalled(self, signum):
    if self.signum is not None:
      if self._alone or signum == signal.SIGINT:
        self._leave(128 + signum, "second signal; the newest checkpoint stands")
      return
    self.signum = signum
    self._leave_by = time.monotonic() + DEADLINE
    if not self._alone:
      os.kill(os.getpid(), signal.SIGTERM)  # for JAX, which tells the others

  def _leave(self, code, reason):
    with contextlib.suppress(Exception):  # the door stays open whatever the disk says
      self._leaving(code, reason)
    print(f"\nleft at once: {reason}", file=sys.stderr, flush=True)
    os._exit(code)
