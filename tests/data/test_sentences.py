"""Batches of sentences and of pairs, against what plain loops over the texts make."""

import collections

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from flaxonomy.configs.base import Data, Text
from flaxonomy.data import corpora, pairs, pipeline, sentences, text
from flaxonomy.data.sources import Source
from flaxonomy.errors import UserError

RNG = np.random.default_rng(0)
WORDS = [f"w{i}" for i in range(30)]
TEXTS = [" ".join(RNG.choice(WORDS, n)) for n in RNG.integers(0, 15, 70)]
LABELS = RNG.integers(0, 3, 70).tolist()
WIDTHS, BATCH = (4, 8, 16), 8


def config(**fields):
  return Data("labelled", text=Text(**{"tokenizer": "words", "buckets": WIDTHS} | fields))


@pytest.fixture
def texts(monkeypatch):
  """The texts as a dataset."""
  rows = [{"text": t, "label": y} for t, y in zip(TEXTS, LABELS)]
  monkeypatch.setattr(corpora, "open_labelled", lambda config, split: Source(rows, ("a", "b", "c"), None, split))


@pytest.fixture
def both(monkeypatch):
  """Pairs of texts as a dataset; a target is one word longer than its source."""
  rows = [{"source": t, "target": f"{t} end"} for t in TEXTS]
  monkeypatch.setattr(corpora, "open_pairs", lambda config, split: Source(rows, (), None, split))


def opened(kind=sentences, trained=None, devices=1, seed=0, batch_size=BATCH, **fields):
  """(info, feed) of a split."""
  mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
  source, info = kind.open_split(config(**fields), "train", trained)
  return info, kind.open_feed(config(**fields), source, info, seed, batch_size, mesh)


def steps(feed, spans, most=1):
  """[batch of NumPy arrays] of every step of the spans."""
  items = map(jax.device_get, feed.train_items(iter(spans), most))
  return [{k: x[i] for k, x in item.items()} for item, (_, n) in zip(items, spans) for i in range(n)]


def by_hand(tokenizer, i, width):
  """The row of an example of the labelled texts."""
  ids = [1, *map(tokenizer.id, TEXTS[i].split())][: WIDTHS[-1]]
  return ids + [0] * (width - len(ids))


def check(info, batch, width):
  assert batch["text"].shape == (BATCH, width)
  assert batch["text"].dtype == batch["label"].dtype == batch["index"].dtype == np.int32
  for row, label, i, mask in zip(batch["text"], batch["label"], batch["index"], batch["mask"]):
    assert mask == (i >= 0)
    assert row.tolist() == (by_hand(info.tokenizers["text"], i, width) if i >= 0 else [0] * width)
    assert label == (LABELS[i] if i >= 0 else 0)


def width_of(i):
  return next(w for w in WIDTHS if w >= 1 + len(TEXTS[i].split()))


