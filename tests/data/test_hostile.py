"""Datasets and images whose description is damaged, or which would run code or take all the memory."""

import io
import json
import os
import shutil
import stat
import struct
import sys
import zlib
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from feeds import Feed, failure, png
from PIL import EpsImagePlugin, Image

from flaxonomy.configs.base import Data
from flaxonomy.data import images, pipeline, sources
from flaxonomy.data.datasets import cache_folder
from flaxonomy.errors import UserError

pytestmark = pytest.mark.usefixtures("timely")


def copied(tmp_path, name) -> Path:
  """Our prepared digits, under a name that only the files know."""
  sources.open_source(Data("digits"), "train")
  folder = tmp_path / name / "1.0.0"
  folder.mkdir(parents=True)
  for path in (cache_folder() / "tfds" / "digits" / "1.0.0").iterdir():
    shutil.copy(path, folder / path.name.replace("digits", name))
  info = folder / "dataset_info.json"
  info.write_text(json.dumps(json.loads(info.read_text()) | {"name": name}))
  return folder


@pytest.mark.parametrize("name", ["digits", "figures"])
@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
def test_damaged_description(name, file, tmp_path):
  """One line; or, where our own builder knows better than the file, all is well."""
  folder = copied(tmp_path, name)
  whole = (folder / file).read_bytes()
  config = Data(name, data_dir=str(tmp_path))
  for left in (None, b"", whole[: len(whole) // 2], b"null", b"[]", b"{}", b"5", b"\xff\xfe", b"[" * 100_000):
    (folder / file).unlink(missing_ok=True) if left is None else (folder / file).write_bytes(left)
    if (name, file) == ("digits", "features.json"):
      assert len(sources.open_source(config, "test").records) == 364
    else:
      with pytest.raises(UserError) as error:
        sources.open_source(config, "test")
      assert str(error.value).startswith(f"dataset {name!r}")
      assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("left", ["nothing", "half", "other", "no file"])
def test_damaged_file_of_records(left, tmp_path):
  """The file's own index is at its end: no example can be read."""
  folder = copied(tmp_path, "figures")
  file = folder / "figures-test.array_record-00000-of-00001"
  whole = file.read_bytes()
  file.unlink()
  if left != "no file":
    file.write_bytes({"nothing": b"", "half": whole[: len(whole) // 2], "other": b"x" * len(whole)}[left])
  config = Data("figures", data_dir=str(tmp_path), on_device=False)
  assert failure(lambda: Feed(config, "test").evaluate()).startswith("example 0 of split 'test' of dataset 'figures': ")


def test_damaged_first_record_of_images_that_differ_in_size(tmp_path):
  folder = copied(tmp_path, "figures")
  features = folder / "features.json"
  features.write_text(features.read_text().replace('"8"', '"-1"'))
  config = Data("figures", data_dir=str(tmp_path), image_size=(8, 8))
  assert pipeline.open_split(config, "test")[1].image_shape == (8, 8, 1)
  file = folder / "figures-test.array_record-00000-of-00001"
  data = bytearray(file.read_bytes())
  data[100:104] = b"\xff\x00\xff\x00"
  file.write_bytes(data)
  assert "the first image settles the channels, but" in failure(lambda: pipeline.open_split(config, "test"))
  config.on_error = "skip"
  assert pipeline.open_split(config, "test")[1].image_shape == (8, 8, 1)


# What would run code, or take all the memory.


def chunk(kind: bytes, data: bytes) -> bytes:
  return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_huge_images_are_refused_before_they_are_decoded(monkeypatch):
  header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
  claimed = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))
  out = io.BytesIO()
  Image.new("1", (9000, 9000)).save(out, "png")
  assert len(out.getvalue()) < 2**15
  assert images.MAX_PIXELS < 9000 * 9000
  monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
  for encoded, words in ((claimed + chunk(b"IEND", b""), "10000000000 pixels"), (out.getvalue(), "9000 x 9000 pixels")):
    message = failure(lambda encoded=encoded: images.decode(encoded))
    assert message.startswith(f"cannot read image of {len(encoded)} bytes: ")
    assert words in message


def test_largest_image_that_is_read(monkeypatch):
  monkeypatch.setattr(images, "MAX_PIXELS", 8 * 9)
  assert images.decode(png(3, (8, 9))).shape == (8, 9, 1)
  assert "8 x 10 pixels" in failure(lambda: images.decode(png(3, (10, 8))))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_image_starts_a_program(tmp_path, monkeypatch):
  """Pillow hands EPS files to Ghostscript, here a script that leaves a mark; `images.decode` does not."""
  program, mark = tmp_path / "bin" / "gs", tmp_path / "mark"
  program.parent.mkdir()
  program.write_text(f"#!/bin/sh\ntouch {mark}\n")
  program.chmod(program.stat().st_mode | stat.S_IXUSR)
  monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
  monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
  path = tmp_path / "photo.png"
  path.write_bytes(EPS)
  for given in (EPS, path, str(path)):
    assert "cannot identify image file" in failure(lambda given=given: images.decode(given))
  assert not mark.exists()
  with pytest.raises(Exception):  # noqa: B017
    Image.open(io.BytesIO(EPS)).load()
  assert mark.exists(), "the trap does not work"


@pytest.mark.parametrize(
  "name", ["os:mnist", "huggingface:x", "kubric:movi", "../x", "/etc/x", "a.b:c", "mnist/x=os", "x y", "", "a\nb", "é"]
)
def test_dataset_names_that_would_be_imported(name, tmp_path, monkeypatch):
  for module in ("huggingface_hub", "datasets", "kubric"):
    (tmp_path / f"{module}.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
    monkeypatch.delitem(sys.modules, module, raising=False)
  monkeypatch.syspath_prepend(tmp_path)
  message = failure(lambda: sources.open_source(Data(name, data_dir=str(tmp_path)), "train"), UserError, 2)
  assert message.startswith(f"unknown dataset {name!r}; ")
  assert not (tmp_path / "mark").exists()
  if name == "huggingface:x":
    with pytest.raises(Exception):  # noqa: B017
      tfds.builder(name, data_dir=str(tmp_path))
    assert (tmp_path / "mark").exists(), "the trap does not work"


@pytest.mark.parametrize("spelling", ["pythonClassName", "python_class_name", "type"])
def test_datasets_import_nothing(spelling, tmp_path, monkeypatch):
  """TFDS imports the module of each feature's class, which a dataset's files name."""
  (tmp_path / "trap.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\n")
  monkeypatch.syspath_prepend(tmp_path)
  sys.modules.pop("trap", None)
  features = copied(tmp_path, "figures") / "features.json"
  written = json.loads(features.read_text())
  del written["featuresDict"]["features"]["label"]["pythonClassName"]
  written["featuresDict"]["features"]["label"] |= {spelling: "trap.Label"}
  if spelling == "type":
    written = {"type": "trap.Label", "content": {}}
  features.write_text(json.dumps(written).replace("trap.Label", r"\u0074rap.Label"))
  message = failure(lambda: sources.open_source(Data("figures", data_dir=str(tmp_path)), "train"))
  assert "'trap.Label', which is not TFDS's own and not trusted" in message
  assert not (tmp_path / "mark").exists()
  with pytest.raises(ValueError):
    tfds.builder("figures", data_dir=str(tmp_path))
  assert (tmp_path / "mark").exists(), "the trap does not work"
