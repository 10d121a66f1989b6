"""Korean to English, short everyday sentences: an encoder and decoder of a size to chat with.

Luong, Pham, Manning 2015: GRUs, the encoder in both directions, the decoder looks back through a matrix. DIR holds
Tatoeba's kor-eng.txt (manythings.org/anki), 3,723 pairs: too few to translate (BLEU 5.5 of its
test split, lower case, after five minutes on one core), enough to see some words found. For others of that collection:
--config.data.text.languages="('de', 'en')".

  python launch.py --config=configs/korean_english.py --config.data.data_dir=DIR
  python launch.py --mode=chat --workdir=runs/korean_english
"""

from flaxonomy.configs.base import Config, Data, Decode, Model, Optim, Text, Train

FIELDS = {
  "cell": "gru", "bidirectional": True, "attention": "general", "embedding_size": 128, "hidden_size": 128,
  "dropout": 0.4,
}  # fmt: skip


def get_config() -> Config:
  text = Text("bpe", vocab_size=2000, lowercase=True, length=32, buckets=(12, 18, 32), languages=("ko", "en"))
  return Config(
    task="translation",
    model=Model("seq2seq", FIELDS),
    data=Data("pairs", eval_split="validation", batch_size=32, eval_batch_size=64, text=text),
    optim=Optim("adam", lr=2e-3, clip_norm=1.0, schedule="cosine", warmup_steps=100),
    train=Train(steps=2000, eval_every=500, label_smoothing=0.1),
    decode=Decode(max_extra=10, beams=4),
  )
