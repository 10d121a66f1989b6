"""Public names of the Transformer and its kin: Hugging Face's GPT, GPT-2 and Marian, torch's nn.Transformer.

GPT's are OpenAIGPTLMHeadModel and GPT2LMHeadModel, whose kernels lie (in, out), queries, keys and values in one.

A Transformer with norms behind its stacks is a torch module of nn.Transformer `t`, which packs queries, keys and values
too, embeddings `emb` and sinusoids `pe`. One without them, which nn.Transformer cannot be, is MarianMTModel.
"""

import re

import jax.numpy as jnp
import numpy as np

from flaxonomy.models.interop.family import LEAVES, Family
from flaxonomy.models.sequence import transformer

PARTS = ("query", "key", "value")


def _renamed(rules, path):
  for pattern, public in rules:
    path = re.sub(pattern, public, path)
  return path.replace("/", ".")


GPT = (
  (r"^block(\d+)", r"h/\1"), (r"self_attn/(query|key|value)$", "attn/c_attn"), (r"self_attn/out$", "attn/c_proj"),
  (r"self_norm$", "ln_1"), (r"mlp_norm$", "ln_2"), (r"fc1$", "c_fc"), (r"fc2$", "c_proj"), (r"^norm$", "ln_f"),
)  # fmt: skip
GPT_TABLES = {  # with norms behind and before the parts: GPT-1 and GPT-2
  False: ((r"^tokens$", "tokens_embed"), (r"^positions$", "positions_embed")),
  True: ((r"^tokens$", "wte"), (r"^positions$", "wpe")),
}


def _gpt(module, path):
  return "transformer." + _renamed(GPT_TABLES[module.norm_first] + GPT, path)


def _gpt_cleaned(tensors):
  """The bare model's names, without "transformer.", are on the hub too; `attn.bias` are masks that old files hold."""
  masks = re.compile(r"\.attn\.(masked_)?bias$")
  kept = {key: value for key, value in tensors.items() if not masks.search(key)}
  return {key if key.startswith(("transformer.", "lm_head.")) else f"transformer.{key}": kept[key] for key in kept}


def _gpt_told(tensors):
  told = _layers(tensors, r"transformer\.h\.(\d+)\.", "num_layers")
  for table in ("wte", "tokens_embed"):
    told |= _table(tensors, f"transformer.{table}.weight", "vocab_size", "hidden_size")
  for table in ("wpe", "positions_embed"):
    told |= _table(tensors, f"transformer.{table}.weight", "max_length")
  return told


def _layers(tensors, pattern, field):
  numbers = [int(found[1]) for key in tensors if (found := re.match(pattern, key))]
  return {field: 1 + max(numbers)} if numbers else {}


def _table(tensors, key, *fields):
  return dict(zip(fields, tensors[key].shape)) if key in tensors else {}


def _gpt_part(module, path):
  found = re.search(r"self_attn/(query|key|value)/", path)
  return (-1, PARTS.index(found[1]), len(PARTS)) if found else None


def _gpt_tied(module):
  return {"lm_head.weight": _gpt(module, "tokens") + ".weight"}


TORCH = (
  (r"^embedding$", "emb"), (r"^(en|de)coder_(\d+)", r"t/\1coder/layers/\2"),
  (r"^(en|de)coder_norm$", r"t/\1coder/norm"), (r"cross_attn", "multihead_attn"),
  (r"(query|key|value)$", "in_proj"), (r"_attn/out$", "_attn/out_proj"), (r"self_norm$", "norm1"),
  (r"cross_norm$", "norm2"), (r"mlp/fc", "linear"),
)  # fmt: skip
MARIAN = (
  (r"^(en|de)coder_(\d+)", r"model/\1coder/layers/\2"), (r"^(en|de)coder_positions$", r"model/\1coder/embed_positions"),
  (r"(query|key|value|out)$", r"\1_proj"), (r"query_proj$", "q_proj"), (r"key_proj$", "k_proj"),
  (r"value_proj$", "v_proj"), (r"cross_attn", "encoder_attn"), (r"self_norm$", "self_attn_layer_norm"),
  (r"cross_norm$", "encoder_attn_layer_norm"), (r"mlp_norm$", "final_layer_norm"), (r"mlp/fc", "fc"),
  (r"^source_embedding$", "model/encoder/embed_tokens"),
)  # fmt: skip


