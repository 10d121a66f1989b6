"""Language modelling: each token is predicted from those before it; cross-entropy in nats a token.

On streams (`data.text.streams`) the state of a recurrent model goes on from window to window, and no gradient goes back
over the border: truncated backpropagation through time, in the form of Zaremba et al. 2014. An evaluation carries its
state over, too.
"""

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy.errors import UserError
from flaxonomy.train import losses, step, tasks, text_figures
from flaxonomy.train.step import Serve, Task

SHOWN = 6  # windows in pictures


def build(config, info, devices: int) -> Task:
  """The task of predicting the tokens of `info.tokenizers["text"]`; see `tasks.build`.

  Raises:
    UserError: a window longer than the model's, streams for a model that carries nothing over, or a loss by name.
  """
  tokenizer, length = info.tokenizers["text"], config.data.text.length
  model = tasks.module(config, vocab_size=tokenizer.size)
  tasks.require(config, hasattr(model, "start") and not hasattr(model, "encode"))
  _check(config, model, length)
  carried = config.data.text.streams
  learner = tasks.learner(
    config,
    lambda rng: model.init(rng, jnp.zeros((1, 2), jnp.int32), train=False),
    devices,
    lambda: model.start(config.data.batch_size) if carried else None,
  )

  def predict(params, batch, rngs=None):
    """The stages for a batch, after what was carried over to it; with rngs in training."""
    cache = None
    if carried:
      cache = jax.tree.map(lambda x: jnp.where(batch["fresh"][:, None, None] > 0, 0, x), batch["carry"])
    return model.apply({"params": params}, batch["tokens"][:, :-1], cache, train=rngs is not None, rngs=rngs)

  def loss(params, collections, batch, rng):
    stages = predict(params, batch, {"dropout": rng})
    entropy, _ = losses.label_cross_entropy(stages["logits"], batch["tokens"][:, 1:], config.train.label_smoothing)
    sums = {"loss": ((entropy * batch["mask"]).sum(), batch["mask"].sum())}
    return step.Made(sums, collections, stages["cache"] if carried else None)

  def predict_step(state, batch):
    stages = predict(state.variables()["params"], batch | {"carry": state.carry})
    outputs = {"prob": jnp.exp(-losses.label_cross_entropy(stages["logits"], batch["tokens"][:, 1:])[0])}
    return outputs | ({"carry": stages["cache"]} if carried else {})

  def call(variables, tokens):
    return {"logits": model.apply(variables, tokens, train=False)["logits"]}

  weights = jnp.asarray(tokenizer.weights(), jnp.float32)
  return Task(
    init=learner.init,
    train_step=learner.step(loss, accumulate=(config.train.accumulate or 1) if carried else None),
    predict_step=predict_step,
    score=lambda outputs, batch: score(outputs, batch, weights),
    metrics=lambda sums: metrics(sums, tokenizer.unit),
    measures=("loss", "perplexity", *_bits(tokenizer.unit)),
    best="-loss",
    pictures=lambda batch, outputs, sums: pictures(tokenizer, batch, outputs, sums),
    augment=lambda rng, batch: batch,
    specs=learner.specs,
    serve=Serve(call, (length,), jnp.int32, lambda rng, b: jax.random.randint(rng, (b, length), 0, tokenizer.size)),
    averaged=True,
    carry=model.start if carried else None,
  )


def _check(config, model, length):
  if (most := getattr(model, "max_length", length)) < length:
    raise UserError(
      f"config field 'data.text.length' ({length}) is more than the model's max_length ({most}); set config field "
      f"'model.fields.max_length'"
    )
  if config.data.text.streams and not hasattr(model, "cell"):
    raise UserError(
      f"config field 'data.text.streams' needs a model that carries a state over, which {config.model.name!r} does not"
    )
  if config.train.loss != "softmax":
    raise UserError("task 'language_model' has its own loss; leave config field 'train.loss' out")


def _bits(unit: str) -> tuple[str, ...]:
  """What bits are counted by: nothing for words, whose perplexity is what the field reports."""
  return () if unit == "word" else (f"bits_per_{unit}",)


def score(outputs: dict, batch: dict, weights: jax.Array) -> dict:
  """Sums over a batch: "nll" in nats, "count" of tokens, "size" in characters or bytes, "by_place" and "places" [T].

  Args:
    outputs: {"prob": [B, T]} of the true tokens, of one model or the mean of several.
    batch: with "tokens" and "mask".
    weights: [V], what each token stands for in characters or bytes.
  """
  mask = batch["mask"]
  nll = -jnp.log(jnp.maximum(outputs["prob"], 1e-37)) * mask
  size = (weights[batch["tokens"][:, 1:]] * mask).sum()
  return {"nll": nll.sum(), "count": mask.sum(), "size": size, "by_place": nll.sum(0), "places": mask.sum(0)}


def metrics(sums: dict, unit: str) -> dict[str, float]:
  """Mean loss in nats a token, perplexity exp(loss), and bits by character or byte."""
  loss = sums["nll"] / sums["count"]
  found = {"loss": loss, "perplexity": np.exp(np.minimum(loss, 700))}
  return found | {name: sums["nll"] / np.log(2) / max(sums["size"], 1) for name in _bits(unit)}


def pictures(tokenizer, batch: dict, outputs: dict, sums: dict) -> dict:
  """surprise.png, the first windows by how unlikely each token was; places.png, the loss by place in the window."""
  bits = -np.log2(np.maximum(outputs["prob"], 1e-37))
  rows = []
  for tokens, mask, values in zip(batch["tokens"][:SHOWN, 1:], batch["mask"], bits):
    real = mask > 0
    rows.append([(tokenizer.piece(int(t)), v) for t, v in zip(tokens[real], values[real])])
  loss = sums["by_place"] / np.maximum(sums["places"], 1)
  return {
    "surprise.png": text_figures.coloured(rows, f"bits by {tokenizer.unit if tokenizer.size < 300 else 'token'}"),
    "places.png": text_figures.by_place(loss),
  }
