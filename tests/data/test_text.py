"""Tokenizers: vocabularies against counting, learnt ones against the library, and back to the very text."""

import collections
import json
import pickle
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxonomy.data import text
from flaxonomy.errors import UserError

library = pytest.importorskip("tokenizers")

POEM = """Whose woods these are I think I know.
His house is in the village though; he will not see me stopping here - to watch his woods fill up with snow.

Äpfel, 사과 & 🍎: "an apple's an apple" (isn't it?)\t<pad>
"""
SPECIALS = ("<pad>", "<s>", "</s>")
SIZES = {"bpe": 300, "wordpiece": 90}


@pytest.fixture(scope="module")
def made() -> dict:
  """{kind: a tokenizer of the poem}."""
  return {kind: text.train(kind, [POEM], size=SIZES.get(kind), specials=SPECIALS) for kind in text.KINDS}


def mistake(function, *arguments, **fields) -> str:
  """The one line that a mistake ends in."""
  with pytest.raises(UserError) as error:
    function(*arguments, **fields)
  message = str(error.value)
  assert len(message.splitlines()) == 1, message
  return message


# What every kind promises.


@pytest.mark.parametrize("kind", text.KINDS)
def test_special_tokens_come_first_and_out_of_no_text(made, kind):
  tokenizer = made[kind]
  assert [tokenizer.id(token) for token in SPECIALS] == [0, 1, 2]
  assert tokenizer.id("<no such>") is None
  ids = tokenizer.encode(POEM)
  assert ids.dtype == np.int32
  assert ids.ndim == 1
  assert ids.min() > 2
  assert ids.max() < tokenizer.size
  plain = tokenizer.decode(ids)
  assert tokenizer.decode([0, *ids[:5], 1, *ids[5:], 2, -1, tokenizer.size, 10**9]) == plain
  assert tokenizer.decode(np.array([], np.int32)) == ""
  assert tokenizer.encode("").shape == (0,)
  assert tokenizer.encode("").dtype == np.int32


@pytest.mark.parametrize("kind", text.KINDS)
def test_many_texts_at_once_are_each_by_itself(made, kind):
  texts = [*POEM.splitlines(), "", "nothing like it: ж"]
  for ids, one in zip(made[kind].encode_all(iter(texts)), texts, strict=True):
    assert ids.dtype == np.int32
    np.testing.assert_array_equal(ids, made[kind].encode(one))


@pytest.mark.parametrize("kind", text.KINDS)
def test_equal_by_content_saved_pickled_and_made_again(made, kind, tmp_path):
  tokenizer = made[kind]
  tokenizer.encode(POEM)  # with all that is made on first use
  text.save(tokenizer, tmp_path / "saved.json")
  same = text.train(kind, iter([POEM]), size=SIZES.get(kind), specials=SPECIALS)
  for other in (text.load(tmp_path / "saved.json"), pickle.loads(pickle.dumps(tokenizer)), same):
    assert other == tokenizer
    assert hash(other) == hash(tokenizer)
    assert other.size == tokenizer.size
    np.testing.assert_array_equal(other.encode(POEM), tokenizer.encode(POEM))
  assert len(pickle.dumps(tokenizer)) < 20_000
  assert text.train(kind, [POEM], size=SIZES.get(kind), specials=("<pad>",)) != tokenizer
  with pytest.raises(AttributeError):
    tokenizer.kind = "other"


@pytest.mark.parametrize("kind", ["chars", "bytes", "bpe"])
@settings(deadline=None, max_examples=200)
@given(st.text() | st.lists(st.sampled_from([*SPECIALS, " ", "\n", "woods", "\r\n", "<", "🍎"])).map("".join))
def test_back_to_the_very_text(made, kind, any_text):
  tokenizer = made[kind]
  if kind == "chars":
    tokenizer = text.train("chars", [any_text], specials=SPECIALS)
  assert tokenizer.decode(tokenizer.encode(any_text)) == any_text


