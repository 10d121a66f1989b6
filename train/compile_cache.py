"""XLA's persistent compilation cache: the second start of a run skips compilation.

Whoever can write to the cache can run code, so it lies in the user's own folder with mode 700; and compiled code is
for one kind of processor, so each kind has a folder of its own.
"""

import hashlib
import platform
from pathlib import Path

import jax

from flaxonomy.data.datasets import cache_folder

_SAVED = "/jax/compilation_cache/compile_time_saved_sec"


class Saved:
  """Seconds of compilation that the cache saved in this process."""

  seconds = 0.0

  def _listen(self, event, seconds, **_):
    if event == _SAVED:
      self.seconds += max(0.0, seconds)


def enable() -> Saved:
  """Turns the cache on for this process; call it before anything is compiled.

  Returns:
    A counter of the seconds saved.
  """
  folder = cache_folder() / "compiled" / _machine()
  folder.mkdir(parents=True, exist_ok=True, mode=0o700)
  jax.config.update("jax_compilation_cache_dir", str(folder))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
  saved = Saved()
  jax.monitoring.register_event_duration_secs_listener(saved._listen)
  return saved


def _machine() -> str:
  """A name for this kind of processor and this jax."""
  cpuinfo = Path("/proc/cpuinfo")
  lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
  kind = sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
  text = "\n".join([platform.machine(), platform.processor(), *kind])
  return f"jax-{jax.__version__}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
