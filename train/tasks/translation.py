"""Translation: an encoder reads the source, a decoder writes the target; cross-entropy in nats a token.

In training each token is predicted from the true ones before it. Padding counts nowhere: losses are sums over tokens,
divided by the tokens of all devices. An evaluation also writes, greedily or with a beam (`decode`), and compares what
it wrote with the texts themselves: by exact matches, and by BLEU of the whole split as sacreBLEU has it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy.data import sentences
from flaxonomy.data.sentences import PAD
from flaxonomy.errors import UserError
from flaxonomy.models.sequence import attention, decoding
from flaxonomy.train import bleu, losses, step, tasks, text_figures
from flaxonomy.train.step import Given, Review, Serve, Task

SHOWN = 4  # sentences with a map of their attention
TOLD = 12  # sentences beside their translations


def build(config, info, devices: int) -> Task:
  """The task of writing `info.tokenizers["target"]` for `info.tokenizers["source"]`; see `tasks.build`.

  Raises:
    UserError: sequences longer than the model's, two tokenizers for a model with one table, a loss by name, or BLEU
      without sacreBLEU.
  """
  model, writer = translator(config, info)
  tokenizer = info.tokenizers["target"]
  if config.decode.bleu:
    bleu.require()
  learner = tasks.learner(config, lambda rng: model.init(rng, *[jnp.ones((1, 2), jnp.int32)] * 2, train=False), devices)

  def loss(params, collections, batch, rng):
    given, wanted = batch["target"][:, :-1], batch["target"][:, 1:]
    stages = model.apply({"params": params}, batch["source"], given, train=True, rngs={"dropout": rng})
    entropy, weights = losses.label_cross_entropy(stages["logits"], wanted, config.train.label_smoothing, ignore=PAD)
    right = (stages["logits"].argmax(-1) == wanted) * weights
    count = weights.sum()
    return step.Made({"loss": (entropy.sum(), count), "accuracy": (right.sum(), count)}, collections)

  def predict_step(state, batch):
    variables = state.variables()
    outputs = {"tokens": writer(variables, batch["source"])}
    if "target" in batch:
      outputs |= _looks(model, variables, batch["source"], outputs["tokens"])
      given, wanted = batch["target"][:, :-1], batch["target"][:, 1:]
      logits = model.apply(variables, batch["source"], given, train=False)["logits"]
      outputs["nll"], _ = losses.label_cross_entropy(logits, wanted, ignore=PAD)
      outputs["right"] = ((logits.argmax(-1) == wanted) & (wanted != PAD)).astype(jnp.float32)
    return outputs

  source, widest = info.tokenizers["source"], sentences.widths(config.data.text)[-1]
  example = lambda rng, b: jax.random.randint(rng, (b, widest), PAD + 1, source.size)
  read = functools.partial(_given, source, widest)
  return Task(
    init=learner.init,
    train_step=learner.step(loss, accumulate=config.train.accumulate or 1),
    predict_step=predict_step,
    score=score,
    metrics=metrics,
    measures=("loss", "perplexity", "token_accuracy", "exact_match", *(("bleu",) if config.decode.bleu else ())),
    best="bleu" if config.decode.bleu else "exact_match",
    pictures=lambda batch, outputs, sums: pictures(info.tokenizers, batch, outputs),
    augment=lambda rng, batch: batch,
    specs=learner.specs,
    serve=Serve(lambda v, x: {"tokens": writer(v, x)}, (widest,), jnp.int32, example),
    table=functools.partial(table, tokenizer),
    given=lambda inputs: read(sentences.lines(inputs)),
    read=read,
    review=Review(
      ("tokens",), functools.partial(_keep, tokenizer), functools.partial(report, config.decode.bleu, config.data.text)
    ),
  )


def translator(config, info):
  """(the model, a function (variables, source [B, S]) -> tokens [B, L], from "<s>" on, padding behind "</s>").

  Args:
    config: configs.base.Config.
    info: data.pipeline.Info.

  Raises:
    UserError: as `build`.
  """
  source, target = info.tokenizers["source"], info.tokenizers["target"]
  model = tasks.module(
    config, source_vocab_size=source.size, target_vocab_size=target.size, vocab_size=target.size, pad_id=PAD
  )
  tasks.require(config, hasattr(model, "encode"))
  if hasattr(model, "vocab_size") and source != target:
    raise UserError(
      f"model {config.model.name!r} has one vocabulary for both languages; set config field 'data.text.shared' to True"
    )
  widest = sentences.widths(config.data.text)[-1]
  if (most := getattr(model, "max_length", widest)) < widest:
    raise UserError(
      f"sequences of {widest} tokens (config fields 'data.text.length', 'data.text.buckets') are more than the model's "
      f"max_length ({most}); set config field 'model.fields.max_length'"
    )
  if config.train.loss != "softmax":
    raise UserError("task 'translation' has its own loss; leave config field 'train.loss' out")
  first, last = target.id("<s>"), target.id("</s>")
  return model, functools.partial(write, model, config.decode, first, last)


def write(model, decode, first: int, last: int, variables, source: jax.Array) -> jax.Array:
  """Writes a target for each source.

  Args:
    model: with `encode` and `decode`.
    decode: configs.base.Decode.
    first: the id of "<s>".
    last: the id of "</s>".
    variables: of the model.
    source: [B, S] int.

  Returns:
    [B, L] int32, "<s>", what is written, "</s>" if it ends, padding.
  """
  length = 1 + int(decode.max_ratio * source.shape[1]) + decode.max_extra
  length = min(length, getattr(model, "max_length", length))
  rules = decoding.Rules(length, last, PAD, forbidden=(PAD, first))
  begin = jnp.full((source.shape[0], 1), first, jnp.int32)
  one, cache, reorder = _start(model, variables, source, length)
  if decode.beams == 1:
    return decoding.greedy(one, cache, begin, rules)
  penalty = {"length_penalty": decode.length_penalty, "penalty": decode.penalty}
  return decoding.beam_search(one, cache, begin, rules, decode.beams, reorder, **penalty).tokens[:, 0]


def _start(model, variables, source, length):
  """(step, the cache before the first token, what takes rows of a cache), as decoding.py wants them."""
  if hasattr(model, "start"):

    def one(tokens, cache):
      stages = model.apply(variables, tokens, cache=cache, train=False, method="decode")
      return stages["logits"][:, -1], stages["cache"]

    return one, model.apply(variables, source, length=length, method="start"), attention.take_rows

  def one(tokens, cache):
    memory, state = cache
    stages, state = model.apply(variables, tokens[:, -1], state, memory, method="step")
    return stages["logits"], (memory, state)

  return one, model.apply(variables, source, train=False, method="encode"), decoding.take_rows


def _looks(model, variables, source, tokens) -> dict:
  """{"attention": [B, L - 1, S]}: from where the source was looked at when each token behind the first was written.

  Of the first rows only, zeros for the others; of a Transformer the mean over the heads of the last layer. Nothing for
  a model without attention.
  """
  few = min(SHOWN, source.shape[0])
  given = variables, source[:few], tokens[:few, :-1]
  if hasattr(model, "start"):
    _, sown = model.apply(*given, train=False, mutable=["intermediates"])
    layers = sown["intermediates"]
    layer = layers["decoder"] if model.scan else layers[f"decoder_{model.num_layers - 1}"]
    weights = layer["cross_attn"]["weights"][0]
    weights = (weights[-1] if model.scan else weights).mean(1)
  else:
    weights = model.apply(*given, train=False).get("attention")
  if weights is None:
    return {}
  return {"attention": jnp.pad(weights, ((0, source.shape[0] - few), (0, 0), (0, 0)))}


def score(outputs: dict, batch: dict) -> dict:
  """Sums over a batch: "nll" in nats, "right" and "tokens" with true words before, "exact" and "count" of targets.

  Args:
    outputs: {"nll": [B, T], "right": [B, T], 0 on padding, "tokens": [B, L] as written}.
    batch: with "target" [B, T + 1] and "mask" [B].
  """
  target, written, mask = batch["target"], outputs["tokens"], batch["mask"]
  width = max(target.shape[1], written.shape[1])
  wide = lambda x: jnp.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=PAD)
  exact = (wide(target) == wide(written)).all(1)
  return {
    "nll": (outputs["nll"].sum(1) * mask).sum(),
    "right": (outputs["right"].sum(1) * mask).sum(),
    "tokens": ((target[:, 1:] != PAD).sum(1) * mask).sum(),
    "exact": (exact * mask).sum(),
    "count": mask.sum(),
  }


def metrics(sums: dict) -> dict[str, float]:
  """Mean loss in nats a token, perplexity exp(loss), the shares of right tokens and of targets written exactly."""
  loss = sums["nll"] / sums["tokens"]
  return {
    "loss": loss,
    "perplexity": np.exp(np.minimum(loss, 700)),
    "token_accuracy": sums["right"] / sums["tokens"],
    "exact_match": sums["exact"] / sums["count"],
  }


def _keep(tokenizer, texts, outputs) -> list[tuple[str, str, str]]:
  """(source, truth, written) of each example."""
  written = [tokenizer.decode(row) for row in outputs["tokens"]]
  return [(text["source"], text["target"], ours) for text, ours in zip(texts, written)]


def report(wanted: bool, config, kept: list[tuple[str, str, str]]) -> tuple[dict, dict]:
  """BLEU of all that was written, if wanted, and translations.txt; see `step.Review`.

  Args:
    wanted: whether BLEU is.
    config: configs.base.Text.
    kept: (source, truth, written) of each example.
  """
  found, files, head = {}, {}, ""
  if wanted:
    value, signature = bleu.corpus([row[1:] for row in kept], config.lowercase)
    rows = bleu.by_length(kept, config.lowercase)
    found["bleu"], head = value, f"sacreBLEU {value:.2f} {signature}\n\n"
    files["bleu_by_length.csv"] = bleu.table(rows)
    files["bleu_by_length.png"] = text_figures.by_length(rows, signature)
  told = "\n".join(f"source   {source}\ntruth    {truth}\nwritten  {ours}\n" for source, truth, ours in kept)
  return found, files | {"translations.txt": head + told}


def pictures(tokenizers: dict, batch: dict, outputs: dict) -> dict:
  """translations.png, some sources with truth and what was written; attention.png, where the source was looked at."""
  source, target = tokenizers["source"], tokenizers["target"]
  rows = [
    [("source", source.decode(a)), ("truth", target.decode(b)), ("written", target.decode(c))]
    for a, b, c in zip(batch["source"][:TOLD], batch["target"], outputs["tokens"])
  ]
  found = {"translations.png": text_figures.beside(rows)}
  maps = []
  for seen, written, weights in zip(batch["source"], outputs["tokens"], outputs.get("attention", ())):
    across, down = seen[seen != PAD], written[1:][written[1:] != PAD]
    if weights.any() and len(down):
      pieces = [source.piece(int(i)) for i in across], [target.piece(int(i)) for i in down]
      maps.append((*pieces, weights[: len(down), : len(across)]))
  return found | ({"attention.png": text_figures.maps(maps[:SHOWN])} if maps else {})


def table(tokenizer, outputs: dict, names) -> tuple[list[str], list[list], list[str]]:
  """Rows for `predict` and chat: what was written; see `Task.table`."""
  return ["written"], [[tokenizer.decode(row)] for row in outputs["tokens"]], []


def _given(tokenizer, length: int, lines: list[str]) -> Given:
  """Sources for `predict` and chat, padded to a multiple of `length`, so that there are few shapes."""

  def batch(first, end):
    rows, _ = sentences.encoded(tokenizer, lines[first:end], None, "", "</s>")
    width = -(-int(rows.lengths.max()) // length) * length
    return {"source": rows.padded(np.arange(end - first), width)}

  return Given("text", lines, batch)
