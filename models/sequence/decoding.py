"""Decoding: what writes token by token with a model, compiled, the same for all models.

  greedy        the likeliest token each time
  sample        drawn with a temperature, among the k likeliest (Fan et al. 2018, "Hierarchical Neural Story
                Generation") or the fewest of total probability p (Holtzman et al. 2020, "The Curious Case of Neural
                Text Degeneration")
  beam_search   the best whole sequences that a beam finds, with transformers' conventions; what the rules force costs
                nothing there, so neither here

A model is a function step(tokens [R, T], cache) -> (logits [R, V] of what follows the last token, cache), and its cache
before the first token: a pytree of fixed shapes for at least `max_length` - 1 tokens. `reread` makes such a step of a
model without a cache. Everything here is meant to be called within a function that is compiled; Python numbers and
`Rules` are constants there.

Deviation from transformers: beams that do not exist yet score -inf, not -1e9, so that they never count as finished.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxonomy.errors import UserError, shown, unknown

PENALTIES = {  # what the sum of log probabilities is divided by: (length [], exponent) -> []
  "power": lambda length, exponent: length**exponent,
  "gnmt": lambda length, exponent: ((5 + length) / 6) ** exponent,  # Wu et al. 2016, equation 14; Vaswani et al. 2017
}
GROWTHS = 4  # of a cache that is let grow
EARLY_STOPPING = (True, False, "never")


class Rules(NamedTuple):
  """What may be written. Lengths count what decoding begins with, such as the start token, too.

  Attributes:
    max_length: L, the length of all results.
    eos_id: ends a sequence; None: all go on to L.
    pad_id: stands behind the end.
    min_length: shorter sequences do not end.
    no_repeat: n; no n tokens in a row come twice. 0: they may.
    forbidden: ids that are never written, but when forced.
    first_id: the first token written; None: any.
    last_id: the L-th token, for sequences that have not ended before; None: any.
  """

  max_length: int
  eos_id: int | None = None
  pad_id: int = 0
  min_length: int = 0
  no_repeat: int = 0
  forbidden: tuple[int, ...] = ()
  first_id: int | None = None
  last_id: int | None = None


class Beams(NamedTuple):
  """What a beam search found, the best first.

  Attributes:
    tokens: [B, K, L] int32.
    scores: [B, K] float32, sums of log probabilities over the length penalty; -inf where fewer than K were found.
  """

  tokens: jax.Array
  scores: jax.Array


def greedy(step: Callable, cache, begin: jax.Array, rules: Rules, grow: Callable | None = None) -> jax.Array:
  """Writes the likeliest token each time.

  Args:
    step: see above.
    cache: before the first token, of B rows.
    begin: [B, P] int, P >= 1, what stands first.
    rules: what may be written.
    grow: (cache, length) -> the cache with room for so many tokens, for long results: one that grows `GROWTHS` times
      on its way is read faster, and takes as many times longer to compile. It may begin without room. None: the cache
      has room for L - 1 from the start.

  Returns:
    [B, L] int32
  """
  return _write(step, cache, begin, rules, lambda scores, position: scores.argmax(-1), grow)


def sample(
  step: Callable, cache, begin: jax.Array, rules: Rules, rng: jax.Array,
  temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, grow: Callable | None = None,
) -> jax.Array:  # fmt: skip
  """Draws each token; see `greedy` and `narrowed`. The token at t depends on `rng` and t.

  Returns:
    [B, L] int32
  """

  def choose(scores, position):
    return jax.random.categorical(jax.random.fold_in(rng, position), narrowed(scores, temperature, top_k, top_p))

  return _write(step, cache, begin, rules, choose, grow)


def narrowed(logits: jax.Array, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None):
  """Logits divided by the temperature, then of the k likeliest alone, then of the fewest that have probability p.

  Of equal logits the lower ids come first.

  Args:
    logits: [R, V] float32.
    temperature: above 0.
    top_k: how many, 1 at least; None: all.
    top_p: in (0, 1], of what `top_k` leaves; the last one takes the sum to p or above. None: all.

  Returns:
    [R, V], -inf for the others.
  """
  if not temperature > 0:
    raise UserError(f"temperature must be above 0, not {shown(temperature)}; greedy decoding is the limit at 0")
  if top_k is not None and top_k < 1:
    raise UserError(f"top_k must be 1 at least, not {shown(top_k)}")
  if top_p is not None and not 0 < top_p <= 1:
    raise UserError(f"top_p must be above 0 and at most 1, not {shown(top_p)}")
  logits = logits / temperature
  top_p = None if top_p == 1 else top_p  # whose sums are not exact
  if top_k is None and top_p is None:
    return logits
  order = jnp.argsort(-logits, -1)
  kept = jnp.take_along_axis(logits, order, -1)
  if top_k is not None:
    kept = jnp.where(jnp.arange(logits.shape[-1])[None] < top_k, kept, -jnp.inf)
  if top_p is not None:
    shares = jax.nn.softmax(kept, -1)
    before = jnp.cumsum(shares, -1) - shares
    kept = jnp.where(before < top_p, kept, -jnp.inf)
  return jnp.full_like(logits, -jnp.inf).at[jnp.arange(logits.shape[0])[:, None], order].set(kept)


def _write(step, cache, begin, rules, choose, grow):
  """One sequence a row; choose(scores [B, V], position) -> [B]."""
  first, end = begin.shape[1], rules.max_length
  ends = [end] if grow is None else [first + (end - first) * i // GROWTHS for i in range(1, GROWTHS + 1)]
  grow = grow or (lambda cache, length: cache)
  tokens, cache = _begin(step, grow(cache, ends[0]), begin, rules)

  def going(end, state):
    position, _, ended, _ = state
    return (position < end) & ~ended.all()

  def write(state):
    position, tokens, ended, cache = state
    logits, cache = step(lax.dynamic_slice_in_dim(tokens, position - 1, 1, 1), cache)
    scores = _ruled(logits.astype(jnp.float32), tokens, position, first, rules)
    new = jnp.where(ended, rules.pad_id, choose(scores, position).astype(jnp.int32))
    tokens = lax.dynamic_update_slice_in_dim(tokens, new[:, None], position, 1)
    return position + 1, tokens, ended | _is_end(new, rules), cache

  state = (jnp.asarray(first, jnp.int32), tokens, jnp.zeros(begin.shape[0], bool), cache)
  for end in ends:
    state = lax.while_loop(functools.partial(going, end), write, (*state[:3], grow(state[3], end)))
  return state[1]


def take_rows(cache, rows: jax.Array):
  """A cache with these rows, [R'] int, for caches whose arrays all begin with R or have no dimension."""
  return jax.tree.map(lambda x: x[rows] if jnp.ndim(x) else x, cache)


class _Search(NamedTuple):
  """A beam search on its way; all but `position` begin with B, or B K in the cache."""

  position: jax.Array  # [], of the next token
  tokens: jax.Array  # [B, K, L], what goes on
  sums: jax.Array  # [B, K], of its log probabilities, falling
  found: Beams  # what has ended
  closed: jax.Array  # [B], nothing is added to what has ended
  cache: Any


def beam_search(
  step: Callable, cache, begin: jax.Array, rules: Rules, num_beams: int, reorder: Callable = take_rows,
  length_penalty: float = 1.0, penalty: str = "power", early_stopping: bool | str = False,
) -> Beams:  # fmt: skip
  """Goes on with the K best beginnings at each length, and keeps the K best that ended.

  Ends are taken from the K best continuations only; those behind them just fill the beam up.

  Args:
    step: see above.
    cache: before the first token, of B rows.
    begin: [B, P] int, P >= 1, what stands first.
    rules: what may be written.
    num_beams: K.
    reorder: (cache, rows [R'] int) -> the cache with these rows; `attention.take_rows` for an `attention.Cache`.
    length_penalty: the exponent; above 0 it favours long sequences.
    penalty: a key of `PENALTIES`; the length is that of what was written, the end token included.
    early_stopping: when a search ends before L. True: as soon as K have ended. False: when the best that goes on would
      not be among them if it ended now. "never": when it could not be, were nothing to cost anything up to L.

  Returns:
    Beams
  """
  if num_beams < 1:
    raise UserError(f"num_beams must be 1 at least, not {shown(num_beams)}")
  if penalty not in PENALTIES:
    raise unknown("length penalty", penalty, PENALTIES)
  if early_stopping not in EARLY_STOPPING:
    raise UserError(f"early_stopping must be True, False or 'never', not {shown(early_stopping)}")
  batch, first = begin.shape
  divisor = lambda length: PENALTIES[penalty](jnp.asarray(length, jnp.float32), length_penalty)

  def going(state):
    return (state.position < rules.max_length) & ~state.closed.all()

  def write(state):
    sums, parents, candidates, ends, cache = _continued(step, state, first, rules)
    length = state.position + 1 - first
    found = _ended(state, sums, candidates, ends, divisor(length))
    sums, kept = lax.top_k(jnp.where(ends, -jnp.inf, sums), num_beams)
    ahead = rules.max_length - first if early_stopping == "never" and length_penalty > 0 else length
    worst = found.scores[:, -1]
    closed = state.closed | (sums[:, 0] / divisor(ahead) <= worst)
    if early_stopping is True:
      closed = closed | (worst > -jnp.inf)
    parents = jnp.take_along_axis(parents, kept, 1)
    rows = (jnp.arange(batch)[:, None] * num_beams + parents).reshape(-1)
    return _Search(state.position + 1, _take(candidates, kept), sums, found, closed, reorder(cache, rows))

  tokens, cache = _begin(step, cache, begin, rules)
  tokens = jnp.repeat(tokens[:, None], num_beams, 1)
  cache = reorder(cache, jnp.repeat(jnp.arange(batch), num_beams))
  nothing = jnp.full((batch, num_beams), -jnp.inf)
  sums = nothing.at[:, 0].set(0)  # all beams are still the same one
  state = _Search(jnp.asarray(first), tokens, sums, Beams(tokens, nothing), jnp.zeros(batch, bool), cache)
  return lax.while_loop(going, write, state).found


def _continued(step, state, first, rules):
  """The 2 K best continuations: enough for K that go on, whichever end, as one beam has one end.

  Returns:
    (sums [B, 2 K], falling; parents [B, 2 K], their beams; tokens [B, 2 K, L]; ends [B, 2 K] bool; cache)
  """
  batch, beams, length = state.tokens.shape
  flat = state.tokens.reshape(-1, length)
  logits, cache = step(lax.dynamic_slice_in_dim(flat, state.position - 1, 1, 1), state.cache)
  scores = _ruled(jax.nn.log_softmax(logits.astype(jnp.float32)), flat, state.position, first, rules)
  classes = scores.shape[-1]
  totals = state.sums[..., None] + scores.reshape(batch, beams, classes)
  sums, places = lax.top_k(totals.reshape(batch, -1), 2 * beams)
  parents, new = places // classes, places % classes
  tokens = lax.dynamic_update_slice_in_dim(_take(state.tokens, parents), new[..., None], state.position, 2)
  return sums, parents, tokens, _is_end(new, rules) | (state.position + 1 == length), cache


def _ended(state, sums, candidates, ends, divisor) -> Beams:
  """The best of what had ended and of what now does among the K best."""
  beams = state.sums.shape[1]
  taken = ends & (jnp.arange(2 * beams) < beams)[None] & ~state.closed[:, None]
  scores = jnp.concatenate([state.found.scores, jnp.where(taken, sums / divisor, -jnp.inf)], 1)
  scores, kept = lax.top_k(scores, beams)
  return Beams(_take(jnp.concatenate([state.found.tokens, candidates], 1), kept), scores)


def _take(tokens, beams):
  return jnp.take_along_axis(tokens, beams[..., None], 1)


def _begin(step, cache, begin, rules):
  """(tokens [B, L], padding behind those given; a cache that has read all of these but the last)."""
  steps = begin.shape[1]
  if not 1 <= steps < rules.max_length:
    raise UserError(f"decoding begins with 1 token at least and ends behind them: {steps} of {rules.max_length} given")
  tokens = jnp.full((begin.shape[0], rules.max_length), rules.pad_id, jnp.int32).at[:, :steps].set(begin)
  if steps > 1:
    _, cache = step(tokens[:, : steps - 1], cache)
  return tokens, cache


def _is_end(tokens, rules):
  return jnp.zeros(tokens.shape, bool) if rules.eos_id is None else tokens == rules.eos_id


def _ruled(scores, tokens, position, first, rules):
  """Scores [R, V] of the token at `position`, -inf where it may not stand; what is forced scores 0.

  Args:
    scores: [R, V] float32.
    tokens: [R, L], what stands before.
    position: [] int.
    first: P.
    rules: what may be written.
  """
  ids = [x for x in (rules.eos_id, *rules.forbidden, rules.first_id, rules.last_id) if x is not None]
  if not all(0 <= x < scores.shape[1] for x in ids):
    raise UserError(f"the rules' ids must lie in 0 to {scores.shape[1] - 1}: {sorted(ids)}")
  if rules.no_repeat:
    scores = jnp.where(_repeats(tokens, position, rules.no_repeat, scores.shape[1]), -jnp.inf, scores)
  if rules.forbidden:
    scores = scores.at[:, jnp.array(rules.forbidden)].set(-jnp.inf)
  if rules.eos_id is not None:
    ends = scores[:, rules.eos_id]
    scores = scores.at[:, rules.eos_id].set(jnp.where(position < rules.min_length, -jnp.inf, ends))
  for forced, place in ((rules.first_id, first), (rules.last_id, rules.max_length - 1)):
    if forced is not None:
      alone = jnp.full_like(scores, -jnp.inf).at[:, forced].set(0)
      scores = jnp.where(position == place, alone, scores)
  return scores


def _repeats(tokens, position, size, classes):
  """[R, V] bool: what would make the last `size` tokens a repetition of earlier ones."""
  rows, length = tokens.shape
  count = length - size + 1  # windows; the last token of each would be the repeated one
  if count < 1:
    return jnp.zeros((rows, classes), bool)
  same = jnp.broadcast_to((jnp.arange(count) + size - 1 < position)[None], (rows, count))
  for i in range(size - 1):
    last = lax.dynamic_slice_in_dim(tokens, position - size + 1 + i, 1, 1)
    same = same & (tokens[:, i : i + count] == last)
  return jnp.zeros((rows, classes), bool).at[jnp.arange(rows)[:, None], tokens[:, size - 1 :]].max(same)


class Prefix(NamedTuple):
  """What `reread` keeps for a model without a cache.

  Attributes:
    tokens: [R, L] int32, 0 where nothing is written yet.
    index: [] int32, how many are.
    context: what else the model is given, a source, perhaps; a pytree whose arrays begin with R.
  """

  tokens: jax.Array
  index: jax.Array
  context: Any


def prefix(batch: int, length: int, context=()) -> Prefix:
  """A `Prefix` without tokens, for as many as `length`."""
  return Prefix(jnp.zeros((batch, length), jnp.int32), jnp.zeros((), jnp.int32), context)


def reread(logits: Callable) -> Callable:
  """A `step` whose cache is a `Prefix`: the model reads all tokens again each time.

  Args:
    logits: (tokens [R, L], context) -> [R, L, V]; must not depend on what comes later.
  """

  def step(tokens, cache):
    seen = lax.dynamic_update_slice_in_dim(cache.tokens, tokens, cache.index, 1)
    index = cache.index + tokens.shape[1]
    last = lax.dynamic_slice_in_dim(logits(seen, cache.context), index - 1, 1, 1)
    return last[:, 0], cache._replace(tokens=seen, index=index)

  return step
