"""Configs, from Python and from the command line."""

import typing

import pytest
from hypothesis import strategies as st
from made_up import FIELDS, GROUPS, changed, check_config, damaged, every_text, fuzz, read, values

from flaxonomy.configs import base
from flaxonomy.train import command

near_misses = st.builds(
  lambda field, share, new: damaged(field.encode(), [("put", share, 0, new.encode())]).decode(errors="replace"),
  st.sampled_from(FIELDS),
  st.floats(0, 1, exclude_max=True),
  st.sampled_from(["", ".", "s", "é", "\n", "__", "=", " "]),
)
below = st.builds(".".join, st.lists(st.sampled_from(["a", "b", "features", "name", ""]), min_size=1, max_size=3))
paths = st.one_of(
  st.sampled_from(FIELDS),
  st.sampled_from(FIELDS),
  st.sampled_from(GROUPS),
  near_misses,
  below.map("model.fields.{}".format),
  every_text,
  st.just("z" * 20_000),
)


def nested(depth: int) -> list:
  found = []
  for _ in range(depth):
    found = [found]
  return found


def typed(kind):
  """Values of a field's type, most of them possible ones."""
  inner = typing.get_args(kind)
  if origin := typing.get_origin(kind):
    if origin is not tuple:
      return st.none() | typed(inner[0])
    return st.lists(typed(inner[0]), max_size=3) if ... in inner else st.tuples(*map(typed, inner))
  return {
    bool: st.booleans(),
    int: st.integers(1, 100) | st.integers(),
    float: st.floats(0, 0.9) | st.floats(),
    str: st.sampled_from(["float32", "skip", "train"]) | every_text,
    dict: st.dictionaries(every_text, values, max_size=3),
  }[kind]


sound = st.one_of([st.tuples(st.just(path), typed(kind)) for path, kind in base.field_types().items()])


@fuzz("config fields", changes=st.lists(sound | sound | st.tuples(paths, values), min_size=1, max_size=3).map(dict))
def test_config_fields(changes):
  check_config(read(base.override, base.Config(), changes))


anywhere = st.lists(
  st.tuples(st.sampled_from(FIELDS + GROUPS) | paths, st.sampled_from(["set", "set", "remove", "rename"]), values),
  max_size=3,
)


@fuzz(
  "configs",
  tree=st.one_of(
    anywhere.map(lambda changes: changed(base.to_dict(base.Config()), changes)),
    st.dictionaries(st.sampled_from([*GROUPS, "task", "seed", "model.fields.a", "1"]) | every_text, values, max_size=4),
  ),
)
def test_configs(tree):
  check_config(read(base.from_dict, tree))


@pytest.mark.parametrize("field", ["seed", "data.mean", "model.fields", "model.fields.a"])
def test_deeply_nested_values(field):
  for depth in (10, 500, 5000):
    read(base.override, base.Config(), {field: nested(depth)})


# Command lines.

fragments = st.sampled_from(
  [
    "1",
    "-",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "'",
    '"',
    "a",
    "()",
    "{[]:1}",
    "None",
    "1e999",
    "\0",
    "\n",
    " ",
    "j",
    "b''",
  ]
)
nasty = st.sampled_from(
  [
    "(" * 300,
    "-" * 5000 + "1",
    "9" * 5000,
    "[" * 5000,
    "{" * 90 + "}" * 90,
    "1+" * 3000 + "1",
    "a " * 5000,
    "not " * 3000,
  ]
)
literals = st.one_of(
  st.lists(fragments, max_size=6).map("".join),
  values.filter(lambda x: not isinstance(x, int) or abs(x) < 2**100).map(lambda x: _text(x)),
  nasty,
)
arguments = st.one_of(
  st.builds("--{}config.{}={}".format, st.sampled_from(["", "", "no"]), paths, literals),
  below.flatmap(lambda name: literals.map(f"--config.model.fields.{name}={{}}".format)),
  literals.map("--config.model.fields={}".format),
  nasty.map("--config.model.fields.dropout={}".format),
  paths.map("--config.{}".format),
  paths.map("-noconfig.{}".format),
  st.sampled_from(
    ["--config", "--config=", "--config=configs/digit.py", "--config=:x", "--config=" + "a" * 5000, "--"]
  ),
  every_text.map("--config={}".format),
  every_text.map("--config={}.py:argument".format),
  every_text,
)


def _text(value) -> str:
  try:
    return repr(value)
  except ValueError:
    return "9" * 5000


@fuzz("command lines", argv=st.lists(arguments, min_size=1, max_size=4))
def test_command_lines(argv):
  found = read(command.prepare, ["launch.py", *argv])
  if found is not None:
    kept, fields = found
    assert kept[0] == "launch.py"
    assert all(path.startswith(("model.fields", "study.compare")) for path in fields)
