"""Texts by name: what every kind of file says, against the files themselves; every mistake in one line."""

import csv
import json
import pickle

import pytest
from texts import corpus, mistake, put, sentences, translations

from flaxonomy.configs.base import Data
from flaxonomy.data import corpora, sources
from flaxonomy.data.datasets import files, labelled, pairs
from flaxonomy.errors import DataError

pytestmark = pytest.mark.usefixtures("own_cache")


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
