"""WMT 2014, English to German, with the Transformer as published: base, or big behind the colon.

Vaswani et al. 2017, section 5: 37,000 pieces of words for both languages, batches of about 25,000 tokens, Adam with
.9, .98 and 1e-9, the rate rising over 4,000 steps and falling with the root of the step, dropout .1 (big .3), label
smoothing .1, 100,000 steps (big 300,000), beams of four with length penalty .6. Published: BLEU 27.3 and 28.4 on
newstest2014, by tokens with compounds split, which sacreBLEU's are not. Not run here: 12 hours and 3.5 days on eight
P100.

Deviations: batches of 896 pairs of about one length, not of so many tokens; an average over the last 1,000 steps or so,
not of the last five or twenty checkpoints; smoothing spreads over the right piece too. A vocabulary
that a run has made can be taken again: --config.data.text.tokenizer=runs/wmt14_transformer/tokenizer_source.json.

  python launch.py --config=configs/wmt14_transformer.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Config, Data, Decode, Model, Optim, Text, Train, variant

STEPS = {"base": 100_000, "big": 300_000}
VARIANTS = tuple(STEPS)


def get_config(name: str = "base") -> Config:
  steps = STEPS[variant(name, VARIANTS)]
  big = name == "big"
  text = Text("bpe", vocab_size=37000, shared=True, length=128, buckets=(16, 24, 32, 48, 64, 96, 128))
  return Config(
    task="translation",
    model=Model("transformer_big" if big else "transformer"),
    data=Data("wmt14_translate/de-en", eval_split="validation", batch_size=896, eval_batch_size=128, text=text),
    optim=Optim(
      "adam", lr=1.0, b1=0.9, b2=0.98, eps=1e-9, schedule="noam", warmup_steps=4000, model_size=1024 if big else 512
    ),
    train=Train(steps=steps, eval_every=5000, label_smoothing=0.1, ema_decay=0.999),
    decode=Decode(beams=4, length_penalty=0.6),
  )
