"""Translation: sums by hand, padding, greedy and beam search, BLEU by sacreBLEU, attention, what is refused."""

import csv
import io
import sys
import types

import jax
import numpy as np
import pytest
import sacrebleu

from flaxonomy.configs import base
from flaxonomy.errors import UserError
from flaxonomy.train import bleu, chat, command, evaluation, export, inference, loop, tasks
from flaxonomy.train.tasks import translation

TRANSFORMER = {
  "model__name": "transformer", "data__text__shared": True,
  "model__fields": {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_size": 16, "max_length": 64},
}  # fmt: skip
PLAIN = {"model__fields__dropout": 0.0, "train__devices": 2}
QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time


@pytest.fixture(params=["seq2seq", "transformer"])
def each_model(request, tiny_translation):
  """A function as `tiny_translation`, without dropout, for a net of each kind."""
  return lambda **changes: tiny_translation(**(TRANSFORMER if request.param == "transformer" else {}) | PLAIN | changes)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
  """The workdir of a translator that has learnt sixteen dates by heart, one more being in its evaluation."""
  fields = {"embedding_size": 16, "hidden_size": 32, "attention": "additive", "cell": "gru"}
  config = base.Config(
    task="translation",
    model=base.Model("seq2seq", fields),
    data=base.Data(
      "dates", train_split="train[:16]", eval_split="train[:17]", batch_size=16, eval_batch_size=4,
      text=base.Text("chars", length=56),
    ),
    optim=base.Optim("adam", lr=1e-2, clip_norm=1.0),
    train=base.Train(steps=150, eval_every=150, devices=2, cpu_devices=4, tensorboard=False),
    decode=base.Decode(max_ratio=0.0, max_extra=12),
  )  # fmt: skip
  folder = tmp_path_factory.mktemp("learnt") / "run"
  loop.run(config, folder, quiet=True)
  return folder


def alone(run, texts):
  """What the run writes for each text on its own, with no padding and no other beside it."""
  tokenizers = run.info.tokenizers
  _, writer = translation.translator(run.config, run.info)
  end = tokenizers["source"].id("</s>")
  rows = [np.append(tokenizers["source"].encode(text), end)[None].astype(np.int32) for text in texts]
  return [tokenizers["target"].decode(np.asarray(writer(run.state.variables(), row))[0]) for row in rows]


def test_sixteen_dates_by_heart(learnt):
  """Metrics over an odd number of examples, in padded batches, against those of the sentences one by one."""
  run = inference.load(learnt, loop.make_mesh(1))
  feed = loop.open_test(run.config, loop.make_mesh(1), run.info)
  texts = feed.texts(range(17))
  written = alone(run, [text["source"] for text in texts])
  truth = [text["target"] for text in texts]
  right = sum(a == b for a, b in zip(written, truth))
  assert right >= 16
  found = inference.evaluate([str(learnt)])["metrics"]
  assert found["validation_exact_match"] == right / 17
  expected = sacrebleu.corpus_bleu(written, [truth])
  assert found["validation_bleu"] == pytest.approx(expected.score, abs=1e-9)
  told = (learnt / "evaluation/translations.txt").read_text()
  assert f"sacreBLEU {expected.score:.2f} nrefs:1|case:mixed|eff:no|tok:13a|" in told
  assert all(told.count(f"source   {text['source']}\n") == 1 for text in texts)
  assert all(f"written  {line}\n" in told for line in written)
  assert {path.name for path in (learnt / "evaluation").iterdir()} == {
    "result.json", "attention.png", "translations.png", "translations.txt", "bleu_by_length.csv", "bleu_by_length.png",
  }  # fmt: skip


def test_chat_and_predict_write_the_same(learnt, tmp_path):
  run = inference.load(learnt, loop.make_mesh(1))
  lines = ["the third of May 1999", "1 June 2001", "x" * 70]
  expected = alone(run, lines)
  greeting, answer = chat.start(str(learnt))
  assert "seq2seq (" in greeting
  assert "trained on dates, 16 examples, 150 steps" in greeting
  assert [answer(line) for line in lines] == expected
  out = io.StringIO()
  chat.talk("", answer, io.StringIO(f"{lines[0]}\n\n{lines[1]}"), out)
  assert out.getvalue() == f"{expected[0]}\n\n{expected[1]}\n"
  (tmp_path / "lines.txt").write_text("\n".join(lines))
  folder = inference.predict(str(learnt), [str(tmp_path / "lines.txt")])
  rows = list(csv.reader((folder / "predictions.csv").open()))
  assert rows == [["text", "written"], *map(list, zip(lines, expected))]


def test_export(learnt):
  """The whole of greedy search in one function, for any number of sources."""
  folder = export.export(str(learnt))
  assert {"tokenizer_source.json", "tokenizer_target.json"} <= {path.name for path in folder.iterdir()}
  run = inference.load(learnt, loop.make_mesh(1))
  function = jax.export.deserialize(bytearray((folder / "model.jaxexport").read_bytes()))
  given = run.task.read(["1 June 2001", "2 May 1960"]).batch(0, 2)["source"]
  tokens = function.call(run.state.variables(), given)["tokens"]
  written = [run.info.tokenizers["target"].decode(row) for row in np.asarray(tokens)]
  assert written == alone(run, ["1 June 2001", "2 May 1960"])


def quick(function, *arguments):
  """What a function gives, compiled in little time."""
  return jax.device_get(jax.jit(function).lower(*arguments).compile(QUICK)(*arguments))


def plain_log_probs(session, params, batch):
  """log p [T, V] and the true tokens [T] of each example, in float64, with more padding than any batch has."""
  model, _ = translation.translator(session.config, session.info)
  wide = {key: np.pad(batch[key], ((0, 0), (0, 60 - batch[key].shape[1]))) for key in ("source", "target")}
  apply = lambda params, source, target: model.apply({"params": params}, source, target, train=False)["logits"]
  logits = quick(apply, params, wide["source"], wide["target"][:, :-1]).astype(np.float64)
  log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return [(rows[: len(t) - 1], t[1:]) for rows, t in zip(log_probs, (row[row != 0] for row in wide["target"]))]


def test_losses_by_hand(each_model):
  """A step of two devices whose examples differ in length, and an evaluation, against each example on its own."""
  session = loop.prepare(each_model(train__label_smoothing=0.1, data__batch_size=4, data__text__buckets=(56,)))
  state = loop.initial_state(session)
  params = jax.device_get(state.params)
  (item,) = session.train.train_items([(0, 1)], 1)
  batch = {key: np.asarray(x)[0] for key, x in item.items()}
  lengths = (batch["source"] != 0).sum(1)
  assert lengths.min() < lengths.max()
  arguments = state, session.train.resident, item, np.int32(1)
  _, made = loop.train_function(session, 1).lower(*arguments).compile(QUICK)(*arguments)
  total = count = 0
  for log_probs, true in plain_log_probs(session, params, batch):
    total += (-0.9 * log_probs[np.arange(len(true)), true] - 0.1 * log_probs.mean(-1)).sum()
    count += len(true)
  assert float(made["loss"][0]) == pytest.approx(total / count, rel=1e-5)
  nll = right = count = 0
  batch = session.test.read(range(5))
  for log_probs, true in plain_log_probs(session, params, batch):
    nll -= log_probs[np.arange(len(true)), true].sum()
    right += (log_probs.argmax(-1) == true).sum()
    count += len(true)
  padded = {key: np.concatenate([x, np.zeros_like(x[:1])]) for key, x in batch.items()}
  outputs = quick(session.task.predict_step, jax.device_get(loop.initial_state(session)), padded)
  found = session.task.metrics(jax.device_get(session.task.score(outputs, padded)))
  assert found["loss"] == pytest.approx(nll / count, rel=1e-5)
  assert found["perplexity"] == pytest.approx(np.exp(nll / count), rel=1e-5)
  assert found["token_accuracy"] == pytest.approx(right / count)


def test_what_is_written_is_the_likeliest(each_model):
  """Greedy search against the model with the written tokens before it; a beam of four finds what is likelier."""
  session = loop.prepare(each_model(train__devices=1))
  params = loop.initial_state(session).params
  params = jax.tree.map(lambda x: 3 * x, params)  # so that it says something
  model, greedy = translation.translator(session.config, session.info)
  source = session.test.read(range(6))["source"]
  target = session.info.tokenizers["target"]
  first, last = target.id("<s>"), target.id("</s>")
  write = lambda **fields: quick(
    lambda v, s: translation.write(model, base.Decode(**fields), first, last, v, s), {"params": params}, source
  )
  tokens = quick(greedy, {"params": params}, source)
  assert tokens.shape == (6, 13)
  read = lambda tokens: model.apply({"params": params}, source, tokens[:, :-1], train=False)["logits"]
  logits = np.array(quick(read, tokens))
  logits[..., [0, first]] = -np.inf
  chosen, ended = logits.argmax(-1), np.cumsum(tokens == last, 1)[:, :-1] > 0
  np.testing.assert_array_equal(tokens[:, 1:], np.where(ended, 0, chosen))
  beams = write(max_ratio=0.5, max_extra=3, beams=4, length_penalty=0.0)
  assert beams.shape[1] == 1 + source.shape[1] // 2 + 3
  tokens = write(max_ratio=0.5, max_extra=3)
  sums = [_log_prob(quick(read, each), each) for each in (tokens, beams)]
  assert (beams != tokens).any()
  assert sums[1].sum() > sums[0].sum()


def _log_prob(logits, tokens):
  logits = logits.astype(np.float64)
  each = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return np.where(tokens[:, 1:] != 0, np.take_along_axis(each, tokens[:, 1:, None], 2)[..., 0], 0).sum(1)


def test_attention_maps(each_model):
  session = loop.prepare(each_model(train__devices=1))
  batch = session.test.read(range(8))
  outputs = quick(session.task.predict_step, jax.device_get(loop.initial_state(session)), batch)
  maps = np.asarray(outputs["attention"])
  real = batch["source"] != 0
  assert not real.all()
  np.testing.assert_allclose(maps[: translation.SHOWN].sum(-1), 1, rtol=1e-5)
  assert np.abs(maps * ~real[:, None]).max() < 1e-6
  assert not maps[translation.SHOWN :].any()
  figures = session.task.pictures(batch, outputs, {})
  assert set(figures) == {"attention.png", "translations.png"}
  shown = [axis for axis in figures["attention.png"].axes if axis.images]
  assert [axis.images[0].get_array().shape[1] for axis in shown] == real[: len(shown)].sum(1).tolist()


def test_any_number_of_devices(tiny_translation):
  found = []
  for devices in (1, 4):
    session = loop.prepare(tiny_translation(train__devices=devices))
    function = evaluation.eval_function([session.task], session.test, session.mesh)
    state = loop.initial_state(session)
    evaluated = evaluation.evaluate(function, session.task, session.test, [state])
    assert evaluated.sums["count"] == 21
    found.append((evaluated.metrics, evaluated.files["translations.txt"]))
  assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
  assert found[0][1].count("written") == 21
  assert sorted(found[0][1].split("\n\n")[1:]) == sorted(found[1][1].split("\n\n")[1:])


def test_bleu_by_length():
  rng = np.random.default_rng(0)
  words = ["a", "dog", "runs", "over", "the", "green", "hill", "fast"]
  kept = []
  for length in [3, 5, 6, 10, 11, 16, 60, 70, 4, 9]:
    truth = rng.choice(words, length)
    ours = [w if rng.random() < 0.8 else "x" for w in truth]
    kept.append((" ".join(truth), " ".join(truth) + ".", " ".join(ours) + " ."))
  rows = bleu.by_length(kept)
  assert [row[:3] for row in rows] == [(0, 5, 3), (6, 10, 3), (11, 15, 1), (16, 20, 1), (51, 70, 2)]
  for least, most, _, value in rows:
    chosen = [row for row in kept if least <= len(row[0].split()) <= most]
    expected = sacrebleu.corpus_bleu([ours for *_, ours in chosen], [[truth for _, truth, _ in chosen]])
    assert value == expected.score
  assert bleu.table(rows).splitlines()[:2] == ["words_from,words_to,sentences,bleu", f"0,5,3,{rows[0][3]:.2f}"]
  assert bleu.corpus([("The dog runs over it", "the dog runs over it")], lowercase=True)[0] == pytest.approx(100)
  assert bleu.corpus([("The dog runs over it", "the dog runs over it")])[0] < 90


def test_what_is_refused(tiny_translation, monkeypatch):
  for changes, message in (
    ({"model__name": "transformer", "model__fields": {}}, "one vocabulary for both languages; set .*text.shared"),
    (TRANSFORMER | {"model__fields": {"max_length": 40}}, "sequences of 56 tokens .* more than the model's max_length"),
    ({"train__loss": "bce"}, "has its own loss"),
    ({"model__name": "gru_lm", "model__fields": {}}, "task 'translation' cannot train model 'gru_lm'"),
    ({"decode__penalty": "gmnt"}, "unknown decode.penalty 'gmnt'; did you mean 'gnmt'?"),
  ):
    with pytest.raises(UserError, match=message):
      loop.prepare(tiny_translation(**changes))
  monkeypatch.setitem(sys.modules, "sacrebleu", None)
  with pytest.raises(UserError, match=r"'decode.bleu' needs the package 'sacrebleu'.*pip install 'flaxonomy\[text\]'"):
    loop.prepare(tiny_translation())
  assert loop.prepare(tiny_translation(decode__bleu=False)).task.best == "exact_match"


def test_chat_is_for_models_that_answer(tiny, monkeypatch):
  run = types.SimpleNamespace(task=types.SimpleNamespace(read=None), config=tiny())
  monkeypatch.setattr(inference, "load", lambda *_: run)
  with pytest.raises(UserError, match="is for models that answer, and the run in 'run' is of task 'classification'"):
    chat.start("run")
  with pytest.raises(UserError, match="--mode=chat is for one process"):
    command.run("chat", command.Ask(None, [], {}), False, (None,))


def test_vocabularies_follow_from_the_data(tiny_translation):
  session = loop.prepare(tiny_translation())
  params = jax.eval_shape(session.task.init, jax.random.PRNGKey(0)).params
  sizes = [session.info.tokenizers[key].size for key in ("source", "target")]
  assert sizes[1] == 4 + 11  # special tokens, ten figures and the hyphen
  assert [params[f"{key}_embedding"]["embedding"].shape[0] for key in ("source", "target")] == sizes
  with pytest.raises(UserError, match="'model.fields.source_vocab_size' follows from the data"):
    tasks.build(tiny_translation(model__fields__source_vocab_size=9), session.info, 2)
