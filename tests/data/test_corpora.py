"""Texts by name: what every kind of file says, against the files themselves; every mistake in one line."""

import collections
import csv
import datetime
import gzip
import importlib.util
import json
import pickle
import platform
import re
import sysconfig
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flaxonomy.configs.base import Data, Text
from flaxonomy.data import corpora, sources
from flaxonomy.data.datasets import dates, files, labelled, pairs, python_source
from flaxonomy.errors import DataError, UserError


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
  """A cache of this file's own."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("FLAXONOMY_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield


def put(root: Path, contents: dict) -> Path:
  """Files by name; text as UTF-8, what ends in .gz compressed."""
  for name, content in contents.items():
    content = content.encode() if isinstance(content, str) else content
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
  return root


def archive(path: Path, contents: dict, method=zipfile.ZIP_DEFLATED) -> Path:
  """A zip archive by the standard library."""
  with zipfile.ZipFile(path, "w", method) as out:
    for name, content in contents.items():
      out.writestr(name, content)
  return path


def corpus(root, split="train") -> list[str]:
  return sorted(record["text"] for record in corpora.open_corpus(Data("text", data_dir=str(root)), split).records)


def sentences(root, split="train") -> tuple[set, tuple]:
  source = corpora.open_labelled(Data("labelled", data_dir=str(root)), split)
  return {(r["text"], source.class_names[r["label"]]) for r in source.records}, source.class_names


def translations(root, split="train", languages=("en", "de")) -> set:
  config = Data("pairs", data_dir=str(root), text=Text(languages=languages))
  return {(r["source"], r["target"]) for r in corpora.open_pairs(config, split).records}


def mistake(function, *arguments, kind=UserError) -> str:
  """The one line that a mistake ends in."""
  with pytest.raises(UserError) as error:
    function(*arguments)
  message = str(error.value)
  assert type(error.value) is kind, message
  assert len(message.splitlines()) == 1, message
  return message


# Corpora.


@pytest.mark.parametrize(
  "name, split",
  [
    ("ptb.train.txt", "train"),
    ("wap.valid.txt", "valid"),
    ("wiki.test.tokens", "test"),
    ("train.txt", "train"),
    ("TRAIN", "train"),
    ("my_validation_2.txt", "validation"),
    ("dev/part1.txt", "dev"),
    ("train/test.txt", "test"),
    ("latest.txt", None),
    ("contest/training.txt", None),
    ("devil.txt", None),
  ],
)
def test_split_in_a_name(name, split):
  assert files.split_of(name) == split


def test_corpus_of_splits(tmp_path):
  put(tmp_path, {"a.train.txt": "one\ntwö\r\n", "b.train.txt.gz": "three", "a.valid.txt.gz": "\ufefffour\n"})
  put(tmp_path, {"README": "none", ".train.txt": "hidden", "test/x.txt": "five", "test/empty.txt": ""})
  assert corpus(tmp_path) == ["one\ntwö\r\n", "three"]
  assert corpus(tmp_path, "test") == ["five"]
  for name in ("valid", "validation", "val", "dev"):
    assert corpus(tmp_path, name) == ["four\n"]
  assert corpus(tmp_path, "val+test") == ["five", "four\n"]
  message = mistake(corpus, tmp_path, "trian")
  assert message.startswith("unknown split of dataset 'text': 'trian'; did you mean 'train'?")


def test_corpus_of_one_file_is_cut_at_line_ends(tmp_path):
  lines = [f"{'ä' * (i % 50)} {i}\n" for i in range(1000)]
  path = put(tmp_path, {"novel.txt": "".join(lines)}) / "novel.txt"
  parts = [corpus(path, split) for split in ("train", "validation", "test")]
  assert [len(part) for part in parts] == [1, 1, 1]
  texts = [part[0] for part in parts]
  assert "".join(texts) == "".join(lines)
  assert all(text.endswith("\n") for text in texts)
  total = len("".join(lines))
  for text, share in zip(texts, (0.9, 0.05, 0.05)):
    assert abs(len(text) - share * total) < 60
  put(tmp_path, {"line/line.txt": "a single line"})
  assert corpus(tmp_path / "line") == ["a single line"]
  assert "unknown split" in mistake(corpus, tmp_path / "line", "test")


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED])
def test_corpus_in_an_archive(tmp_path, method):
  held = {"x/ptb.train.txt": "ä " * 10_000, "ptb.valid.txt.gz": gzip.compress(b"small\n"), "__MACOSX/._train": "no"}
  path = archive(tmp_path / "ptb.zip", held | {"../../train.txt": "out", "folder/": ""}, method)
  for root in (path, tmp_path):
    assert corpus(root, "validation") == ["small\n"]
    assert "ä " * 10_000 in corpus(root)
  assert [p.name for p in tmp_path.rglob("*")] == ["ptb.zip"]


def test_changed_files_are_prepared_anew_and_others_are_not(tmp_path):
  put(tmp_path, {"train.txt": "old"})
  assert corpus(tmp_path) == ["old"]
  prepared = lambda: {p: p.stat().st_mtime_ns for p in (sources.cache_folder() / "tfds" / "text").rglob("*")}
  before = prepared()
  assert corpus(tmp_path) == ["old"]
  assert prepared() == before
  put(tmp_path, {"train.txt": "new!"})
  assert corpus(tmp_path) == ["new!"]
  assert before.items() < prepared().items() or len(prepared()) > len(before)
  assert [p.name for p in tmp_path.iterdir()] == ["train.txt"]


def test_records_travel_to_other_processes(tmp_path):
  source = corpora.open_corpus(Data("text", data_dir=str(put(tmp_path, {"train.txt": "a"}))), "train")
  assert list(pickle.loads(pickle.dumps(source.records))) == [{"text": "a"}]
  assert source.records[-1] == {"text": "a"}
  with pytest.raises(IndexError):
    source.records[1]


def test_python_source():
  """Every machine's own library, whole files, the same each time, tests left out."""
  split = lambda name: corpora.open_corpus(Data("python_source"), name).records
  found = {name: [r["text"] for r in split(name)] for name in ("train", "validation", "test")}
  counts = [len(part) for part in found.values()]
  assert sum(counts) > 100
  assert 0.8 < counts[0] / sum(counts) < 0.97
  assert min(counts) > 3
  everything = collections.Counter(sum(found.values(), []))
  assert everything == collections.Counter(text for _, text in python_source.sources())
  library = Path(sysconfig.get_path("stdlib"))
  for name in ("argparse.py", "asyncio/tasks.py", "json/decoder.py"):
    assert (library / name).read_text(encoding="utf-8") in everything
  assert not any("test" in name.split("/") for name, _ in python_source.sources())
  assert (sources.cache_folder() / "tfds" / "python_source" / platform.python_version()).is_dir()


