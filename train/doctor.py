"""Is this machine fit to train on? Each line is one thing looked at, with a plain verdict.

Everything is done in the folder that a run would use, or beside it, on the devices it would use; nothing is left.
"""

import importlib.metadata
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy.configs import base
from flaxonomy.errors import UserError, first_line
from flaxonomy.train import checkpoint, cpu, loop, numbers, workdir
from flaxonomy.train.step import State

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
BLOCK = 64  # MiB written to measure the disk


def examine(config: base.Config, path: str) -> str:
  """Prints the verdicts.

  Args:
    config: of the run to be made here; a few of its steps are made.
    path: its workdir.

  Returns:
    The last line, if all is well.

  Raises:
    UserError: something is not; all lines are printed first.
  """
  folder = workdir.absolute(path)
  above = next(p for p in (folder, *folder.parents) if p.is_dir())
  looks = {
    "versions": _versions,
    "devices": _devices,
    "precision": _precision,
    "determinism": _determinism,
    "disk": lambda: _disk(above),
    "checkpoint": lambda: _checkpoint(above),
  }
  bad = [name for name, look in looks.items() if not _verdict(name, look)]
  opened = []
  if not _verdict("data", lambda: _data(config, opened)):
    bad.append("data")
  elif not _verdict("step", lambda: _step(opened[0])):
    bad.append("step")
  if bad:
    raise UserError(f"doctor: {', '.join(bad)} will not do; the lines above say why")
  return "doctor: all is well"


def _verdict(name: str, look: Callable[[], tuple[bool, str]]) -> bool:
  """Prints a line; what is looked at may raise."""
  try:
    well, told = look()
  except Exception as error:  # any fault of the machine is what is being looked for
    well, told = False, first_line(error)
  print(f"{'ok ' if well else 'BAD'}  {name:<12} {told}", flush=True)
  return well


def _versions():
  told = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
  return True, f"python {platform.python_version()}, {told}"


def _devices():
  devices = jax.devices()
  return True, f"{len(devices)} x {devices[0].device_kind} ({jax.default_backend()}), {cpu.cores()} processor cores"


def _precision():
  """A product of float32 matrices against NumPy's in float64."""
  x = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
  exact = x.astype(np.float64) @ x
  error = float(np.abs(np.asarray(jnp.asarray(x) @ jnp.asarray(x)) - exact).max() / np.abs(exact).max())
  setting = jax.config.jax_default_matmul_precision or "default"
  told = f"float32 products to {error:.0e} (jax_default_matmul_precision {setting}), x64 {jax.config.jax_enable_x64}"
  return error < 1e-2, told + ("" if error < 1e-5 else "; set it to highest for numbers equal to a CPU's")


def _determinism():
  flags = os.environ.get("XLA_FLAGS", "")
  if jax.default_backend() != "gpu":
    return True, f"the same bits each time on {jax.default_backend()}"
  told = "XLA_FLAGS=--xla_gpu_deterministic_ops=true"
  return True, f"{told} is set" if "xla_gpu_deterministic_ops=true" in flags else f"not promised; {told} promises it"


def _disk(above: Path):
  free = shutil.disk_usage(above).free
  block = os.urandom(2**20)
  with tempfile.TemporaryFile(dir=above) as file:
    began = time.perf_counter()
    for _ in range(BLOCK):
      file.write(block)
    file.flush()
    os.fsync(file.fileno())
    speed = BLOCK / (time.perf_counter() - began)
  return free > 2**30, f"{free / 2**30:.1f} GiB free in {str(above)!r}, written at {speed:.0f} MiB/s"


def _checkpoint(above: Path):
  """Saves, verifies and restores; then flips a byte, which must be found."""
  state = State(jnp.zeros([], jnp.int32), jax.random.PRNGKey(0), {"kernel": jnp.arange(1000.0)}, {}, ())
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
  began = time.perf_counter()
  with tempfile.TemporaryDirectory(dir=above, prefix=".doctor") as folder:
    saves = checkpoint.Checkpoints(Path(folder))
    saves.save(1, state, {}, {})
    saves.poll(wait=True)
    restored, _ = saves.restore(saves.newest(), like)
    same = bool((restored.params["kernel"] == state.params["kernel"]).all())
    seconds = time.perf_counter() - began
    step = Path(folder) / "checkpoints/1"
    largest = max((p for p in step.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    found = checkpoint.damage(step) is not None
    saves.close()
  flipped = "found" if found else "MISSED"
  return same and found, f"saved, verified and restored in {seconds:.1f} s; a flipped bit is {flipped}"


def _data(config: base.Config, opened: list):
  """Reads single examples for two seconds at most, as a step would ask for them."""
  session = loop.prepare(base.override(config, {"data.on_device": False}))  # a large set would take minutes
  count, began = 0, time.perf_counter()
  while time.perf_counter() - began < 2 and count < session.info.size:
    session.train.read([count])
    count += 1
  speed = count / (time.perf_counter() - began)
  opened.append(session)
  return True, f"{config.data.name}: {session.info.size:,} examples, one thread reads {speed:,.0f}/s"


def _step(session: loop.Session):
  """Compiles the step and makes a few."""
  most = loop.steps_per_dispatch(session.config)
  state, train = loop.initial_state(session), loop.train_function(session, most)
  items = session.train.train_items([(0, most)], most)
  item = next(items)
  items.close()
  began = time.perf_counter()
  state, made = jax.block_until_ready(train(state, {}, item, np.int32(most)))
  compiled, began, count = time.perf_counter() - began, time.perf_counter(), 0
  while count < 3 or (time.perf_counter() - began < 2 and count < 100):
    state, made = train(state, {}, item, np.int32(most))
    jax.block_until_ready(made)
    count += 1
  each = (time.perf_counter() - began) / (count * most)
  finite = bool((np.asarray(made[numbers.BAD]) < 0).all())
  model, batch = session.config.model.name, session.config.data.batch_size
  told = f"{model}: compiled in {compiled:.1f} s, {each * 1e3:.1f} ms a step of {batch} examples"
  return finite, told + ("" if finite else "; its numbers are not finite")
