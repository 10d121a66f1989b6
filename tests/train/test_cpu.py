"""What a process does for CPUs before JAX starts: started again at most once, and flags that the user gave stay."""

import os
import subprocess
import sys

import pytest

from flaxonomy.train import cpu

SCRIPT = """
import os, sys
from flaxonomy.train import cpu
print("pid", os.getpid(), flush=True)
cpu.huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:], sys.flags.dont_write_bytecode, sys.stdin.read())
"""

asked = pytest.mark.skipif(
  not (cpu._PAGES.exists() and "[madvise]" in cpu._PAGES.read_text()), reason="this machine gives no pages to who asks"
)


def run(tmp_path, **env):
  (tmp_path / "script.py").write_text(SCRIPT)
  environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"} | env
  command = [sys.executable, "-B", "script.py", "a b", "--c=*"]
  done = subprocess.run(
    command, cwd=tmp_path, env=environment, input="said", capture_output=True, text=True, check=True
  )
  return done.stdout.splitlines()


@asked
def test_a_script_starts_once_more_as_it_was(tmp_path):
  first, second, last = run(tmp_path)
  assert first == second and first.startswith("pid ")
  assert last == "glibc.malloc.hugetlb=1 ['a b', '--c=*'] 1 said"


@asked
def test_other_settings_stay(tmp_path):
  assert run(tmp_path, GLIBC_TUNABLES="glibc.malloc.check=0")[-1].startswith(
    "glibc.malloc.check=0:glibc.malloc.hugetlb=1 "
  )
  lines = run(tmp_path, GLIBC_TUNABLES="glibc.malloc.hugetlb=0")
  assert len(lines) == 2 and lines[-1].startswith("glibc.malloc.hugetlb=0 ")


def test_a_program_that_imports_us_is_left_alone(monkeypatch):
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("started again"))
  monkeypatch.setattr(sys, "argv", ["not the program that runs.py"])
  cpu.huge_pages()


@pytest.mark.parametrize(
  ("given", "devices", "expected"),
  [
    (None, 1000, "--xla_cpu_multi_thread_eigen=false"),
    ("--xla_dump_to=x", 1000, "--xla_dump_to=x --xla_cpu_multi_thread_eigen=false"),
    ("--xla_cpu_multi_thread_eigen=true", 1000, "--xla_cpu_multi_thread_eigen=true"),
    (None, 0, None),
  ],
)
def test_one_thread_for_each_device_where_there_are_no_more_cores(monkeypatch, given, devices, expected):
  monkeypatch.setenv("XLA_FLAGS", given or "")
  if given is None:
    monkeypatch.delenv("XLA_FLAGS")
  cpu.one_thread_each(devices)
  assert os.environ.get("XLA_FLAGS") == expected
