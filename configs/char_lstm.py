"""Two LSTM layers of 128 write Python, letter by letter, trained on the standard library's own source; no download.

  python launch.py --config=configs/char_lstm.py
  python launch.py --mode=sample --workdir=runs/char_lstm --prompt="def " --temperature=0.7

After Karpathy 2015, "The Unreasonable Effectiveness of Recurrent Neural Networks". 1.53 nats a letter of validation
after two minutes of computing. The text is that of the Python that runs it, so figures differ a little between
versions. Any text of yours: --config.data.name=text --config.data.data_dir=FILE_OR_FOLDER.
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Text, Train


def get_config() -> Config:
  """2 x 128, windows of 64 in 32 streams with the state carried over."""
  return Config(
    task="language_model",
    model=Model("lstm_lm", {"hidden_size": 128, "num_layers": 2, "init_scale": 0.08}),
    data=Data(
      "python_source",
      batch_size=32,
      eval_batch_size=64,
      eval_split="validation",
      text=Text("chars", vocab_size=128, length=64, streams=True),
    ),
    optim=Optim("adam", lr=4e-3, clip_norm=5.0, schedule="cosine", final_fraction=0.05),
    train=Train(steps=2500, eval_every=500),
  )
