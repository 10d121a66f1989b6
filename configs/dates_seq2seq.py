"""Dates in words to ISO 8601, character by character: "the third of March, nineteen eighty-seven" to "1987-03-03".

Bahdanau, Cho, Bengio 2014: an encoder in both directions, a decoder that looks back at it (attention.png shows where).
Made on the machine, 20,000 + 1,000 pairs; nothing is downloaded. 99.6 % of the test's dates are right to the last
character, after two minutes on one busy core.

  python launch.py --config=configs/dates_seq2seq.py
  echo "Tuesday, 3 March 1987" | python launch.py --mode=chat --workdir=runs/dates_seq2seq
"""

from flaxonomy.configs.base import Config, Data, Decode, Model, Optim, Text, Train

FIELDS = {
  "cell": "gru", "bidirectional": True, "attention": "additive", "embedding_size": 32, "hidden_size": 64,
}  # fmt: skip


def get_config() -> Config:
  return Config(
    task="translation",
    model=Model("seq2seq", FIELDS),
    data=Data("dates", batch_size=64, eval_batch_size=250, text=Text("chars", length=56)),
    optim=Optim("adam", lr=3e-3, clip_norm=1.0, schedule="cosine", warmup_steps=50),
    train=Train(steps=600, eval_every=300),
    decode=Decode(max_ratio=0.0, max_extra=12, bleu=False),
  )
