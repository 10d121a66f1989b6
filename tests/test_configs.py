"""Configs: overrides, validation, JSON."""

import json

import pytest

from flaxonomy.configs import base
from flaxonomy.errors import UserError


def test_override_leaves_the_original_alone():
  config = base.Config()
  changed = base.override(config, {"optim.lr": 1, "model.fields.dropout": 0.1, "data.image_size": [28, 28]})
  assert (config.optim.lr, config.model.fields, config.data.image_size) == (1e-3, {}, None)
  assert changed.optim.lr == 1.0
  assert isinstance(changed.optim.lr, float)
  assert changed.model.fields == {"dropout": 0.1}
  assert changed.data.image_size == (28, 28)


@pytest.mark.parametrize(
  "path, value, message",
  [
    ("optim.lrr", 1, "unknown config field 'optim.lrr'; did you mean 'optim.lr'"),
    ("optimm.lr", 1, "did you mean 'optim.lr'"),
    ("optim", "adam", "is a group"),
    ("optim.lr", "fast", "must be float, not 'fast' (str)"),
    ("optim.lr", True, "must be float, not True"),
    ("optim.lr", -1.0, "at least 0"),
    ("train.steps", 1.5, "must be int, not 1.5 (float)"),
    ("train.steps", None, "must be int, not None"),
    ("train.zero", 1, "must be bool"),
    ("data.image_size", (28,), "a tuple of int, 2 long or None"),
    ("data.mean", (0.5, "x"), "a tuple of float"),
    ("data.std", (0.0,), "must be positive"),
  ],
)
def test_mistakes_are_one_line(path, value, message):
  with pytest.raises(UserError) as raised:
    base.override(base.Config(), {path: value})
  assert message in str(raised.value)
  assert "\n" not in str(raised.value)


def test_json_round_trip():
  changes = {
    "optim.boundaries": (3, 5),
    "data.augment.scale": (0.9, 1.1),
    "model.fields.features": (1, 2, 3),
    "seed": 7,
  }
  config = base.override(base.Config(), changes)
  assert base.from_dict(json.loads(json.dumps(base.to_dict(config)))) == config


def test_a_config_written_by_an_older_version_gets_the_defaults():
  old = base.to_dict(base.Config(seed=3))
  del old["train"]["zero"], old["data"]["augment"]["cutout"]
  assert base.from_dict(old) == base.Config(seed=3)


def test_a_config_with_a_field_that_is_gone_is_refused():
  with pytest.raises(UserError, match="unknown config field 'train.stepz'"):
    base.from_dict({"train": {"stepz": 3}})
