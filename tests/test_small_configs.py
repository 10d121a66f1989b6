"""Every experiment of a size for CPUs makes a real step: its own net, loss, optimizer and augmentation.

On noise of the right shape in a folder, so that no dataset need be on disk. Of nets in many sizes the default and
another one; others that compile long with `pytest -m goldens`.
"""

import importlib
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from PIL import Image

from flaxonomy.configs import base
from flaxonomy.train import loop

SHAPES = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1), "mnist": (28, 28, 1), "xo": (9, 9, 1)}
PICKED = {  # file: variants
  "alexnet_fashion_mnist": ("alexnet", "alexnet_original"),
  "deep_convnet_fashion_mnist": (None,),
  "googlenet_fashion_mnist": ("googlenet", "googlenet_original"),
  "inception_v3_fashion_mnist": (None,),
  "resnet18_fashion_mnist": ("resnet18", "resnet50"),
  "resnet20_cifar10": (None,),
  "resnet_cifar10": ("resnet20", "resnet56"),
  "simple_convnet_mnist": (None,),
  "vgg_cifar10": ("vgg11_bn", "vgg13"),
  "xo": ("bce", "mse"),
}
SLOW = {"googlenet_original", "resnet50", "resnet56"}
QUICK = {"xla_backend_optimization_level": 0}  # compiles in half the time
EACH = [
  pytest.param(name, variant, marks=[pytest.mark.goldens] if {name, variant} & SLOW else [], id=f"{name}:{variant}")
  for name, variants in PICKED.items()
  for variant in variants
]


def config_of(name, variant):
  module = importlib.import_module(f"flaxonomy.configs.{name}")
  return module.get_config() if variant is None else module.get_config(variant)


def test_every_small_config_is_tried():
  files = [path.stem for path in Path(base.__file__).parent.glob("*.py")]
  small = [name for name in files if name.endswith(("_cifar10", "_fashion_mnist"))]
  assert set(PICKED) == {*small, "xo", "simple_convnet_mnist"}
  for name, variants in PICKED.items():
    known = getattr(importlib.import_module(f"flaxonomy.configs.{name}"), "VARIANTS", (None,))
    default = config_of(name, None).model.name
    assert config_of(name, variants[0]).model.name == default
    assert set(variants) <= set(known)
    assert len(variants) == min(2, len(known))


def noise(folder, shape):
  """Two classes of eight images to train, two to evaluate."""
  rng = np.random.default_rng(0)
  for i in range(20):
    path = folder / f"{'test' if i % 5 == 0 else 'train'}/{'ab'[i % 2]}/{i}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8).squeeze()).save(path)


@pytest.mark.parametrize("name, variant", EACH)
def test_a_step(name, variant, tmp_path):
  config = config_of(name, variant)
  shape = SHAPES[config.data.name]
  noise(tmp_path, shape)
  changes = {
    "data.name": "folder", "data.data_dir": str(tmp_path), "data.channels": shape[2], "data.batch_size": 8,
    "data.image_size": config.data.image_size or shape[:2], "data.eval_batch_size": 4, "optim.warmup_steps": 0,
    "train.steps": 1, "train.devices": 2,
  }  # fmt: skip
  session = loop.prepare(base.override(config, changes))
  shardings = jax.tree.map(lambda spec: NamedSharding(session.mesh, spec), session.task.specs)
  state = jax.jit(session.task.init, out_shardings=shardings, compiler_options=QUICK)(jax.random.PRNGKey(0))
  before = jax.device_get(state.params)
  (item,) = session.train.train_items([(0, 1)], 1)
  arguments = state, session.train.resident, item, np.int32(1)
  state, metrics = loop.train_function(session, 1).lower(*arguments).compile(QUICK)(*arguments)
  metrics = {key: float(value[0]) for key, value in metrics.items()}
  assert {"loss", "accuracy", "lr", "grad_norm"} <= set(metrics)
  assert all(np.isfinite(list(metrics.values())))
  assert 0 < metrics["loss"] < 20
  assert metrics["lr"] > 0
  assert int(state.step) == 1
  after = jax.device_get(state)
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.params, after.collections)))
  moved = jax.tree_util.tree_map_with_path(lambda path, a, b: (path, (a != b).any()), before, after.params)
  still = [path for path, changed in jax.tree.leaves(moved, is_leaf=lambda x: isinstance(x, tuple)) if not changed]
  assert not [path for path in still if path[-1].key == "kernel"]
