"""Sentiment of film reviews with a small Transformer encoder (Vaswani et al. 2017), on SST-2.

    python launch.py --config=configs/sst2_transformer.py --config.data.data_dir=SST-2

The folder holds train.tsv and dev.tsv, as GLUE has them, or these as .gz. Trained on the phrases, evaluated on the
sentences of dev. Expected: about 80% accuracy.
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Text, Train


def get_config() -> Config:
  """The experiment."""
  return Config(
    task="text_classification",
    model=Model("transformer_classifier", {"num_layers": 2, "hidden_size": 128, "max_length": 64, "dropout": 0.3}),
    data=Data(
      name="labelled",
      eval_split="validation",
      batch_size=64,
      eval_batch_size=128,
      text=Text("words", lowercase=True, buckets=(6, 12, 20, 32, 64)),
    ),
    optim=Optim("adam", lr=5e-4, clip_norm=1.0, schedule="linear", warmup_steps=500),
    train=Train(steps=5000, eval_every=500),
  )