# Sentences with labels.

ROWS = [("a fine film", "good"), ('so "dull", really', "bad"), ("schön\u2028!", "good")]


def table(rows, header="label\tsentence") -> str:
  return "\r\n".join([header, *(f"{label}\t{text}" for text, label in rows)]) + "\n"


def test_labelled_tables(tmp_path):
  """TSV without quotes, CSV with, JSON lines; columns in any order."""
  out = (tmp_path / "test.csv").open("w", newline="", encoding="utf-8")
  with out:
    csv.writer(out).writerows([("id", "Text", "Label"), *((7, text + "\nmore", label) for text, label in ROWS)])
  lines = "\n".join(json.dumps({"label": label, "id": 1, "text": text}) for text, label in ROWS) + "\n\n"
  put(tmp_path, {"sst.train.tsv.gz": table(ROWS), "dev.jsonl.gz": lines, "notes.md": "none"})
  assert sentences(tmp_path) == (set(ROWS), ("bad", "good"))
  assert sentences(tmp_path, "validation") == (set(ROWS), ("bad", "good"))
  assert sentences(tmp_path, "test")[0] == {(text + "\nmore", label) for text, label in ROWS}


def test_labels_that_are_numbers(tmp_path):
  lines = "\n".join(json.dumps({"sentence": str(i), "label": i % 11}) for i in range(22))
  found, names = sentences(put(tmp_path, {"train.jsonl": lines}))
  assert names == tuple(map(str, range(11)))
  assert found == {(str(i), str(i % 11)) for i in range(22)}


