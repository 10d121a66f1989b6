"""Encoder-decoders: sizes, padding, a word at a time, reversed sources, the papers by hand, weights, mistakes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models import interop

KEY = jax.random.PRNGKey(0)
SMALL = {"source_vocab_size": 11, "target_vocab_size": 9, "embedding_size": 3, "hidden_size": 4}
SOURCE = np.int32([[3, 7, 1, 10, 2], [5, 4, 9, 0, 0]])
TARGET = np.int32([[1, 8, 0, 3], [2, 2, 7, 5]])
KINDS = {  # every way of attention, with what else there is
  "none": {"num_layers": 2, "reverse_source": True},
  "dot": {"num_layers": 2, "reverse_source": True, "input_feeding": True},
  "general": {"bidirectional": True, "cell": "rnn"},
  "concat": {"bidirectional": True, "input_feeding": True},
  "additive": {"bidirectional": True, "cell": "gru", "maxout": True, "num_layers": 2},
}


def made(attention, seed=0, **fields):
  """(model, variables of larger numbers than it begins with)."""
  model = models.create("seq2seq", **SMALL | {"attention": attention} | fields)
  shapes = jax.eval_shape(lambda: model.init(KEY, SOURCE, TARGET, train=False))
  rng = np.random.default_rng(seed)
  return model, jax.tree.map(lambda leaf: rng.normal(0, 0.6, leaf.shape).astype(np.float32), shapes)


def run(model, variables, source, target=TARGET):
  return jax.jit(lambda variables: model.apply(variables, source, target, train=False))(variables)


@functools.cache
def whole(kind):
  """(model, variables, stages) of a kind: compiled once for several tests."""
  model, variables = made(kind, **KINDS[kind])
  return model, variables, run(model, variables, SOURCE)


def close(ours, theirs, tolerance=1e-6):
  np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=0)


def test_sutskevers_size():
  """160,000 and 80,000 words, 4 layers of 1000 each: 384 million (section 3.4)."""
  model = models.create(
    "seq2seq", source_vocab_size=160_000, target_vocab_size=80_000, embedding_size=1000, hidden_size=1000,
    num_layers=4, attention="none",
  )  # fmt: skip
  shapes = jax.eval_shape(lambda: model.init(KEY, SOURCE, TARGET, train=False))
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 384_144_000


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_nothing(kind):
  """A source is as if it were alone, however long the others are."""
  model, variables, stages = whole(kind)
  alone = run(model, variables, SOURCE[1:, :3], TARGET[1:])
  close(alone["logits"], stages["logits"][1:])
  assert np.abs(stages["logits"][0] - stages["logits"][1]).max() > 0.1
  assert ("attention" in stages) == (kind != "none")
  if kind != "none":
    assert stages["attention"].shape == (2, 4, 5)
    close(stages["attention"].sum(-1), 1)
    close(stages["attention"][1:], np.pad(alone["attention"], ((0, 0), (0, 0), (0, 2))))
    assert (np.asarray(stages["attention"])[1, :, 3:] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_word_at_a_time_is_teacher_forcing(kind):
  model, variables, stages = whole(kind)
  memory, state = jax.jit(lambda v: model.apply(v, SOURCE, train=False, method="encode"))(variables)
  assert all(len(leaf) == 2 for leaf in jax.tree.leaves((memory, state))), "decoders choose along the first axis"
  step = jax.jit(lambda v, token, state: model.apply(v, token, state, memory, method="step"))
  for t in range(TARGET.shape[1]):
    written, new = step(variables, TARGET[:, t], state)
    assert jax.tree.structure(new) == jax.tree.structure(state)
    state = new
    for name, value in written.items():
      close(value, stages[name][:, t])
    assert written.keys() == stages.keys() - {"encoder"}


def test_a_reversed_source():
  """Each within its length; the attention stays in the order given."""
  plain, variables = made("dot")
  backwards = np.int32([[2, 10, 1, 7, 3], [9, 4, 5, 0, 0]])
  expected = run(plain, variables, backwards)
  stages = run(plain.clone(reverse_source=True), variables, SOURCE)
  close(stages["logits"], expected["logits"])
  close(stages["attention"][0], expected["attention"][0, :, ::-1])
  close(stages["attention"][1, :, :3], expected["attention"][1, :, 2::-1])
  assert np.abs(stages["logits"] - run(plain, variables, SOURCE)["logits"]).max() > 0.1


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softmax(x):
  return np.exp(x) / np.exp(x).sum()


def split(layer, x, h, gates):
  """The gates' inputs from x and from h."""
  z, u = x @ layer["kernel_ih"] + layer["bias_ih"], h @ layer["kernel_hh"] + layer["bias_hh"]
  return np.split(z, gates), np.split(u, gates)


