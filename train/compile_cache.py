"""XLA's persistent compilation cache: the second start of a run skips compilation.

Whoever can write to the cache can run code, so it lies in the user's own folder with mode 700; and compiled code is
for one kind of processor, so each kind has a folder of its own.
"""

import hashlib
import os
import platform
from pathlib import Path

import jax

from flaxonomy.data.datasets import cache_folder
from flaxonomy.errors import UserError

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

  Raises:
    UserError: the cache's folder cannot be made, or others could write to it.
  """
  folder = cache_folder() / "compiled" / _machine()
  folder.parent.mkdir(exist_ok=True, mode=0o700)
  folder.mkdir(exist_ok=True, mode=0o700)
  for path in (folder.parent, folder):
    found = path.stat()
    if found.st_mode & 0o022 or (hasattr(os, "getuid") and found.st_uid != os.getuid()):
      raise UserError(
        f"others can write to {str(path)!r}, and compiled code there is run; type: chmod 700 {path}, set "
        "FLAXONOMY_CACHE to a folder of your own, or add --nocompilation_cache"
      )
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