@pytest.mark.parametrize(
  "kind, unit, total",
  [
    ("chars", "character", len(POEM)),
    ("bytes", "byte", len(POEM.encode())),
    ("bpe", "byte", len(POEM.encode())),
    ("words", "word", sum(map(len, POEM.replace("\n", " ⏎ ").replace("<pad>", "").split()))),
    ("wordpiece", "byte", len("".join(POEM.split()).encode()) - len("<>")),  # never seen, where special tokens are not
  ],
)
def test_weights_add_up_to_the_text(made, kind, unit, total):
  weights = made[kind].weights()
  assert made[kind].unit == unit
  assert weights.shape == (made[kind].size,)
  assert weights.dtype == np.int32
  assert not weights[:3].any()
  assert weights[made[kind].encode(POEM)].sum() == total


def test_tokens_to_be_shown(made):
  of = lambda kind, piece: [made[kind].piece(i) for i in made[kind].encode(piece)]
  assert of("chars", "a \n\t🍎") == ["a", "␣", "↵", "⇥", "🍎"]
  assert of("bytes", "a\nä\0") == ["a", "↵", "\\xc3", "\\xa4", "\\x00"]
  assert of("words", "woods\nsee") == ["woods", "<eos>", "see"]
  assert "".join(of("bpe", "the woods")) == "the␣woods"
  assert "".join(of("wordpiece", "woods"))[:1] == "w"
  assert all(tokenizer.piece(0) == "<pad>" for tokenizer in made.values())
  assert all(tokenizer.piece(-1) == tokenizer.piece(tokenizer.size) == "" for tokenizer in made.values())


@pytest.mark.parametrize("kind", text.KINDS)
def test_lower_case(kind):
  tokenizer = text.train(kind, [POEM], size=SIZES.get(kind), lowercase=True)
  np.testing.assert_array_equal(tokenizer.encode("WHOSE Woods"), tokenizer.encode("whose woods"))
  assert tokenizer.decode(tokenizer.encode("WHOSE Woods")) == "whose woods"


@pytest.mark.parametrize("kind", text.KINDS)
def test_lone_surrogates_do_no_harm(made, kind):
  ids = made[kind].encode("see \ud800 me")
  assert made[kind].decode(ids).startswith("see")
  assert text.train(kind, ["a \ud800 b"], size=None).size > 1


# Plain vocabularies, against counting.


def by_frequency(things) -> list:
  return sorted(collections.Counter(things), key=lambda x: (-collections.Counter(things)[x], x))


def test_characters_by_frequency(made):
  expected = (*SPECIALS, "<unk>", *by_frequency(POEM))
  assert made["chars"].tokens == expected
  assert made["chars"].encode(POEM).tolist() == [expected.index(c, 3) for c in POEM]
  small = text.train("chars", POEM.splitlines(keepends=True), size=9, specials=SPECIALS)
  assert small.tokens == expected[:9]
  assert small.encode("h\U0010ffffe😀").tolist() == [small.id("h"), 3, small.id("e"), 3]
  assert small.decode(small.encode("shy 😀.")) == "sh "
  assert small.weights()[small.encode(POEM)].sum() == len(POEM), "an unknown character is one"
  assert text.train("chars", ["ab"]).tokens == ("<unk>", "a", "b")
  assert text.train("chars", ["ab"], specials=("<unk>", "<pad>")).tokens == ("<unk>", "<pad>", "a", "b")


def test_bytes(made):
  assert made["bytes"].size == 259
  assert made["bytes"].encode("aä").tolist() == [97 + 3, 0xC3 + 3, 0xA4 + 3]
  assert made["bytes"].id("a") == 100
  assert made["bytes"].decode([100, 0xC3 + 3]) == "a\ufffd"
  assert text.train("bytes", []).size == 256