def test_bahdanaus_steps_by_hand():
  """A.1.2 and A.2.2 of the paper: e = v tanh(W s + U h) of the state before, context into the GRU and the readout.

  In two layers: the lower one's state goes up, the upper one's is what is compared and read out.
  """
  model, variables, _ = whole("additive")
  p = jax.tree.map(np.float64, variables["params"])
  source, target = SOURCE[1:], TARGET[1:, :3]
  stages = run(model, variables, source, target)
  h = np.float64(stages["encoder"][0, :3])  # [3, 8]: forward, backward
  _, state = model.apply(variables, source, train=False, method="encode")
  s = np.float64(state["cell"][0][0])
  close(s[1], np.tanh(h[0, 4:] @ p["bridge_1"]["kernel"] + p["bridge_1"]["bias"]))  # the backward net ends at word 0
  for t in range(3):
    y = p["target_embedding"]["embedding"][target[0, t]]
    scores = np.tanh(s[1] @ p["query"]["kernel"] + h @ p["key"]["kernel"]) @ p["score"]["kernel"][:, 0]
    weights = softmax(scores)
    context = weights @ h
    x = np.concatenate([y, context])
    for i in range(2):
      (zr, zz, zn), (ur, uz, un) = split(p["decoder"][f"layer{i}"], x, s[i], 3)
      update = sigmoid(zz + uz)
      s[i] = x = (1 - update) * np.tanh(zn + sigmoid(zr + ur) * un) + update * s[i]
    units = np.concatenate([s[1], context, y]) @ p["readout_hidden"]["kernel"] + p["readout_hidden"]["bias"]
    logits = np.maximum(units[::2], units[1::2]) @ p["readout"]["kernel"] + p["readout"]["bias"]
    close(stages["attention"][0, t], np.pad(weights, (0, 2)))
    close(stages["decoder"][0, t], s[1])
    close(stages["logits"][0, t], logits, 1e-5)


def test_luongs_steps_by_hand():
  """Sections 3.1 and 3.3: score concat = v tanh(Wa [h; s]) of the state after, h~ = tanh(Wc [c; h]) fed to the next."""
  model, variables = made("concat", input_feeding=True)
  p = jax.tree.map(np.float64, variables["params"])
  source, target = SOURCE[:1], TARGET[:1, :3]
  stages = run(model, variables, source, target)
  _, state = model.apply(variables, source, train=False, method="encode")
  s = np.float64(stages["encoder"][0])
  h, c = (np.float64(array[0, 0]) for array in state["cell"])
  np.testing.assert_array_equal(h, s[-1])  # the decoder begins where the encoder ended
  fed = np.zeros(4)
  for t in range(3):
    y = p["target_embedding"]["embedding"][target[0, t]]
    z, u = split(p["decoder"]["layer0"], np.concatenate([y, fed]), h, 4)
    i, f, g, o = (a + b for a, b in zip(z, u))
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    both = np.concatenate([np.broadcast_to(h, s.shape), s], 1)
    wa = np.concatenate([p["query"]["kernel"], p["key"]["kernel"]])
    weights = softmax(np.tanh(both @ wa) @ p["score"]["kernel"][:, 0])
    fed = np.tanh(np.concatenate([weights @ s, h]) @ p["combine"]["kernel"])
    close(stages["attention"][0, t], weights)
    close(stages["decoder"][0, t], fed)
    close(stages["logits"][0, t], fed @ p["readout"]["kernel"] + p["readout"]["bias"], 1e-5)


def test_other_cells_take_over_what_they_have():
  """h goes on; what the encoder does not have begins with 0, what the decoder does not have is left."""
  for encoder, decoder in (("gru", "lstm"), ("lstm", "gru")):
    model, variables = made("none", cell=decoder, encoder_cell=encoder)
    memory, state = model.apply(variables, SOURCE[:1], train=False, method="encode")
    np.testing.assert_array_equal(state["cell"][0][:, 0], memory["values"][:, -1])
    assert [float(np.abs(array).max()) for array in state["cell"][1:]] == [0.0] * (decoder == "lstm")


