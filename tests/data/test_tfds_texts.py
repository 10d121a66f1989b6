"""Texts that lie prepared for TFDS, and real ones where they are."""

import collections
import gzip
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from texts import corpus, mistake, translations

from flaxonomy.configs.base import Data
from flaxonomy.data import corpora

pytestmark = pytest.mark.usefixtures("own_cache")


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
