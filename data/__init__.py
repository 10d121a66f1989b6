"""Datasets, batches and augmentation; knows no model.

A batch is a dict of arrays of fixed shape, B examples on every device or in all:

Of every kind of data:

  index   [B] int32, the example's place in its split: keys its randomness
  mask    [B] float32, 1 for an example, 0 for padding at the end of an evaluation; of tokens to be predicted [B, T]

Images (pipeline.py):

  image   [B, H, W, C] uint8; once `augment` or `views` has normalised it, float32 of `views.input_shape`
  label   [B] int32
  label2  [B] int32 and mix [B] float32, after mixup only: the partner's label and the share of the example's own

Scenes (scenes.py), G = data.scenes.objects; augmentation makes `image` float32 as it does with images, zeros beside the
picture; with mosaic G and P are four times as many behind it:

  image   [B, H, W, 3] uint8, the picture at the top left of its canvas, zeros beside it
  size    [B, 2] int32, (height, width) of the picture on the canvas
  scale   [B, 2] float32, (y, x) pixels of the canvas for one of the original
  boxes   [B, G, 4] float32, x1 y1 x2 y2 in pixels of the canvas; zeros for padding
  labels  [B, G] int32, 1 + class; 0 for padding, and behind augmentation for crowds and what is no longer seen
  crowd   [B, G] bool, COCO's `iscrowd` and VOC's `difficult`: not learned from, ignored by the metrics
  masks   [B, G, H, ceil(W / 8)] uint8, each object's pixels, bits packed as numpy.packbits does; [B, G, H, W] bool
          for the model, in training and evaluation; with data.scenes.masks only
  proposals  [B, P, 4] float32, boxes that may hold objects, the best first, zeros for padding; P =
          data.scenes.proposals, if that is not 0

Streams of tokens (streams.py):

  tokens  [B, T + 1] int32, a window and the token behind it: each predicts the next
  fresh   [B] float32, 1 where no state is carried over from the window before
  carry   what a recurrent model carries over, arrays that begin with B

Sentences (sentences.py), padded with 0 to the width of their batch:

  text    [B, L] int32, "<s>" and a text
  label   [B] int32

Pairs (pairs.py), each padded to what its column needs in the bucket:

  source  [B, S] int32, a text and "</s>"
  target  [B, T] int32, "<s>", a text and "</s>"

Series (series.py), standardised:

  inputs  [B, window, C] float32
  targets [B, horizon, C'] float32, what follows
"""
