"""Classification of texts, by the losses, metrics and tables of the classification of images.

saliency.png colours the tokens by gradient times input (Shrikumar et al. 2016): the slope of the predicted class's
logit with respect to a token's embedding, times the embedding. Orange speaks for the class and blue against it. Where
the model has attention, a second line shows that.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxonomy.data import sentences
from flaxonomy.errors import UserError, warn
from flaxonomy.train import figures, step, tasks, text_figures
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import Given, Serve, Task
from flaxonomy.train.tasks import classification

SHOWN = 12  # texts in saliency.png


def build(config, info, devices: int) -> Task:
  """The task of telling `info.class_names` apart by the tokens of `info.tokenizers["text"]`; see `tasks.build`.

  Raises:
    UserError: texts longer than the model's most.
  """
  names, tokenizer, length = info.class_names, info.tokenizers["text"], sentences.widths(config.data.text)[-1]
  model = tasks.module(config, num_classes=len(names), vocab_size=tokenizer.size)
  tasks.require(config, hasattr(model, "num_classes") and hasattr(model, "vocab_size"))
  if (most := getattr(model, "max_length", length)) < length:
    raise UserError(
      f"data.text allows texts of {length} tokens, more than the model's max_length ({most}); set config field "
      "'model.fields.max_length'"
    )
  _, probabilities = classification.LOSSES[config.train.loss]
  learner = tasks.learner(config, lambda rng: model.init(rng, jnp.ones((1, 2), jnp.int32), train=False), devices)

  def loss(params, collections, batch, rng):
    out, mask = model.apply({"params": params}, batch["text"], train=True, rngs={"dropout": rng}), batch["mask"]
    targets = classification.targets(batch, len(names), config.train.label_smoothing)
    entropy = classification.objective(model, out, targets, config.train.loss)
    right = (out["logits"].argmax(-1) == batch["label"]).astype(jnp.float32)
    return step.Made({"loss": ((entropy * mask).sum(), mask.sum()), "accuracy": ((right * mask).sum(), mask.sum())}, {})

  def predict_step(state, batch):
    """Probabilities; and of the first batch, of which pictures are made, what each token does to them."""
    tokens, given = batch["text"], state.variables()
    first = lax.psum((batch["index"] == 0).any().astype(jnp.int32), DATA) > 0
    out = model.apply(given, tokens, train=False)
    slope = lax.cond(first, lambda: saliency(model, given, tokens), lambda: jnp.zeros(tokens.shape))
    look = out.get("attention", jnp.zeros(tokens.shape))
    return {"probs": probabilities(out["logits"]), "saliency": slope, "attention": look}

  return Task(
    init=learner.init,
    train_step=learner.step(loss, accumulate=config.train.accumulate or 1),  # slices would each add to all embeddings
    predict_step=predict_step,
    score=classification.score,
    metrics=classification.metrics,
    measures=("accuracy", "loss", "top5_accuracy") if len(names) > 10 else ("accuracy", "loss"),
    best="accuracy",
    pictures=lambda batch, outputs, sums: pictures(tokenizer, names, batch, outputs, sums),
    augment=lambda rng, batch: batch,
    specs=learner.specs,
    serve=Serve(
      lambda variables, tokens: {"probs": probabilities(model.apply(variables, tokens, train=False)["logits"])},
      (length,),
      jnp.int32,
      lambda rng, b: jax.random.randint(rng, (b, length), 0, tokenizer.size),
    ),
    table=classification.table,
    given=lambda inputs: given(tokenizer, sentences.widths(config.data.text), inputs),
    averaged=True,
  )


def saliency(model, variables, tokens: jax.Array) -> jax.Array:
  """Gradient times input of the predicted class's logit, summed over the features of each token's embedding.

  Args:
    model: returns the stages "embedding" [B, T, E], first, and "logits", see models/stages.py.
    variables: of the model.
    tokens: [B, T].

  Returns:
    [B, T] float32
  """

  def logit(offset):
    stages = model.apply({**variables, "perturbations": {"embedding": offset}}, tokens, train=False)
    return stages["logits"].max(-1).sum(), stages["embedding"]

  shape = jax.eval_shape(lambda: model.apply(variables, tokens, train=False)["embedding"])
  slope, embedding = jax.grad(logit, has_aux=True)(jnp.zeros(shape.shape, shape.dtype))
  return (slope.astype(jnp.float32) * embedding.astype(jnp.float32)).sum(-1)


def pictures(tokenizer, names, batch: dict, outputs: dict, sums: dict) -> dict:
  """confusion.png and saliency.png; see `Task.pictures`."""
  rows, titles = [], []
  attended = outputs["attention"].any()
  for i, tokens in enumerate(batch["text"][:SHOWN]):
    count = max(int((tokens != sentences.PAD).sum()), 1)
    pieces = [tokenizer.piece(int(t)) + " " for t in tokens[:count]]
    best, truth = int(outputs["probs"][i].argmax()), int(batch["label"][i])
    told = f"{names[best]} {outputs['probs'][i, best]:.0%}" + (f", true {names[truth]}" if best != truth else "")
    for key, what in (("saliency", ""), ("attention", "  attention:"))[: 1 + attended]:
      values = outputs[key][i, :count]
      rows.append(list(zip(pieces, values / max(np.abs(values).max(), 1e-30))))
      titles.append(what or told)
  heading = "share of each text's strongest token, orange for the predicted class and blue against it"
  return {
    "confusion.png": figures.confusion(np.asarray(sums["confusion"], int), names),
    "saliency.png": text_figures.coloured(rows, heading, titles, 1.0),
  }


def given(tokenizer, widths: tuple[int, ...], inputs: list[str]) -> Given:
  """Text files for `predict`, a text a line.

  Args:
    tokenizer: of the run.
    widths: of its batches; longer texts are cut.
    inputs: files.
  """
  texts = sentences.lines(inputs)
  column, cut = sentences.encoded(tokenizer, texts, widths[-1])
  if cut:
    warn(f"{cut} of {len(texts)} texts are cut to {widths[-1]} tokens")

  def batch(first, end):
    index = np.arange(first, end)
    width = next(width for width in widths if width >= column.lengths[index].max())
    return {"text": column.padded(index, width)}

  return Given("text", texts, batch)