def test_words_by_frequency():
  texts = ["b b a  c", "c\td b", "e"]
  vocabulary = text.train("words", texts, specials=("<pad>",))
  assert vocabulary.tokens == ("<pad>", "<unk>", "b", "c", "a", "d", "e")
  assert vocabulary.encode("b f\ne  <pad> <unk>").tolist() == [2, 1, 6, 1, 1]
  assert vocabulary.decode([2, 1, 6, 0, 3]) == "b e c"
  assert text.train("words", texts, size=4, specials=("<pad>",)).tokens == ("<pad>", "<unk>", "b", "c")
  assert text.train("words", ["a <s> <s> b"], specials=("<s>",)).tokens == ("<s>", "<unk>", "a", "b")


def test_words_of_lines():
  """As for the Penn Treebank: every line end is a word, and the literal "<unk>" one like any other."""
  lines = " no <unk> was n't black <unk> \n no N \n"
  vocabulary = text.train("words", [lines])
  assert vocabulary.tokens == ("<eos>", "<unk>", "no", "N", "black", "n't", "was")
  ids = vocabulary.encode(lines)
  assert ids.tolist() == [2, 1, 6, 5, 4, 1, 0, 2, 3, 0]
  assert vocabulary.decode(ids) == "no <unk> was n't black <unk>\nno N\n"
  assert vocabulary.encode("strange\n").tolist() == [1, 0]
  assert vocabulary.weights().tolist() == [1, 5, 2, 1, 5, 3, 3]
  rare = text.train("words", ["a a b b <unk> c"], size=3)
  assert rare.tokens == ("a", "b", "<unk>")
  assert rare.encode("c").tolist() == [2]


def test_words_and_punctuation():
  sentence = 'He said: "it isn\'t (quite) 50%, is it?" Über_all!'
  vocabulary = text.train("wordpunct", [sentence])
  pieces = [vocabulary.piece(i) for i in vocabulary.encode(sentence)]
  assert pieces == [
    *("He", "said", ":", '"', "it", "isn", "'", "t", "(", "quite", ")", "50", "%", ",", "is", "it", "?", '"'),
    *("Über_all", "!"),
  ]
  assert vocabulary.decode(vocabulary.encode(sentence)) == sentence.replace('"it', '" it').replace('?"', '? "')
  assert vocabulary.encode("said said.").tolist()[-1] == vocabulary.id("<unk>") == 0
  assert text.train("wordpunct", ["a <unk>, b\n"]).encode("<unk>\n").size == 2


def test_a_corpus_of_megabytes_takes_no_time(made):
  import time

  many, begin = POEM * 10_000, time.process_time()
  for kind in ("chars", "bytes", "words"):
    tokenizer = text.train(kind, [many], specials=SPECIALS)
    assert tokenizer.encode(many).size == 10_000 * made[kind].encode(POEM).size
  assert time.process_time() - begin < 5  # under one where nothing else runs; seconds a character loop would not meet


# Learnt tokenizers, against the library itself.


def test_byte_level_bpe_is_the_librarys(made):
  theirs = library.ByteLevelBPETokenizer()
  theirs.train_from_iterator([POEM.replace("<pad>", " ")], 300, 0, False, list(SPECIALS))
  ours = made["bpe"]
  assert ours.size == 300
  assert {token: ours.id(token) for token in theirs.get_vocab()} == theirs.get_vocab()
  for line in POEM.replace("<pad>", "").splitlines():
    assert ours.encode(line).tolist() == theirs.encode(line).ids
    assert ours.decode(theirs.encode(line).ids) == line


def test_wordpiece_is_berts(made):
  """The longest piece that is known, from the left (Wu et al. 2016)."""
  tokenizer = made["wordpiece"]
  unk, names = tokenizer.id("<unk>"), {i: token for token, i in vocabulary_of(tokenizer).items()}
  known = set(names.values())

  def pieces(word):
    found = []
    while word:
      prefix = "##" * bool(found)
      cut = next((n for n in range(len(word), 0, -1) if prefix + word[:n] in known), 0)
      if not cut:
        return ["<unk>"]
      found.append(prefix + word[:cut])
      word = word[cut:]
    return found

  sentence = "though his house is snow, Watch the woods stop 사과! ж"
  expected = sum((pieces(word) for word in re.findall(r"\w+|[^\w\s]", sentence)), [])
  assert [names[i] for i in tokenizer.encode(sentence)] == expected
  assert expected[-1] == "<unk>"
  assert unk == 3
  assert tokenizer.decode(tokenizer.encode("his house , though")) == "his house, though"
  assert text.train("wordpiece", ["a"], specials=("[PAD]", "[UNK]")).id("[UNK]") == 1


