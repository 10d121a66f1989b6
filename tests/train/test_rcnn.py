"""Fast R-CNN and R-CNN in training: which regions are drawn, and losses against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn.svm

from flaxonomy.configs.base import Config, Data, Model
from flaxonomy.data import augment
from flaxonomy.models.detection import boxes as geometry
from flaxonomy.train import detection
from flaxonomy.train.detection import fast_rcnn
from flaxonomy.train.detection import rcnn as training

RNG = np.random.default_rng(0)
TRUTH = np.float32([[[10, 10, 30, 30], [40, 20, 60, 50], [5, 40, 25, 60]], [[0] * 4] * 3])
LABELS, CROWD = np.int32([[3, 1, 2], [0, 0, 0]]), np.bool_([[False, False, True], [False] * 3])


DRAW = jax.jit(functools.partial(fast_rcnn.draw, count=16))


def candidates():
  """Truth moved a little and a lot, boxes far away, and zeros: [2, 60, 4]."""
  near = np.repeat(TRUTH[0], 8, 0) + RNG.uniform(-2, 2, (24, 4))
  apart = np.repeat(TRUTH[0], 8, 0) + np.tile(RNG.uniform(8, 12, (24, 1)), 4)
  far = np.tile([70, 70, 90, 90], (4, 1)) + RNG.uniform(0, 2, (4, 4))
  return np.float32(np.stack([np.concatenate([near, apart, far, np.zeros((8, 4))])] * 2))


def overlaps(a, b):
  return np.asarray(geometry.iou(a, b))  # compared with torchvision in its own tests


def test_regions_are_drawn_by_the_papers_rules():
  batch = {"boxes": TRUTH, "labels": LABELS, "crowd": CROWD, "proposals": candidates()}
  for seed in range(4):
    chosen = jax.tree.map(lambda x: x[0], DRAW(jax.random.PRNGKey(seed), batch, background=0.1))
    table = overlaps(TRUTH[0, :2], chosen.boxes)  # the third box of truth is of a crowd
    best, objects = table.max(0), np.asarray(chosen.labels) > 0
    assert objects.sum() == 4
    assert chosen.counts.all()
    np.testing.assert_array_equal(objects, best >= 0.5)
    assert (best[~objects] >= 0.1).all()
    of = table.argmax(0)[objects]
    np.testing.assert_array_equal(np.asarray(chosen.labels)[objects], LABELS[0, of])
    np.testing.assert_array_equal(np.asarray(chosen.truth)[objects], TRUTH[0, of])
  easy = DRAW(jax.random.PRNGKey(0), batch, background=0.0)
  assert (overlaps(TRUTH[0, :2], easy.boxes[0]).max(0) == 0).any()
  assert easy.counts.all()
  assert np.asarray(easy.boxes).any(-1).all()  # zeros fill up, and are no background
  assert not easy.labels[1].any()


def test_truth_is_a_proposal_and_the_rest_does_not_count():
  """Without any proposals the boxes of truth are all there is; an image without objects counts nothing."""
  batch = {"boxes": TRUTH, "labels": LABELS, "crowd": CROWD, "proposals": np.zeros((2, 60, 4), np.float32)}
  chosen = DRAW(jax.random.PRNGKey(0), batch, background=0.1)
  counts = np.asarray(chosen.counts)
  np.testing.assert_array_equal(counts.sum(1), [2, 0])
  np.testing.assert_array_equal(np.sort(np.asarray(chosen.labels[0])[counts[0]]), [1, 3])


def test_multitask():
  s, c = 7, 4
  chosen = fast_rcnn.Regions(
    np.float32([[[0, 0, 10, 20]] * s] * 2), RNG.integers(0, c, (2, s)).astype(np.int32),
    np.float32([[[1, 2, 13, 19]] * s] * 2), RNG.random((2, s)) < 0.7,
  )  # fmt: skip
  logits, offsets = np.float32(RNG.normal(size=(2, s, c))), np.float32(2 * RNG.normal(size=(2, s, c, 4)))
  targets = [10 * 2 / 10, 10 * 0.5 / 20, 5 * np.log(1.2), 5 * np.log(17 / 20)]
  entropy = apart = 0.0
  for i, j in zip(*np.nonzero(chosen.counts)):
    label = chosen.labels[i, j]
    entropy += np.log(np.exp(logits[i, j]).sum()) - logits[i, j, label]
    for move, target in zip(offsets[i, j, label], targets):
      far = abs(move - target)
      apart += (label > 0) * (far - 0.5 if far >= 1 else far**2 / 2)
  found = fast_rcnn.multitask(logits, offsets, chosen)
  count = chosen.counts.sum()
  assert (chosen.labels[chosen.counts] > 0).sum() > 3
  np.testing.assert_allclose(found["classification"], (entropy, count), rtol=1e-5)
  np.testing.assert_allclose(found["boxes"], (apart, count), rtol=1e-5)


def test_ridge_is_the_closed_form():
  """As one product with an inverse; rows come in several blocks."""
  n, p, scale = 50, 6, 3.0
  x, y = RNG.normal(size=(n, p)).astype(np.float16), RNG.normal(size=(n, 4)) @ RNG.normal(size=(4, 4)) + 1
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training, "BLOCK", 16)
    patch.setattr(training, "RIDGE", 5.0)
    weights, bias = training.ridge(x, y, scale)
  rows = np.concatenate([np.float64(x) * scale, np.ones((n, 1))], 1)
  mean = y.mean(0)
  values, vectors = np.linalg.eig(np.cov((y - mean).T, bias=True))
  whiten, back = (vectors @ np.diag((values + 1e-3) ** power) @ vectors.T for power in (-0.5, 0.5))
  beta = np.linalg.inv(rows.T @ rows + 5 * np.eye(p + 1)) @ rows.T @ ((y - mean) @ whiten) @ back
  np.testing.assert_allclose(np.float64(x) @ weights + bias, rows @ beta + mean, rtol=1e-6, atol=1e-8)
  assert np.abs(rows @ beta).max() > 0.1


def test_ridge_without_penalty_finds_what_made_the_targets():
  x, true = RNG.normal(size=(200, 5)), RNG.normal(size=(5, 4))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(training, "RIDGE", 1e-6)
    weights, bias = training.ridge(x, x @ true + [1, 2, 3, 4], 7.0)
  np.testing.assert_allclose(weights, true, atol=1e-4)
  np.testing.assert_allclose(bias, [1, 2, 3, 4], atol=1e-4)


def clouds(n=400, f=8):
  """Features of three classes and the rest, their overlaps, and which are truth; labels 1 to 3, none is of class 4."""
  rng = np.random.default_rng(1)  # its own, whichever tests ran before
  of = rng.integers(0, 4, n)
  features = (rng.normal(size=(n, f)) + 2.5 * np.eye(4, f)[of]).astype(np.float16)
  overlaps = np.where(of[:, None] == np.arange(1, 5)[None], rng.uniform(0.3, 1, (n, 1)), rng.uniform(0, 0.29, (n, 4)))
  truth = np.where((of > 0) & (rng.random(n) < 0.3), of, 0)
  return features, overlaps.astype(np.float16), truth


def test_mining_ends_where_all_negatives_lead():
  """Far fewer at first, then those that are hard: the same planes as from all at once. In between is ignored."""
  features, overlaps, truth = clouds()
  scale = 20 / np.linalg.norm(np.float32(features), axis=1).mean()
  fits = []
  with pytest.MonkeyPatch.context() as patch:
    for name, value in {"FIRST": 40, "AGAIN": 30, "BLOCK": 64}.items():
      patch.setattr(training, name, value)
    plain = training.svm
    patch.setattr(training, "svm", lambda x, *rest: fits.append(len(x)) or plain(x, *rest))
    weights, bias = training.svms(features, overlaps, truth, scale, seed=3)
    for k in range(3):
      positive, negative = truth == k + 1, overlaps[:, k] < 0.3
      solver = sklearn.svm.LinearSVC(
        C=1e-3, loss="hinge", class_weight={True: 2.0}, intercept_scaling=10.0, tol=1e-6, max_iter=10**6
      )
      x = np.float64(features[positive | negative]) * scale
      expected = solver.fit(x, positive[positive | negative]).decision_function(x)
      found = np.float64(features[positive | negative]) @ weights[:, k] + bias[k]
      np.testing.assert_allclose(found, expected, atol=0.25)  # without mining it is 2 and more
      assert np.ptp(expected) > 2
  assert not weights[:, 3].any()
  assert bias[3] == -1
  assert len(fits) > 6
  assert min(fits) < 80


def test_one_svm_is_liblinears():
  """Both costs, the bias's input, the hinge: its objective is no worse than that of any plane nearby."""
  features, _, truth = clouds()
  x, positive = np.float64(features), truth == 1
  weights, bias = training.svm(x, positive, 0)

  def objective(weights, bias):
    cost = np.where(positive, 2.0, 1.0) * np.maximum(0, 1 - np.where(positive, 1, -1) * (x @ weights + bias))
    return 0.5 * (weights @ weights + (bias / 10) ** 2) + 1e-3 * cost.sum()

  best = objective(weights, bias)
  for _ in range(200):
    assert objective(weights + RNG.normal(size=8) * 0.02, bias + RNG.normal() * 0.02) > best - 1e-4 * best