def test_labelled_without_splits_is_dealt_out(tmp_path):
  rows = [(f"sentence {i}", "ab"[i % 2]) for i in range(400)]
  put(tmp_path, {"all.tsv": table(rows + rows[:50])})
  found = [sentences(tmp_path, split)[0] for split in ("train", "validation", "test")]
  assert set.union(*found) == set(rows)
  assert sum(map(len, found)) == 400  # what is there twice is in one split
  assert 330 < len(found[0]) < 390
  put(tmp_path, {"all.tsv": table(rows[:200])})
  assert sentences(tmp_path, "test")[0] <= found[2]


@pytest.mark.parametrize(
  "name, content, words",
  [
    ("train.tsv", "", "it is []"),
    ("train.tsv", "label\ttext\n", "holds no sentences"),
    ("train.txt", "label\tsentence\n1\ta", "looked for .tsv .csv .jsonl"),
    ("train.tsv", "label\ttitle\n1\ta", "must name the columns 'label' and 'text'"),
    ("train.tsv", "label\ttext\n1\ta\tb", "row 2 has 3 columns, the first one 2"),
    ("train.tsv", "label\ttext\n\ta", "row 2 has the label ''"),
    ("train.csv", 'label,text\n1,"a', "unexpected end of data"),
    ("train.jsonl", '{"text": "a", "label": 1}\n{"text"', "line 2: Expecting"),
    ("train.jsonl", '{"text": "a", "label": 1.5}', "line 1 must have"),
    ("train.jsonl", '{"text": "a", "label": true}', "line 1 must have"),
    ("train.jsonl", '{"text": 1, "label": 1}', "line 1 must have"),
    ("train.jsonl", "[]", "line 1 must have"),
    ("train.jsonl", "[" * 100_000, "recursion"),
    ("train.jsonl", '{"text": "\\ud800", "label": 1}', "surrogates not allowed"),
    ("train.tsv", b"label\ttext\n1\tcaf\xe9\n", "cannot be read: 'utf-8' codec"),
  ],
)
def test_labelled_that_is_refused(tmp_path, name, content, words):
  message = mistake(sentences, put(tmp_path, {name: content}), kind=DataError)
  assert words in message
  assert str(tmp_path) in message


def test_labels_without_end(tmp_path, monkeypatch):
  monkeypatch.setattr(labelled, "MOST_CLASSES", 3)
  put(tmp_path, {"train.tsv": table([("a", str(i)) for i in range(4)])})
  assert "more than 3 different labels" in mistake(sentences, tmp_path, kind=DataError)


# Pairs.


def test_pairs_line_by_line(tmp_path):
  put(tmp_path, {"train.en.gz": "a dog\nthe cat\n", "train.de.gz": "ein Hund\ndie\u2028Katze\n", "train.fr.gz": "x\n"})
  put(tmp_path, {"val.en": "one", "val.de": "eins\n", "test-2016.en": "two\n\n", "test-2016.de": "zwei\n\n"})
  assert translations(tmp_path) == {("a dog", "ein Hund"), ("the cat", "die\u2028Katze")}
  assert translations(tmp_path, languages=("de", "en")) == {("ein Hund", "a dog"), ("die\u2028Katze", "the cat")}
  assert translations(tmp_path, "validation") == {("one", "eins")}
  assert translations(tmp_path, "test_2016") == {("two", "zwei"), ("", "")}
  message = mistake(translations, tmp_path, "train", ("en", "es"))
  assert "ending in .en and .es" in message
  assert "de, en, fr" in message
  message = mistake(translations, tmp_path, "train", ("en", "fr"), kind=DataError)
  assert "2 and 1 lines" in message


