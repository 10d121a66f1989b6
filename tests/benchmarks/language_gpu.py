"""Language models on an accelerator: training tokens/s, ours against PyTorch's.

  python tests/benchmarks/language_gpu.py [--steps=20] [--only=gpt2]

On the first device that is not a CPU (on a CPU, with tiny models, to see that the script runs). Printed for each case:
tokens/s of ours and of torch on the same device and their ratio, medians of three rounds of `--steps` in turns; for
GPT-2 also the share of `--peak` that the model's products make (6 N + 12 L D T operations a token, Chowdhery et al.
2022, "PaLM", appendix B).

  gpt2        GPT-2 of 124 million parameters, bfloat16, sequences of 1024, batch 32, a vocabulary of 50304, no dropout,
              AdamW: nanoGPT's recipe. Attention by cuDNN; torch's by flash attention, under torch.compile and autocast
  gpt2_xla    the same with the attention that XLA makes
  lstm        by letters: 2 layers of 512, float32, sequences of 100, batch 256, Adam; torch's by cuDNN

Both sides' products in float32 may use TF32.
"""

import argparse
import importlib.util
import platform

import jax
import language_cpu
import numpy as np
from jax.sharding import Mesh
from turns import DISPATCH, rates, ratio, runner

from flaxonomy.train.sharding import DATA

GPT2 = {"vocab_size": 50304, "num_layers": 12, "hidden_size": 768, "num_heads": 12}
TINY = {"vocab_size": 66, "num_layers": 2, "hidden_size": 32, "num_heads": 2}
LSTM = {"vocab_size": 66, "hidden_size": 512, "num_layers": 2}
CASES = {"gpt2": (GPT2, 32, 1024), "gpt2_xla": (GPT2, 32, 1024), "lstm": (LSTM, 256, 100)}  # (fields, batch, tokens)


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--steps", type=int, default=20, help="steps of a round (default: 20)")
  parser.add_argument("--peak", type=float, default=989, help="TFLOP/s of the device in bfloat16 (default: an H200's)")
  parser.add_argument("--only", default=",".join(CASES), help="cases, with commas")
  given = parser.parse_args()
  device = jax.devices()[0]
  jax.config.update("jax_default_matmul_precision", "tensorfloat32" if device.platform == "gpu" else None)
  print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, Python {platform.python_version()}")
  for case in given.only.split(","):
    fields, batch, length = CASES[case]
    if device.platform == "cpu":
      fields, batch, length = TINY if "gpt2" in case else LSTM | {"hidden_size": 16}, 2, 32
    variants = {"ours": ours(case, fields, batch, length, device)}
    if theirs := torch_step(case, fields, batch, length):
      variants["torch"] = theirs
    found = rates(variants, given.steps, batch * length)
    said = "".join(
      f"  {key} {value:,.0f} tokens/s{used(case, fields, length, value, given)}" for key, value in found.items()
    )
    print(f"{case} batch {batch}, {length} tokens{said}{ratio(found)}", flush=True)


def used(case: str, fields: dict, length: int, rate: float, given: argparse.Namespace) -> str:
  """The share of the device's operations that a GPT's products are."""
  if case == "lstm":
    return ""
  layers, size = fields["num_layers"], fields["hidden_size"]
  parameters = 12 * layers * size**2 + fields["vocab_size"] * size  # the head is the table
  share = rate * (6 * parameters + 12 * layers * size * length) / given.peak / 1e12
  return f" ({share:.1%} of {given.peak:.0f} TFLOP/s)"


def ours(case: str, fields: dict, batch: int, length: int, device):
  """A function that makes so many of our steps on a batch that lies on the device; compiled."""
  name = "lstm_lm"
  if case != "lstm":
    kernel = "cudnn" if case == "gpt2" and device.platform == "gpu" else "xla"
    name, fields = "gpt2", fields | language_cpu.DRY | {"kernel": kernel}
  mesh = Mesh(np.array([device]), (DATA,))
  tokens = np.random.default_rng(0).integers(0, fields["vocab_size"], (batch, length + 1)).astype(np.int32)
  resident = jax.device_put({"tokens": tokens, "mask": np.ones((batch, length), np.float32)}, device)
  dtype = "float32" if case == "lstm" else "bfloat16"
  state, function = language_cpu.prepared(
    name, fields, batch, length, mesh, DISPATCH, lambda resident, item: resident, dtype=dtype
  )
  return runner(function, state, resident)


def torch_step(case, fields, batch, length):
  """The same in torch; None without torch and CUDA."""
  if importlib.util.find_spec("torch") is None:
    return None
  import torch
  import torch_language

  if not torch.cuda.is_available():
    return None
  print(f"torch {torch.__version__}")
  torch.set_float32_matmul_precision("high")
  torch.backends.cudnn.allow_tf32 = True
  lstm = case == "lstm"
  if lstm:
    model = torch_language.LSTM(*(fields[key] for key in ("vocab_size", "hidden_size", "num_layers")), True).cuda()
  else:
    model = torch.compile(torch_language.GPT(*fields.values(), 1024).cuda())
  make = torch.optim.Adam if lstm else torch.optim.AdamW
  optimizer = make(model.parameters(), 1e-3, weight_decay=0.0 if lstm else 0.1, fused=True)
  tokens = torch.randint(0, fields["vocab_size"], (batch, length + 1), device="cuda")
  x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

  def run(steps):
    for _ in range(steps):
      optimizer.zero_grad(set_to_none=True)
      with torch.autocast("cuda", torch.bfloat16, enabled=not lstm):
        loss = torch.nn.functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
      loss.backward()
      if lstm:
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
      optimizer.step()
    torch.cuda.synchronize()
    return steps

  run(10)
  return run


if __name__ == "__main__":
  main()
