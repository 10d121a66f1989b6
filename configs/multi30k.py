"""Multi30k, English to German: captions of pictures, without attention, with it, and with nothing else.

  none         Sutskever, Vinyals, Le 2014: an LSTM reads the source backwards, another writes
  dot          Luong, Pham, Manning 2015: it looks at the states of the encoder
  general      the same with a matrix between, on an encoder in both directions
  bahdanau     Bahdanau, Cho, Bengio 2014: GRUs, looked at before each step through a hidden layer
  transformer  Vaswani et al. 2017, of two layers, norms first

For CPUs: 256 units, 4,000 pieces of words for both languages, 3 epochs; on one busy core the BLEU of test_2016_flickr
was 8.9 (none), 24.3 (dot) and 28.3 (transformer) after 12, 17 and 27 minutes. DIR holds train.en, train.de and so on,
as github.com/multi30k/dataset has them under task1/raw. Validated on "val"; afterwards

  python launch.py --config=configs/multi30k.py:dot --config.data.data_dir=DIR --workdir=runs/multi30k_dot
  python launch.py --mode=eval --workdir=runs/multi30k_dot --checkpoint=best --config.data.eval_split=test_2016_flickr
"""

from flaxonomy.configs.base import Config, Data, Decode, Model, Optim, Text, Train, variant

LSTM = {"embedding_size": 256, "hidden_size": 256, "dropout": 0.2}
VARIANTS = {
  "dot": ("seq2seq", LSTM | {"attention": "dot"}),
  "none": ("seq2seq", LSTM | {"attention": "none", "reverse_source": True}),
  "general": ("seq2seq", LSTM | {"attention": "general", "bidirectional": True}),
  "bahdanau": ("seq2seq", LSTM | {"attention": "additive", "bidirectional": True, "cell": "gru", "maxout": True}),
  "transformer": (
    "transformer",
    {"hidden_size": 256, "num_layers": 2, "num_heads": 4, "mlp_size": 512, "norm_first": True, "final_norms": True},
  ),
}
EPOCH = 450  # steps, about: what is left of each bucket is left out


def get_config(name: str = "dot") -> Config:
  model = Model(*VARIANTS[variant(name, tuple(VARIANTS))])
  text = Text("bpe", vocab_size=4000, shared=True, length=48, buckets=(12, 16, 20, 28, 48), languages=("en", "de"))
  adam = Optim("adam", lr=2e-3, clip_norm=1.0, schedule="cosine", warmup_steps=200)
  if name == "transformer":
    adam = Optim("adam", lr=1e-3, b2=0.98, eps=1e-9, clip_norm=1.0, schedule="cosine", warmup_steps=400)
  return Config(
    task="translation",
    model=model,
    data=Data("pairs", eval_split="val", batch_size=64, eval_batch_size=256, text=text),
    optim=adam,
    train=Train(steps=3 * EPOCH, eval_every=EPOCH, label_smoothing=0.1),
    decode=Decode(max_extra=20),
  )
