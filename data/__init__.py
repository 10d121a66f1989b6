"""Datasets, batches and augmentation; knows no model.

A batch is a dict of arrays of fixed shape, B examples on every device or in all:

Of every kind of data:

  index   [B] int32, the example's place in its split: keys its randomness
  mask    [B] float32, 1 for an example, 0 for padding at the end of an evaluation; of tokens to be predicted [B, T]

Images (pipeline.py):

  image   [B, H, W, C] uint8; once `augment` or `views` has normalised it, float32 of `views.input_shape`
  label   [B] int32
  label2  [B] int32 and mix [B] float32, after mixup only: the partner's label and the share of the example's own

Streams of tokens (streams.py):

  tokens  [B, T + 1] int32, a window and the token behind it: each predicts the next
  fresh   [B] float32, 1 where no state is carried over from the window before
  carry   what a recurrent model carries over, arrays that begin with B

Sentences (sentences.py), padded with 0 to the width of their batch:

  text    [B, L] int32, "<s>" and a text
  label   [B] int32

Pairs (pairs.py), both padded likewise:

  source  [B, L] int32, a text and "</s>"
  target  [B, L] int32, "<s>", a text and "</s>"

Series (series.py), standardised:

  inputs  [B, window, C] float32
  targets [B, horizon, C'] float32, what follows
"""
