"""Transformers against golden files: logits, hidden states, attention, losses, gradients, decoding, SGD."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import seeded
import training
from flax.traverse_util import flatten_dict

from flaxonomy import models
from flaxonomy.models import interop
from flaxonomy.models.sequence import attention, decoding
from flaxonomy.train import losses

TYPES = {"openai-gpt": "gpt", "gpt2": "gpt2", "marian": "marian"}  # transformers' names of our models
TORCH = {"final_norms": True, "num_heads": 4, "pad_id": 0}  # of torch's nn.Transformer: not in its tensors
CONFIG = {  # Hugging Face's names of our fields
  "vocab_size": "vocab_size", "n_positions": "max_length", "n_embd": "hidden_size", "n_layer": "num_layers",
  "n_head": "num_heads", "max_position_embeddings": "max_length", "encoder_layers": "num_layers",
  "encoder_ffn_dim": "mlp_size", "encoder_attention_heads": "num_heads", "d_model": "hidden_size",
  "scale_embedding": "scale_embeddings", "share_encoder_decoder_embeddings": "shared_embeddings",
  "pad_token_id": "pad_id",
}  # fmt: skip
FORWARD, GRADIENT = 1e-5, 1e-4


def model_of(case: dict) -> str | None:
  """The model of a file, by its meta or the names of its weights; None if it is of another kind."""
  if any(key.startswith("t.decoder.layers.") for key in case["weights"]):
    return "transformer"
  return TYPES.get(case["meta"].get("config", {}).get("model_type"))


def compare(case: dict, stem: str) -> dict:
  """{key: (ours, theirs, tolerance)} for all that a golden file holds.

  Args:
    case: from seeded.load.
    stem: the file's name; where norms stand in torch's nn.Transformer is told by a "preln" in it alone.
  """
  name, fields, params = load(case, stem)
  model = models.create(name, **fields)
  loss, see = (_language_model if name.startswith("gpt") else _translation)(model, case)
  gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))
  (value, stages), grads = gradient(params)
  found = see(params, stages) | {"out/loss": value}
  found = {key: (_sampled(ours, theirs), theirs, FORWARD) for key, (ours, theirs) in _paired(found, case).items()}
  if "sgd_losses" in case["meta"]:
    theirs = np.array(case["meta"]["sgd_losses"])
    found["sgd_losses"] = (training.descent(gradient, params, len(theirs), 0.01), theirs, FORWARD)
  norms = training.gradients(interop.to_torch(name, {"params": grads}, **fields), case["grad"])
  return found | {key: (*pair, GRADIENT) for key, pair in norms.items()}


def load(case, stem) -> tuple[str, dict, dict]:
  """(name, all fields but those of the classes' defaults, parameters) of a file's model, without dropout."""
  name = model_of(case)
  fields = TORCH | {"norm_first": "preln" in stem} if name == "transformer" else {}
  config = case["meta"].get("config", {})
  known = models.lookup(name)[1]
  fields = fields | {ours: config[key] for key, ours in CONFIG.items() if key in config and ours in known}
  fields |= {key: 0.0 for key in known if key.endswith("dropout")}
  tensors = case["weights"] or seeded.weights(case["meta"])
  module = interop.model_of(name, tensors, **fields)
  fields |= {key: getattr(module, key) for key in known if key not in ("dtype", "parent", "name")}
  return name, fields, interop.from_torch(name, tensors, **fields)["params"]


def searched(step, cache, begin, case: dict) -> dict:
  """{key: ours} of all that a file's `generation` tells to write: greedy tokens, beam searches and their scores.

  Args:
    step: as decoding has it.
    cache: attention.Cache before the first token.
    begin: [B, P] int.
    case: from seeded.load.
  """
  config, found = case["meta"]["config"], {}
  for name, told in case["meta"]["generation"].items():
    rules = decoding.Rules(
      told["max_length"], config["eos_token_id"], config["pad_token_id"], told.get("min_length", 0),
      told.get("no_repeat_ngram_size", 0), (), told.get("forced_bos_token_id"), told.get("forced_eos_token_id"),
    )  # fmt: skip
    if told["num_beams"] == 1:
      found[f"out/gen_{name}"] = jax.jit(lambda cache, rules=rules: decoding.greedy(step, cache, begin, rules))(cache)
      continue
    search = functools.partial(
      decoding.beam_search, step, begin=begin, rules=rules, num_beams=told["num_beams"], reorder=attention.take_rows,
      length_penalty=told.get("length_penalty", 1.0), early_stopping=told["early_stopping"],
    )  # fmt: skip
    beams = jax.jit(lambda cache, search=search: search(cache))(cache)
    found |= {f"out/gen_{name}": beams.tokens[:, 0], f"out/gen_{name}_score": beams.scores[:, 0]}
  return found


def _paired(found, case) -> dict:
  """{key: (ours, theirs)}, for the keys that the file has."""
  return {key: (ours, case[key[:3]][key[4:]]) for key, ours in found.items() if key[4:] in case[key[:3]]}


def _sampled(ours, theirs):
  return ours if np.shape(ours) == theirs.shape else seeded.sample(ours)


def _weights(model, params, *given):
  """{path of an attention: its weights [B, N, T, S]}."""
  see = jax.jit(lambda params: model.apply({"params": params}, *given, train=False, mutable=["intermediates"])[1])
  kept = flatten_dict(see(params)["intermediates"])
  return {"/".join(path[:-1]): value for path, (value,) in kept.items() if path[-1] == "weights"}


def _language_model(model, case):
  tokens = jnp.asarray(case["in"]["input_ids"], jnp.int32)

  def loss(params):
    stages = model.apply({"params": params}, tokens, train=False)
    return losses.nll(jax.nn.log_softmax(stages["logits"][:, :-1]), tokens[:, 1:]).mean(), stages

  def see(params, stages):
    hidden = [stages["embedding"], *(stages[f"block{i}"] for i in range(model.num_layers))]
    hidden[-1] = stages.get("norm", hidden[-1])
    found = {f"mid/hidden/{i}": x for i, x in enumerate(hidden)}
    logits = stages["logits"]
    found |= {"out/logits": logits, "out/logits_all": logits, "out/first_position": logits[:, 0, :4000]}
    found["out/top5"] = np.argsort(-np.asarray(logits), -1)[..., :5]
    if {"attn/0", "attention_0"} & set(case["mid"]):
      found["mid/attn/0"] = found["mid/attention_0"] = _weights(model, params, tokens)["block0/self_attn"]
    if "greedy" in case["out"]:
      theirs = case["out"]["greedy"]
      begin = tokens[:1]
      new = theirs.shape[1] - begin.shape[1] * int(theirs[0, 0] == begin[0, 0])
      rules, cache = decoding.Rules(begin.shape[1] + new), model.start(1, begin.shape[1] + new)
      step = _stepper(model, params)
      ours = jax.jit(lambda cache: decoding.greedy(step, cache, begin, rules))(cache)
      found["out/greedy"] = ours[:, -theirs.shape[1] :]
      _likeliest(model.apply({"params": params}, ours, train=False)["logits"], ours, new)
    return found

  return loss, see


def _stepper(model, params, **options):
  def step(tokens, cache):
    stages = model.apply({"params": params}, tokens, cache=cache, train=False, **options)
    return stages["logits"][:, -1], stages["cache"]

  return step


def _likeliest(logits, tokens, new):
  """Whether greedy decoding without a cache gives the same tokens."""
  np.testing.assert_array_equal(np.asarray(logits).argmax(-1)[:, -new - 1 : -1], tokens[:, -new:])


def _translation(model, case):
  given = {key: jnp.asarray(value, jnp.int32) for key, value in case["in"].items()}
  if "src" in given:
    source, mask, start = given["src"], None, 1
    target, labels, smoothing = given["tgt"][:, :-1], given["tgt"][:, 1:], 0.1
  else:
    config = case["meta"]["config"]
    source, mask, labels, smoothing = given["input_ids"], given["attention_mask"], given["labels"], 0.0
    start = config["decoder_start_token_id"]
    filled = jnp.where(labels == -100, config["pad_token_id"], labels)
    target = jnp.concatenate([jnp.full_like(labels[:, :1], start), filled[:, :-1]], 1)

  def loss(params):
    stages = model.apply({"params": params}, source, target, mask, train=False)
    each, weights = losses.label_cross_entropy(stages["logits"], labels, smoothing, ignore=-100)
    return each.sum() / weights.sum(), stages

  def see(params, stages):
    found = {f"out/{key}": stages["memory"] for key in ("memory", "encoder")} | {"out/logits": stages["logits"]}
    for key, first, stack in (("enc", "source", "encoder"), ("dec", "target", "decoder")):
      hidden = [stages[first], *(stages[f"{stack}_{i}"] for i in range(model.num_layers))]
      found |= {f"mid/{key}_hidden/{i}": x for i, x in enumerate(hidden)}
    if "cross_attn/0" in case["mid"]:
      found["mid/cross_attn/0"] = _weights(model, params, source, target, mask)["decoder_0/cross_attn"]
    key = "greedy" if "greedy" in case["out"] else "gen_greedy"
    begin, length = jnp.full((len(source), 1), start), case["out"][key].shape[1]
    cache = model.apply({"params": params}, source, mask, length, method="start")
    step = _stepper(model, params, method="decode")
    if key == "gen_greedy":
      found |= searched(step, cache, begin, case)
    else:
      found["out/greedy"] = jax.jit(lambda cache: decoding.greedy(step, cache, begin, decoding.Rules(length)))(cache)
    ours = found[f"out/{key}"]
    _likeliest(model.apply({"params": params}, source, ours, mask, train=False)["logits"], ours, length - 1)
    return found

  return loss, see
