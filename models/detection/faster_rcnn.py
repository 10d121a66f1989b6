"""Faster R-CNN: a small net proposes boxes, a second one says what is in them; both see the same maps.

Ren, He, Girshick, Sun 2015, "Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks", on the
feature pyramid of Lin et al. 2017. `fasterrcnn_resnet50_fpn` is torchvision's, whose weights it takes: 41,755,286
parameters for COCO's 91 classes with the background, batch norm frozen; 41,808,406 where it learns.

Deviations from the paper, torchvision's: a sigmoid for each anchor, where the paper has a softmax of two; anchors
across the border learn, too. Deviation from torchvision: anchors beside the picture neither learn nor propose, for all
pictures lie on one canvas here, which may be much larger; `padding=True` lets them.
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
from flaxonomy.models.vision import resnet

GAUSSIAN, LINEAR = INITIALIZERS["std_0.01"], INITIALIZERS["torch_default"]
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
    dtype: compute type; parameters and results are float32.
  """

  num_classes: int
  hidden_size: int = 1024
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, pooled) -> dict[str, jax.Array]:
    """Args: pooled: [R, h, w, C]. Returns: {"features": [R, hidden_size], "logits": [R, C], "offsets": [R, C, 4]}."""
    dense = functools.partial(nn.Dense, kernel_init=LINEAR)
    x = pooled.astype(self.dtype).reshape(-1, math.prod(pooled.shape[1:]))
    x = nn.relu(dense(self.hidden_size, dtype=self.dtype, name="fc6")(x))
    x = nn.relu(dense(self.hidden_size, dtype=self.dtype, name="fc7")(x)).astype(jnp.float32)
    offsets = dense(4 * self.num_classes, name="offsets")(x).reshape(-1, self.num_classes, 4)
    return {"features": x, "logits": dense(self.num_classes, name="logits")(x), "offsets": offsets}


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
    return judged(self.box_head, self.pool(stages, boxes, BINS))

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


def judged(head, pooled: jax.Array) -> dict[str, jax.Array]:
  """What a head says of regions [B, R, h, w, C], with {"pooled": the same}: arrays [B, R, ...]."""
  found = head(pooled.reshape(-1, *pooled.shape[2:]))
  return {"pooled": pooled} | {key: x.reshape(*pooled.shape[:2], *x.shape[1:]) for key, x in found.items()}
