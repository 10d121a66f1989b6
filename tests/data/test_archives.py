"""Texts that are packed, damaged or too much: read, or refused in one line."""

import gzip
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from texts import corpus, mistake, put

from flaxonomy.configs.base import Data
from flaxonomy.data import corpora
from flaxonomy.data.datasets import files
from flaxonomy.errors import DataError

pytestmark = pytest.mark.usefixtures("own_cache")


def archive(path: Path, contents: dict, method=zipfile.ZIP_DEFLATED) -> Path:
  """A zip archive by the standard library."""
  with zipfile.ZipFile(path, "w", method) as out:
    for name, content in contents.items():
      out.writestr(name, content)
  return path


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_corpus_in_an_archive(tmp_path, method):
  held = {"x/ptb.train.txt": "ä " * 10_000, "ptb.valid.txt.gz": gzip.compress(b"small\n"), "__MACOSX/._train": "no"}
  path = archive(tmp_path / "ptb.zip", held | {"../../train.txt": "out", "folder/": ""}, method)
  for root in (path, tmp_path):
    assert corpus(root, "validation") == ["small\n"]
    assert "ä " * 10_000 in corpus(root)
  assert [p.name for p in tmp_path.rglob("*")] == ["ptb.zip"]


def test_what_is_not_there(tmp_path):
  for name, opened in (("text", corpora.open_corpus), ("labelled", corpora.open_labelled)):
    assert "'data.data_dir' to be a file or a folder, not None" in mistake(opened, Data(name), "train")
    assert "no such" in mistake(opened, Data(name, data_dir=str(tmp_path / "no such")), "train")
  assert "holds no text" in mistake(corpus, tmp_path, kind=DataError)
  assert "unknown dataset 'python_sauce'; did you mean 'python_source'" in mistake(
    corpora.open_corpus, Data("python_sauce", data_dir=str(tmp_path)), "train"
  )


@pytest.mark.parametrize("content", [b"caf\xe9 \xff", b"\0\x80"])
def test_text_that_is_not_utf8(tmp_path, content):
  path = put(tmp_path, {"train.txt": content}) / "train.txt"
  assert mistake(corpus, tmp_path, kind=DataError).startswith(f"{str(path)!r} cannot be read: 'utf-8' codec")


def test_too_much(tmp_path, monkeypatch):
  put(tmp_path / "many", {f"train/{i}.txt": "a" for i in range(5)})
  put(tmp_path / "large", {"train.txt": "a" * 600, "train2.txt.gz": "b" * 600})
  archive(tmp_path / "large.zip", {"train.txt": "a" * 2000})
  archive(tmp_path / "packed.zip", {"train.txt.gz": gzip.compress(b"a" * 2000)})
  monkeypatch.setattr(files, "MOST_FILES", 4)
  assert "more than 4 files" in mistake(corpus, tmp_path / "many")
  monkeypatch.setattr(files, "MOST_BYTES", 1000)
  for name in ("large", "large.zip", "packed.zip"):
    assert "hold more than" in mistake(corpus, tmp_path / name, kind=DataError)


def test_an_archive_that_holds_more_than_it_says(tmp_path):
  path = archive(tmp_path / "bomb.zip", {"train.txt": "a" * 10_000_000})
  content = path.read_bytes()
  size = (10_000_000).to_bytes(4, "little")
  assert content.count(size) == 2
  path.write_bytes(content.replace(size, (100).to_bytes(4, "little")))
  assert "Bad CRC-32" in mistake(corpus, path, kind=DataError)


@pytest.mark.parametrize("content", [b"", b"PK", b"no archive at all", b"PK\5\6" + b"\xff" * 18])
def test_what_is_no_archive(tmp_path, content):
  put(tmp_path, {"train.zip": content})
  assert "cannot be read" in mistake(corpus, tmp_path, kind=DataError)


def test_gzip_that_is_cut_off(tmp_path):
  put(tmp_path, {"train.txt.gz": "text " * 100})
  content = (tmp_path / "train.txt.gz").read_bytes()
  for broken in (content[:-9], b"no gzip", content[:20] + b"xxxx" + content[24:]):
    (tmp_path / "train.txt.gz").write_bytes(broken)
    assert "cannot be read" in mistake(corpus, tmp_path, kind=DataError)


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 10**4), byte=st.integers(0, 255), cut=st.none() | st.integers(0, 10**4))
@example(at=148, byte=0, cut=None)  # a file without a name
def test_damaged_archives_raise_nothing_else(tmp_path, at, byte, cut):
  """One byte changed, or the end cut off: the very text, less of it, or a DataError."""
  held = {"a.train.txt": "text " * 100, "b.train.txt": "stored"}
  content = bytearray(archive(tmp_path / "x.zip", held).read_bytes())
  content[at % len(content)] = byte
  (tmp_path / "x.zip").write_bytes(content[: None if cut is None else cut % len(content)])
  try:
    assert {text for _, text in files.read(files.find(tmp_path / "x.zip"))} <= set(held.values())
  except DataError as error:
    assert len(str(error).splitlines()) == 1


def test_a_record_that_cannot_be_decoded():
  """Of others' datasets: the example and the split are named."""
  records = corpora._Texts(
    [{"text": b"fine"}, {"text": b"\xff"}, {}], {"text": ("text",)}, "split 'train' of dataset 'x'"
  )
  assert records[0] == {"text": "fine"}
  assert mistake(lambda: records[1], kind=DataError).startswith("example 1 of split 'train' of dataset 'x': 'utf-8'")
  assert mistake(lambda: records[2], kind=DataError).startswith("example 2 of")
