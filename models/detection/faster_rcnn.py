"""Faster R-CNN: a small net proposes boxes, a second one says what is in them; both see the same maps.

Ren, He, Girshick, Sun 2015, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", on the
feature pyramid of Lin et al. 2017. `fasterrcnn_resnet50_fpn` is torchvision's, whose weights it takes: 41,755,286
parameters for COCO's 91 classes with the background, batch norm frozen; 41,808,406 where it learns.

`fasterrcnn_vgg16` is the paper's, with the numbers of the authors' py-faster-rcnn: 137,078,239 parameters for VOC's 21
classes.

Deviations of the first from the paper, torchvision's: a sigmoid for each anchor, where the paper has a softmax of two;
anchors across the border learn, too. From torchvision: anchors beside the picture neither learn nor propose, for all
pictures lie on one canvas here, which may be much larger; `padding=True` lets them.

Deviations of the second: both stages learn at once and with lambda 1, as in the released code, where the paper takes
turns (section 3.2) and a lambda of 10; proposals are at least 16 pixels wide and high in what the net sees, where the
code means the original.
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from flaxonomy.errors import UserError
from flaxonomy.models import layers
from flaxonomy.models.detection import anchors, proposals, roi
from flaxonomy.models.detection.boxes import Detections
from flaxonomy.models.detection.fpn import FeaturePyramid
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.models.vision import resnet, vgg

GAUSSIAN, LINEAR = INITIALIZERS["std_0.01"], INITIALIZERS["torch_default"]
FINE = nn.initializers.normal(0.001)  # py-faster-rcnn's, of the second stage's offsets
BINS = (7, 7)  # of a region


class ProposalNet(nn.Module):
  """A 3 x 3 convolution, then scores and offsets of the anchors of each place (section 3.1).

  Attributes:
    places: anchors of one place.
    features: channels in between.
    outputs: scores of an anchor: 1 for a sigmoid, 2 for a softmax, background first.
    dtype: compute type; parameters and results are float32.
  """

  places: int
  features: int = 256
  outputs: int = 1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, maps: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Args: maps: [B, H, W, C] each. Returns: (logits [B, N] of objects, offsets [B, N, 4]), map by map, row by row."""
    conv = functools.partial(layers.Conv, kernel_init=GAUSSIAN)
    shared = conv(self.features, (3, 3), padding=1, dtype=self.dtype, name="conv")
    scores = conv(self.outputs * self.places, (1, 1), name="scores")
    offsets = conv(4 * self.places, (1, 1), name="offsets")
    logits, deltas = [], []
    for x in maps:
      x = nn.relu(shared(x)).astype(jnp.float32)
      each = scores(x).reshape(x.shape[0], -1, self.outputs)
      logits.append(each[..., 0] if self.outputs == 1 else each[..., 1] - each[..., 0])  # the softmax's logit
      deltas.append(offsets(x).reshape(x.shape[0], -1, 4))
    return jnp.concatenate(logits, 1), jnp.concatenate(deltas, 1)


class BoxHead(nn.Module):
  """Two dense layers, then scores and offsets of all classes (Girshick 2015, section 2).

  Attributes:
    num_classes: with the background, class 0.
    hidden_size: units of fc6 and fc7.
    dropout: rate behind fc6 and fc7.
    dense_init, logits_init, offsets_init: initialisers.
    dtype: compute type; parameters and results are float32.
  """

  num_classes: int
  hidden_size: int = 1024
  dropout: float = 0.0
  dense_init: nn.initializers.Initializer = LINEAR
  logits_init: nn.initializers.Initializer = LINEAR
  offsets_init: nn.initializers.Initializer = LINEAR
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool) -> dict[str, jax.Array]:
    """Looks at regions.

    Args:
      x: [B, R, h, w, C].
      train: dropout on (needs the rng stream "dropout" if there is any).

    Returns:
      {"pooled": x, "features": [B, R, hidden_size], "logits": [B, R, num_classes], "offsets": [B, R, num_classes, 4]}
    """
    stages = {"pooled": x}
    dense = functools.partial(nn.Dense, self.hidden_size, kernel_init=self.dense_init, dtype=self.dtype)
    x = x.astype(self.dtype).reshape(*x.shape[:2], math.prod(x.shape[2:]))
    for name in ("fc6", "fc7"):
      x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(dense(name=name)(x)))
    x = stages["features"] = x.astype(jnp.float32)
    stages["logits"] = nn.Dense(self.num_classes, kernel_init=self.logits_init, name="logits")(x)
    offsets = nn.Dense(4 * self.num_classes, kernel_init=self.offsets_init, name="offsets")(x)
    return stages | {"offsets": offsets.reshape(*x.shape[:2], self.num_classes, 4)}