def test_pairs_of_a_table(tmp_path):
  rows = [(f"english {i // 2}", f"deutsch {i}") for i in range(600)]
  put(tmp_path, {"deu-eng.txt": "\n".join(f"{a}\t{b}\tCC-BY" for a, b in rows) + "\n"})
  found = [translations(tmp_path, split) for split in ("train", "validation", "test")]
  assert set.union(*found) == set(rows)
  assert sum(map(len, found)) == 600
  assert 500 < len(found[0]) < 580
  assert not {a for a, _ in found[0]} & {a for a, _ in found[1] | found[2]}
  assert translations(tmp_path, "train+validation+test", ("de", "en")) == {(b, a) for a, b in rows}
  put(tmp_path, {"deu-eng.txt": "a\tb\nc\n"})
  assert "line 2 has no tab" in mistake(translations, tmp_path, kind=DataError)
  put(tmp_path, {"deu-eng.txt": "\n"})
  assert "no pairs" in mistake(translations, tmp_path, kind=DataError)


@pytest.mark.parametrize(
  "name, languages, expected",
  [
    ("kor-eng.txt", ("en", "ko"), False),
    ("kor-eng.txt", ("ko", "en"), True),
    ("spa-eng.txt", ("es", "en"), True),
    ("spa-eng.txt", ("en", "es"), False),
    ("x/deu-eng.tsv", ("de", "en"), True),
    ("pairs.txt", ("de", "en"), False),
  ],
)
def test_which_column_is_the_source(name, languages, expected):
  assert pairs._is_reversed(name, languages) is expected


# Dates.


def parsed(text: str) -> datetime.date:
  """A date in words, read by other rules than it is written by."""
  numbers = ["zero", *filter(None, dates._UNITS)] + ["twenty", "thirty", "forty", "fifty", "sixty", "seventy"]
  value = {word: i if i < 20 else 10 * (i - 18) for i, word in enumerate([*numbers, "eighty", "ninety"])}
  for word, n in list(value.items()):
    value[{"one": "first", "two": "second", "three": "third"}.get(word, re.sub("y$", "ie", word) + "th")] = n
  value |= {"fifth": 5, "eighth": 8, "ninth": 9, "twelfth": 12}
  *words, last = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=\d)(st|nd|rd|th)\b", "", text.lower()))
  months = [datetime.date(2000, m, 1).strftime("%b").lower() for m in range(1, 13)]
  at = next(i for i, w in enumerate(words) if w[:3] in months)
  spoken = not last.isdigit()
  year_from = next((i for i in range(at + 1, len(words)) if words[i] in ("nineteen", "twenty", "two")), None)
  day_words = words[:at] + (words[at + 1 : year_from] if spoken else words[at + 1 :])
  day = sum(int(w) if w.isdigit() else value.get(w, 0) for w in day_words)
  if spoken:
    first, *rest = words[year_from:] + [last]
    year = 100 * value[first] if first != "two" else 2000
    year += sum(value.get(w, 0) for w in rest)
  else:
    year = int(last) + (0 if len(last) == 4 else 1900 if int(last) >= 50 else 2000)
  date = datetime.date(year, months.index(words[at][:3]) + 1, day)
  weekday = [w for w in words if w[:3] in ("mon", "tue", "wed", "thu", "fri", "sat", "sun")]
  assert not weekday or date.strftime("%A").lower().startswith(weekday[0])
  return date


def test_dates():
  found = {}
  for split, size in (("train", 20_000), ("validation", 1_000), ("test", 1_000)):
    found[split] = [(r["source"], r["target"]) for r in corpora.open_pairs(Data("dates"), split).records]
    assert len(found[split]) == size
  every = sum(found.values(), [])
  assert len({source.lower() for source, _ in every}) == 22_000
  for source, target in [*found["train"][:1500], *found["test"]]:
    assert parsed(source).isoformat() == target, source
  years = np.bincount([int(target[:4]) for _, target in every])
  assert years[1950:].size == 100
  assert years[1950:].min() > 150