def _transformer(module, path):
  if module.final_norms:
    path = re.sub("mlp_norm$", "norm3" if path.startswith("decoder") else "norm2", path)
    return _renamed(TORCH, path)
  table = "model/shared" if module.shared_embeddings else "model/decoder/embed_tokens"
  return _renamed(((r"^embedding$", table), *MARIAN), path)


def _transformer_tensor(name, leaf):
  if leaf == "logits_bias":
    return "final_logits_bias"
  return f"{name}{'_' if name.endswith('in_proj') else '.'}{LEAVES[leaf]}"


def _transformer_told(tensors):
  if "emb.weight" in tensors:
    told = _table(tensors, "emb.weight", "vocab_size", "hidden_size") | _table(tensors, "pe", "max_length")
    told |= _layers(tensors, r"t\.encoder\.layers\.(\d+)\.", "num_layers") | _positions(tensors.get("pe"))
    return told | _table(tensors, "t.encoder.layers.0.linear1.weight", "mlp_size") | {"final_norms": True}
  table = "model.shared.weight" if "model.shared.weight" in tensors else "model.decoder.embed_tokens.weight"
  places = "model.encoder.embed_positions.weight"
  told = _table(tensors, table, "vocab_size", "hidden_size") | _positions(tensors.get(places))
  told |= _table(tensors, places, "max_length")
  told |= {"head_bias": True} if np.any(tensors.get("final_logits_bias", 0)) else {}
  told |= _layers(tensors, r"model\.encoder\.layers\.(\d+)\.", "num_layers")
  return told | _table(tensors, "model.encoder.layers.0.fc1.weight", "mlp_size")


def _positions(table) -> dict:
  """Which of the sinusoids a table is, or else learned."""
  if table is None or table.ndim != 2:
    return {}
  for interleaved, kind in ((True, "interleaved"), (False, "concatenated")):
    if table.shape[1] % 2 == 0 and np.allclose(table, transformer.sinusoids(*table.shape, interleaved), 0, 1e-3):
      return {"positions": kind}
  return {"positions": "learned"}


def _transformer_layout(module, path):
  return {"embedding": "same", "logits_bias": "row"}.get(path.rpartition("/")[2], "torch")


def _transformer_part(module, path):
  found = re.search(r"_attn/(query|key|value)/", path)
  return (0, PARTS.index(found[1]), len(PARTS)) if found and module.final_norms else None


def _transformer_stacks(module):
  return {stack: (stack + "_{}", module.num_layers) for stack in ("encoder", "decoder")} if module.scan else {}


def _transformer_tied(module):
  if module.final_norms:
    return {}
  source = _transformer(module, "embedding") + ".weight"
  aliases = ["lm_head"]
  if module.shared_embeddings:
    aliases += ["model.encoder.embed_tokens", "model.decoder.embed_tokens"]
  return {f"{alias}.weight": source for alias in aliases}


def _transformer_constants(module):
  found = {}
  if not (module.final_norms or module.head_bias):
    found["final_logits_bias"] = np.zeros((1, module.vocab_size), np.float32)
  if module.positions != "learned":
    table = transformer.sinusoids(module.max_length, module.hidden_size, module.positions == "interleaved")
    tables = ["pe"] if module.final_norms else [f"model.{stack}coder.embed_positions.weight" for stack in ("en", "de")]
    found |= dict.fromkeys(tables, np.asarray(table))
  return found


def _one_token(number):
  return lambda family, module, tensors: (jnp.zeros((1, 1), jnp.int32),) * number


FAMILIES = {
  "GPT": Family(
    _gpt, _gpt_told, example=_one_token(1), cleaned=_gpt_cleaned, layout=lambda module, path: "same", part=_gpt_part,
    stacks=lambda module: {"blocks": ("block{}", module.num_layers)} if module.scan else {}, tied=_gpt_tied,
  ),
  "Transformer": Family(
    _transformer, _transformer_told, tensor=_transformer_tensor, example=_one_token(2), layout=_transformer_layout,
    part=_transformer_part, stacks=_transformer_stacks, tied=_transformer_tied, constants=_transformer_constants,
  ),
}  # fmt: skip
