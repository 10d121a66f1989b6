"""The classification task: targets, losses, auxiliary classifiers, and predictions over several views, in NumPy."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from flaxonomy import models
from flaxonomy.configs import base
from flaxonomy.data.pipeline import Info
from flaxonomy.errors import UserError
from flaxonomy.train import tasks
from flaxonomy.train.tasks import classification

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (6, 4)).astype(np.float32)
LABELS = RNG.integers(0, 4, 6)
ONE_HOT = np.eye(4)[LABELS]


def sigmoid(x):
  return 1 / (1 + np.exp(-np.float64(x)))


def softmax(x):
  e = np.exp(np.float64(x))
  return e / e.sum(-1, keepdims=True)


BY_HAND = {
  "softmax": (lambda x, t: -(t * np.log(softmax(x))).sum(-1), softmax),
  "bce": (
    lambda x, t: -(t * np.log(sigmoid(x)) + (1 - t) * np.log(1 - sigmoid(x))).mean(-1),
    lambda x: sigmoid(x) / sigmoid(x).sum(-1, keepdims=True),
  ),
  "mse": (
    lambda x, t: ((sigmoid(x) - t) ** 2).mean(-1),
    lambda x: sigmoid(x) / sigmoid(x).sum(-1, keepdims=True),
  ),
}


def test_every_loss_is_tried():
  assert set(BY_HAND) == set(classification.LOSSES)


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_and_probabilities(name, smoothing):
  loss, probabilities = BY_HAND[name]
  target = (1 - smoothing) * ONE_HOT + smoothing / 4
  found = classification.objective(None, {"logits": LOGITS}, jnp.asarray(target, jnp.float32), name)
  np.testing.assert_allclose(found, loss(LOGITS, target), rtol=1e-5)
  np.testing.assert_allclose(classification.LOSSES[name][1](LOGITS), probabilities(LOGITS), rtol=1e-5)


def test_probabilities_of_very_small_sigmoids():
  """Logits that are all far below 0: sigmoids of nothing, and yet shares of 1."""
  probs = classification.LOSSES["bce"][1](jnp.asarray([[-200.0, -201.0, -300.0]]))
  np.testing.assert_allclose(probs, softmax([[-200.0, -201.0, -300.0]]), rtol=1e-5, atol=1e-30)


def test_label_smoothing_is_as_it_was():
  """Szegedy et al. 2015, section 7, over all classes: .9 and .025, and cross-entropy unless told otherwise."""
  targets = classification.targets({"label": LABELS}, 4, 0.1)
  np.testing.assert_allclose(targets, 0.9 * ONE_HOT + 0.025, rtol=1e-6)
  found = classification.objective(None, {"logits": LOGITS}, targets)
  np.testing.assert_allclose(found, BY_HAND["softmax"][0](LOGITS, 0.9 * ONE_HOT + 0.025), rtol=1e-5)
  share, other = RNG.uniform(size=6).astype(np.float32), RNG.integers(0, 4, 6)
  mixed = classification.targets({"label": LABELS, "label2": other, "mix": share}, 4, 0.1)
  both = share[:, None] * ONE_HOT + (1 - share[:, None]) * np.eye(4)[other]
  np.testing.assert_allclose(mixed, 0.9 * both + 0.025, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("names, weight", [(("aux1", "aux2"), 0.3), (("aux",), 0.4), ((), 0.3)])
@pytest.mark.parametrize("loss", BY_HAND)
def test_auxiliary_losses_are_weighted(names, weight, loss):
  stages = {name: RNG.normal(size=(6, 4)).astype(np.float32) for name in names}
  model = types.SimpleNamespace(aux_weight=weight)
  more = {"logits": LOGITS, "pooled": np.ones((6, 9), np.float32)}
  found = classification.objective(model, stages | more, jnp.asarray(ONE_HOT, jnp.float32), loss)
  of = BY_HAND[loss][0]
  np.testing.assert_allclose(
    found, of(LOGITS, ONE_HOT) + weight * sum(of(x, ONE_HOT) for x in stages.values()), rtol=1e-5
  )


def test_auxiliary_weights_of_the_models():
  assert models.create("googlenet").aux_weight == 0.3
  assert models.create("googlenet_original").aux_weight == 0.3
  assert models.create("inception_v3").aux_weight == 0.4


class Pixels(nn.Module):
  """Logits that tell every view from every other: weighted sums of the pixels."""

  num_classes: int = 4
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, *, train: bool):
    x = x.astype(jnp.float32)
    h, w = (jnp.arange(1.0, n + 1) for n in x.shape[1:3])
    places = jnp.sin(h[:, None] * 3 + w[None] ** 2)
    sums = (x * places[None, :, :, None]).mean((1, 2, 3))
    return {
      "logits": sums[:, None] * jnp.arange(1.0, 1 + self.num_classes)[None]
      + self.param("b", nn.initializers.zeros_init(), (1, 1))
    }


def predicted(monkeypatch, image, **data):
  """What the task makes of images: probabilities [B, 4]."""
  monkeypatch.setattr(tasks, "module", lambda config, **given: Pixels())
  config = base.Config(data=base.Data(mean=(0.5,), std=(0.25,), **data))
  config = base.override(config, {"train.loss": "softmax"})
  task = tasks.build(config, Info("x", ("a", "b", "c", "d"), image.shape[1:], 10), 1)
  state = jax.jit(task.init)(jax.random.PRNGKey(0))
  return np.asarray(jax.jit(task.predict_step)(state, {"image": image})["probs"])


def by_hand(parts):
  """The mean of the softmax over normalised views."""
  model = Pixels()
  logits = [
    model.apply({"params": {"b": np.zeros((1, 1))}}, (x / 255 - 0.5) / 0.25, train=False)["logits"] for x in parts
  ]
  return np.mean([softmax(x) for x in logits], 0)


IMAGES = RNG.integers(0, 256, (3, 10, 12, 1)).astype(np.uint8)


def test_one_view_is_the_whole_image_or_its_middle(monkeypatch):
  x = np.float32(IMAGES)
  np.testing.assert_allclose(predicted(monkeypatch, IMAGES), by_hand([x]), rtol=1e-5, atol=1e-6)
  found = predicted(monkeypatch, IMAGES, crop_size=(6, 8))
  np.testing.assert_allclose(found, by_hand([x[:, 2:8, 2:10]]), rtol=1e-5, atol=1e-6)


def test_ten_crops_are_the_mean_of_their_softmax(monkeypatch):
  """Corners, centre and their mirror images; not the softmax of mean logits."""
  found = predicted(monkeypatch, IMAGES, crop_size=(6, 8), eval_crops=10)
  x = np.float32(IMAGES)
  parts = [x[:, t : t + 6, left : left + 8] for t, left in ((0, 0), (0, 4), (4, 0), (4, 4), (2, 2))]
  parts += [part[:, :, ::-1] for part in parts]
  expected = by_hand(parts)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
  assert np.abs(by_hand(parts[:5]) - expected).max() > 1e-3
  assert np.abs(by_hand([np.mean(parts, 0)]) - expected).max() > 1e-3
  np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-5)


def test_scales_are_averaged_too(monkeypatch):
  """Twice the size by repeating is not bilinear: the enlarged image is made by weights in NumPy."""
  found = predicted(monkeypatch, IMAGES, eval_scales=(1.0, 2.0))
  x = np.float32(IMAGES)
  grown = np.einsum("yh,xw,bhwc->byxc", doubling(10), doubling(12), x)
  np.testing.assert_allclose(found, by_hand([x, grown]), rtol=1e-4, atol=1e-5)
  cropped = predicted(monkeypatch, IMAGES, eval_scales=(1.0, 2.0), crop_size=(6, 8))
  np.testing.assert_allclose(cropped, by_hand([x[:, 2:8, 2:10], grown[:, 7:13, 8:16]]), rtol=1e-4, atol=1e-5)


def doubling(n):
  """[2 n, n]: bilinear weights of twice as many pixels, their centres half-way between."""
  weights = np.zeros((2 * n, n))
  for i in range(2 * n):
    place = (i + 0.5) / 2 - 0.5
    low, share = int(np.floor(place)), place - np.floor(place)
    weights[i, max(low, 0)] += 1 - share
    weights[i, min(low + 1, n - 1)] += share
  return weights


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_a_run_with_sigmoids_learns(tiny, tmp_path, loss):
  """From a start near chance; the loss that is logged is the one named."""
  from flaxonomy.train import loop, report

  config = tiny(train__loss=loss, optim__name="adam", optim__lr=1e-2, train__steps=60, train__eval_every=60)
  config = base.override(config, {"model.name": "mlp", "model.fields": {"hidden": (32,)}})
  result = loop.run(config, tmp_path / "run", quiet=True)
  rows = [row for row in report.read_metrics(tmp_path / "run") if row["split"] == "train"]
  first = {"bce": np.log(2), "mse": 0.25}[loss]  # of logits of 0
  assert rows[0]["loss"] == pytest.approx(first, rel=0.5)
  assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
  assert result["metrics"]["test_accuracy"] > 0.7


def test_an_unknown_loss():
  with pytest.raises(UserError, match="unknown train.loss 'bcee'; did you mean 'bce'"):
    base.override(base.Config(), {"train.loss": "bcee"})
