"""Boxes: overlaps, coding, matching with the truth, sampling, and non-maximum suppression.

Boxes are float32 [N, 4], x1 y1 x2 y2 in pixels, without the +1 of older code. All is of fixed shape and goes through
jit and vmap, for batches; boxes that only fill up a shape are told by a mask. Numbers and order are torchvision's.

Boxes without width or height, with x2 < x1 or with NaN are empty: of area 0, and they overlap nothing. Infinite boxes
overlap nothing either. A `matched` [N] holds for each box the index of its box of truth, -1 for background, or -2 for
what is neither.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flaxonomy.errors import UserError

BACKGROUND, BETWEEN = -1, -2  # in what the matchers give
LIMIT = math.log(1000 / 16)  # of decoded log scales: a stride of 16 becomes 1000 pixels at most (Girshick's code)
BLOCK = 128  # boxes that are suppressed at once; 64 to 256 are as fast on CPUs, fewer blocks are better elsewhere


class Detections(NamedTuple):
  """What was found in each image, the likeliest first.

  Attributes:
    boxes: [B, K, 4].
    scores: [B, K].
    labels: [B, K] int32, from 1 on.
    valid: bool [B, K], False for rows that only fill up.
  """

  boxes: jax.Array
  scores: jax.Array
  labels: jax.Array
  valid: jax.Array


def area(boxes: jax.Array) -> jax.Array:
  """Areas in square pixels: [..., 4] to [...]; 0 for empty boxes."""
  return _area(jnp.moveaxis(boxes, -1, 0))


def _area(columns):
  """The same of x1 y1 x2 y2 [4, ...]."""
  w, h = columns[2] - columns[0], columns[3] - columns[1]
  return jnp.where((w > 0) & (h > 0), w * h, 0)


def iou(a: jax.Array, b: jax.Array) -> jax.Array:
  """Intersection over union: [N, 4] and [M, 4] to [N, M] in [0, 1]; 0 where the union is 0, infinite or NaN."""
  return _iou(a.T, b.T)


def giou(a: jax.Array, b: jax.Array) -> jax.Array:
  """IoU less the hull's share outside the union, in [-1, 1] (Rezatofighi et al. 2019): [N, 4] and [M, 4] to [N, M].

  Where the hull is empty, infinite or NaN it is the IoU.
  """
  a, b = a.T, b.T
  union = _intersection_and_union(a, b)[1]
  w, h = _apart(jnp.maximum, a, b, 2, jnp.minimum, 0), _apart(jnp.maximum, a, b, 3, jnp.minimum, 1)
  hull = w * h
  good = (w > 0) & (h > 0) & (hull < jnp.inf) & ~jnp.isnan(union)
  return _iou(a, b) - jnp.where(good, (hull - union) / jnp.where(good, hull, 1), 0)


def _iou(a, b):
  """IoU of columns [4, N] and [4, M], the layout in which it is fast."""
  intersection, union = _intersection_and_union(a, b)
  good = union > 0
  return jnp.where(good, intersection / jnp.where(good, union, 1), 0)


def _intersection_and_union(a, b):
  w, h = (jnp.maximum(_apart(jnp.minimum, a, b, k + 2, jnp.maximum, k), 0) for k in (0, 1))
  return w * h, _area(a)[:, None] + _area(b)[None] - w * h


def _apart(far, a, b, i, near, j):
  """far(a[i], b[i]) - near(a[j], b[j]) of all pairs, [N, M]."""
  return far(a[i][:, None], b[i][None]) - near(a[j][:, None], b[j][None])


def clip(boxes: jax.Array, height: int | jax.Array, width: int | jax.Array) -> jax.Array:
  """Boxes [..., 4] with their corners moved into the image; those outside it become empty."""
  x1, y1, x2, y2 = jnp.moveaxis(boxes, -1, 0)
  corners = (jnp.clip(x1, 0, width), jnp.clip(y1, 0, height), jnp.clip(x2, 0, width), jnp.clip(y2, 0, height))
  return jnp.stack(corners, -1)


def large_enough(boxes: jax.Array, size: float) -> jax.Array:
  """Which boxes are `size` pixels wide and high at least: [..., 4] to bool [...]; False for NaN."""
  return (boxes[..., 2] - boxes[..., 0] >= size) & (boxes[..., 3] - boxes[..., 1] >= size)


def encode(truth: jax.Array, boxes: jax.Array, weights: tuple[float, float, float, float] = (1, 1, 1, 1)) -> jax.Array:
  """What takes boxes to their truth (Girshick et al. 2014, appendix C): (dx / w, dy / h, log dw, log dh) x weights.

  Args:
    truth: [..., 4].
    boxes: [..., 4], anchors or proposals.
    weights: R-CNN's second stage and SSD take (10, 10, 5, 5), the targets' deviations turned over.

  Returns:
    [..., 4]; zeros where one of the two has no width or height, is infinite or NaN, so that a mask can take it out.
  """
  (x, y, w, h), (to_x, to_y, to_w, to_h) = _centred(boxes), _centred(truth)
  sides = jnp.stack([w, h, to_w, to_h])
  good = ((sides > 0) & (sides < jnp.inf)).all(0)
  w, h, to_w, to_h = (jnp.where(good, side, 1) for side in (w, h, to_w, to_h))
  moves = ((to_x - x) / w, (to_y - y) / h, jnp.log(to_w / w), jnp.log(to_h / h))
  return jnp.stack([jnp.where(good, weight * move, 0) for weight, move in zip(weights, moves)], -1)


def decode(
  deltas: jax.Array,
  boxes: jax.Array,
  weights: tuple[float, float, float, float] = (1, 1, 1, 1),
  limit: float = LIMIT,
) -> jax.Array:
  """`encode` turned over.

  Args:
    deltas: [..., 4]; [N, C, 4] with boxes [N, 1, 4] where each class has its own.
    boxes: [..., 4], what `encode` began with.
    weights: as for `encode`.
    limit: log dw and log dh are at most that, so that no exponential runs away; math.inf for SSD's paper.

  Returns:
    [..., 4], not clipped to the image; NaN where the deltas are.
  """
  x, y, w, h = _centred(boxes)
  dx, dy, dw, dh = (deltas[..., k] / weight for k, weight in enumerate(weights))
  x, y = dx * w + x, dy * h + y
  w, h = jnp.exp(jnp.minimum(dw, limit)) * w, jnp.exp(jnp.minimum(dh, limit)) * h
  return jnp.stack([x - 0.5 * w, y - 0.5 * h, x + 0.5 * w, y + 0.5 * h], -1)


def _centred(boxes):
  """Centres and sides: x, y, w, h, each [...]."""
  x1, y1, x2, y2 = (boxes[..., k] for k in range(4))
  w, h = x2 - x1, y2 - y1
  return x1 + 0.5 * w, y1 + 0.5 * h, w, h


def match(overlap: jax.Array, valid: jax.Array, low: float, high: float, low_quality: bool = False) -> jax.Array:
  """The box of truth for each box, as torchvision's Matcher finds it: the one of the largest IoU, the first of equals.

  Deviation: a box of truth that overlaps nothing is nobody's with `low_quality`, too; torchvision gives it every box
  that it does not overlap.

  Args:
    overlap: [G, N], IoU of boxes of truth and boxes, G >= 1.
    valid: [G] bool, False for rows that only fill up.
    low: below that IoU a box is background.
    high: from that IoU on it is an object; in between it is neither.
    low_quality: boxes that overlap some box of truth most of all, ties included, are objects, too: of the box of truth
      that they overlap most themselves, which may be another one.

  Returns:
    [N] int32; -1 everywhere if no row is valid.
  """
  if low > high:
    raise UserError(f"a box is background below IoU {low} and an object from {high} on: the first must not be larger")
  # Computed once: the compiler may round a copy for the maxima otherwise than one for the comparison.
  overlap = lax.optimization_barrier(jnp.where(valid[:, None], overlap, -1))
  best, mine = overlap.max(0), overlap.argmax(0).astype(jnp.int32)
  matched = jnp.where(best >= high, mine, jnp.where(best >= low, BETWEEN, BACKGROUND))
  if low_quality:
    most = overlap.max(1, keepdims=True)
    matched = jnp.where(((overlap == most) & (most > 0)).any(0), mine, matched)
  return jnp.where(valid.any(), matched, BACKGROUND)


def match_ssd(overlap: jax.Array, valid: jax.Array, threshold: float = 0.5) -> jax.Array:
  """The box of truth for each default box, as torchvision's SSDMatcher finds it (Liu et al. 2016, section 2.2).

  Every box of truth gets the default box of the largest IoU, the first of equals; where several want the same one, the
  last has it. The others are objects from an IoU of `threshold` on (in the paper: above it).

  Deviation: a box of truth that overlaps nothing gets none; torchvision gives it the first.

  Args:
    overlap: [G, N], IoU of boxes of truth and default boxes, G >= 1.
    valid: [G] bool, False for rows that only fill up.
    threshold: see above.

  Returns:
    [N] int32; -1 everywhere if no row is valid.
  """
  g, n = overlap.shape
  overlap = jnp.where(valid[:, None], overlap, -1)
  wanted = overlap.argmax(1)[:, None] == jnp.arange(n)[None]
  owner = jnp.where(wanted & (overlap.max(1, keepdims=True) > 0), jnp.arange(g, dtype=jnp.int32)[:, None], -1).max(0)
  return jnp.where(owner >= 0, owner, match(overlap, valid, threshold, threshold))


def sample(rng: jax.Array, matched: jax.Array, count: int, fraction: float) -> tuple[jax.Array, jax.Array]:
  """A random choice of objects and background, as torchvision's BalancedPositiveNegativeSampler makes it.

  Args:
    rng: key.
    matched: [N] int32, see above.
    count: how many together, if there are so many.
    fraction: int(count * fraction) objects at most; background fills up, objects never fill up for it.

  Returns:
    (objects, background), bool [N] each.
  """
  order = jax.random.uniform(rng, matched.shape)
  objects = _drawn(order, matched >= 0, int(count * fraction))
  return objects, _drawn(order, matched == BACKGROUND, count, count - objects.sum())


def _drawn(order, among, most, count=None):
  """Which of `among` come first by falling `order` [N] in [0, 1): `most`, or `count` [] if given, which is no more."""
  n = len(order)
  found, places = lax.top_k(jnp.where(among, order, -1), min(most, n))
  taken = (found >= 0) & (jnp.arange(len(found)) < (most if count is None else count))
  return jnp.zeros(n, bool).at[jnp.where(taken, places, n)].set(True, mode="drop")


def hard_negatives(losses: jax.Array, matched: jax.Array, ratio: float = 3) -> jax.Array:
  """The background that is hardest to tell (Liu et al. 2016, section 2.2, "hard negative mining").

  Args:
    losses: [N] float32, of the classes; NaN comes before all numbers.
    matched: [N] int32, see above.
    ratio: how many for each object, rounded down in all.

  Returns:
    bool [N]: those of the largest losses, of equal ones the first. Never objects, which torchvision takes a second time
    where the background does not suffice.
  """
  bits = lax.bitcast_convert_type(jnp.where(losses == 0, 0.0, losses), jnp.uint32)  # no -0
  order = jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))  # rises with the float
  order = jnp.where(jnp.isnan(losses), jnp.uint32(0xFFFFFFFF), order)  # whatever its sign: inf - inf has one on x86
  return _largest(order, matched == BACKGROUND, jnp.floor(ratio * (matched >= 0).sum()).astype(jnp.int32))


def _largest(keys, among, count):
  """Which of `among` have the `count` largest keys, uint32 [N], of equal ones the first; all if they are too few.

  The smallest key that is taken is found bit by bit: some 30 passes, many times faster than to sort.
  """

  def bit(i, least):
    more = least | (jnp.uint32(1 << 31) >> i.astype(jnp.uint32))
    return jnp.where((among & (keys >= more)).sum() >= count, more, least)

  least = lax.fori_loop(0, 32, bit, jnp.uint32(0))
  above, equal = among & (keys > least), among & (keys == least)
  return above | (equal & (jnp.cumsum(equal) <= count - above.sum()))


def nms(
  boxes: jax.Array, scores: jax.Array, valid: jax.Array, threshold: float, most: int
) -> tuple[jax.Array, jax.Array]:
  """Greedy non-maximum suppression: from the highest score down, a box stays if it overlaps none that stayed too much.

  Args:
    boxes: [N, 4]; empty, infinite and NaN ones overlap nothing, and stay.
    scores: [N]; of equal ones the first comes first; boxes of score NaN never stay.
    valid: [N] bool, False for boxes that are not there.
    threshold: in [0, 1]; an IoU strictly greater is too much, in float32.
    most: how many indices to give. The search ends when they are found, so that few are fast.

  Returns:
    (indices of boxes [most] int32 by falling score, bool [most]: is it one? Indices that are none are 0).
  """
  return nms_by_class(boxes, scores, None, valid, threshold, most)


def nms_by_class(
  boxes: jax.Array, scores: jax.Array, classes: jax.Array | None, valid: jax.Array, threshold: float, most: int
) -> tuple[jax.Array, jax.Array]:
  """`nms` in which boxes suppress none of another class: torchvision's batched_nms without its rounding of offsets.

  Boxes go by blocks: one is first compared with all that stayed before, then settles within itself. Never are more
  than BLOCK x BLOCK overlaps at hand.

  Args:
    boxes: [N, 4].
    scores: [N].
    classes: [N] integers, or pyramid levels; None: one class.
    valid: [N] bool.
    threshold: as for `nms`.
    most: as for `nms`, of all classes together.

  Returns:
    As `nms`.
  """
  if not 0 <= threshold <= 1:
    raise UserError(f"the IoU above which boxes are suppressed must lie between 0 and 1, not {threshold}")
  boxes, scores = lax.stop_gradient((boxes, scores))
  alike = (lambda a, b: True) if classes is None else (lambda a, b: a[:, None] == b[None])
  classes = jnp.zeros(scores.shape, jnp.int32) if classes is None else jnp.asarray(classes, jnp.int32)
  n, size = len(scores), min(BLOCK, max(len(scores), 1))
  valid = valid & ~jnp.isnan(scores)
  order = jnp.argsort(jnp.where(valid, -scores, jnp.nan)).astype(jnp.int32)  # NaN is last, behind inf
  count = valid.sum()
  order = jnp.pad(order, (0, -n % size))
  sorted_boxes, sorted_classes = (boxes[order].T, classes[order]) if n else (jnp.zeros((4, 0)), classes)
  room = most + -most % size

  def add(state):
    start, found, kept, kept_classes, places = state
    block = lax.dynamic_slice_in_dim(sorted_boxes, start, size, 1)
    block_classes = lax.dynamic_slice_in_dim(sorted_classes, start, size)
    place = start + jnp.arange(size)

    def spare(i, alive):
      some = lax.dynamic_slice_in_dim(kept, i * size, size, 1)
      same = alike(lax.dynamic_slice_in_dim(kept_classes, i * size, size), block_classes)
      return alive & ~((_iou(some, block) > threshold) & same).any(0)

    alive = lax.fori_loop(0, (found + size - 1) // size, spare, place < count)
    alive = _settle((_iou(block, block) > threshold) & alike(block_classes, block_classes), alive)
    slot = jnp.where(alive, found + jnp.cumsum(alive) - 1, room)  # what is beyond the room is dropped
    return (
      start + size,
      found + alive.sum(),
      kept.at[:, slot].set(block, mode="drop"),
      kept_classes.at[slot].set(block_classes, mode="drop"),
      places.at[slot].set(place, mode="drop"),
    )

  zero = jnp.zeros((), jnp.int32)
  empty = jnp.zeros((4, room), boxes.dtype), *[jnp.zeros(room, jnp.int32)] * 2
  goes_on = lambda state: (state[0] < count) & (state[1] < most)
  _, found, _, _, places = lax.while_loop(goes_on, add, (zero, zero, *empty)) if n else (zero, zero, *empty)
  stays = jnp.arange(most) < found
  return jnp.where(stays, order[places[:most]] if n else 0, 0), stays


def _settle(suppresses, alive):
  """Greedy suppression within a block, by repeating it from above until nothing changes.

  Whether box j stays depends on boxes before j alone: after t rounds the first t are right, mostly all after a few.

  Args:
    suppresses: bool [B, B]; row i says whom box i suppresses, if i comes first and stays.
    alive: bool [B].

  Returns:
    bool [B]
  """
  rows = jnp.arange(len(alive))
  suppresses = suppresses & (rows[:, None] < rows[None])

  def again(state):
    stays, _ = state
    new = alive & ~(suppresses & stays[:, None]).any(0)
    return new, (new != stays).any()

  return lax.while_loop(lambda state: state[1], again, (alive, jnp.array(True)))[0]