def test_dates_are_written_in_every_way():
  date = datetime.date(1987, 3, 3)
  assert [dates.write(date, form) for form in dates.FORMS] == [
    "March 3, 1987", "3 March 1987", "Tuesday, 3 March 1987", "Mar 3, 1987", "Tuesday, March 3, 1987",
    "the third of March 1987", "March the third, 1987", "3rd of March, 1987", "March 3rd, 1987", "3 Mar 87",
    "Tue 3 Mar 1987", "the third of March, nineteen eighty-seven",
  ]  # fmt: skip
  spoken = {2000: "two thousand", 2009: "two thousand and nine", 2010: "twenty ten", 1950: "nineteen fifty"}
  assert {year: dates._spoken(year) for year in spoken} == spoken
  days = [dates.write(datetime.date(2000, 1, day), "{nth} {ordinal}") for day in (1, 12, 20, 21, 30, 31)]
  assert days == [
    "1st first",
    "12th twelfth",
    "20th twentieth",
    "21st twenty-first",
    "30th thirtieth",
    "31st thirty-first",
  ]


# What cannot be read.


def test_what_is_not_there(tmp_path):
  for name, opened in (("text", corpora.open_corpus), ("labelled", corpora.open_labelled)):
    assert "'data.data_dir' to be a file or a folder, not None" in mistake(opened, Data(name), "train")
    assert "no such" in mistake(opened, Data(name, data_dir=str(tmp_path / "no such")), "train")
  assert "holds no text" in mistake(corpus, tmp_path, kind=DataError)
  assert "unknown dataset 'python_sauce'; did you mean 'python_source'" in mistake(
    corpora.open_corpus, Data("python_sauce", data_dir=str(tmp_path)), "train"
  )


def test_another_kind_of_data(tmp_path):
  assert "no single text; its features are image (Image)" in mistake(corpora.open_corpus, Data("digits"), "train")
  assert "no single class label; its" in mistake(corpora.open_labelled, Data("dates"), "train")
  assert "no texts 'en' and 'de'" in mistake(corpora.open_pairs, Data("python_source"), "train")
  put(tmp_path, {"train.txt": "a"})
  assert "no single image" in mistake(sources.open_source, Data("text", data_dir=str(tmp_path)), "train")


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


# TFDS datasets that lie prepared.


class OneToOne(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  FEATURES = tfds.features.Translation(("de", "en"))
  EXAMPLE = {"de": "Hund", "en": "dog"}

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=self.FEATURES)

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    yield 0, self.EXAMPLE


class OneInsideOther(OneToOne):
  FEATURES = tfds.features.FeaturesDict({"id": tfds.features.Text(), "both": OneToOne.FEATURES})
  EXAMPLE = {"id": "7", "both": OneToOne.EXAMPLE}


class OneTone(OneToOne):
  FEATURES = tfds.features.FeaturesDict(
    {"words": tfds.features.Text(), "tone": tfds.features.ClassLabel(names=["bad", "good"])}
  )
  EXAMPLE = {"words": "schön", "tone": 1}


class OneQuestion(OneToOne):
  FEATURES = tfds.features.FeaturesDict({"question": tfds.features.Text(), "answer": tfds.features.Text()})
  EXAMPLE = {"question": "why", "answer": "so"}


def prepared(builder, root: Path) -> Data:
  """The config of a dataset of one example."""
  builder = builder(data_dir=str(root), file_format="array_record")
  builder.download_and_prepare()
  return Data(builder.name, data_dir=str(root))


@pytest.mark.parametrize("builder", [OneToOne, OneInsideOther])
def test_tfds_translations(tmp_path, builder):
  config = prepared(builder, tmp_path)
  assert list(corpora.open_pairs(config, "train").records) == [{"source": "dog", "target": "Hund"}]
  config.text.languages = ("de", "en")
  assert list(corpora.open_pairs(config, "train").records) == [{"source": "Hund", "target": "dog"}]
  config.text.languages = ("en", "fr")
  message = mistake(corpora.open_pairs, config, "train")
  assert "no texts 'en' and 'fr'" in message
  assert "'de', 'en'" in message


