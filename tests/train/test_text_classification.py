"""Classification of texts: metrics and saliency by plain loops, predictions, export, refusals."""

import csv

import jax
import numpy as np
import pytest

from flaxonomy.errors import UserError
from flaxonomy.train import evaluation, explain, export, inference, loop, tasks
from flaxonomy.train.tasks import text_classification

TRANSFORMER = {"num_layers": 1, "hidden_size": 8, "num_heads": 2, "mlp_size": 8, "max_length": 12}


def softmax(x):
  e = np.exp(x - x.max())
  return e / e.sum()


def rows_of(folder, split):
  """[(label, words)]"""
  lines = (folder / f"{split}.tsv").read_text().splitlines()[1:]
  return [(label, text.split()) for label, text in (line.split("\t") for line in lines)]


def test_metrics(tiny_text, reviews):
  """Against the model on one example after the other, without padding."""
  session = loop.prepare(tiny_text(train__devices=4))
  state, names = loop.initial_state(session), session.info.class_names
  params = jax.tree.map(lambda x: x * 4, state.params)  # or every text would be taken for the same
  state = state.replace(params=params)
  function = evaluation.eval_function([session.task], session.test, session.mesh)
  found = evaluation.evaluate(function, session.task, session.test, [state])
  model = tasks.module(session.config, num_classes=2, vocab_size=session.info.tokenizers["text"].size)
  apply = jax.jit(lambda tokens: model.apply({"params": params}, tokens, train=False))
  loss, right, confusion = [], [], np.zeros((2, 2))
  alone = {}
  for label, words in rows_of(reviews, "dev"):
    ids = [1, *(session.info.tokenizers["text"].id(word) or 3 for word in words)]
    alone[tuple(ids)] = stages = apply(np.array([ids]))
    probs = softmax(np.float64(stages["logits"][0]))
    loss.append(-np.log(probs[names.index(label)]))
    right.append(probs.argmax() == names.index(label))
    confusion[names.index(label), probs.argmax()] += 1
  assert names == ("bad", "good")
  np.testing.assert_allclose(found.metrics["loss"], np.mean(loss), rtol=1e-5)
  np.testing.assert_allclose(found.metrics["accuracy"], np.mean(right), rtol=1e-6)
  np.testing.assert_array_equal(found.sums["confusion"], confusion)
  assert 0 < np.mean(right) < 1
  for row, ids in enumerate(found.batch["text"]):
    look = alone[tuple(ids[ids > 0].tolist())]["attention"][0]
    np.testing.assert_allclose(found.outputs["attention"][row, : len(look)], look, rtol=1e-4)
  assert np.abs(found.outputs["saliency"]).max(1).min() > 0


@pytest.mark.parametrize("name, fields", [("bilstm_classifier", {}), ("transformer_classifier", TRANSFORMER)])
def test_saliency_is_the_slope(tiny_text, name, fields):
  """What happens to the logit when one token's embedding grows; of each token once, so that it is a row of a table."""
  config = tiny_text(model__name=name, model__fields=fields)
  model = tasks.module(config, num_classes=2, vocab_size=20)
  tokens = np.array([[1, 5, 9, 13, 0, 0], [1, 4, 8, 12, 16, 19]])
  params = jax.jit(lambda: model.init(jax.random.PRNGKey(1), tokens, train=False)["params"])()
  params = jax.tree.map(lambda x: x * 3, params)
  logits = jax.jit(lambda p: model.apply({"params": p}, tokens, train=False)["logits"])
  found = jax.jit(lambda p: text_classification.saliency(model, {"params": p}, tokens))(params)
  best, h = np.asarray(logits(params)).argmax(-1), 1e-2

  def scaled(token, factor):
    table = params["tokens"]["embedding"]
    return {**params, "tokens": {"embedding": table.at[token].multiply(factor)}}

  for t in range(6):
    for row in range(2):
      up, down = (logits(scaled(tokens[row, t], 1 + s))[row, best[row]] for s in (h, -h))
      wanted = (up - down) / (2 * h) if tokens[row, t] else 0
      np.testing.assert_allclose(found[row, t], wanted, rtol=0.02, atol=2e-3)
  assert float(np.abs(found).max()) > 0.05


def test_only_the_first_batch_has_saliency(tiny_text):
  session = loop.prepare(tiny_text())
  state = loop.initial_state(session)
  function = evaluation.eval_function([session.task], session.test, session.mesh)
  items = list(session.test.eval_items())
  for i, item in enumerate(items[:2]):
    _, outputs, _ = function([state], [None], {}, item)
    assert bool(np.asarray(outputs["saliency"]).any()) == (i == 0)


@pytest.mark.parametrize("name, fields", [("bilstm_classifier", None), ("transformer_classifier", TRANSFORMER)])
def test_from_training_to_serving(tiny_text, tmp_path, name, fields, capsys):
  changes = {"model__name": name} | ({"model__fields": fields} if fields else {})
  result = loop.run(tiny_text(train__steps=30, train__eval_every=30, **changes), tmp_path / "run", quiet=True)
  assert result["metrics"]["dev_accuracy"] > 0.6
  assert {"saliency.png", "confusion.png"} <= {path.name for path in (tmp_path / "run").iterdir()}
  (tmp_path / "lines.txt").write_text("a dull film\n\nthe rich, bright plot\n" + "poor " * 30 + "\n")
  folder = inference.predict(str(tmp_path / "run"), [str(tmp_path / "lines.txt")])
  assert "1 of 3 texts are cut to 12 tokens" in capsys.readouterr().err
  header, *rows = csv.reader((folder / "predictions.csv").open())
  assert header == ["text", "label", "probability", "bad", "good"]
  assert [row[0] for row in rows] == ["a dull film", "the rich, bright plot", "poor " * 30]
  run = inference.load(tmp_path / "run", loop.make_mesh(1))
  for row, words in zip(rows, (["a", "dull", "film"], ["the", "rich,", "bright", "plot"], ["poor"] * 11)):
    ids = [1, *(run.info.tokenizers["text"].id(word) or 3 for word in words)]
    probs = run.task.serve.call(run.state.variables(), np.array([ids]))["probs"][0]
    np.testing.assert_allclose([float(x) for x in row[3:]], probs, atol=1e-4)
    assert row[1:3] == [run.info.class_names[int(probs.argmax())], f"{probs.max():.4f}"]
  made = export.export(tmp_path / "run")
  assert (made / "labels.txt").read_text() == "bad\ngood\n"


def test_refusals(tiny_text, tmp_path):
  config = tiny_text(train__steps=1)
  loop.run(config, tmp_path / "run", quiet=True)
  with pytest.raises(UserError, match="classifiers of images, .*--mode=eval"):
    explain.explain(tmp_path / "run")
  with pytest.raises(UserError, match="--mode=preview shows training images"):
    inference.preview(config, tmp_path / "new")
  assert not (tmp_path / "new").exists()
  with pytest.raises(UserError, match=r"12 tokens, more than the model's max_length \(8\)"):
    loop.prepare(tiny_text(model__name="transformer_classifier", model__fields=TRANSFORMER | {"max_length": 8}))
  with pytest.raises(UserError, match="cannot train model 'gpt2'"):
    loop.prepare(tiny_text(model__name="gpt2", model__fields={}))
