"""Pictures of boxes: pixels where they must be, labels clear of each other, curves against a brute force."""

import numpy as np
import pytest

from flaxonomy.train import box_figures
from flaxonomy.train.box_figures import COLOURS

GREY = np.full((64, 96, 3), 100, np.uint8)
NAMES = ("cat", "dog")


def found(boxes, labels, **more):
  return {"boxes": np.float32(boxes).reshape(-1, 4), "labels": np.array(labels, int), **more}


def test_boxes_and_masks():
  """Enlarged four times; the box on the edges of its pixels, the mask's colour within, the likeliest on top."""
  mask = np.zeros((64, 96), bool)
  mask[30:40, 40:60] = True
  everywhere = np.ones((64, 96), bool)
  each = found([[40, 30, 60, 40], [0, 0, 96, 64]], [2, 1], scores=[0.9, 0.4], masks=[mask, everywhere])
  shades = [(250, 0, 0), (0, 250, 0)]
  picture = np.asarray(box_figures.drawn(GREY, each, NAMES, shades), int)
  assert picture.shape == (256, 384, 3)
  assert picture[140, 160].tolist() == picture[140, 239].tolist() == picture[159, 200].tolist() == [0, 250, 0]
  assert picture[0, 300].tolist() == picture[255, 300].tolist() == [250, 0, 0]
  under = box_figures.CLEAR * np.array([100, 100, 100]) + (1 - box_figures.CLEAR) * np.array([250, 0, 0])
  np.testing.assert_allclose(picture[200, 300], under, atol=1)
  over = box_figures.CLEAR * under + (1 - box_figures.CLEAR) * np.array([0, 250, 0])
  np.testing.assert_allclose(picture[140, 200], over, atol=1)

  plain = np.asarray(box_figures.drawn(GREY, found([], []), NAMES))
  np.testing.assert_array_equal(plain, GREY.repeat(4, 0).repeat(4, 1))


def test_truth_and_crowds_are_dashed():
  each, truth = found([[10, 10, 40, 50]], [1], crowd=[True]), found([[60, 10, 90, 50]], [2])
  picture = np.asarray(box_figures.drawn(GREY, each, NAMES, truth=truth), int)
  for column, shade in ((40, COLOURS[0]), (240, (255, 255, 255))):
    edge = (picture[60:180, column] == shade).all(-1)
    assert 0.4 < edge.mean() < 0.8
  solid = np.asarray(box_figures.drawn(GREY, found([[10, 10, 40, 50]], [1]), NAMES), int)
  assert (solid[60:180, 40] == COLOURS[0]).all()


def test_large_images_and_wild_boxes():
  """Reduced where asked for; what lies outside, is empty, or no number, does not stop a run."""
  image = np.full((600, 900, 3), 100, np.uint8)
  wild = [[-1e30, 5, 1e30, 20], [np.nan, 0, 5, 5], [30, 30, 30, 30], [50, 50, 40, 40], [880, 580, 2000, 2000]]
  each = found(wild, [1, 2, 1, 2, 1], scores=np.float32([0.9, 0.8, 0.7, 0.6, np.nan]))
  assert box_figures.drawn(image, each, NAMES).size == (900, 600)
  assert box_figures.drawn(image, each, NAMES, truth=each, most=450).size == (450, 300)


def overlap(one, other):
  sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) for i in (0, 1)]
  return max(sides[0], 0) * max(sides[1], 0)


