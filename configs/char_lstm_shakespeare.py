"""Two LSTM layers of 256 write Shakespeare, letter by letter: Karpathy 2015, char-rnn.

  python launch.py --config=configs/char_lstm_shakespeare.py --config.data.data_dir=DIR

Karpathy 2015, "The Unreasonable Effectiveness of Recurrent Neural Networks"; Adam instead of its RMSProp.
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Text, Train


def get_config() -> Config:
  """2 x 256, sequences of 100 in 32 streams with the state carried over."""
  return Config(
    task="language_model",
    model=Model("lstm_lm", {"hidden_size": 256, "num_layers": 2, "dropout": 0.3, "init_scale": 0.08}),
    data=Data(
      "tiny_shakespeare",
      batch_size=32,
      eval_batch_size=32,
      eval_split="validation",
      text=Text("chars", length=100, streams=True),
    ),  # fmt: skip
    optim=Optim("adam", lr=2e-3, clip_norm=5.0, schedule="cosine", final_fraction=0.02),
    train=Train(steps=6000, eval_every=500),
  )
