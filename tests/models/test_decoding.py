"""Decoding against NumPy that goes through all sequences, or follows a beam hypothesis by hypothesis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models.sequence import attention, decoding

B, H, V, EOS, PAD = 6, 5, 4, 3, 0
RNG = np.random.default_rng(0)
STATES = RNG.normal(size=(B, H)) * 2  # every row is another model, as it starts elsewhere
TABLE, TURN, OUT = RNG.normal(size=(V, H)), RNG.normal(size=(H, H)) * 0.7, RNG.normal(size=(H, V)) * 1.5
BEGIN = np.ones((B, 1), int)
GNMT = lambda n, a: ((5 + n) / 6) ** a
POWER = lambda n, a: n**a


def net(tokens, state):
  """A step whose logits depend on all tokens so far."""
  for i in range(tokens.shape[1]):
    state = jnp.tanh(state @ jnp.float32(TURN) + jnp.float32(TABLE)[tokens[:, i]])
  return state @ jnp.float32(OUT), state


def following(row, tokens, rules=None, forced=True):
  """Log probabilities [V] of what follows these tokens, in NumPy, with -inf for what the rules forbid."""
  state = STATES[row]
  for token in tokens:
    state = np.tanh(state @ TURN + TABLE[token])
  logits = state @ OUT
  scores = logits - np.log(np.exp(logits).sum())
  for v in range(V) if rules else ():
    written, n = [*tokens, v], rules.no_repeat
    grams = [tuple(written[i : i + n]) for i in range(len(written) - n + 1)] if n else []
    early = v == rules.eos_id and len(tokens) < rules.min_length
    if early or v in rules.forbidden or (grams and grams[-1] in grams[:-1]):
      scores[v] = -np.inf
  for force, length in ((rules.first_id, 1), (rules.last_id, rules.max_length - 1)) if rules else ():
    if force is not None and len(tokens) == length:
      scores = np.where(np.arange(V) == force, 0, -np.inf)
  return scores


def padded(tokens, length):
  return [*tokens, *[PAD] * (length - len(tokens))]


def every(row, rules, divisor):
  """[(score, tokens)] of all sequences there are, the best first."""
  found, open_ = [], [(0.0, (1,))]
  while open_:
    total, tokens = open_.pop()
    for v, score in enumerate(following(row, tokens, rules)):
      if score == -np.inf:
        continue
      longer = (*tokens, v)
      if v == rules.eos_id or len(longer) == rules.max_length:
        found.append(((total + score) / divisor(len(longer) - 1), longer))
      else:
        open_.append((total + score, longer))
  return sorted(found, reverse=True)


def beam(row, rules, size, divisor, early, reach):
  """The same list from a beam, one hypothesis after the other, as in a textbook."""
  live, ended = [(0.0, (1,))], []
  for length in range(1, rules.max_length):
    grown = [(s + x, (*t, v)) for s, t in live for v, x in enumerate(following(row, t, rules)) if x > -np.inf]
    live = []
    for rank, (score, tokens) in enumerate(sorted(grown, reverse=True)[: 2 * size]):
      if tokens[-1] == rules.eos_id or len(tokens) == rules.max_length:
        if rank < size:
          ended.append((score / divisor(length), tokens))
      elif len(live) < size:
        live.append((score, tokens))
    ended = sorted(ended, reverse=True)[:size]
    full = len(ended) == size
    if not live or full and (early is True or live[0][0] / divisor(reach(length)) <= ended[-1][0]):
      break
  return ended


def searched(rules, size, **options):
  search = lambda states: decoding.beam_search(net, states, jnp.asarray(BEGIN), rules, size, **options)
  return jax.device_get(jax.jit(search)(jnp.float32(STATES)))


def greedy(rules):
  write = jax.jit(lambda states: decoding.greedy(net, states, jnp.asarray(BEGIN), rules))
  return np.asarray(write(jnp.float32(STATES)))


def same(found, row, wanted, rules):
  np.testing.assert_array_equal(found.tokens[row, : len(wanted)], [padded(t, rules.max_length) for _, t in wanted])
  np.testing.assert_allclose(found.scores[row, : len(wanted)], [score for score, _ in wanted], rtol=1e-5)
  assert (found.scores[row, len(wanted) :] == -np.inf).all()


@pytest.mark.parametrize(
  "exponent, penalty, early",
  [(1.0, "power", False), (0.0, "power", "never"), (-0.5, "power", True), (0.6, "gnmt", "never")],
)
def test_a_beam_of_all_sequences_is_an_exhaustive_search(exponent, penalty, early):
  """4^3 beams: every sequence there is, in order."""
  rules = decoding.Rules(4, EOS, PAD)
  found = searched(rules, V**3, length_penalty=exponent, penalty=penalty, early_stopping=early)
  divisor = functools.partial(POWER if penalty == "power" else GNMT, a=exponent)
  for row in range(B):
    wanted = every(row, rules, lambda n: divisor(n))
    assert len(wanted) == 1 + 3 + 9 * 4
    same(found, row, wanted, rules)


@pytest.mark.parametrize("exponent", [1.5, -1.0])
def test_narrow_beams_and_when_they_stop(exponent):
  """Against a search over lists; how it stops matters for some rows."""
  rules = decoding.Rules(9, EOS, PAD)
  results = {}
  for early in decoding.EARLY_STOPPING:
    found = searched(rules, 3, length_penalty=exponent, early_stopping=early)
    reach = lambda n, early=early: rules.max_length - 1 if early == "never" and exponent > 0 else n
    for row in range(B):
      same(found, row, beam(row, rules, 3, lambda n: n**exponent, early, reach), rules)
    results[early] = found.tokens
  if exponent > 0:
    assert (results[True] != results[False]).any()
    assert (results[False] != results["never"]).any()


def test_a_beam_of_one_is_greedy_and_ends_are_padded():
  rules = decoding.Rules(9, EOS, PAD)
  tokens = greedy(rules)
  wanted = []
  for row in range(B):
    written = [1]
    while len(written) < 9 and written[-1] != EOS:
      written.append(following(row, written).argmax())
    wanted.append(padded(written, 9))
  np.testing.assert_array_equal(tokens, wanted)
  ended = (tokens == EOS).any(1)
  assert ended.any()
  assert not ended.all()
  np.testing.assert_array_equal(searched(rules, 1, early_stopping=True).tokens[:, 0], tokens)
  endless = greedy(decoding.Rules(9))
  same_as_endless = (tokens == endless) | (np.cumsum(tokens == EOS, 1) > 0)
  assert same_as_endless.all()
  assert (endless != tokens).any()


RULES = {
  "ngrams": decoding.Rules(8, EOS, PAD, no_repeat=2),
  "words": decoding.Rules(4, EOS, PAD, no_repeat=1),
  "shortest": decoding.Rules(8, EOS, PAD, min_length=6),
  "forbidden": decoding.Rules(8, EOS, PAD, forbidden=(1, 2)),
  "forced": decoding.Rules(8, EOS, PAD, min_length=8, first_id=2, last_id=EOS),
  "all": decoding.Rules(8, EOS, PAD, min_length=4, no_repeat=2, forbidden=(2,), first_id=2, last_id=EOS),
}


@pytest.mark.parametrize("name", RULES)
def test_rules(name):
  """Greedy and beam search against NumPy under the same rules, what is forced costing nothing."""
  rules = RULES[name]
  found, tokens = searched(rules, 3), greedy(rules)
  for row in range(B):
    same(found, row, beam(row, rules, 3, lambda n: n, False, lambda n: n), rules)
    written = [1]
    while len(written) < rules.max_length and (written[-1] != EOS or len(written) == 1):
      written.append(int(following(row, written, rules).argmax()))
    np.testing.assert_array_equal(tokens[row], padded(written, rules.max_length))
  plain = greedy(decoding.Rules(rules.max_length, EOS, PAD))
  assert (plain != tokens).any(), "the rules do something"
  if rules.no_repeat:
    for row in tokens:
      row = row[: (row == EOS).argmax() + 1] if EOS in row else row
      grams = list(zip(*(row[i:] for i in range(rules.no_repeat))))
      assert len(set(grams)) == len(grams)
  if name == "forced":
    assert (tokens[:, [1, -1]] == [2, EOS]).all()


def test_what_is_left_to_draw_from():
  """top-k, then top-p of what that leaves; each limit falls between two sums."""
  logits = RNG.normal(size=(5, 12)).astype(np.float32) * 2
  for temperature, k, p in [(1, 4, None), (0.7, None, 0.8), (2.0, 5, 0.6), (1, 1, None), (1, 50, 1.0), (1, None, 1e-6)]:
    found = np.asarray(decoding.narrowed(jnp.asarray(logits), temperature, k, p))
    for row, got in zip(logits / np.float32(temperature), found):
      likeliest = sorted(range(12), key=lambda v: -row[v])[:k]
      shares = np.exp(np.float64(row[likeliest]))
      count = len(likeliest) if p in (None, 1.0) else int((shares.cumsum() / shares.sum() < p).sum()) + 1
      assert set(np.flatnonzero(got > -np.inf)) == set(likeliest[:count])
      np.testing.assert_allclose(got[likeliest[:count]], row[likeliest[:count]], rtol=1e-6)
  equal = np.asarray(decoding.narrowed(jnp.zeros((1, 4)), top_k=2))
  assert (equal > -np.inf).tolist() == [[True, True, False, False]]


def drawn(states, rules, seed, **options):
  begin = jnp.ones((len(states), 1), int)
  draw = lambda rng: decoding.sample(net, jnp.float32(states), begin, rules, rng, **options)
  return np.asarray(jax.jit(draw)(jax.random.PRNGKey(seed)))


def test_sampling():
  """The frequencies of the first two tokens; the limits of the temperature; the same rng, the same tokens."""
  many = np.repeat(STATES[:1], 20000, 0)
  tokens = drawn(many, decoding.Rules(3), 0, temperature=1.5)
  for given in [(), *((v,) for v in range(V))]:
    rows = tokens[(tokens[:, 1] == given[0])] if given else tokens
    shares = np.exp(following(0, [1, *given]) / 1.5)
    counts = np.bincount(rows[:, 1 + len(given)], minlength=V)
    shares = shares / shares.sum()
    assert (abs(counts / len(rows) - shares) < 4.5 * np.sqrt(shares * (1 - shares) / len(rows))).all()
  rules = decoding.Rules(7, EOS, PAD)
  np.testing.assert_array_equal(drawn(STATES, rules, 1, temperature=1e-4), greedy(rules))
  np.testing.assert_array_equal(drawn(STATES, rules, 1, top_k=1), greedy(rules))
  flat = drawn(many, decoding.Rules(2), 2, temperature=1e4)
  assert (abs(np.bincount(flat[:, 1]) / len(flat) - 1 / V) < 0.015).all()
  again = drawn(STATES, rules, 3)
  np.testing.assert_array_equal(again, drawn(STATES, rules, 3))
  assert (again != drawn(STATES, rules, 4)).any()
  ends = again == EOS
  assert (again[np.cumsum(ends, 1) - ends > 0] == PAD).all()


def written(step, cache, reorder, begin, rules):
  """(what is drawn, beams, their scores) with a model."""
  found = decoding.beam_search(step, cache, begin, rules, 3, reorder, length_penalty=0.6, penalty="gnmt")
  return decoding.sample(step, cache, begin, rules, jax.random.PRNGKey(0)), *found


def test_gpt_with_and_without_a_cache():
  """Behind three tokens; the layers of its cache are one. The cache may grow on the way."""
  sizes = {"vocab_size": 11, "num_layers": 2, "hidden_size": 8, "num_heads": 2, "max_length": 9, "scan": True}
  model = models.create("gpt2", **sizes)
  begin, rules = jnp.array([[3, 1, 4], [1, 5, 9]]), decoding.Rules(9, 10, 0, no_repeat=2)

  @jax.jit
  def both(params):
    def step(tokens, cache):
      stages = model.apply(params, tokens, cache=cache, train=False)
      return stages["logits"][:, -1], stages["cache"]

    reread = decoding.reread(lambda tokens, _: model.apply(params, tokens, train=False)["logits"])
    cached = written(step, model.start(2, 9), attention.take_rows, begin, rules)
    grown = decoding.sample(step, model.start(2, 1), begin, rules, jax.random.PRNGKey(0), grow=attention.grow)
    return cached, written(reread, decoding.prefix(2, 9), decoding.take_rows, begin, rules), grown

  compare(both, jax.jit(lambda: model.init(jax.random.PRNGKey(0), begin, train=False))())


def test_seq2seq_with_and_without_a_cache():
  sizes = {"source_vocab_size": 9, "target_vocab_size": 11, "embedding_size": 6, "hidden_size": 8}
  model = models.create("seq2seq", **sizes, input_feeding=True)
  source, begin, rules = jnp.array([[3, 1, 4, 8], [1, 5, 0, 0]]), jnp.array([[1], [2]]), decoding.Rules(8, 10, 0)

  @jax.jit
  def both(params):
    run = functools.partial(model.apply, params, train=False)
    memory, state = run(source, method="encode")

    def step(tokens, cache):
      stages, state = run(tokens, *cache, method="decode")
      return stages["logits"][:, -1], (state, cache[1])

    reread = decoding.reread(lambda tokens, source: run(source, tokens)["logits"])
    cached = written(step, (state, memory), decoding.take_rows, begin, rules)
    return cached, written(reread, decoding.prefix(2, 8, source), decoding.take_rows, begin, rules)

  compare(both, jax.jit(lambda: model.init(jax.random.PRNGKey(0), source, begin, train=False))())


def compare(both, params):
  """Far from initial values, so that rows and beams differ."""
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda x: x + 0.5 * rng.normal(size=x.shape).astype(np.float32), params)
  (drawn, beams, scores), uncached, *grown = jax.device_get(both(params))
  for tokens in grown:
    np.testing.assert_array_equal(drawn, tokens)
  np.testing.assert_array_equal(drawn, uncached[0])
  np.testing.assert_array_equal(beams, uncached[1])
  np.testing.assert_allclose(scores, uncached[2], rtol=1e-5)
  assert len(np.unique(beams.reshape(6, -1), axis=0)) == 6


def test_what_cannot_be_is_named():
  rules = decoding.Rules(4, EOS)
  states, begin = jnp.float32(STATES), jnp.asarray(BEGIN)
  search = functools.partial(decoding.beam_search, net, states, begin)
  cases = [
    (lambda: search(rules, 0), "num_beams must be 1 at least, not 0"),
    (lambda: search(rules, 2, penalty="gmnt"), "unknown length penalty 'gmnt'; did you mean 'gnmt'"),
    (lambda: search(rules, 2, early_stopping="always"), "True, False or 'never', not 'always'"),
    (lambda: search(decoding.Rules(1), 2), "1 of 1 given"),
    (lambda: search(decoding.Rules(4, 4), 2), r"must lie in 0 to 3: \[4\]"),
    (lambda: decoding.greedy(net, states, begin, decoding.Rules(4, forbidden=(-1,))), r"0 to 3: \[-1\]"),
    (lambda: decoding.narrowed(states, 0.0), "temperature must be above 0, not 0.0"),
    (lambda: decoding.narrowed(states, top_k=0), "top_k must be 1 at least, not 0"),
    (lambda: decoding.narrowed(states, top_p=1.5), "top_p must be above 0 and at most 1, not 1.5"),
  ]
  for call, message in cases:
    with pytest.raises(UserError, match=message):
      call()
