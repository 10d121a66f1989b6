"""The geometry of detection against torchvision's operators and its C++ kernels."""

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy.models.detection import anchors, boxes, roi

TOLERANCE = 1e-5
SCALE = 0.5  # of the file's map, which does not say so; another gives other numbers altogether
MATCHED = np.array([0, 1, 2, 1, 0])  # which mask each box has; it does not say that either


def check_detection_ops(case: dict) -> dict:
  """{key: (ours, theirs, tolerance)}; indices must be equal. Not R-FCN's pooling, which no model here has."""
  ours = _overlaps(case["in"]) | _matchers(case["in"]) | _suppression(case) | _anchors() | _regions(case["in"])
  exact = lambda key: case["out"][key].dtype.kind == "i" or key == "roi_pool"
  return {key: (np.asarray(y), case["out"][key], 0.0 if exact(key) else TOLERANCE) for key, y in ours.items()}


def _overlaps(given):
  some, often = given["boxes"], (10.0, 10.0, 5.0, 5.0)
  found = {
    "iou": boxes.iou(some[:40], some[40:100]), "giou": boxes.giou(some[:40], some[40:100]),
    "clip_50x40": boxes.clip(some, 50, 40), "small_removed_10": np.flatnonzero(boxes.large_enough(some, 10.0)),
  }  # fmt: skip
  for name, weights in (("w1", (1.0, 1.0, 1.0, 1.0)), ("w10", often)):
    found[f"encode_{name}"] = boxes.encode(some[:50], some[50:100], weights)
    found[f"decode_{name}"] = boxes.decode(given["deltas"], some[50:100], weights)
  return found


def _matchers(given):
  some = given["boxes"]
  # Two rows that only fill up, as like the others as can be.
  overlap = boxes.iou(np.concatenate([some[:6], some[6:8]]), some[6:200])
  valid = np.arange(8) < 6
  return {
    "match_rpn": boxes.match(overlap, valid, 0.3, 0.7, True), "match_lowq": boxes.match(overlap, valid, 0.3, 0.3, True),
    "match_roi": boxes.match(overlap, valid, 0.5, 0.5), "match_ssd": boxes.match_ssd(overlap, valid),
  }  # fmt: skip


def _suppression(case):
  some, scores, classes = (case["in"][key] for key in ("boxes", "scores", "classes"))
  nms, found = jax.jit(boxes.nms_by_class, static_argnums=(4, 5)), {}
  for key in case["out"]:
    if "nms" in key:
      threshold = float(key.rpartition("_")[2])
      kept, stays = nms(some, scores, classes * ("batched" in key), np.ones(len(some), bool), threshold, 300)
      found[key] = np.asarray(kept)[np.asarray(stays)]
  return found


def _anchors():
  cell = anchors.cell(*anchors.VGG_SIZES)
  return {
    "cell_anchors_9": cell, "anchors_vgg9": anchors.grid(cell, (8, 10), (16, 16)),
    "cell_anchors_fpn": jnp.stack([anchors.cell(sizes) for sizes in anchors.FPN_SIZES]),
    "anchors_fpn": anchors.pyramid(((32, 40), (16, 20), (8, 10), (4, 5), (2, 3)), (128, 160)),
    "ssd_default_boxes": anchors.default_boxes(),
    "ssd_default_boxes_voc": anchors.default_boxes(anchors.SSD300_VOC),
  }  # fmt: skip


def _regions(given):
  rois, features = given["rois"], given["feat"].transpose(0, 2, 3, 1)

  def by_image(pool):
    """A pooling of both images, each box on its own: [R, C, oh, ow]."""
    y = jax.jit(jax.vmap(lambda x: pool(x, jnp.asarray(rois[:, 1:]))))(features)
    return np.asarray(y)[rois[:, 0].astype(int), np.arange(len(rois))].transpose(0, 3, 1, 2)

  found = {"roi_pool": by_image(lambda x, each: roi.roi_pool(x, each, (7, 7), SCALE))}
  for aligned in (0, 1):
    for sampling in (2, -1):
      found[f"roi_align_aligned{aligned}_sr{sampling}"] = by_image(
        lambda x, each, s=sampling, a=bool(aligned): roi.roi_align(x, each, (7, 5), SCALE, s, a)
      )
  some = given["msroi_boxes"]
  levels = [given[f"msroi_feats/{i}"][0].transpose(1, 2, 0) for i in range(4)]
  return found | {
    "msroi": roi.pyramid_roi_align(levels, some, (7, 7)).transpose(0, 3, 1, 2),
    "msroi_levels": roi.pyramid_levels(some),
    "paste_masks": roi.paste(given["mask_probs"][:, 0], some, (256, 320))[:, None],
    "project_masks": roi.project(given["gt_masks"], some, MATCHED, (28, 28)),
  }