def test_labels_keep_clear_of_each_other():
  """Boxes side by side, one in another, and at every edge of the picture."""
  boxes = [
    [100, 100, 150, 150], [105, 102, 160, 155], [98, 96, 170, 180], [0, 0, 40, 40], [360, 0, 400, 30],
    [0, 260, 30, 300], [370, 250, 400, 300], [200, 0, 240, 300], [245, 0, 280, 300],
  ]  # fmt: skip
  labels = [(70, 14)] * len(boxes)
  places = box_figures._places(boxes, labels, (400, 300))
  for i, place in enumerate(places):
    assert (place[2] - place[0], place[3] - place[1]) == labels[i]
    assert min(place) >= 0
    assert place[2] <= 400
    assert place[3] <= 300
    assert all(overlap(place, other) == 0 for other in places[:i])
    x1, y1, x2, y2 = boxes[i]
    assert overlap(place, (x1 - 71, y1 - 15, x2 + 71, y2 + 15)) == 70 * 14  # near its box
  (place,) = box_figures._places([[10, 40, 90, 90]], [(50, 14)], (400, 300))
  assert place == (10, 26, 60, 40)  # above it, where nothing is in the way
  (place,) = box_figures._places([[0, 0, 9, 9]], [(500, 14)], (400, 300))
  assert place[0] == 0  # too long a text begins where it can be read


def test_gallery():
  """A pair for each image, the truth on the left, of whatever sizes; on paper as many pixels as drawn."""
  large = np.full((480, 640, 3), 100, np.uint8)
  truths = [found([[10, 10, 40, 50]], [1], masks=None), found([], [], masks=None), found([[9, 9, 99, 99]], [2])]
  founds = [found([[50, 10, 90, 50]], [2], scores=[0.5]), found([], [], scores=[]), found([], [], scores=[])]
  figure = box_figures.gallery([GREY, GREY[:, :20], large], truths, founds, NAMES, "after $1 step")
  (axis,) = figure.axes
  sheet = np.asarray(axis.images[0].get_array())
  assert figure.get_size_inches() * 100 == pytest.approx(sheet.shape[1::-1])
  texts = [text.get_text() for text in axis.texts]
  assert texts == ["true", "found"] * 2 + ["after $1 step"]
  left, right = (np.argwhere((sheet[..., :3] == shade).all(-1)) for shade in COLOURS[:2])
  first = lambda places: places[places[:, 0] < sheet.shape[0] // 2, 1]
  assert len(first(left)) > 100
  assert first(left).max() < axis.texts[0].get_position()[0] + 448 // 2 < first(right).min()
  figure.canvas.draw()
  assert box_figures.gallery([], [], [], NAMES).texts


def test_precision_and_recall():
  """The best precision at each recall or above, and the mean over classes; many classes without a legend each."""
  rng = np.random.default_rng(0)
  lines = {name: (np.sort(rng.random(20)), rng.random(20)) for name in NAMES}
  lines["none"] = np.zeros(0), np.zeros(0)
  figure = box_figures.precision_recall({"IoU 0.5": lines, "IoU 0.75": {}}, "heading")
  one, other = figure.axes
  drawn = {line.get_label().split("  ")[0]: np.asarray(line.get_ydata()) for line in one.lines}
  at = np.arange(101) / 100
  best = {
    name: np.array([max(precision[recall >= r - 1e-9], default=0) for r in at])
    for name, (recall, precision) in lines.items()
  }
  for name, row in best.items():
    np.testing.assert_allclose(drawn[name], row)
  np.testing.assert_allclose(drawn["mean of 3"], np.mean(list(best.values()), 0))
  shown = [text.get_text() for text in one.get_legend().get_texts()]
  order = sorted(best, key=lambda name: -best[name].mean())
  assert shown[1:] == [f"{name}  {best[name].mean():.3f}" for name in order]
  assert other.get_title() == "IoU 0.75: nothing to find"

  many = box_figures.precision_recall({"IoU 0.5": {f"class {i}": lines["cat"] for i in range(20)}}).axes[0]
  assert len(many.lines) == 21
  assert len(many.get_legend().get_texts()) == 1


def test_colours_differ():
  shades = box_figures.colours(91)
  assert len(set(shades)) == 91
  assert shades[:10] == list(COLOURS)
  assert box_figures.colours(3) == list(COLOURS[:3])
