"""SST-2 with an LSTM in both directions and self-attention: Lin et al. 2017, "A Structured Self-attentive Sentence
Embedding".

  python launch.py --config=configs/sst2_bilstm.py --config.data.data_dir=DIR

DIR holds train.tsv and dev.tsv as GLUE has them, or .gz of them. Trained on the 67,349 phrases, about five epochs;
84.2 % of the 872 sentences of dev, 85.7 % of the 1,821 of test (--mode=eval --config.data.eval_split=test). 8 minutes
on half a busy CPU core.
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Text, Train


def get_config() -> Config:
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
