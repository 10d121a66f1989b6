"""Boxes, matchers, suppression and anchors against torchvision: all of a golden file but what pools regions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded

from flaxonomy.models.detection import anchors, boxes

ONCE = (1.0, 1.0, 1.0, 1.0)
OFTEN = (10.0, 10.0, 5.0, 5.0)


@pytest.fixture
def case(root):
  return seeded.load(root / "tests/goldens/detection_ops.npz")


def same(ours, theirs, tolerance=1e-5):
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


def test_overlaps_and_coding(case):
  some, out = case["in"]["boxes"], case["out"]
  same(boxes.iou(some[:40], some[40:100]), out["iou"])
  same(boxes.giou(some[:40], some[40:100]), out["giou"])
  same(boxes.clip(some, 50, 40), out["clip_50x40"])
  np.testing.assert_array_equal(np.flatnonzero(boxes.large_enough(some, 10.0)), out["small_removed_10"])
  for name, weights in (("w1", ONCE), ("w10", OFTEN)):
    same(boxes.encode(some[:50], some[50:100], weights), out[f"encode_{name}"])
    same(boxes.decode(case["in"]["deltas"], some[50:100], weights), out[f"decode_{name}"])


def test_matchers(case):
  some, out = case["in"]["boxes"], case["out"]
  # Two rows that only fill up, as like the others as can be.
  overlap = boxes.iou(np.concatenate([some[:6], some[6:8]]), some[6:200])
  valid = np.arange(8) < 6
  np.testing.assert_array_equal(boxes.match(overlap, valid, 0.3, 0.7, True), out["match_rpn"])
  np.testing.assert_array_equal(boxes.match(overlap, valid, 0.3, 0.3, True), out["match_lowq"])
  np.testing.assert_array_equal(boxes.match(overlap, valid, 0.5, 0.5), out["match_roi"])
  np.testing.assert_array_equal(boxes.match_ssd(overlap, valid), out["match_ssd"])


def test_suppression(case):
  some, scores, classes = (case["in"][key] for key in ("boxes", "scores", "classes"))
  valid = np.ones(len(some), bool)
  nms = jax.jit(boxes.nms_by_class, static_argnums=(4, 5))
  for key, theirs in case["out"].items():
    if "nms" in key:
      found, stays = nms(some, scores, classes * ("batched" in key), valid, float(key.rpartition("_")[2]), 300)
      np.testing.assert_array_equal(np.asarray(found)[np.asarray(stays)], theirs)


def test_anchors(case):
  out = case["out"]
  same(anchors.cell(*anchors.VGG_SIZES), out["cell_anchors_9"])
  same(anchors.grid(anchors.cell(*anchors.VGG_SIZES), (8, 10), (16, 16)), out["anchors_vgg9"])
  same(jnp.stack([anchors.cell(sizes) for sizes in anchors.FPN_SIZES]), out["cell_anchors_fpn"])
  same(anchors.pyramid(((32, 40), (16, 20), (8, 10), (4, 5), (2, 3)), (128, 160)), out["anchors_fpn"])
  same(anchors.default_boxes(), out["ssd_default_boxes"])
  same(anchors.default_boxes(anchors.SSD300_VOC), out["ssd_default_boxes_voc"])
