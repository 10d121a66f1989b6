"""A process made ready for CPUs before JAX starts; no number changes. docs/benchmarks.md says what it brings."""

import os
import sys
from pathlib import Path

TUNABLE = "glibc.malloc.hugetlb"
FLAG = "xla_cpu_multi_thread_eigen"
_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def huge_pages() -> None:
  """Starts this program again, as it is, with memory in pages of 2 MB, where Linux gives them to those who ask.

  XLA allocates a step's memory anew at every step; in pages of 4 kB, touching it takes up to a fifth of the step. The C
  library reads its settings only when a program starts. For scripts alone: in a program that merely imports us,
  nothing happens.
  """
  settings = os.environ.get("GLIBC_TUNABLES", "")
  if sys.argv[0] not in sys.orig_argv or TUNABLE in settings:
    return
  if not _PAGES.exists() or "[madvise]" not in _PAGES.read_text():
    return
  os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (settings, f"{TUNABLE}=1")))
  os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def cores() -> int:
  """Cores that this process may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def one_thread_each(devices: int) -> None:
  """Where the CPU's devices are as many as the cores, each computes on a thread of its own, without a shared pool."""
  flags = os.environ.get("XLA_FLAGS", "")
  if FLAG not in flags and devices >= cores():
    os.environ["XLA_FLAGS"] = f"{flags} --{FLAG}=false".strip()