def vocabulary_of(tokenizer) -> dict:
  return json.loads(tokenizer.json)["model"]["vocab"]


@pytest.fixture
def gpt2(tmp_path) -> dict:
  """The JSON of a tokenizer made by the library in the way of GPT-2's public one, with what a file may add to it."""
  model = library.Tokenizer(library.models.BPE())
  model.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
  model.decoder = library.decoders.ByteLevel()
  model.post_processor = library.processors.ByteLevel(trim_offsets=False)
  alphabet = library.pre_tokenizers.ByteLevel.alphabet()
  model.train_from_iterator([POEM], library.trainers.BpeTrainer(vocab_size=290, initial_alphabet=alphabet))
  model.add_special_tokens(["<|endoftext|>"])
  model.add_tokens(["woods"])
  model.enable_truncation(4)
  model.enable_padding(length=50)
  return json.loads(model.to_str())


def written(tmp_path, values, name="tokenizer.json"):
  (tmp_path / name).write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")
  return tmp_path / name


def test_a_public_file_like_gpt2s(gpt2, tmp_path):
  tokenizer = text.load(written(tmp_path, gpt2))
  assert (tokenizer.kind, tokenizer.size) == ("bpe", 292)
  assert tokenizer.id("<|endoftext|>") == 290
  for line in (POEM, POEM * 3 + "<|endoftext|>", " \n\n  x", "\0\x80ÿ", ""):
    ids = tokenizer.encode(line)
    assert tokenizer.decode(ids) == line
    assert 290 not in ids
    assert tokenizer.weights()[ids].sum() == len(line.encode())
  assert tokenizer.encode("woods").tolist() == [291]
  assert tokenizer.weights()[290:].tolist() == [0, 5]
  text.save(tokenizer, tmp_path / "again.json")
  assert text.load(tmp_path / "again.json") == tokenizer


# Files.


def test_vocabulary_file(tmp_path):
  vocabulary = text.load(written(tmp_path, "<pad>\n<unk>\nthe\ncat\r\nété\n", "vocab.txt"))
  assert vocabulary.tokens == ("<pad>", "<unk>", "the", "cat", "été")
  assert (vocabulary.kind, vocabulary.specials) == ("words", 2)
  assert vocabulary.encode("the cat dog").tolist() == [2, 3, 1]
  closed = text.load(written(tmp_path, "the\ncat", "vocab.txt"))
  assert closed.encode("cat the").tolist() == [1, 0]
  assert "'dog' is not in the vocabulary, which has no '<unk>'" in mistake(closed.encode, "the dog")


OURS = {"format": "flaxonomy.vocabulary", "kind": "words", "tokens": ["a"], "specials": 0, "lowercase": False}


