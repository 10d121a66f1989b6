"""A small GPT writes Shakespeare, letter by letter: :small for CPUs, :nanogpt as nanoGPT trains it on a GPU.

  python launch.py --config=configs/gpt_shakespeare.py --config.data.data_dir=DIR

Radford et al. 2018 and 2019; sizes and recipe after nanoGPT's train_shakespeare_char, whose figures are validation
losses of 1.88 (its CPU settings, 4 layers of 128, windows of 64) and 1.47 (GPU, 6 layers of 384, windows of 256). Ours,
small: 1.43; :nanogpt was not run.
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Text, Train, variant

VARIANTS = ("small", "nanogpt")


def get_config(size: str = "small") -> Config:
  """4 x 128, windows of 128, or 6 x 384, windows of 256."""
  small = variant(size, VARIANTS) == "small"
  length, dropout = (128, 0.1) if small else (256, 0.2)
  layers, hidden_size = (4, 128) if small else (6, 384)
  width = {"num_layers": layers, "hidden_size": hidden_size, "num_heads": layers}
  rates = dict.fromkeys(("dropout", "embedding_dropout", "attention_dropout"), dropout)
  return Config(
    task="language_model",
    model=Model("gpt2", {"max_length": length, **width, **rates}),
    data=Data(
      "tiny_shakespeare",
      batch_size=32 if small else 64,
      eval_batch_size=64,
      eval_split="validation",
      text=Text("chars", length=length),
    ),
    optim=Optim(
      "adamw",
      lr=2e-3 if small else 1e-3,
      b2=0.99,
      weight_decay=0.1,
      clip_norm=1.0,
      schedule="cosine",
      warmup_steps=100,
      final_fraction=0.1,
    ),
    train=Train(steps=5000, eval_every=500, dtype="float32" if small else "bfloat16"),
  )
