"""Windows of a corpus: where they start, what they hold, and that an evaluation predicts each token once."""

import jax
import numpy as np
import pytest

from flaxonomy.configs.base import Data, Text
from flaxonomy.data import pipeline, streams
from flaxonomy.errors import UserError
from flaxonomy.train import loop

LENGTH, ROWS = 7, 6


@pytest.fixture
def novel(tmp_path):
  """A function: (tokens, **fields of Text) -> a config of a text file whose characters are all told apart by place."""

  def make(size=500, on_device=True, **fields):
    letters = "".join(chr(0x4E00 + i) for i in range(size - 1)) + "\n"
    for split in ("train", "validation"):
      (tmp_path / f"{split}.txt").write_text(letters)
    return Data("text", data_dir=str(tmp_path), on_device=on_device, text=Text(length=LENGTH, **fields))

  return make


def opened(config, devices=2, seed=3):
  mesh = loop.make_mesh(devices)
  source, info = streams.open_split(config, "train")
  return streams.open_feed(config, source, info, seed, ROWS, mesh), source.records, info


def fetched(feed, spans, most=1):
  """Batches of each step, as NumPy."""
  batches = []
  for (_, count), item in zip(spans, feed.train_items(spans, most)):
    steps = [feed.fetch(feed.resident, jax.tree.map(lambda x, i=i: x[i], item)) for i in range(count)]
    batches += [jax.tree.map(np.asarray, batch) for batch in steps]
  return batches


@pytest.mark.parametrize("on_device", [True, False])
def test_streams_go_on_where_they_were(novel, on_device):
  feed, tokens, info = opened(novel(streams=True, on_device=on_device))
  each = (len(tokens) - 1) // ROWS
  windows = each // LENGTH
  assert info.size == (len(tokens) - 1) // LENGTH
  for step, batch in enumerate(fetched(feed, [(i, 1) for i in range(windows + 2)])):
    for row in range(ROWS):
      begin = row * each + (step % windows) * LENGTH
      np.testing.assert_array_equal(batch["tokens"][row], tokens[begin : begin + LENGTH + 1])
    assert (batch["fresh"] == (step % windows == 0)).all()
    assert (batch["mask"] == 1).all()


def test_windows_anywhere_are_a_function_of_seed_and_step(novel):
  feed, tokens, _ = opened(novel())
  batches = fetched(feed, [(i, 1) for i in range(40)])
  again = fetched(opened(novel(on_device=False), devices=1)[0], [(0, 4), (4, 4), (8, 4)], 4)
  for one, other in zip(batches, again):
    jax.tree.map(np.testing.assert_array_equal, one, other)
  later = fetched(feed, [(17, 1)])[0]
  np.testing.assert_array_equal(later["tokens"], batches[17]["tokens"])
  starts = np.concatenate([batch["index"] for batch in batches])
  for start, row in zip(starts, np.concatenate([batch["tokens"] for batch in batches])):
    np.testing.assert_array_equal(row, tokens[start : start + LENGTH + 1])
  assert starts.min() < 30
  assert starts.max() > len(tokens) - 40
  assert len(set(starts.tolist())) > 150
  other = fetched(opened(novel(), seed=4)[0], [(0, 1)])[0]
  assert (other["index"] != batches[0]["index"]).any()


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("as_streams", [True, False])
@pytest.mark.parametrize("size", [8, 9, 43, 85, 86, 500])
def test_each_token_is_predicted_once(novel, size, as_streams, on_device):
  feed, tokens, _ = opened(novel(size, streams=as_streams, on_device=on_device))
  seen, ends = [], [None] * ROWS
  for item in feed.eval_items():
    batch = jax.tree.map(np.asarray, feed.fetch(feed.resident, item))
    assert batch["tokens"].shape == (ROWS, LENGTH + 1)
    for row in range(ROWS):
      count = int(batch["mask"][row].sum())
      assert (batch["mask"][row][:count] == 1).all()
      assert (batch["index"][row] < 0) == (count == 0)
      seen += batch["tokens"][row, 1 : count + 1].tolist()
      if as_streams and count and batch["fresh"][row] == 0:
        assert ends[row] == batch["index"][row]
      ends[row] = batch["index"][row] + count
  assert sorted(seen) == sorted(tokens[1:].tolist())


def test_other_splits_use_the_tokens_of_the_training_split(tmp_path):
  (tmp_path / "train.txt").write_text("abcabcabcabc\n")
  (tmp_path / "validation.txt").write_text("abzabzabzabz\n")
  config = Data("text", data_dir=str(tmp_path), text=Text(length=4))
  _, info = streams.open_split(config, "train")
  source, other = streams.open_split(config, "validation", info)
  assert other.tokenizers == info.tokenizers
  unknown = info.tokenizers["text"].id("<unk>")
  assert (source.records == unknown).sum() == 4
  assert source.records.dtype == np.uint8


def test_documents_are_parted_where_the_tokenizer_can(tmp_path):
  for i, text in enumerate(("ab", "ba")):
    (tmp_path / f"{i}.train.txt").write_text(text)
  config = Data("text", data_dir=str(tmp_path), text=Text(length=2))
  source, info = streams.open_split(config, "train")
  assert info.tokenizers["text"].decode(source.records) == "abba"


def test_what_is_refused(novel):
  with pytest.raises(UserError, match="has 5 tokens, too few for windows of 7; set config field 'data.text.length'"):
    streams.open_split(novel(5), "train")
  feed, *_ = opened(novel(20, streams=True))
  with pytest.raises(UserError, match="20 tokens in 6 streams have no window of 7"):
    next(feed.train_items([(0, 1)], 1))


def test_read_gives_the_windows_of_a_batch(novel):
  feed, tokens, _ = opened(novel(20))
  batch = feed.read([0, 14])
  np.testing.assert_array_equal(batch["tokens"][0], tokens[:8])
  np.testing.assert_array_equal(batch["mask"].sum(1), [7, 5])
  assert isinstance(feed, pipeline.Feed)
