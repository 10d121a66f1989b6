"""Regions of interest against torchvision's C++ kernels: the numbers of the shared golden file, where there is one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded

from flaxonomy.models.detection import roi

SCALE = 0.5  # of the file's map


@pytest.fixture(scope="module")
def case(request):
  path = request.config.rootpath.parent / "shared/goldens/small/detection_ops.npz"
  if not path.is_file():
    pytest.skip(f"no golden file {path}")
  return seeded.load(path)


def close(ours, theirs):
  assert ours.shape == theirs.shape
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def by_image(pool, case):
  """A pooling of both images, each box on its own: [R, C, oh, ow]."""
  rois = case["in"]["rois"]
  y = jax.jit(jax.vmap(lambda x: pool(x, jnp.asarray(rois[:, 1:]))))(case["in"]["feat"].transpose(0, 2, 3, 1))
  return np.asarray(y)[rois[:, 0].astype(int), np.arange(len(rois))].transpose(0, 3, 1, 2)


@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("sampling", [2, -1])
def test_roi_align(case, aligned, sampling):
  y = by_image(lambda x, boxes: roi.roi_align(x, boxes, (7, 5), SCALE, sampling, bool(aligned)), case)
  close(y, case["out"][f"roi_align_aligned{aligned}_sr{sampling}"])


def test_roi_pool(case):
  y = by_image(lambda x, boxes: roi.roi_pool(x, boxes, (7, 7), SCALE), case)
  np.testing.assert_array_equal(y, case["out"]["roi_pool"])


def test_pyramid(case):
  boxes = case["in"]["msroi_boxes"]
  levels = [case["in"][f"msroi_feats/{i}"][0].transpose(1, 2, 0) for i in range(4)]
  y = roi.pyramid_roi_align(levels, boxes, (7, 7))
  close(y.transpose(0, 3, 1, 2), case["out"]["msroi"])
  np.testing.assert_array_equal(roi.pyramid_levels(boxes), case["out"]["msroi_levels"])


def test_masks(case):
  """The file does not say which mask each box has; these make it right, to the last box."""
  boxes, masks = case["in"]["msroi_boxes"], case["in"]["mask_probs"][:, 0]
  close(roi.paste(masks, boxes, (256, 320)), case["out"]["paste_masks"][:, 0])
  close(roi.project(case["in"]["gt_masks"], boxes, np.array([0, 1, 2, 1, 0]), (28, 28)), case["out"]["project_masks"])