def scenes(count=4, side=64):
  """Images with a red and a green square each on noise; proposals are these moved a little, and others."""
  rng = np.random.default_rng(1)  # its own, whichever tests ran before
  image, boxes = rng.integers(0, 60, (count, side, side, 3)).astype(np.uint8), np.zeros((count, 3, 4), np.float32)
  labels, proposals = np.zeros((count, 3), np.int32), np.zeros((count, 20, 4), np.float32)
  for i in range(count):
    for k, corner in enumerate(rng.permutation([(4, 4), (36, 4), (4, 36), (36, 36)])[:2]):
      x, y = corner
      image[i, y : y + 20, x : x + 20, k] += 190
      boxes[i, k], labels[i, k] = (x, y, x + 20, y + 20), k + 1
      proposals[i, 5 * k : 5 * k + 5] = boxes[i, k] + rng.uniform(-3, 3, (5, 4))
    corner = rng.uniform(0, 40, (8, 2))
    proposals[i, 10:18] = np.concatenate([corner, corner + rng.uniform(8, 24, (8, 2))], 1)
  size = np.tile(np.int32([side, side]), (count, 1))
  mask = np.ones(count, np.float32)
  return {"image": image, "size": size, "boxes": boxes, "labels": labels, "crowd": labels < 0, "proposals": proposals,
          "mask": mask}  # fmt: skip


