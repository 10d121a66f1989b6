"""Several processes of one run: starting them, agreeing among them, leaving together.

Every process runs the same program on its own devices; the first one writes. JAX's coordination service, which lives
in the first process, tells them who is there, and ends the others when one dies.
"""

import json
import os
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from flaxonomy import errors
from flaxonomy.errors import UserError

HEARTBEAT = 10  # seconds of silence after which a process counts as dead and the others are ended
SHUTDOWN = 10  # seconds to wait for the others when leaving


def start(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int = 300) -> None:
  """Joins the other processes; call it before anything touches JAX's devices.

  Args:
    coordinator: "host:port" of the first process; None: found out on TPU pods, Slurm and Open MPI.
    num_processes: of the run; None likewise.
    process_id: of this one; None likewise.
    timeout: seconds to wait for the others.

  Raises:
    UserError: it cannot be found out, or the others do not come.
  """
  given = [("--coordinator", coordinator), ("--num_processes", num_processes), ("--process_id", process_id)]
  missing = [name for name, value in given if value is None]
  if 0 < len(missing) < len(given):
    raise UserError(f"--distributed needs {' and '.join(missing)} too, or none of the three on TPU pods and Slurm")
  if not missing and not 0 <= process_id < num_processes:
    raise UserError(f"--process_id must be from 0 to {num_processes - 1}, not {process_id}")
  if not missing and not coordinator.rpartition(":")[2].isdigit():
    raise UserError(f"--coordinator must be HOST:PORT, not {coordinator!r}")
  waiting = threading.Timer(timeout, _alone, [timeout])  # JAX's own end of waiting is an abort with a stack trace
  waiting.daemon = True
  waiting.start()
  try:
    jax.distributed.initialize(
      coordinator,
      num_processes,
      process_id,
      initialization_timeout=timeout + 60,
      heartbeat_timeout_seconds=HEARTBEAT,
      shutdown_timeout_seconds=SHUTDOWN,
    )
  except ValueError:
    raise UserError(
      "--distributed: no TPU pod, Slurm or Open MPI to read from; add --coordinator=HOST:PORT --num_processes=N "
      "--process_id=I"
    ) from None
  except RuntimeError as error:
    raise UserError(f"--distributed: the processes did not come together: {errors.first_line(error)}") from None
  finally:
    waiting.cancel()


def _alone(timeout):
  told = f"not all processes came within {timeout} s (--start_timeout)"
  print(f"error: --distributed: {told}", file=sys.stderr, flush=True)
  os._exit(UserError.exit_code)


def first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def together(function: Callable[[], Any]) -> Any:
  """Runs a function in the first process; all processes return its result, or raise its UserError.

  Args:
    function: its result must survive JSON.
  """
  if jax.process_count() == 1:
    return function()
  told = _told(function) if first() else {}
  return _unpack(_broadcast(told))


def agree(function: Callable[[], Any]) -> Any:
  """Runs a function in every process; if it raises a UserError in one, all raise that of the first that failed."""
  if jax.process_count() == 1:
    return function()
  told = _told(function)
  failed = multihost_utils.process_allgather(np.int32("error" in told))
  if failed.any():
    if "error" in told:
      told["error"][1] += f" (process {jax.process_index()})"
    _unpack(_broadcast(told, int(np.argmax(failed))))
  return told["result"]


def _told(function):
  """{"result": ...} or {"error": [class, message]}: other errors than a UserError count as one, so that none waits."""
  try:
    return {"result": function()}
  except UserError as error:
    return {"error": [type(error).__name__, str(error)]}
  except Exception as error:
    traceback.print_exc()
    return {"error": ["UserError", f"{type(error).__name__}: {errors.first_line(error)}"]}


def _unpack(told):
  if "error" in told:
    name, message = told["error"]
    raise getattr(errors, name)(message)
  return told["result"]


def _broadcast(value, source: int = 0):
  """A JSON value of one process, in all."""
  mine = jax.process_index() == source
  text = json.dumps(value).encode() if mine else b""
  size = int(multihost_utils.broadcast_one_to_all(np.int32(len(text)), is_source=mine))
  buffer = np.frombuffer(text.ljust(size, b" "), np.uint8)
  return json.loads(bytes(multihost_utils.broadcast_one_to_all(buffer, is_source=mine).astype(np.uint8)))


def leave(code: int) -> None:
  """Ends this process of several: with the others if they come to their end too, else alone after some seconds.

  An ordinary exit would wait for minutes for processes that wait for this one.
  """
  sys.stdout.flush()
  sys.stderr.flush()
  alone = threading.Timer(SHUTDOWN / 2, os._exit, [code])  # before JAX's own end of waiting, which is an abort
  alone.daemon = True
  alone.start()
  jax.distributed.shutdown()
  os._exit(code)
