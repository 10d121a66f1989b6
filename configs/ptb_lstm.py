"""Word language models of the Penn Treebank: Zaremba, Sutskever, Vinyals 2014; :small, :medium or :large.

  python launch.py --config=configs/ptb_lstm.py --config.data.data_dir=DIR

"Recurrent Neural Network Regularization", sections 4.1 and the code that goes with it. Test perplexities of the paper:
114.5 (small, without dropout), 82.7 (medium), 78.4 (large); ours, small and after 7 epochs, 113.0. DIR holds Mikolov's
ptb.train.txt, ptb.valid.txt and ptb.test.txt, or a zip file of them. The test split: --mode=eval
--config.data.eval_split=test.

The paper's loss is a sum over a window's words, ours the mean; so its learning rate 1 and norm 5 are ours times and
divided by the words of a window. WikiText-2: --config.data.data_dir=DIR of wiki.train.tokens and the others.
"""

from flaxonomy.configs.base import Config, Data, Model, Optim, Text, Train, variant

# hidden size, dropout, initial values, words of a window, norm, first epoch that lowers the rate, by what, epochs
SIZES = {
  "small": (200, 0.0, 0.1, 20, 5.0, 4, 0.5, 13),
  "medium": (650, 0.5, 0.05, 35, 5.0, 6, 0.8, 39),
  "large": (1500, 0.65, 0.04, 35, 10.0, 14, 1 / 1.15, 55),
}
VARIANTS = tuple(SIZES)
TOKENS = 929_589  # of the training split, line ends included


def get_config(size: str = "small") -> Config:
  """Two layers, 20 streams with the state carried over, SGD whose rate falls epoch by epoch."""
  hidden_size, dropout, init_scale, length, norm, first, decay, epochs = SIZES[variant(size, VARIANTS)]
  epoch = (TOKENS - 1) // 20 // length
  fields = {"hidden_size": hidden_size, "num_layers": 2, "dropout": dropout, "init_scale": init_scale}
  return Config(
    task="language_model",
    model=Model("lstm_lm", fields),
    data=Data(
      "text",
      batch_size=20,
      eval_batch_size=10,
      eval_split="validation",
      text=Text("words", vocab_size=10_000, length=length, streams=True),
    ),
    optim=Optim(
      "sgd",
      lr=float(length),
      clip_norm=norm / length,
      schedule="step",
      decay_rate=decay,
      boundaries=tuple(epoch * i for i in range(first, epochs)),
    ),
    train=Train(steps=epochs * epoch, eval_every=epoch),
  )