def truth_found(found, batch):
  """Share of the boxes of truth whose best detection of IoU .5, score .5 and label is there; and mean IoU of these."""
  best = []
  for i in range(len(batch["labels"])):
    for box, label in zip(batch["boxes"][i], batch["labels"][i]):
      if label:
        of = found["valid"][i] & (found["labels"][i] == label) & (found["scores"][i] > 0.5)
        best.append(overlaps(box[None], found["boxes"][i][of]).max() if of.any() else 0.0)
  return np.mean(np.array(best) >= 0.5), np.mean(best)


def start(detector):
  """Variables by NumPy: He et al.'s for what is learned by gradients, zeros for the rest. Saves a compilation."""
  rng, shapes = np.random.default_rng(1), jax.eval_shape(detector.init, jax.random.PRNGKey(0))
  he = lambda leaf: jnp.float32(rng.normal(size=leaf.shape) * np.sqrt(2 / max(np.prod(leaf.shape[:-1]), 1)))
  params = jax.tree.map(lambda leaf: he(leaf) if len(leaf.shape) > 1 else jnp.zeros(leaf.shape), shapes["params"])
  return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), dict(shapes)) | {"params": params}


def test_fast_rcnn_keeps_the_contract():
  """Shapes alone: terms, gradients and detections."""
  fields = {"stages": 3, "shrink": 16, "hidden_size": 8, "pool": 3, "regions": 12}
  detector = detection.build(Config("detection", Model("fast_rcnn_vgg16", fields), Data("none")), (64, 64, 3), 2)
  batch = scenes() | {"image": jnp.zeros((4, 64, 64, 3))}
  variables = jax.eval_shape(detector.init, jax.random.PRNGKey(0))

  def loss(params):
    terms, collections = detector.loss(dict(variables, params=params), batch, jax.random.PRNGKey(0))
    assert set(terms) == {"classification", "boxes"}
    assert {leaf.shape for leaf in jax.tree.leaves(terms)} == {()}
    return sum(x for x, _ in terms.values()), collections

  grads, collections = jax.eval_shape(lambda params: jax.grad(loss, has_aux=True)(params), variables["params"])
  assert jax.tree.map(lambda x: x.shape, grads) == jax.tree.map(lambda x: x.shape, variables["params"])
  assert not collections
  found = jax.eval_shape(lambda v: detector.detect(v, batch, detection.Limits(most=7)), variables)
  shapes = {name: x.shape for name, x in found.items()}
  assert shapes == {"boxes": (4, 7, 4), "scores": (4, 7), "labels": (4, 7), "valid": (4, 7)}
  assert detector.proposals
  assert detector.finish is None


