"""The feature pyramid against loops over pixels in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flaxonomy.errors import UserError
from flaxonomy.models.detection.fpn import FeaturePyramid

RNG = np.random.default_rng(0)
SHAPES = [(2, 7, 9, 3), (2, 4, 5, 4), (2, 2, 3, 5)]  # odd sizes: 4 rows go up to 7, 5 columns to 9


def three_by_three(x, kernel, bias):
  """Cross-correlation with a border of zeros, tap by tap."""
  b, h, w, _ = x.shape
  around, y = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), np.zeros((b, h, w, len(bias))) + bias
  for i in range(3):
    for j in range(3):
      y += around[:, i : i + h, j : j + w] @ kernel[i, j]
  return y


def enlarged(x, h, w):
  """torch's "nearest"."""
  y = np.zeros((x.shape[0], h, w, x.shape[3]))
  for i in range(h):
    for j in range(w):
      y[:, i, j] = x[:, int(np.floor(i * x.shape[1] / h)), int(np.floor(j * x.shape[2] / w))]
  return y


def test_levels():
  maps = [RNG.normal(size=shape).astype(np.float32) for shape in SHAPES]
  model = FeaturePyramid(6)
  params = jax.eval_shape(model.init, jax.random.PRNGKey(0), maps)["params"]
  params = jax.tree.map(lambda p: RNG.normal(size=p.shape).astype(np.float32), params)
  assert set(params) == {f"{kind}{i}" for kind in ("inner", "layer") for i in range(3)}
  with jax.default_matmul_precision("highest"):
    levels = jax.jit(model.apply)({"params": params}, maps)
  above, expected = 0, []
  for i in (2, 1, 0):
    inner, layer = params[f"inner{i}"], params[f"layer{i}"]
    x = maps[i].astype(np.float64) @ inner["kernel"][0, 0] + inner["bias"]
    above = x if i == 2 else x + enlarged(above, *SHAPES[i][1:3])
    expected.insert(0, three_by_three(above, layer["kernel"], layer["bias"]))
  expected.append(expected[2][:, ::2, ::2])
  assert [level.shape for level in levels] == [(2, 7, 9, 6), (2, 4, 5, 6), (2, 2, 3, 6), (2, 1, 2, 6)]
  for ours, theirs in zip(levels, expected):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_sizes_start_and_precision():
  """ResNet-50's pyramid has 3,344,384 parameters; kernels start between +-sqrt(3 / fan_in), biases at zero."""
  maps = [jnp.zeros((1, n, n, c)) for n, c in ((8, 256), (4, 512), (2, 1024), (1, 2048))]
  shapes = jax.eval_shape(FeaturePyramid().init, jax.random.PRNGKey(0), maps)
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 3_344_384
  model, x = FeaturePyramid(32, pool=False, dtype=jnp.bfloat16), [jnp.ones((1, 2, 2, 12))]
  params = jax.jit(model.init)(jax.random.PRNGKey(0), x)["params"]
  kernel = params["layer0"]["kernel"]
  limit = np.sqrt(3 / (9 * 32))
  assert 0.95 * limit < np.abs(kernel).max() <= limit
  assert not params["layer0"]["bias"].any()
  assert kernel.dtype == jnp.float32
  (level,) = jax.eval_shape(model.apply, {"params": params}, x)
  assert level.dtype == jnp.bfloat16
  with pytest.raises(UserError, match="at least one map"):
    FeaturePyramid().init(jax.random.PRNGKey(0), [])
