"""Ten thousand made-up inputs: each is read, or refused by a UserError of one line.

What is generated is the same at every run.
"""

import json
import math

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flaxonomy.configs import base
from flaxonomy.errors import UserError

INPUTS = {
  "images of random bytes": 1000,
  "damaged images": 3000,
  "config fields": 2000,
  "configs": 1000,
  "command lines": 1000,
  "workdirs": 1000,
  "weights": 1000,
}


def fuzz(kind, **strategies):
  """A test that is given so many inputs."""
  chosen = settings(
    max_examples=INPUTS[kind],
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
  )
  return lambda test: chosen(given(**strategies)(test))


def read(function, *arguments):
  """What a function returns, or None where it refuses its input with one line."""
  try:
    return function(*arguments)
  except UserError as error:
    message = str(error)
    assert message.strip()
    assert len(message.splitlines()) == 1, message
    assert len(message) < 2000, message
    return None


# Damage to valid bytes.

TELLING = [
  b"",
  b"\0",
  b"\xff",
  b"\0\0\0\0",
  b"\xff\xff\xff\xff",
  b"\x7f\xff\xff\xff",
  b"\xff\xff\xff\x7f",
  b"\x80",
  b"{",
]
damage = st.tuples(
  st.sampled_from(["flip", "put", "insert", "cut", "end", "twice"]),
  st.floats(0, 1, exclude_max=True),
  st.integers(0, 7),
  st.sampled_from(TELLING) | st.binary(max_size=6),
)


def damaged(data: bytes, changes) -> bytes:
  for what, share, count, new in changes:
    at = int(share * len(data))
    before, after = data[:at], data[at:]
    data = {
      "flip": before + bytes(x ^ 1 << count for x in after[:1]) + after[1:],
      "put": before + new + after[len(new) :],
      "insert": before + new + after,
      "cut": before + after[count + 1 :],
      "end": before,
      "twice": before + after[: 8 * count] + after,
    }[what]
  return data


# Values and configs.

FIELDS = list(base.field_types())
GROUPS = ["model", "data", "data.augment", "optim", "train"]
every_text = st.text(st.characters(exclude_categories=()), max_size=20)  # surrogates too
numbers = st.one_of(
  st.integers(),
  st.floats(),
  st.integers(4, 9).map(lambda zeros: 10 ** (1000 * zeros)),  # Python prints no integer of more than 4,300 digits
  st.sampled_from([0, 1, 2, -1, 2**31, 2**32, 2**63, 10**400, -(10**400), 0.5, 1e-3, -0.0, 5e-324, math.inf]),
)
plain = (
  st.none() | st.booleans() | numbers | every_text | st.sampled_from(["adam", "digits", "skip", "x" * 5000, "a\nb"])
)
values = st.recursive(
  plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(every_text, inner, max_size=3), max_leaves=8
)


def check_config(config):
  """A config can be written and read again."""
  if config is not None:
    assert isinstance(config, base.Config)
    text = json.dumps(base.to_dict(config))
    assert json.dumps(base.to_dict(base.from_dict(json.loads(text)))) == text


def changed(tree, changes):
  """Plain nested dicts with some entries set, removed or put elsewhere."""
  tree = json.loads(json.dumps(tree))
  for path, what, value in changes:
    holder, *names = tree, *path.split(".")
    for name in names[:-1]:
      holder = holder[name] if isinstance(holder, dict) and isinstance(holder.get(name), dict) else holder
    if what == "remove":
      holder.pop(names[-1], None)
    elif what == "rename" and names[-1] in holder:
      holder[str(value)[:50] if isinstance(value, str) else "other"] = holder.pop(names[-1])
    else:
      holder[names[-1]] = value
  return tree
