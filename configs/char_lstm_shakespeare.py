"""Two recurrent layers of 256 write Shakespeare, letter by letter; LSTM, or :rnn, :gru.

  python launch.py --config=configs/char_lstm_shakespeare.py --config.data.data_dir=DIR

After Karpathy 2015, "The Unreasonable Effectiveness of Recurrent Neural Networks", with Adam instead of RMSProp. DIR
holds TFDS's tiny_shakespeare, prepared. 1.41 nats a letter of validation. War and Peace, or any other text:
--config.data.name=text.
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Text, Train, variant

VARIANTS = ("lstm", "rnn", "gru")


def get_config(cell: str = "lstm") -> Config:
  """2 x 256, windows of 100 in 32 streams with the state carried over, dropout .3."""
  model = f"{variant(cell, VARIANTS)}_lm"
  return Config(
    task="language_model",
    model=Model(model, {"hidden_size": 256, "num_layers": 2, "dropout": 0.3, "init_scale": 0.08}),
    data=Data(
      "tiny_shakespeare",
      batch_size=32,
      eval_batch_size=32,
      eval_split="validation",
      text=Text("chars", length=100, streams=True),
    ),
    optim=Optim("adam", lr=2e-3, clip_norm=5.0, schedule="cosine", final_fraction=0.02),
    train=Train(steps=6000, eval_every=500),
  )