class FasterRCNN(nn.Module):
  """Faster R-CNN on a feature pyramid on a ResNet.

  Attributes:
    num_classes: with the background, class 0.
    depths: blocks of each of the ResNet's stages, which have a level of the pyramid each: P2, P3, ...
    bottleneck, width: of the ResNet.
    features: channels of the pyramid.
    hidden_size: units of the box head's dense layers.
    sizes: roots of the areas of each level's anchors, in pixels, and of one more, for the level that is pooled.
    before: proposals of a level before the suppression, in training and else.
    after: proposals of an image behind it, in training and else.
    sampled_anchors: of an image, that the first stage learns from; at most half of them objects.
    sampled_regions: of an image, that the second stage learns from; at most a quarter of them objects.
    padding: anchors beside the picture learn and propose, too.
    frozen: batch norm learns nothing, for nets that have been trained already.
    epsilon: of batch norm; 0 for torchvision's COCO_V1 weights, which were trained so.
    axis_name: mapped axis of batch norm.
    dtype: compute type; parameters, logits and offsets are float32.
  """

  num_classes: int = 91
  depths: tuple[int, ...] = (3, 4, 6, 3)
  bottleneck: bool = True
  width: int = 64
  features: int = 256
  hidden_size: int = 1024
  sizes: tuple[tuple[int, ...], ...] = anchors.FPN_SIZES
  before: tuple[int, int] = (2000, 1000)
  after: tuple[int, int] = (2000, 1000)
  sampled_anchors: int = 256
  sampled_regions: int = 512
  padding: bool = False
  frozen: bool = True
  epsilon: float = 1e-5
  axis_name: str | None = None
  dtype: jnp.dtype = jnp.float32

  beta = 1 / 9  # where the second stage's smooth L1 turns linear

  def setup(self):
    """The parts. Raises UserError for sizes that do not fit the depths."""
    if len(self.sizes) != len(self.depths) + 1 or len({len(level) for level in self.sizes}) > 1:
      raise UserError(
        f"a pyramid on {len(self.depths)} stages needs {len(self.depths) + 1} tuples of anchor sizes, all of one "
        f"length, not {self.sizes} (config field 'model.fields.sizes')"
      )
    self.backbone = resnet.ResNet(
      self.depths, self.bottleneck, num_classes=0, width=self.width, frozen=self.frozen, epsilon=self.epsilon,
      axis_name=self.axis_name, dtype=self.dtype,
    )  # fmt: skip
    self.pyramid = FeaturePyramid(self.features, dtype=self.dtype)
    self.rpn = ProposalNet(len(self.sizes[0]) * len(anchors.RATIOS), self.features, dtype=self.dtype)
    self.box_head = BoxHead(self.num_classes, self.hidden_size, dtype=self.dtype)

  def __call__(self, x, size=None, *, train: bool) -> dict[str, jax.Array]:
    """Looks at images, both stages in turn.

    Args:
      x: [B, H, W, 3], standardised, the pictures at the top left.
      size: [B, 2] int, (height, width) of each picture; None: all that is there.
      train: batch norm by the batch, and as many proposals as there are in training.

    Returns:
      What `look` and `judge` give, and {"proposals": [B, P, 4], by falling score, "valid": bool [B, P]}.
    """
    return both(self, x, size, train)

  def look(self, x, *, train: bool) -> dict[str, jax.Array]:
    """The first stage.

    Args: as of `__call__`.

    Returns:
      {"p2": [B, H / 4, W / 4, features], "p3": ..., one for each of `sizes`, "anchors": [N, 4], "objectness": [B, N],
      logits, "deltas": [B, N, 4], the anchors' offsets}.
    """
    maps = self.backbone(x, train=train)
    levels = self.pyramid([maps[f"stage{i}"] for i in range(1, len(self.depths) + 1)])
    stages = {f"p{i}": level for i, level in enumerate(levels, 2)}
    stages["anchors"] = anchors.pyramid(tuple(level.shape[1:3] for level in levels), x.shape[1:3], self.sizes)
    stages["objectness"], stages["deltas"] = self.rpn(levels)
    return stages

  def judge(self, stages: dict, boxes: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """The second stage.

    Args:
      stages: of `look`.
      boxes: [B, R, 4] in pixels of the image.
      train: changes nothing.

    Returns:
      {"pooled": [B, R, 7, 7, features], "features": [B, R, hidden_size], "logits": [B, R, num_classes], "offsets":
      [B, R, num_classes, 4], of each class from the boxes}, the last two float32.
    """
    return self.box_head(self.pool(stages, boxes, BINS), train=train)

  @nn.nowrap
  def pool(self, stages: dict, boxes: jax.Array, bins: tuple[int, int]) -> jax.Array:
    """RoIAlign of boxes [B, R, 4] on the levels that fit them: [B, R, *bins, features]."""
    scales = tuple(0.5**i for i in range(2, len(self.depths) + 2))
    levels = [stages[f"p{i}"] for i in range(2, len(self.depths) + 2)]
    return jax.vmap(lambda levels, boxes: roi.pyramid_roi_align(levels, boxes, bins, scales=scales))(levels, boxes)

  @nn.nowrap
  def learns(self, priors: jax.Array, size: jax.Array) -> jax.Array:
    """Which anchors [N, 4] of pictures of sizes [B, 2] the first stage learns from: bool [B, N]."""
    near = proposals.seen(priors, size)
    return jnp.ones_like(near) if self.padding else near

  @nn.nowrap
  def propose(self, stages: dict, size: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
    """(boxes [B, P, 4] that may hold objects, the likeliest first, bool [B, P]: is there one?); no gradient.

    Args:
      stages: of `look`.
      size: [B, 2], (height, width) of each picture.
      train: takes the numbers for training.
    """
    maps = [stages[f"p{i}"] for i in range(2, len(self.sizes) + 2)]
    counts = tuple(x.shape[1] * x.shape[2] * len(self.sizes[0]) * len(anchors.RATIOS) for x in maps)
    usable = self.learns(stages["anchors"], size)
    before, after = self.before[not train], self.after[not train]
    return proposals.propose(
      stages["objectness"], stages["deltas"], stages["anchors"], counts, usable, size, before, after
    )

  @nn.nowrap
  def detect(
    self, stages: dict, size: jax.Array, score: float = 0.05, threshold: float = 0.5, most: int = 100
  ) -> Detections:
    """What was found in a batch.

    Args:
      stages: of `__call__`.
      size: [B, 2], (height, width) of each picture.
      score: what a probability must be above.
      threshold: IoU above which the less likely of two boxes of a class is left out.
      most: detections of an image.
    """
    return proposals.classified(
      stages["logits"], stages["offsets"], stages["proposals"], stages["valid"], size, score, threshold, most
    )


def whole(x: jax.Array) -> jax.Array:
  """The sizes [B, 2] of pictures [B, H, W, C] that fill their canvas."""
  return jnp.broadcast_to(jnp.array(x.shape[1:3])[None], (x.shape[0], 2))


def both(model: nn.Module, x: jax.Array, size: jax.Array | None, train: bool) -> dict[str, jax.Array]:
  """Both stages of a model in turn; arguments and result are those of its `__call__`."""
  stages = model.look(x, train=train)
  boxes, valid = model.propose(stages, whole(x) if size is None else size, train=train)
  return stages | {"proposals": boxes, "valid": valid} | model.judge(stages, boxes, train=train)


class FasterRCNNVGG16(nn.Module):
  """The paper's Faster R-CNN: one map of VGG16, nine anchors at each of its places, RoIPool, fc6 and fc7.

  Attributes:
    num_classes: with the background, class 0.
    depths, features: of VGG's stages, the last of which is not pooled.
    hidden_size: units of fc6 and fc7.
    sizes: roots of the areas of the anchors, in pixels, whole multiples of the map's stride.
    before: proposals before the suppression, in training and else.
    after: proposals behind it, in training and else.
    least: sides of a proposal, in pixels.
    sampled_anchors, sampled_regions: as in `FasterRCNN`.
    dropout: rate behind fc6 and fc7.
    dtype: compute type; parameters, logits and offsets are float32.
  """

  num_classes: int = 21
  depths: tuple[int, ...] = (2, 2, 3, 3, 3)
  features: tuple[int, ...] = (64, 128, 256, 512, 512)
  hidden_size: int = 4096
  sizes: tuple[int, ...] = anchors.VGG_SIZES[0]
  before: tuple[int, int] = (12000, 6000)
  after: tuple[int, int] = (2000, 300)
  least: int = 16
  sampled_anchors: int = 256
  sampled_regions: int = 128
  dropout: float = 0.5
  dtype: jnp.dtype = jnp.float32

  beta = 1.0  # where the second stage's smooth L1 turns linear

  def setup(self):
    """The parts. Raises UserError for sizes that are no multiples of the stride."""
    self.stride = 2 ** (len(self.depths) - 1)
    if any(size % self.stride for size in self.sizes):
      raise UserError(
        f"anchor sizes must be multiples of {self.stride}, not {self.sizes} (config field 'model.fields')"
      )
    self.backbone = vgg.VGG(self.depths, num_classes=0, features=self.features, dtype=self.dtype)
    places = len(self.sizes) * len(anchors.RATIOS)
    self.rpn = ProposalNet(places, self.features[-1], outputs=2, dtype=self.dtype)
    self.box_head = BoxHead(
      self.num_classes, self.hidden_size, self.dropout, vgg.GAUSSIAN, GAUSSIAN, FINE, dtype=self.dtype
    )

  def __call__(self, x, size=None, *, train: bool) -> dict[str, jax.Array]:
    """Looks at images, both stages in turn: arguments and result as of `FasterRCNN`, with dropout in training."""
    return both(self, x, size, train)

  def look(self, x, *, train: bool) -> dict[str, jax.Array]:
    """The first stage.

    Args: as of `__call__`.

    Returns:
      {"map": [B, H / 16, W / 16, 512], "anchors": [N, 4], "objectness": [B, N], logits, "deltas": [B, N, 4]}
    """
    x = self.backbone(x, train=train)[f"conv{len(self.depths)}_{self.depths[-1]}"]
    # x2 and y2 of the authors' anchors are the last pixel inside; ours are the one behind it.
    cell = anchors.py_faster_rcnn(self.stride, tuple(size // self.stride for size in self.sizes))
    cell = cell + jnp.array([[0.0, 0.0, 1.0, 1.0]])
    objectness, deltas = self.rpn([x])
    priors = anchors.grid(cell, x.shape[1:3], (self.stride, self.stride))
    return {"map": x, "anchors": priors, "objectness": objectness, "deltas": deltas}

  def judge(self, stages: dict, boxes: jax.Array, *, train: bool) -> dict[str, jax.Array]:
    """The second stage: arguments and result as of `FasterRCNN.judge`, with dropout in training."""
    last = boxes - jnp.array([[[0.0, 0.0, 1.0, 1.0]]])  # RoIPool, too, takes the last pixel inside
    pool = jax.vmap(lambda x, boxes: roi.roi_pool(x, boxes, BINS, 1 / self.stride))
    return self.box_head(pool(stages["map"], last), train=train)

  @nn.nowrap
  def learns(self, priors: jax.Array, size: jax.Array) -> jax.Array:
    """Which anchors [N, 4] of pictures of sizes [B, 2] the first stage learns from: those inside; bool [B, N]."""
    return proposals.inside(priors, size)

  @nn.nowrap
  def propose(self, stages: dict, size: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
    """(boxes [B, P, 4] that may hold objects, bool [B, P]): arguments and result as of `FasterRCNN.propose`."""
    priors, before, after = stages["anchors"], self.before[not train], self.after[not train]
    usable = proposals.seen(priors, size)
    return proposals.propose(
      stages["objectness"], stages["deltas"], priors, (priors.shape[0],), usable, size, before, after, least=self.least
    )

  @nn.nowrap
  def detect(
    self, stages: dict, size: jax.Array, score: float = 0.05, threshold: float = 0.3, most: int = 100
  ) -> Detections:
    """What was found in a batch: arguments as of `FasterRCNN.detect`."""
    return proposals.classified(
      stages["logits"], stages["offsets"], stages["proposals"], stages["valid"], size, score, threshold, most
    )
