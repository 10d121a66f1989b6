"""Sentiment of film reviews with a bidirectional LSTM and self-attention (Lin et al. 2017), on SST-2.

    python launch.py --config=configs/sst2_bilstm.py --config.data.data_dir=SST-2

The folder holds train.tsv and dev.tsv, as GLUE has them, or these as .gz. Trained on the phrases, evaluated on the
sentences of dev. Expected: about 82% accuracy.
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Text, Train


def get_config() -> Config:
  """The experiment."""
  return Config(
    task="text_classification",
    model=Model("bilstm_classifier", {"embedding_size": 128, "hidden_size": 128, "dropout": 0.5}),
    data=Data(
      name="labelled",
      eval_split="validation",
      batch_size=64,
      eval_batch_size=128,
      text=Text("words", lowercase=True, buckets=(6, 12, 20, 32, 64)),
    ),
    optim=Optim("adam", lr=1e-3, clip_norm=1.0, schedule="linear"),
    train=Train(steps=5000, eval_every=500),
  )