def test_tfds_texts_and_labels(tmp_path):
  config = prepared(OneTone, tmp_path)
  source = corpora.open_labelled(config, "train")
  assert list(source.records) == [{"text": "schön", "label": 1}]
  assert source.class_names == ("bad", "good")
  assert list(corpora.open_corpus(config, "train").records) == [{"text": "schön"}]


def test_tfds_two_texts(tmp_path):
  config = prepared(OneQuestion, tmp_path)
  (record,) = corpora.open_pairs(config, "train").records
  assert set(record.values()) == {"why", "so"}
  config.text.languages = ("question", "answer")
  assert list(corpora.open_pairs(config, "train").records) == [{"source": "why", "target": "so"}]
  assert "no single text; its features are" in mistake(corpora.open_corpus, config, "train")


# Real texts, where they are.


def raw(shared_data, name) -> Path:
  if not (shared_data / "raw" / name).is_dir():
    pytest.skip(f"no {name} in {shared_data / 'raw'}")
  return shared_data / "raw" / name


def test_real_corpora(shared_data):
  counts = [
    len(text.split()) for split in ("train", "valid", "test") for text in corpus(raw(shared_data, "ptb"), split)
  ]
  assert counts == [887_521, 70_390, 78_669]
  folder = raw(shared_data, "war_and_peace")
  sizes = [len(text.encode()) for split in ("train", "validation", "test") for text in corpus(folder, split)]
  assert sizes == [2_281_656, 490_831, 504_362]
  counts = [len(corpus(raw(shared_data, "wikitext2_valid_test"), split)[0].split("\n")) for split in ("val", "test")]
  assert counts == [3_761, 4_359]


def test_real_tiny_shakespeare(shared_data):
  folder = shared_data / "tfds"
  if not (folder / "tiny_shakespeare").is_dir():
    pytest.skip(f"no tiny_shakespeare in {folder}")
  config = Data("tiny_shakespeare", data_dir=str(folder))
  sizes = [len(corpora.open_corpus(config, split).records[0]["text"]) for split in ("train", "validation", "test")]
  assert sizes == [1_003_854, 55_770, 55_770]


def test_real_sentiments(shared_data):
  folder = raw(shared_data, "sst2")
  opened = lambda split: corpora.open_labelled(Data("labelled", data_dir=str(folder)), split)
  assert [len(opened(split).records) for split in ("train", "dev", "test")] == [67_349, 872, 1_821]
  assert opened("train").class_names == ("0", "1")
  with gzip.open(folder / "dev.tsv.gz", "rt", encoding="utf-8") as file:
    expected = collections.Counter(tuple(line.rstrip("\n").split("\t")) for line in list(file)[1:])
  assert collections.Counter((str(r["label"]), r["text"]) for r in opened("dev").records) == expected


def test_real_pairs(shared_data):
  folder = raw(shared_data, "multi30k")
  config = Data("pairs", data_dir=str(folder))
  splits = {"train": 29_000, "val": 1_014, "test_2016_flickr": 1_000, "test_2017_flickr": 1_000}
  for split, size in splits.items():
    records = corpora.open_pairs(config, split).records
    assert len(records) == size
  sides = [gzip.open(folder / f"test_2017_flickr.{lang}.gz", "rt", encoding="utf-8") for lang in ("en", "de")]
  expected = collections.Counter(zip(*([line.rstrip("\n") for line in side] for side in sides)))
  assert collections.Counter((r["source"], r["target"]) for r in records) == expected
  folder = raw(shared_data, "korean_english_tatoeba")
  assert ("Go.", "가.") in translations(folder, "train+validation+test", ("en", "ko"))
  assert ("가.", "Go.") in translations(folder, "train+validation+test", ("ko", "en"))


def test_no_tensorflow_is_needed():
  if importlib.util.find_spec("tensorflow"):
    pytest.skip("TensorFlow is installed")
  assert len(corpora.open_pairs(Data("dates"), "test").records) == 1000