def test_a_source_of_nothing():
  """As in the rows that fill a batch up: finite numbers and gradients, no attention."""
  model, variables = made("additive", cell="gru")
  source = np.int32([[3, 1], [0, 0]])

  def loss(variables):
    stages = model.apply(variables, source, TARGET, train=False)
    return jnp.square(stages["logits"]).sum(), stages

  grads, stages = jax.jit(jax.grad(loss, has_aux=True))(variables)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((grads, stages)))
  assert (np.asarray(stages["attention"][1]) == 0).all()


def test_every_step_drops_others():
  """Between the decoder's layers: without a way from step to step, steps differ by what is dropped alone."""
  model, variables = made("additive", cell="rnn", num_layers=2, hidden_size=8, dropout=0.5)
  cut = lambda path: path[-1] == "kernel_hh" or path[1] in ("query", "target_embedding")
  flat = {path: np.zeros_like(leaf) if cut(path) else leaf for path, leaf in flatten_dict(variables).items()}
  variables = unflatten_dict(flat)
  hidden = run(model, variables, SOURCE)["decoder"]
  close(hidden[:, 1:], hidden[:, :-1])
  train = jax.jit(lambda v: model.apply(v, SOURCE, TARGET, train=True, rngs={"dropout": KEY}))
  hidden = train(variables)["decoder"]
  assert (np.abs(hidden[:, 1:] - hidden[:, :-1]).max((0, 2)) > 1e-2).all()


@pytest.mark.parametrize("kind", ["general", "additive"])
def test_products_in_bfloat16(kind):
  model, variables, stages = whole(kind)
  halves = run(model.clone(dtype=jnp.bfloat16), variables, SOURCE)
  assert {halves[name].dtype for name in ("decoder", "attention", "logits")} == {np.dtype(np.float32)}
  close(halves["logits"], stages["logits"], 0.1)
  close(halves["attention"].sum(-1), 1)


@pytest.mark.parametrize("kind", KINDS)
def test_weights_there_and_back(kind):
  model, variables = made(kind, **KINDS[kind])
  tensors = interop.to_torch("seq2seq", variables, attention=kind)
  assert len(tensors) == len(jax.tree.leaves(variables))
  np.testing.assert_array_equal(tensors["te.weight"], variables["params"]["target_embedding"]["embedding"])
  np.testing.assert_array_equal(tensors["out.weight"], variables["params"]["readout"]["kernel"].T)
  back = interop.from_torch("seq2seq", tensors)
  jax.tree.map(np.testing.assert_array_equal, back, variables)
  told = interop.model_of("seq2seq", tensors, reverse_source=model.reverse_source)
  assert told == model.clone(encoder_cell=model.cell)


def test_it_begins_small_everywhere_but_in_the_cells():
  model = models.create("seq2seq", cell="rnn")
  params = jax.jit(lambda: model.init(KEY, SOURCE, TARGET, train=False))()["params"]
  for name in ("source_embedding", "target_embedding", "key", "combine", "readout"):
    (leaf,) = (leaf for path, leaf in flatten_dict(params[name]).items() if path[-1] != "bias")
    assert abs(float(jnp.abs(leaf).max()) / 0.1 - 1) < 0.02
    assert abs(float(leaf.std()) * np.sqrt(12) / 0.2 - 1) < 0.1


@pytest.mark.parametrize(
  "fields, message",
  [
    ({"attention": "bahdanau"}, "unknown attention 'bahdanau'; known: additive, concat, dot, general, none"),
    ({"attention": "additiv"}, "unknown attention 'additiv'; did you mean 'additive'"),
    ({"cell": "lsmt"}, "unknown recurrent cell 'lsmt'; did you mean 'lstm'"),
    ({"encoder_cell": "gruu"}, "unknown recurrent cell 'gruu'; did you mean 'gru'"),
    ({"attention": "dot", "bidirectional": True}, "attention 'dot' needs an encoder as wide as the decoder"),
    ({"attention": "additive", "input_feeding": True}, "input_feeding goes with attention dot, general, concat"),
    ({"maxout": True}, "maxout goes with attention 'additive'"),
    ({"attention": "additive", "maxout": True, "hidden_size": 5}, "an even hidden_size"),
  ],
)
def test_mistakes_are_one_line(fields, message):
  with pytest.raises(UserError, match=message) as raised:
    made(**{"attention": "general"} | fields)
  assert "\n" not in str(raised.value)
