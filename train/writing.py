"""Writing text with a language model, token by token as it comes, from a workdir alone."""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy.data.streams import BOUNDARIES
from flaxonomy.errors import UserError
from flaxonomy.models.sequence import decoding
from flaxonomy.train import inference, loop, tasks

SPECIAL = ("<pad>", "<s>", "<unk>")  # never written


def write(path: str, prompt: str, length: int, which: str = "latest", changes: dict | None = None,
          temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, seed: int = 0,
) -> Iterator[str]:  # fmt: skip
  """Goes on with a text.

  A model with learned positions begins anew with the second half of what it sees whenever that is full.

  Args:
    path: workdir of a language model.
    prompt: what stands first; "" begins behind a line end, or the end of a document.
    length: tokens to write.
    which: checkpoint, as in `inference.load`.
    changes: as there.
    temperature: 0 writes the likeliest token each time.
    top_k: draw among so many likeliest tokens.
    top_p: draw among the fewest likeliest of this total probability.
    seed: of what is drawn.

  Yields:
    Pieces of text behind the prompt.

  Raises:
    UserError: another kind of run, a prompt without a token that the model knows, or impossible numbers.
  """
  if length < 1 or temperature < 0:
    raise UserError(f"--length must be 1 at least and --temperature 0 at least, not {length} and {temperature}")
  decoding.narrowed(jnp.zeros((1, 1)), temperature or 1.0, top_k, top_p)  # raises before anything is read
  run = inference.load(path, loop.make_mesh(1), which, changes)
  if run.config.task != "language_model":
    raise UserError(f"--mode=sample writes with a language model; {path!r} was trained for {run.config.task!r}")
  tokenizer = run.info.tokenizers["text"]
  model = tasks.module(run.config, vocab_size=tokenizer.size)
  ids = _beginning(tokenizer, prompt)
  forbidden = tuple(i for i in map(tokenizer.id, SPECIAL) if i is not None)
  choose = functools.partial(_choose, temperature, top_k, top_p, forbidden)
  written = _tokens(model, run.state.variables(), choose, ids, length, jax.random.PRNGKey(seed))
  return _pieces(tokenizer, ids, written)


def _beginning(tokenizer, prompt) -> list[int]:
  ids = tokenizer.encode(prompt).tolist()
  if not prompt:
    known = [i for i in map(tokenizer.id, BOUNDARIES) if i is not None]
    ids = known[:1] or tokenizer.encode("\n").tolist() or [tokenizer.size - 1]
  if not ids:
    raise UserError(f"the prompt {prompt!r} holds no token")
  return ids


def _choose(temperature, top_k, top_p, forbidden, logits, rng, position):
  """The next token [1], the one that `decoding.sample` would draw with the same key."""
  logits = logits.astype(jnp.float32)
  if forbidden:
    logits = logits.at[:, jnp.array(forbidden)].set(-jnp.inf)
  if temperature == 0:
    return logits.argmax(-1)
  scores = decoding.narrowed(logits, temperature, top_k, top_p)
  return jax.random.categorical(jax.random.fold_in(rng, position), scores)


def _tokens(model, variables, choose, ids, length, rng) -> Iterator[int]:
  """The tokens written, one by one."""

  @jax.jit
  def read(variables, tokens, cache, rng, position):
    stages = model.apply(variables, tokens, cache, train=False)
    return choose(stages["logits"][:, -1], rng, position), stages["cache"]

  most = getattr(model, "max_length", None)
  seen, cache, room = ids if most is None else ids[-most:], None, 0
  for position in range(len(ids), len(ids) + length):
    if cache is None or room == 0:
      seen = seen if most is None or cache is None else seen[-max(most // 2, 1) :]
      cache, now, room = model.start(1), seen, None if most is None else most - len(seen)
    else:
      now, room = seen[-1:], None if room is None else room - 1
    token, cache = read(variables, jnp.asarray([now], jnp.int32), cache, rng, np.int32(position))
    seen = [*seen[-(most or 1) :], int(token[0])]
    yield seen[-1]


def _pieces(tokenizer, ids, written: Iterator[int]) -> Iterator[str]:
  """Text as it becomes sure: a token may be part of a character, and the one before it may decide about a blank."""
  context, waiting = ids[-8:], []
  for token in written:
    waiting.append(token)
    before, now = tokenizer.decode(context), tokenizer.decode(context + waiting)
    if now.endswith("\ufffd") or not now.startswith(before):
      continue
    yield now[len(before) :]
    context, waiting = (context + waiting)[-8:], []
  before, now = tokenizer.decode(context), tokenizer.decode(context + waiting)
  yield now[len(before) :]
