"""Text files in folders, compressed or in zip archives: which there are, what split each belongs to, what they hold.

Nothing is written but what TFDS prepares in the private cache: archives are read in memory, and never unpacked.
"""

import contextlib
import dataclasses
import gzip
import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import tensorflow_datasets as tfds

from flaxonomy.errors import DataError, UserError, first_line

MOST_FILES = 100_000
MOST_BYTES = 2**31  # of a dataset, uncompressed
_SPLIT = re.compile(r"(?<![a-z])(train|validation|valid|val|dev|test)(?![a-z])", re.IGNORECASE)


class File(NamedTuple):
  """A file of text.

  Attributes:
    name: its path below the folder, or within the archive; without .gz.
    path: where it lies.
    member: its name in the archive that lies there; None: it is no archive.
  """

  name: str
  path: Path
  member: str | None = None


@dataclasses.dataclass(eq=False)
class FilesConfig(tfds.core.BuilderConfig):
  """Which files a builder reads: the name is a hash that changes with them, and so does the prepared folder.

  Attributes:
    root: the file or folder.
    languages: source and target, for pairs.
  """

  root: str = ""
  languages: tuple[str, ...] = ()


def variant(config, languages: Iterable[str] = ()) -> FilesConfig:
  """The builder's config for the files that configs.base.Data names.

  Raises:
    UserError: `data_dir` is no file and no folder.
    DataError: a file in it cannot be read.
  """
  if config.data_dir is None or not Path(config.data_dir).expanduser().exists():
    raise UserError(
      f"dataset {config.name!r} needs config field 'data.data_dir' to be a file or a folder, not {config.data_dir!r}"
    )
  root = Path(config.data_dir).expanduser().resolve()
  marks = [(str(root), *languages)]
  for file in find(root):
    about = file.path.stat()
    marks.append((file.name, about.st_size, about.st_mtime_ns))
  name = hashlib.sha256(repr(marks).encode()).hexdigest()[:16]
  return FilesConfig(name=name, root=str(root), languages=tuple(languages))


def info(builder, description: str, features: dict, supervised=None) -> tfds.core.DatasetInfo:
  """The description of a dataset of texts.

  Args:
    builder: the TFDS builder.
    description: of the dataset.
    features: by name.
    supervised: (input, target), by name.
  """
  features = tfds.features.FeaturesDict(features)
  return tfds.core.DatasetInfo(builder=builder, description=description, features=features, supervised_keys=supervised)


def find(root: Path) -> list[File]:
  """The files below a folder, or the one file, members of zip archives among them, by name.

  Raises:
    UserError: there are more than anyone means.
    DataError: an archive cannot be read.
  """
  paths, found = [root], []
  if root.is_dir():
    paths = []
    for path in root.rglob("*"):
      if path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(root).parts):
        paths.append(path)
      if len(paths) > MOST_FILES:
        raise UserError(f"{str(root)!r} (config field 'data.data_dir') holds more than {MOST_FILES} files")
  for path in sorted(paths):
    name = path.relative_to(root).as_posix() if path != root else path.name
    if path.suffix.lower() == ".zip":
      found += _members(path)
    else:
      found.append(File(re.sub(r"\.gz$", "", name, flags=re.IGNORECASE), path))
  return found


def split_of(name: str) -> str | None:
  """The split that a file's name or the nearest folder's tells of: "train" of "ptb.train.txt"."""
  for part in reversed(name.split("/")):
    if found := _SPLIT.findall(part):
      return found[-1].lower()
  return None


def share_of(key: str) -> str:
  """The split of something that comes without one: 90, 5 and 5 in a hundred by a hash that never changes."""
  percent = zlib.crc32(key.encode()) % 100
  return "train" if percent < 90 else "validation" if percent < 95 else "test"


def read(files: Iterable[File]) -> Iterator[tuple[File, str]]:
  """Each file with its text.

  Raises:
    DataError: one is damaged or not UTF-8, or all are too large.
  """
  left = MOST_BYTES
  for file in files:
    try:
      content = _content(file, left)
      text = content.decode("utf-8-sig")
    except Exception as error:  # damaged or encrypted archives make the libraries raise nearly anything
      raise DataError(f"{where(file)} cannot be read: {first_line(error)}") from None
    left -= len(content)
    yield file, text


def where(file: File) -> str:
  """A file, for a message."""
  return repr(str(file.path)) + (f" ({file.name!r})" if file.member else "")


def lines(text: str) -> list[str]:
  """The lines of a text, without their ends."""
  found = text.split("\n")
  return [line.removesuffix("\r") for line in (found if found[-1] else found[:-1])]


def _content(file: File, most: int) -> bytes:
  """What a file holds, uncompressed.

  Raises:
    ValueError: more than `most` bytes; and what the libraries raise.
  """
  with contextlib.ExitStack() as held:
    if file.member is None:
      stream = held.enter_context(file.path.open("rb"))
    else:
      stream = held.enter_context(held.enter_context(zipfile.ZipFile(file.path)).open(file.member))
    if (file.member or file.path.name).lower().endswith(".gz"):
      stream = held.enter_context(gzip.GzipFile(fileobj=stream))
    content = stream.read(most + 1)
  if len(content) > most:
    raise ValueError(f"the files hold more than {MOST_BYTES >> 20} MiB")
  return content


def _members(path: Path) -> list[File]:
  """The files in an archive, by name."""
  try:
    with zipfile.ZipFile(path) as archive:
      names = [entry.filename for entry in archive.infolist() if not entry.is_dir()]
  except Exception as error:  # as in `read`
    raise DataError(f"{str(path)!r} cannot be read: {first_line(error)}") from None
  shown = [name for name in names if not any(part.startswith((".", "__")) for part in name.split("/"))]
  return [File(re.sub(r"\.gz$", "", name, flags=re.IGNORECASE), path, name) for name in sorted(shown)]
