"""Language modelling: sums against NumPy, state carried over windows, microbatches, ensembles, and writing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.configs import base
from flaxonomy.data import streams
from flaxonomy.errors import UserError
from flaxonomy.models.sequence import decoding
from flaxonomy.train import command, evaluation, export, inference, loop, report, step, tasks, writing

GPT = {
  "model__name": "gpt2", "data__text__streams": False,
  "model__fields": {
    "num_layers": 1, "hidden_size": 16, "num_heads": 2, "max_length": 16, "dropout": 0.0, "embedding_dropout": 0.0,
  },
}  # fmt: skip


@pytest.fixture(scope="module")
def runs():
  return {}


@pytest.fixture(params=["gru", "gpt"])
def trained(request, tiny_lm, runs, tmp_path_factory):
  """A workdir of a recurrent model, and of one with attention."""
  if request.param not in runs:
    config = tiny_lm(**(GPT if request.param == "gpt" else {}))
    runs[request.param] = tmp_path_factory.mktemp(request.param) / "run"
    loop.run(config, runs[request.param], quiet=True)
  return runs[request.param]


def predicted(run) -> tuple[np.ndarray, np.ndarray]:
  """(log probabilities [N - 1, V], true tokens [N - 1]) of the whole validation split, by the plain model."""
  tokenizer, length = run.info.tokenizers["text"], run.config.data.text.length
  model = tasks.module(run.config, vocab_size=tokenizer.size)
  source, _ = streams.open_split(run.config.data, "validation", run.info)
  tokens = source.records.astype(np.int32)
  found = []
  if run.config.data.text.streams:  # each stream whole, with no window
    each = -(-(len(tokens) - 1) // run.config.data.eval_batch_size)
    spans = [(i, min(i + each, len(tokens) - 1)) for i in range(0, len(tokens) - 1, each)]
  else:
    spans = [(i, min(i + length, len(tokens) - 1)) for i in range(0, len(tokens) - 1, length)]
  apply = jax.jit(lambda x: model.apply(run.state.variables(), x, train=False)["logits"])
  for begin, end in spans:
    padded = np.zeros((1, each if run.config.data.text.streams else length), np.int32)
    padded[0, : end - begin] = tokens[begin:end]
    found.append(np.asarray(jax.nn.log_softmax(apply(padded)))[0, : end - begin])
  return np.concatenate(found), tokens[1:]


def test_metrics_are_those_of_the_whole_split(trained):
  """The state goes on from window to window, and a last window that is not full counts for what it has."""
  run = inference.load(trained, loop.make_mesh(2))
  log_probs, truth = predicted(run)
  nll = -log_probs[np.arange(len(truth)), truth].mean(dtype=np.float64)
  metrics = report.read_metrics(trained)[-1]
  assert metrics["split"] == "validation"
  np.testing.assert_allclose(metrics["loss"], nll, rtol=1e-5)
  np.testing.assert_allclose(metrics["perplexity"], np.exp(nll), rtol=1e-5)
  np.testing.assert_allclose(metrics["bits_per_character"], nll / np.log(2), rtol=1e-5)
  again = inference.evaluate([str(trained)], changes={"data.eval_batch_size": 4})["metrics"]
  np.testing.assert_allclose(again["validation_loss"], nll, rtol=1e-5)


def test_an_ensemble_is_the_mean_of_probabilities(trained):
  run = inference.load(trained, loop.make_mesh(4))
  feed = loop.open_test(run.config, loop.make_mesh(4), run.info)
  other = run.state.replace(params=jax.tree.map(lambda x: x * 0.5, run.state.params))
  function = evaluation.eval_function([run.task] * 2, feed, loop.make_mesh(4))
  found = evaluation.evaluate(function, run.task, feed, [run.state, other]).metrics["loss"]
  probs = []
  for state in (run.state, other):
    log_probs, truth = predicted(run._replace(state=state))
    probs.append(np.exp(log_probs[np.arange(len(truth)), truth].astype(np.float64)))
  np.testing.assert_allclose(found, -np.log(np.mean(probs, 0)).mean(), rtol=1e-5)


def train(config, steps=5):
  """(losses, parameters, carry) after some steps."""
  session = loop.prepare(config)
  state, function = loop.initial_state(session), loop.train_function(session, 1)
  losses, spans = [], [(i, 1) for i in range(steps)]
  for item in session.train.train_items(spans, 1):
    state, metrics = function(state, session.train.resident, item, np.int32(1))
    losses.append(float(metrics["loss"][0]))
  return losses, jax.device_get(state.params), jax.device_get(state.carry)


def test_devices_and_microbatches_change_nothing(tiny_lm):
  """The carried state is split over devices and microbatches as the batch is."""
  still = {"model__fields__dropout": 0.0, "optim__name": "sgd", "optim__clip_norm": None}
  one = train(tiny_lm(train__devices=1, **still))
  assert one[2][0].shape == (8, 2, 8)
  assert np.abs(one[2][0]).min() > 0
  for changes in ({"train__devices": 4}, {"train__accumulate": 2}, {"train__accumulate": 4, "train__zero": True}):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one, train(tiny_lm(**changes, **still)))


def test_the_state_is_carried_and_no_gradient_goes_over_the_border(tiny_lm):
  """The second step's gradient against one made by hand from the first step's last state."""
  config = tiny_lm(
    train__devices=1, model__fields__dropout=0.0, optim__name="sgd", optim__clip_norm=None, optim__lr=1.0
  )
  (_, _), after, carry = train(config, 2)
  _, before, carried = train(config, 1)
  session = loop.prepare(config)
  *_, item = session.train.train_items([(0, 1), (1, 1)], 1)
  batch = session.train.fetch(session.train.resident, jax.tree.map(lambda x: x[0], item))
  model = tasks.module(config, vocab_size=session.info.tokenizers["text"].size)

  def loss(params):
    stages = model.apply({"params": params}, batch["tokens"][:, :-1], carried, train=False)
    log_probs = jax.nn.log_softmax(stages["logits"])
    truth = jnp.take_along_axis(log_probs, batch["tokens"][:, 1:, None], -1)
    return -truth.mean(), stages["cache"]

  gradient, last = jax.jit(jax.grad(loss, has_aux=True))(before)
  jax.tree.map(lambda a, b, g: np.testing.assert_allclose(a, b - g, atol=2e-6), after, before, gradient)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), carry, last)


def test_writing_is_decodings_sample(trained):
  """Piece by piece the text that the compiled loop writes, also where the window is full and begins anew."""
  run = inference.load(trained, loop.make_mesh(1))
  tokenizer = run.info.tokenizers["text"]
  model = tasks.module(run.config, vocab_size=tokenizer.size)
  prompt, length, variables = "the king", 8, run.state.variables()
  rules = decoding.Rules(8 + length, forbidden=(tokenizer.id("<unk>"),))

  @jax.jit
  def whole(variables, begin, key):
    step = lambda tokens, cache: (lambda stages: (stages["logits"][:, -1], stages["cache"]))(
      model.apply(variables, tokens, cache, train=False)
    )
    return decoding.sample(step, model.start(1, 16), begin, rules, key, 0.8, 5, 0.9)

  expected = whole(variables, tokenizer.encode(prompt)[None], jax.random.PRNGKey(3))[0]
  drawn = {"temperature": 0.8, "top_k": 5, "top_p": 0.9, "seed": 3}
  pieces = list(writing.write(str(trained), prompt, length, **drawn))
  assert prompt + "".join(pieces) == tokenizer.decode(expected)
  assert len(pieces) >= length
  longer = "".join(writing.write(str(trained), prompt, 40, **drawn))
  assert longer.startswith("".join(pieces))
  assert len(longer) == 40
  greedy = ["".join(writing.write(str(trained), "", 30, temperature=0.0, seed=seed)) for seed in (0, 1)]
  assert greedy[0] == greedy[1]


def test_what_writing_refuses(trained, tiny, tmp_path):
  for arguments, message in (
    ({"length": 0}, "--length must be 1 at least"),
    ({"temperature": -1.0}, "--temperature 0 at least"),
    ({"top_k": 0}, "top_k must be 1 at least"),
    ({"top_p": 1.5}, "top_p must be above 0"),
  ):
    with pytest.raises(UserError, match=message):
      writing.write(str(trained), **({"prompt": "a", "length": 5} | arguments))
  loop.run(tiny(train__steps=1), tmp_path / "digits", quiet=True)
  with pytest.raises(UserError, match="--mode=sample writes with a language model; .* trained for 'classification'"):
    command.MODES["sample"](command.Ask(None, [str(tmp_path / "digits")], {}, writing={"prompt": "", "length": 5}))


def test_export(trained):
  folder = export.export(str(trained))
  function = jax.export.deserialize(bytearray((folder / "model.jaxexport").read_bytes()))
  assert function.in_avals[-1].shape[1:] == (16,)
  assert (folder / "labels.txt").read_text() == ""


@pytest.mark.parametrize(
  "changes, message",
  [
    ({**GPT, "data__text__streams": True}, "'data.text.streams' needs a model that carries a state over"),
    ({**GPT, "data__text__length": 17}, r"'data.text.length' \(17\) is more than the model's max_length \(16\)"),
    ({"model__name": "mlp", "model__fields": {}}, "task 'language_model' cannot train model 'mlp'"),
    ({"model__name": "transformer", "model__fields": {}}, "task 'language_model' cannot train model 'transformer'"),
    ({"train__loss": "mse"}, "has its own loss"),
    ({"data__text__tokenizer": "wordz"}, "unknown tokenizer 'wordz'; did you mean 'words'"),
    ({"data__name": "digits", "data__data_dir": None}, "dataset 'digits' has no single text"),
  ],
)
def test_mistakes(tiny_lm, changes, message):
  with pytest.raises(UserError, match=message):
    loop.prepare(tiny_lm(**changes))


def test_it_learns(tiny_lm, tmp_path):
  """Twelve words in any order: below 1.2 nats a character, where guessing by frequency gives 2.6."""
  config = tiny_lm(train__steps=150, train__eval_every=150, model__fields__hidden_size=32, model__fields__dropout=0.0)
  assert (
    loop.run(base.override(config, {"optim.lr": 2e-2}), tmp_path / "run", quiet=True)["metrics"]["validation_loss"]
    < 1.2
  )


def test_spans_are_cut_where_shapes_change():
  alike = lambda first, count: min(count, 3 - first % 3)
  spans = list(loop._spans(1, 12, 4, (5,), (), alike))
  assert spans == [(1, 2), (3, 2), (5, 1), (6, 3), (9, 1), (10, 2)]
  assert [b - a for (a, _), (b, _) in itertools.pairwise(spans)] == [count for _, count in spans[:-1]]
  assert step.Made({}, {}).carry is None
