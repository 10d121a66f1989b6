"""The source of Python's standard library: a corpus of some megabytes that every machine has.

It is the library of the Python that runs, so the prepared folder is named by its version. Whole files go to the
splits, 90, 5 and 5 in a hundred by a hash of the path.
"""

import platform
import sysconfig
from pathlib import Path

import tensorflow_datasets as tfds

from flaxonomy.data.datasets import files
from flaxonomy.errors import DataError

PACKAGES = (
  "asyncio", "collections", "concurrent", "ctypes", "email", "html", "http", "importlib", "json", "logging",
  "multiprocessing", "sqlite3", "unittest", "urllib", "wsgiref", "xml",
)  # fmt: skip


class PythonSource(tfds.core.GeneratorBasedBuilder):
  """`text`, one example for each file."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}
  BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=platform.python_version())]

  def _info(self) -> tfds.core.DatasetInfo:
    return files.info(self, __doc__, {"text": tfds.features.Text()})

  def _split_generators(self, dl_manager):
    parts = {}
    for name, text in sources():
      parts.setdefault(files.share_of(name), []).append((name, text))
    if set(parts) != {"train", "validation", "test"}:
      raise DataError(f"this Python has hardly any source files in {sysconfig.get_path('stdlib')!r}")
    return {split: self._generate_examples(texts) for split, texts in parts.items()}

  def _generate_examples(self, texts):
    for name, text in texts:
      yield name, {"text": text}


def sources() -> list[tuple[str, str]]:
  """(path below the library, text) of each file that is UTF-8 and not empty, by path; tests are left out."""
  root, found = Path(sysconfig.get_path("stdlib")), []
  paths = [*root.glob("*.py"), *(path for name in PACKAGES for path in (root / name).rglob("*.py"))]
  for path in sorted(paths):
    name = path.relative_to(root).as_posix()
    if {"test", "tests"} & set(name.split("/")):
      continue
    try:
      text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
      continue
    if text:
      found.append((name, text))
  return found
