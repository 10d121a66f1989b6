"""BLEU (Papineni et al. 2002) of whole corpora, by sacreBLEU (Post 2018): n-grams are counted over all sentences."""

import csv
import importlib.util
import io

from flaxonomy.errors import missing_extra

BOUNDS = (5, 10, 15, 20, 30, 40, 50)  # words of a source: up to each, and more


def require() -> None:
  """Raises UserError if sacreBLEU is not installed."""
  try:
    found = importlib.util.find_spec("sacrebleu") is not None
  except ValueError:  # its import is blocked
    found = False
  if not found:
    raise missing_extra("sacrebleu", "text", "config field 'decode.bleu'")


def corpus(pairs: list[tuple[str, str]], lowercase: bool = False) -> tuple[float, str]:
  """(BLEU from 0 to 100, its signature) with sacreBLEU's own tokens, "13a".

  Args:
    pairs: (truth, written), plain text.
    lowercase: capital letters make no difference.
  """
  import sacrebleu

  metric = sacrebleu.BLEU(lowercase=lowercase)
  found = metric.corpus_score([ours for _, ours in pairs], [[truth for truth, _ in pairs]])
  return found.score, str(metric.get_signature())


def by_length(kept: list[tuple[str, str, str]], lowercase: bool = False) -> list[tuple[int, int, int, float]]:
  """BLEU of the sentences of about each length: rows (fewest words of the source, most, sentences, BLEU).

  Args:
    kept: (source, truth, written), plain text.
    lowercase: as for `corpus`.
  """
  rows, least = [], 0
  counts = [len(source.split()) for source, _, _ in kept]
  for most in (*BOUNDS, max([*counts, BOUNDS[-1] + 1])):
    chosen = [row[1:] for row, count in zip(kept, counts) if least <= count <= most]
    if chosen:
      rows.append((least, most, len(chosen), corpus(chosen, lowercase)[0]))
    least = most + 1
  return rows


def table(rows: list[tuple[int, int, int, float]]) -> str:
  """The rows of `by_length` as CSV."""
  file = io.StringIO()
  writer = csv.writer(file, lineterminator="\n")
  writer.writerow(["words_from", "words_to", "sentences", "bleu"])
  writer.writerows((least, most, count, f"{value:.2f}") for least, most, count, value in rows)
  return file.getvalue()
