"""Texts that our own builders make: Python's library, and dates in words."""

import collections
import datetime
import importlib.util
import platform
import re
import sysconfig
from pathlib import Path

import numpy as np
import pytest
from texts import mistake, put

from flaxonomy.configs.base import Data
from flaxonomy.data import corpora, sources
from flaxonomy.data.datasets import dates, python_source

pytestmark = pytest.mark.usefixtures("own_cache")


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


def test_another_kind_of_data(tmp_path):
  assert "no single text; its features are image (Image)" in mistake(corpora.open_corpus, Data("digits"), "train")
  assert "no single class label; its" in mistake(corpora.open_labelled, Data("dates"), "train")
  assert "no texts 'en' and 'de'" in mistake(corpora.open_pairs, Data("python_source"), "train")
  put(tmp_path, {"train.txt": "a"})
  assert "no single image" in mistake(sources.open_source, Data("text", data_dir=str(tmp_path)), "train")


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


def test_no_tensorflow_is_needed():
  if importlib.util.find_spec("tensorflow"):
    pytest.skip("TensorFlow is installed")
  assert len(corpora.open_pairs(Data("dates"), "test").records) == 1000
