"""Boxes against loops over boxes in NumPy, on random boxes and on broken ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flaxonomy.errors import UserError
from flaxonomy.models.detection import boxes

N, G = 24, 5
# Few whole numbers make ties, empty boxes and boxes turned over; their overlaps are exact.
COORDINATES = st.sampled_from([0.0, 1.0, 2.0, 3.0, 5.0, 8.0, 10.0, math.nan, math.inf, -math.inf])
SEEDS = st.integers(0, 2**32 - 1)
property_test = settings(max_examples=40, deadline=None, derandomize=True)


def some_boxes(seed, n=N, broken=0.2):
  """[n, 4] float32 on a coarse grid; a share of them broken in one coordinate."""
  rng = np.random.default_rng(seed)
  corners = rng.integers(0, 8, (n, 2))
  made = np.concatenate([corners, corners + rng.integers(1, 6, (n, 2))], 1).astype(np.float32)
  hit = rng.random(n) < broken
  made[hit, rng.integers(0, 4, hit.sum())] = rng.choice([0, 4, 20, math.nan, math.inf, -math.inf], hit.sum())
  return made


def area_of(box):
  w, h = float(box[2]) - float(box[0]), float(box[3]) - float(box[1])
  return w * h if w > 0 and h > 0 else 0.0


def iou_of(a, b):
  if not (np.isfinite(a).all() and np.isfinite(b).all() and area_of(a) and area_of(b)):
    return 0.0
  inner = area_of([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
  return np.float32(inner) / np.float32(area_of(a) + area_of(b) - inner)


def giou_of(a, b):
  iou = iou_of(a, b)
  hull = area_of([*np.minimum(a[:2], b[:2]), *np.maximum(a[2:], b[2:])])
  if not (np.isfinite(a).all() and np.isfinite(b).all() and hull):
    return iou
  inner = area_of([*np.maximum(a[:2], b[:2]), *np.minimum(a[2:], b[2:])])
  return iou - (hull - (area_of(a) + area_of(b) - inner)) / hull


def pairs(function, a, b):
  return np.array([[function(x, y) for y in b] for x in a], np.float32).reshape(len(a), len(b))


OVERLAPS = jax.jit(lambda a, b: (boxes.area(a), boxes.iou(a, b), boxes.giou(a, b)))


@property_test
@given(st.lists(st.tuples(*[COORDINATES] * 4), min_size=G, max_size=G), SEEDS)
def test_overlaps_of_any_boxes(odd, seed):
  odd, others = np.array(odd, np.float32), some_boxes(seed)
  areas, iou, giou = OVERLAPS(odd, others)
  np.testing.assert_array_equal(areas, [area_of(box) for box in odd])
  np.testing.assert_array_equal(iou, pairs(iou_of, odd, others))
  finite = np.isfinite(odd).all(1)[:, None] & np.isfinite(others).all(1)[None]
  turned = (odd[:, 2:] < odd[:, :2]).any(1)[:, None] | (others[:, 2:] < others[:, :2]).any(1)[None]
  close = np.isclose(giou, pairs(giou_of, odd, others), rtol=1e-6, atol=1e-6)
  assert close[finite & ~turned].all()
  assert np.isfinite(giou).all()


def test_overlaps_have_finite_gradients():
  ours, others = jnp.array([[[0, 0, 4, 4], [2, 2, 2, 2]], [[1, 2, 7, 5], [2, 2, 2, 2]]], jnp.float32)
  for overlap in (boxes.iou, boxes.giou):
    gradient = jax.jit(jax.grad(lambda a, overlap=overlap: overlap(a, others).sum()))(ours)
    assert np.isfinite(gradient).all() and np.abs(gradient[0]).max() > 0


def test_clip_and_large_enough():
  some = np.array([[-3, 2, 5, 30], [7, 7, 9, 9], [-math.inf, 0, math.inf, 4], [-9, -9, -1, -1]], np.float32)
  clipped = np.asarray(boxes.clip(some, 10, 8))
  np.testing.assert_array_equal(clipped, [[0, 2, 5, 10], [7, 7, 8, 9], [0, 0, 8, 4], [0, 0, 0, 0]])
  np.testing.assert_array_equal(boxes.large_enough(clipped, 2), [True, False, True, False])
  assert not boxes.large_enough(np.full(4, math.nan, np.float32), 0)


DECODE = jax.jit(boxes.decode)
CODED = jax.jit(lambda a, b: (boxes.encode(a, b, (10, 10, 5, 5)), boxes.encode(a, b)))


@property_test
@given(SEEDS)
def test_coding_by_the_formula_and_back(seed):
  truth, some = some_boxes(seed), some_boxes(seed + 1)
  weighted, plain = map(np.asarray, CODED(truth, some))
  for each, t, b in zip(plain, truth, some):
    sides = np.array([b[2] - b[0], b[3] - b[1], t[2] - t[0], t[3] - t[1]])
    if not ((sides > 0) & np.isfinite(sides)).all():
      np.testing.assert_array_equal(each, 0)
      continue
    w, h, to_w, to_h = sides
    moves = ((t[0] + t[2] - b[0] - b[2]) / 2 / w, (t[1] + t[3] - b[1] - b[3]) / 2 / h)
    np.testing.assert_allclose(each, [*moves, np.log(to_w / w), np.log(to_h / h)], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(DECODE(each, b), t, atol=1e-4)
  np.testing.assert_allclose(weighted, plain * [10, 10, 5, 5], rtol=1e-6)


def test_decoding_is_limited_and_takes_a_box_for_each_class():
  some, deltas = jnp.array([[0, 0, 16, 32], [8, 8, 24, 24]], jnp.float32), np.zeros((2, 3, 4), np.float32)
  deltas[:, 1] = [0.5, -1, 100, 100]
  deltas[1, 2, 0] = math.nan
  found = np.asarray(boxes.decode(deltas, some[:, None]))
  np.testing.assert_array_equal(found[:, 0], some)
  np.testing.assert_allclose(found[0, 1], [16 - 500, -16 - 1000, 16 + 500, -16 + 1000], rtol=1e-6)
  assert np.isnan(found[1, 2, 0]) and found[1, 2, 1] == 8
  np.testing.assert_allclose(boxes.decode(jnp.array([0, 0, math.log(2), 0]), some[0], limit=0.0), some[0])


def match_of(overlap, valid, low, high, low_quality):
  """Box by box."""
  rows = np.flatnonzero(valid)
  matched = np.full(overlap.shape[1], -1)
  for n in range(overlap.shape[1]) if len(rows) else ():
    best = max(overlap[g, n] for g in rows)
    mine = next(g for g in rows if overlap[g, n] == best)
    forced = any(overlap[g, n] > 0 and overlap[g, n] == overlap[g].max() for g in rows)
    matched[n] = mine if best >= high or (low_quality and forced) else -2 if best >= low else -1
  return matched


def match_ssd_of(overlap, valid, threshold):
  matched = match_of(overlap, valid, threshold, threshold, False)
  for g in np.flatnonzero(valid):
    if overlap[g].max() > 0:
      matched[np.argmax(overlap[g])] = g
  return matched


@jax.jit
def matched_all_ways(truth, valid, some):
  overlap = boxes.iou(truth, some)
  return (
    boxes.match(overlap, valid, 0.3, 0.7, True), boxes.match(overlap, valid, 0.25, 0.5),
    boxes.match_ssd(overlap, valid), overlap,
  )  # fmt: skip


@property_test
@given(SEEDS, st.lists(st.booleans(), min_size=G, max_size=G))
def test_matchers_with_ties_padding_and_broken_boxes(seed, valid):
  truth, some, valid = some_boxes(seed, G), some_boxes(seed + 1), np.array(valid)
  rpn, roi, ssd, overlap = map(np.asarray, matched_all_ways(truth, valid, some))
  np.testing.assert_array_equal(rpn, match_of(overlap, valid, np.float32(0.3), np.float32(0.7), True))
  np.testing.assert_array_equal(roi, match_of(overlap, valid, 0.25, 0.5, False))
  np.testing.assert_array_equal(ssd, match_ssd_of(overlap, valid, 0.5))
  assert rpn.dtype == roi.dtype == ssd.dtype == np.int32


def test_every_box_of_truth_is_matched_whatever_the_rounding():
  """With overlaps made in the same compiled function, by the thousand, the largest of a row is found again."""
  rng = np.random.default_rng(0)
  corners = rng.uniform(0, 90, (4, 1000, 2))
  some = np.concatenate([corners, corners + rng.uniform(3, 30, corners.shape)], -1).astype(np.float32)
  match = jax.jit(
    jax.vmap(lambda some: boxes.match(boxes.iou(some[:8] + 0.3, some[8:]), jnp.ones(8, bool), 2, 2, True))
  )
  overlap = jax.jit(jax.vmap(lambda some: boxes.iou(some[:8] + 0.3, some[8:])))(some)
  for matched, row in zip(np.asarray(match(some)), np.asarray(overlap)):
    assert (matched[row.argmax(1)] >= 0).all() and (matched >= 0).sum() <= 8


def test_thresholds_out_of_order():
  with pytest.raises(UserError, match="IoU 0.7 and an object from 0.3"):
    boxes.match(jnp.zeros((1, 2)), jnp.ones(1, bool), 0.7, 0.3)


@pytest.mark.parametrize("objects, background", [(40, 200), (3, 200), (40, 10), (0, 200), (0, 0), (8, 24)])
def test_samples_count(objects, background):
  matched = np.random.default_rng(1).permutation(
    [2] * objects + [-1] * background + [-2] * (300 - objects - background)
  )
  taken, left = map(np.asarray, SAMPLE(jax.random.PRNGKey(0), matched))
  assert taken.sum() == min(objects, 8) and left.sum() == min(background, 32 - min(objects, 8))
  assert (matched[taken] >= 0).all() and (matched[left] == -1).all()


SAMPLE = jax.jit(lambda rng, matched: boxes.sample(rng, matched, 32, 0.25))


def test_samples_are_fair():
  """Over 400 keys every one of 20 objects and 80 of background is taken as often as chance has it."""
  matched = jnp.where(jnp.arange(100) < 20, 0, -1)
  taken, left = jax.jit(jax.vmap(SAMPLE, (0, None)))(jax.random.split(jax.random.PRNGKey(1), 400), matched)
  often = np.asarray((taken | left).mean(0))
  assert np.abs(often[:20] - 8 / 20).max() < 0.1 and np.abs(often[20:] - 24 / 80).max() < 0.1
  assert len(np.unique(np.asarray(taken), axis=0)) > 390


HARD = jax.jit(boxes.hard_negatives)


@property_test
@given(SEEDS)
def test_hard_negatives_are_those_of_a_sort(seed):
  rng = np.random.default_rng(seed)
  losses = rng.choice([0.0, -0.0, 0.5, 1.0, 1e-30, 7.0, math.inf, -1.0, math.nan, -math.nan], N).astype(np.float32)
  matched = rng.choice([-2, -1, -1, -1, 0, 3], N)
  rows = [n for n in range(N) if matched[n] == -1]
  rows.sort(key=lambda n: -math.inf if math.isnan(losses[n]) else -losses[n] if losses[n] < math.inf else -1e38)
  expected = np.isin(np.arange(N), rows[: 3 * (matched >= 0).sum()])
  np.testing.assert_array_equal(HARD(losses, matched), expected)


def nms_of(some, scores, classes, valid, threshold):
  """One box after the other."""
  order = [n for n in np.argsort(-scores, kind="stable") if valid[n] and not math.isnan(scores[n])]
  kept = []
  for n in order:
    if all(classes[n] != classes[m] or not iou_of(some[m], some[n]) > np.float32(threshold) for m in kept):
      kept.append(n)
  return kept


def check_nms(found, expected, most):
  indices, stays = map(np.asarray, found)
  assert indices.shape == stays.shape == (most,) and indices.dtype == np.int32 and stays.dtype == bool
  assert stays.sum() == min(most, len(expected)) and (np.diff(stays.astype(int)) <= 0).all()
  np.testing.assert_array_equal(indices[stays], expected[:most])
  assert (indices[~stays] == 0).all()


# Blocks of 5: boxes in several, the last of which is not full.
SMALL = {most: jax.jit(lambda *a, most=most: boxes.nms_by_class(*a, 0.5, most)) for most in (4, 30)}


@property_test
@given(SEEDS)
def test_suppression_box_by_box(monkeypatch_block, seed):
  rng = np.random.default_rng(seed)
  some, classes, valid = some_boxes(seed), rng.integers(0, 2, N), rng.random(N) < 0.9
  scores = rng.choice([0.1, 0.2, 0.5, 0.9, -1, 0.0, -0.0, math.inf, -math.inf, math.nan], N).astype(np.float32)
  expected = nms_of(some, scores, classes, valid, 0.5)
  for most, nms in SMALL.items():
    check_nms(nms(some, scores, classes, valid), expected, most)


@pytest.fixture(scope="module")
def monkeypatch_block():
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(boxes, "BLOCK", 5)
    yield


def test_suppression_exactly_at_the_threshold():
  """Half and seven tenths of the union are not more than that."""
  some = np.array([[0, 0, 10, 10], [0, 0, 10, 5], [0, 20, 10, 30], [0, 20, 10, 27]], np.float32)
  scores, valid = np.array([4, 3, 2, 1], np.float32), np.ones(4, bool)
  thresholds = (0.7, 0.69, 0.5, 0.49, 1)
  found = jax.jit(lambda *a: [boxes.nms(*a, threshold, 4)[1].sum() for threshold in thresholds])(some, scores, valid)
  assert list(map(int, found)) == [4, 3, 3, 2, 4]
  with pytest.raises(UserError, match="between 0 and 1, not 50"):
    boxes.nms(some, scores, valid, 50, 4)


def test_a_chain_of_suppressions():
  """Each box suppresses the next if it stays itself: every other one of 300, over three blocks."""
  x = np.arange(300, dtype=np.float32)
  some = np.stack([x, 0 * x, x + 3, 0 * x + 1], 1)
  indices, stays = jax.jit(lambda *a: boxes.nms(*a, 0.4, 300))(some, -x, np.ones(300, bool))
  np.testing.assert_array_equal(np.asarray(indices)[np.asarray(stays)], np.arange(0, 300, 2))


def test_suppression_in_batches():
  """Images of different numbers of boxes, one without any, under vmap: blocks that end at different times."""
  rng = np.random.default_rng(3)
  some = np.stack([some_boxes(seed, 300, 0.05) * np.float32(3) for seed in range(3)])
  scores, classes = rng.random((3, 300)).astype(np.float32), rng.integers(0, 3, (3, 300))
  valid = np.arange(300)[None] < np.array([300, 20, 0])[:, None]
  for most in (10, 200):
    found = jax.jit(jax.vmap(lambda *a, most=most: boxes.nms_by_class(*a, 0.3, most)))(some, scores, classes, valid)
    for k in range(3):
      check_nms([x[k] for x in found], nms_of(some[k], scores[k], classes[k], valid[k], 0.3), most)


def test_suppression_of_nothing_and_its_gradient():
  indices, stays = boxes.nms(jnp.zeros((0, 4)), jnp.zeros(0), jnp.zeros(0, bool), 0.5, 3)
  assert not stays.any() and not indices.any()
  some = jnp.array([[0, 0, 4, 4], [0, 0, 4, 3.0]])
  total = lambda scores: scores[boxes.nms(some, scores, jnp.ones(2, bool), 0.5, 1)[0]].sum()
  np.testing.assert_array_equal(jax.jit(jax.grad(total))(jnp.array([1.0, 2.0])), [0, 1])
