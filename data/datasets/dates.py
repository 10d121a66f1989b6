"""Dates in words to dates in figures, "Tuesday, 3 March 1987" to "1987-03-03": a first task for an encoder and decoder.

Twelve ways to write a day of the years 1950 to 2049, in three kinds of letters; years of two figures are those. No text
is there twice. Everything follows from one stream of raw bits, which NumPy promises for ever.
"""

import datetime

import numpy as np
import tensorflow_datasets as tfds

from flaxonomy.data.datasets import files

SIZES = {"train": 20_000, "validation": 1_000, "test": 1_000}
FIRST, LAST = datetime.date(1950, 1, 1), datetime.date(2049, 12, 31)
FORMS = (
  "{month} {day}, {year}", "{day} {month} {year}", "{weekday}, {day} {month} {year}", "{mon} {day}, {year}",
  "{weekday}, {month} {day}, {year}", "the {ordinal} of {month} {year}", "{month} the {ordinal}, {year}",
  "{nth} of {month}, {year}", "{month} {nth}, {year}", "{day} {mon} {yy}", "{wd} {day} {mon} {year}",
  "the {ordinal} of {month}, {spoken}",
)  # fmt: skip

_MONTHS = (
  "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
  "December",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_UNITS = (
  "", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve", "thirteen",
  "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = (
  "", "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
  "twelfth", "thirteenth", "fourteenth", "fifteenth", "sixteenth", "seventeenth", "eighteenth", "nineteenth",
  "twentieth",
)  # fmt: skip


class Dates(tfds.core.GeneratorBasedBuilder):
  """`source`, a date in words, and `target`, the same as ISO 8601 has it."""

  VERSION = tfds.core.Version("1.0.0")
  RELEASE_NOTES = {"1.0.0": "First release."}

  def _info(self) -> tfds.core.DatasetInfo:
    features = {"source": tfds.features.Text(), "target": tfds.features.Text()}
    return files.info(self, __doc__, features, ("source", "target"))

  def _split_generators(self, dl_manager):
    every, found = examples(sum(SIZES.values())), {}
    for split, size in SIZES.items():
      found[split] = self._generate_examples(every[:size])
      every = every[size:]
    return found

  def _generate_examples(self, pairs):
    for i, (source, target) in enumerate(pairs):
      yield i, {"source": source, "target": target}


def examples(count: int) -> list[tuple[str, str]]:
  """The first so many pairs of different sources, not one of them the same but for capital letters."""
  bits, found = np.random.PCG64(0), {}
  while len(found) < count:
    day, form, letters = (int(raw >> 11) for raw in bits.random_raw(3).tolist())
    date = FIRST + datetime.timedelta(day % ((LAST - FIRST).days + 1))
    source = write(date, FORMS[form % len(FORMS)])
    pair = (source, source.lower(), source[0].upper() + source[1:])[letters % 3], date.isoformat()
    found.setdefault(source.lower(), pair)
  return list(found.values())


def write(date: datetime.date, form: str) -> str:
  """A date as one of FORMS."""
  month, weekday = _MONTHS[date.month - 1], _DAYS[date.weekday()]
  suffix = "th" if 10 < date.day < 14 else {1: "st", 2: "nd", 3: "rd"}.get(date.day % 10, "th")
  tens = "twenty" if date.day < 30 else "thirty"
  return form.format(
    day=date.day,
    nth=f"{date.day}{suffix}",
    ordinal=_ORDINALS[date.day] if date.day <= 20 else "thirtieth" if date.day == 30
    else f"{tens}-{_ORDINALS[date.day % 10]}",
    month=month,
    mon=month[:3],
    weekday=weekday,
    wd=weekday[:3],
    year=date.year,
    yy=f"{date.year % 100:02}",
    spoken=_spoken(date.year),
  )  # fmt: skip


def _spoken(year: int) -> str:
  """A year as one says it: nineteen eighty-seven, two thousand and five, twenty thirteen."""
  century, rest = divmod(year, 100)
  if century == 20 and rest < 10:
    return "two thousand" + (f" and {_UNITS[rest]}" if rest else "")
  tens, units = divmod(rest, 10)
  number = _UNITS[rest] if rest < 20 else "-".join(filter(None, (_TENS[tens], _UNITS[units])))
  return f"{_UNITS[century] if century < 20 else _TENS[century // 10]} {number}"