def test_training(texts):
  info, feed = opened()
  assert info.class_names == ("a", "b", "c")
  assert (info.size, feed.size) == (70, 70)
  assert [info.tokenizers["text"].id(t) for t in sentences.SPECIALS] == [0, 1, 2, 3]
  whole = {w: n // BATCH for w, n in collections.Counter(map(width_of, range(70))).items()}
  assert min(whole.values()) > 0
  epoch, seen = sum(whole.values()), []
  made = steps(feed, [(s, 1) for s in range(3 * epoch)])
  for e in range(3):
    part = made[e * epoch : (e + 1) * epoch]
    index = np.concatenate([batch["index"] for batch in part]).tolist()
    assert len(set(index)) == len(index)
    assert collections.Counter(width_of(batch["index"][0]) for batch in part) == whole
    seen.append(index)
    for batch in part:
      check(info, batch, width_of(batch["index"][0]))
  assert seen[0] != seen[1] != seen[2] != seen[0]
  assert sorted(seen[0]) != sorted(seen[1]), "the same remainder is left out of every epoch"


def test_what_a_step_sees_is_a_function_of_seed_and_step(texts):
  _, feed = opened()
  made = steps(feed, [(s, 1) for s in range(20)])
  spans, at = [], 7
  while at < 20:
    spans.append((at, feed.alike(at, min(4, 20 - at))))
    at += spans[-1][1]
  assert max(count for _, count in spans) > 1
  _, again = opened(devices=4)
  for one, other in zip(made[7:], steps(again, spans, 4), strict=True):
    for key in one:
      np.testing.assert_array_equal(one[key], other[key])
  _, other = opened(seed=1)
  assert (steps(other, [(0, 1)])[0]["index"] != made[0]["index"]).any()


def test_the_order_by_hand():
  """Runs of today can be gone on with for ever: sorted raw bits, keyed by seed, epoch and bucket."""
  order, found = sentences.Batches(np.array([0, 1] * 10), 4, 7), []
  assert order.count == 4
  for k in (0, 1):
    bits = np.random.PCG64([7, 1, k + 1]).random_raw(10).tolist()
    shuffled = sorted(range(k, 20, 2), key=lambda i: bits[i // 2])
    found += [(k, shuffled[:4]), (k, shuffled[4:8])]
  bits = np.random.PCG64([7, 1, 3]).random_raw(4).tolist()
  found = [batch for _, batch in sorted(zip(bits, found))]
  assert [(k, rows.tolist()) for k, rows in map(order.at, range(4, 8))] == found


def test_alike(texts):
  _, feed = opened()
  shapes = [batch["text"].shape for batch in steps(feed, [(s, 1) for s in range(30)])]
  for first in range(20):
    for count in (1, 3, 10):
      same = [shape == shapes[first] for shape in shapes[first : first + count]]
      assert feed.alike(first, count) == (same.index(False) if False in same else count)


@pytest.mark.parametrize("devices", [1, 4])
def test_an_evaluation_holds_every_example_once(texts, devices):
  info, feed = opened(devices=devices)
  _, feed = opened(trained=info, devices=devices)
  batches = [jax.device_get(item) for item in feed.eval_items()]
  for batch in batches:
    check(info, batch, max(width_of(i) for i in batch["index"] if i >= 0))
  index = np.concatenate([batch["index"] for batch in batches])
  assert sorted(index[index >= 0]) == list(range(70))
  assert 0 in batches[0]["index"]
  assert (index < 0).any()


def test_reading(texts):
  info, feed = opened()
  index = [3, 1, 50, 3]
  found = feed.read(index)
  width = max(map(width_of, index))
  assert found["text"].tolist() == [by_hand(info.tokenizers["text"], i, width) for i in index]
  assert found["label"].tolist() == [LABELS[i] for i in index]
  assert feed.read([])["text"].shape == (0, 4)


def test_long_texts_are_cut(texts, capsys):
  info, feed = opened(buckets=(), length=6)
  long = sum(len(t.split()) > 5 for t in TEXTS)
  assert f"{long} of 70 texts of split 'train' are cut to 6 tokens" in capsys.readouterr().err
  (batch,) = steps(feed, [(0, 1)])
  assert batch["text"].tolist() == [by_hand(info.tokenizers["text"], i, 6)[:6] for i in batch["index"]]


def test_the_tokens_are_those_of_training(texts):
  tokenizer = text.train("words", ["w3 w3 w5"], specials=sentences.SPECIALS)
  _, feed = opened(trained=pipeline.Info("labelled", ("a", "b", "c"), tokenizers={"text": tokenizer}))
  known = {"w3": 4, "w5": 5}
  for row, i in zip(feed.read(range(70))["text"], range(70)):
    assert row[row > 0].tolist() == [1, *(known.get(word, 3) for word in TEXTS[i].split())]


def test_refusals(texts, tmp_path, capsys):
  with pytest.raises(UserError, match=r"no bucket holds a batch of 64 examples: \d+ of up to 4 tokens, .*data.batch"):
    opened(batch_size=64)
  trained, _ = opened()
  opened(trained=trained, batch_size=64)
  for buckets in ((8, 4), (4, 4), (1, 4)):
    with pytest.raises(UserError, match="'data.text.buckets' must be rising"):
      opened(buckets=buckets)
  (tmp_path / "words.txt").write_text("<s>\n<pad>\n</s>\n<unk>\nw1\n")
  with pytest.raises(UserError, match="must have '<pad>' as its first token"):
    opened(tokenizer=str(tmp_path / "words.txt"))
  capsys.readouterr()
  opened(batch_size=20)
  small = [n for n in collections.Counter(map(width_of, range(70))).values() if n < 20]
  assert f"{sum(small)} examples are never trained on" in capsys.readouterr().err


def test_pairs(both):
  """A bucket by the longer sequence; each column as wide as its longest in that bucket and those before it."""
  widths = (4, 8, 17)
  counts = [len(text.split()) for text in TEXTS]
  info, feed = opened(pairs, buckets=widths)
  source, target = info.tokenizers["source"], info.tokenizers["target"]
  assert source != target
  for batch in steps(feed, [(s, 1) for s in range(8)]):
    wanted = [
      ([*map(source.id, TEXTS[i].split()), 2], [1, *map(target.id, f"{TEXTS[i]} end".split()), 2])
      for i in batch["index"]
    ]
    bucket = next(w for w in widths if w >= max(len(t) for _, t in wanted))
    longest = max(n for n in counts if n + 3 <= bucket)
    for column, rows, width in zip(("source", "target"), zip(*wanted), (longest + 1, longest + 3)):
      assert batch[column].tolist() == [ids + [0] * (width - len(ids)) for ids in rows]
    assert batch["mask"].tolist() == [1] * BATCH


def test_pairs_that_are_too_long(both, capsys):
  """Left out of training, and scored in evaluation all the same."""
  short = [i for i in range(70) if len(TEXTS[i].split()) + 3 <= 8]
  info, feed = opened(pairs, buckets=(4, 8))
  assert f"{70 - len(short)} of 70 pairs of split 'train' are left out" in capsys.readouterr().err
  assert info.size == feed.size == len(short)
  read = feed.read(range(len(short)))["source"]
  ids = info.tokenizers["source"].id
  assert [row[row > 0].tolist() for row in read] == [[*map(ids, TEXTS[i].split()), 2] for i in short]
  _, feed = opened(pairs, trained=info, buckets=(4, 8))
  batches = [jax.device_get(item) for item in feed.eval_items()]
  index = np.concatenate([batch["index"] for batch in batches])
  assert sorted(index[index >= 0]) == list(range(70))
  assert {batch["target"].shape[1] for batch in batches} == {4, 8, 3 + max(len(t.split()) for t in TEXTS)}
  with pytest.raises(UserError, match="70 of 70 pairs .*'data.text.length'"):
    opened(pairs, buckets=(2,))


def test_shared_tokens(both, tmp_path):
  info, _ = opened(pairs, shared=True)
  assert info.tokenizers["source"] is info.tokenizers["target"]
  assert {info.tokenizers["source"].id(word) is None for word in (*WORDS, "end")} == {False}
  text.save(info.tokenizers["source"], tmp_path / "both.json")
  again, _ = opened(pairs, tokenizer=str(tmp_path / "both.json"))
  assert again.tokenizers == info.tokenizers


def test_lines(tmp_path):
  (tmp_path / "a.txt").write_text("one\n\n two \n")
  (tmp_path / "b.txt").write_bytes(b"\xff")
  (tmp_path / "c.txt").write_text("\n")
  assert sentences.lines([str(tmp_path / "a.txt")] * 2) == ["one", " two "] * 2
  for name, message in (("b.txt", "as text"), ("c.txt", "no line of text"), ("d.txt", "cannot read .*d.txt")):
    with pytest.raises(UserError, match=message):
      sentences.lines([str(tmp_path / name)])