@pytest.mark.parametrize(
  "values, words",
  [
    ("", "Expecting value"),
    ("{", "Expecting"),
    ("[1]", "not a JSON object"),
    ("[" * 100_000, "nested too deeply"),
    ({}, "neither ours nor"),
    ({"model": {"type": "Unigram", "vocab": []}}, "neither ours nor"),
    ({"model": {"type": ["BPE"]}}, "neither ours nor"),
    ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "not byte-level"),
    ({"model": {"type": "WordPiece", "vocab": ["a"]}}, "vocabulary cannot be read"),
    ({"model": {"type": "WordPiece", "vocab": {}}}, "ids must be from 0"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 2**31}}}, "ids must be from 0"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "added_tokens": [{"id": -1}]}, "ids must be from 0"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "added_tokens": 7}, "vocabulary cannot be read"),
    ({"model": {"type": "WordPiece", "vocab": {"a": 0}}, "version": 9}, "cannot use tokenizer"),
    (OURS | {"kind": "pickle"}, "of kind 'pickle'"),
    (OURS | {"kind": []}, "of kind []"),
    (OURS | {"tokens": []}, "from 1 to 1048576 tokens"),
    (OURS | {"tokens": ["a", "a"]}, "there twice"),
    (OURS | {"tokens": ["a", 1]}, "must be text"),
    (OURS | {"tokens": ["a b"]}, "must not hold blanks"),
    (OURS | {"kind": "chars", "tokens": ["ab"]}, "must be one character"),
    (OURS | {"kind": "bytes"}, "the 256 bytes"),
    (OURS | {"specials": 2}, "'specials'"),
    (OURS | {"specials": True}, "'specials'"),
    (OURS | {"lowercase": 1}, "'lowercase'"),
  ],
)
def test_files_that_are_refused(tmp_path, values, words):
  path = written(tmp_path, values)
  message = mistake(text.load, path)
  assert words in message
  assert repr(str(path)) in message


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
  assert "No such file" in mistake(text.load, tmp_path / "none.json")
  assert "Is a directory" in mistake(text.load, tmp_path)
  (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
  assert "utf-8" in mistake(text.load, tmp_path / "latin.txt")
  assert "give its tokenizer.json" in mistake(text.load, written(tmp_path, "[PAD]\n[UNK]\n##a\n", "vocab.txt"))
  assert "none of them empty" in mistake(text.load, written(tmp_path, "a\n\nb\n", "vocab.txt"))
  monkeypatch.setattr(text, "_MOST_BYTES", 2**10)
  assert "larger than" in mistake(text.load, written(tmp_path, "a" * 1025, "vocab.txt"))
  assert "cannot write" in mistake(text.save, text.train("chars", ["a"]), tmp_path / "no" / "folder.json")


# Mistakes.


def test_what_cannot_be_made():
  assert "unknown tokenizer 'charz'; did you mean 'chars'?" in mistake(text.train, "charz", ["a"])
  assert "from 2 to 1048576 tokens, not 1" in mistake(text.train, "chars", ["a"], size=1)
  assert "from 3 to" in mistake(text.train, "words", ["a"], size=0, specials=("<pad>",))
  assert "from 257 to" in mistake(text.train, "bytes", ["a"], size=256, specials=("<pad>",))
  assert "from 256 to" in mistake(text.train, "bpe", ["a"], size=255)
  assert "'wordpiece' must have from" in mistake(text.train, "wordpiece", [POEM], size=20)
  for token in ("a", "", "a b", "<s>\n"):
    assert repr(token) in mistake(text.train, "words", ["a"], specials=(token,))
  assert "there once" in mistake(text.train, "bpe", ["a"], specials=("<s>", "<s>"))


def test_without_the_library(monkeypatch, made, tmp_path, gpt2):
  path = written(tmp_path, gpt2)
  monkeypatch.setitem(sys.modules, "tokenizers", None)
  for wanted in ((text.train, "bpe", ["a"]), (text.train, "wordpiece", ["a"]), (text.load, path)):
    assert "pip install 'flaxonomy[text]'" in mistake(*wanted)
  assert text.train("chars", ["a"]).encode("a").tolist() == [1]


# The real Penn Treebank, where it is.


def test_penn_treebank_has_ten_thousand_words(shared_data):
  import zipfile

  path = shared_data / "raw" / "ptb" / "ptb.zip"
  if not path.is_file():
    pytest.skip(f"no {path}")
  with zipfile.ZipFile(path) as archive:
    train, valid, test = (archive.read(f"ptb.{split}.txt").decode() for split in ("train", "valid", "test"))
  vocabulary = text.train("words", [train], size=10_000)
  assert vocabulary.size == 10_000
  assert vocabulary == text.train("words", [train])
  assert [vocabulary.encode(part).size for part in (train, valid, test)] == [929_589, 73_760, 82_430]