def test_rcnn_from_scratch_to_its_svms(monkeypatch, tmp_path):
  """Fine-tuning lowers the loss; then SVMs and regressions are learned, and find red and green squares."""
  monkeypatch.setenv("FLAXONOMY_CACHE", str(tmp_path))
  fields = {"side": 67, "shrink": 8, "hidden_size": 32, "body": "alexnet", "dropout": 0.0, "regions": 8, "chunk": 23}
  fields |= {"cost": 0.1}  # four images are not five thousand
  config = Config("detection", Model("rcnn_alexnet", fields), Data("none", mean=(0.3,), std=(0.3,)))
  detector, optimizer, raw = detection.build(config, (64, 64, 3), 2), optax.adam(3e-3), scenes()
  batch = raw | {"image": augment.normalise(raw["image"], (0.3,), (0.3,))}
  variables = start(detector)
  assert variables["svm"]["fitted"] == variables["regression"]["fitted"] == 0

  @jax.jit
  def step(variables, state, rng):
    def objective(params):
      terms, collections = detector.loss(variables | {"params": params}, batch, rng)
      return terms["classification"][0] / terms["classification"][1], collections

    (value, collections), grads = jax.value_and_grad(objective, has_aux=True)(variables["params"])
    updates, state = optimizer.update(grads, state)
    return {"params": optax.apply_updates(variables["params"], updates), **collections}, state, value

  values, state = [], optimizer.init(variables["params"])
  for i in range(80):
    variables, state, value = step(variables, state, jax.random.PRNGKey(i))
    values.append(float(value))
  assert np.mean(values[-5:]) < 0.3 * values[0]

  monkeypatch.setattr(training, "RIDGE", 1.0)  # likewise
  parts = [{name: x[at] for name, x in raw.items()} for at in (slice(0, 2), slice(2, 4))]
  done = detector.finish(variables, iter(parts), 0)
  assert jax.tree.map(jnp.shape, done) == jax.tree.map(jnp.shape, variables)
  jax.tree.map(np.testing.assert_array_equal, done["params"], variables["params"])
  assert done["svm"]["fitted"] == done["regression"]["fitted"] == 1
  assert not list(tmp_path.iterdir())  # features are gone

  detect = jax.jit(lambda variables: detector.detect(variables, batch, detection.Limits()))
  share, near = truth_found(detect(done), raw)
  assert share == 1
  unmoved = truth_found(detect(done | {"regression": variables["regression"]}), raw)
  assert near > unmoved[1] + 0.02
