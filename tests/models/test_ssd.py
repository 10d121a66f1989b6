"""SSD: sizes, where its maps and heads are, what the first map's norm does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.models.detection import ssd


def shapes_of(side=300, **fields):
  """(shapes of the variables, shapes of the stages)"""
  model, x = ssd.SSD(**fields), jnp.zeros((2, side, side, 3))
  variables = jax.eval_shape(lambda: model.init(jax.random.PRNGKey(0), x, train=False))
  return variables, jax.eval_shape(lambda v: model.apply(v, x, train=False), variables)


@pytest.mark.parametrize("classes, parameters", [(91, 35_641_826), (21, 26_285_486)])
def test_sizes_are_the_published_ones(classes, parameters):
  variables, stages = shapes_of(num_classes=classes)
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == parameters
  maps = {name: stages[name].shape[1:] for name in ssd.SOURCES}
  assert maps == {
    "conv4_3": (38, 38, 512), "fc7": (19, 19, 1024), "conv8_2": (10, 10, 512), "conv9_2": (5, 5, 256),
    "conv10_2": (3, 3, 256), "conv11_2": (1, 1, 256),
  }  # fmt: skip
  assert stages["boxes"].shape == (2, 8732, 4)
  assert stages["logits"].shape == (2, 8732, classes)


def test_fewer_and_narrower_maps():
  variables, stages = shapes_of(128, num_classes=11, sources=4, shrink=4)
  assert set(stages) == {"conv4_3", "fc7", "conv8_2", "conv9_2", "boxes", "logits"}
  assert [stages[name].shape[1] for name in ssd.SOURCES[:4]] == [16, 8, 4, 2]
  assert stages["fc7"].shape[-1] == 256
  assert stages["boxes"].shape == (2, 4 * 16**2 + 6 * (8**2 + 4**2 + 2**2), 4)
  assert not any(name.startswith(("conv10", "conv11")) for name in variables["params"])


def test_the_first_map_is_normalised_for_its_head_alone():
  """Each place has length 20 there; what goes on does not know the scale."""
  model, x = ssd.SSD(num_classes=2, sources=2, shrink=32), jax.random.normal(jax.random.PRNGKey(1), (1, 32, 32, 3))
  variables = jax.jit(lambda: model.init(jax.random.PRNGKey(0), x, train=False))()
  run = jax.jit(lambda variables: model.apply(variables, x * 50, train=False))
  stages = run(variables)
  lengths = np.linalg.norm(stages["conv4_3"], axis=-1)
  np.testing.assert_allclose(lengths[lengths > 0], 20, rtol=1e-5)
  other = {"params": variables["params"] | {"conv4_3_scale": jnp.full(16, 40.0)}}
  changed = run(other)
  np.testing.assert_allclose(changed["conv4_3"], 2 * stages["conv4_3"], rtol=1e-6)
  np.testing.assert_array_equal(changed["fc7"], stages["fc7"])
  assert np.asarray(stages["fc7"]).any()
