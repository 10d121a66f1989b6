"""Public checkpoints to our variables and back: NumPy dicts under the public names; torch is never imported.

`from_torch("resnet50", tensors)` takes what torchvision's state_dict holds. Names, layouts and what a checkpoint tells
of its model (number of classes, auxiliary classifiers) stand in a file for each family.

Batch norm's running variance is torch's unbiased one on both sides (models/norm.py), so it goes over unchanged.
`num_batches_tracked`, which torch counts and nothing reads, is dropped on import and 0 on export.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models.interop import classifiers, recurrent, seq2seq

FAMILIES = classifiers.FAMILIES | recurrent.FAMILIES | seq2seq.FAMILIES
SHOWN = 8  # names in an error


def from_torch(name: str, tensors: dict[str, np.ndarray], **fields) -> dict:
  """Our variables from a public checkpoint.

  Args:
    name: of the model, a key of models.MODELS with a public namesake.
    tensors: {public name: array in torch's layout}.
    **fields: of the model, where they differ from the public model's and cannot be seen in the tensors.

  Returns:
    {"params": {...}, "batch_stats": {...}} of float32 arrays, the second only with batch norm.

  Raises:
    UserError: tensors that are missing, unexpected or of another shape, with their names; a model that has no public
      namesake.
  """
  module = model_of(name, tensors, **fields)
  tensors = {key: np.asarray(value) for key, value in tensors.items() if not key.endswith("num_batches_tracked")}
  wanted = _expected(module, tensors)
  missing = [key for key in wanted if key not in tensors]
  unexpected = [key for key in tensors if key not in wanted]
  shaped = [
    f"{key} {tensors[key].shape} for {want.shape}"
    for key, (_, want) in wanted.items()
    if key in tensors and tensors[key].shape != want.shape
  ]
  problems = {"missing": missing, "unexpected": unexpected, "of another shape": shaped}
  if any(problems.values()):
    said = [f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names]
    raise UserError(f"these are not the weights of model {name!r}; {'; '.join(said)}")
  return unflatten_dict({path: _ours(path, tensors[key], module) for key, (path, _) in wanted.items()})


def to_torch(name: str, variables: dict, **fields) -> dict[str, np.ndarray]:
  """A public checkpoint from our variables; the inverse of `from_torch`.

  Args:
    name: of the model.
    variables: {"params": {...}, ...}; a tree of gradients or other arrays of the same shapes will do.
    **fields: as in `from_torch`.

  Returns:
    {public name: float32 array in torch's layout}

  Raises:
    UserError: a model that has no public namesake.
  """
  module = _create(name, fields)
  tensors = {}
  for path, value in flatten_dict(variables).items():
    key = _torch_name(module, path)
    tensors[key] = _theirs(path, np.asarray(value, np.float32), module)
    if path[-1] == "mean":
      tensors[key.removesuffix("running_mean") + "num_batches_tracked"] = np.zeros((), np.int64)
  return tensors


def model_of(name: str, tensors: dict[str, np.ndarray], **fields):
  """The module that a checkpoint is of: its number of classes and the like are read from the tensors.

  Args: as in `from_torch`.
  """
  module = _create(name, fields)
  told = FAMILIES[type(module).__name__].told(tensors)
  known = models.lookup(name)[1]
  return models.create(name, **{k: v for k, v in told.items() if k in known and k not in fields}, **fields)


def torch_module(module, path: tuple[str, ...]) -> str:
  """The public name of one of our modules: ("stage1_block2", "conv1") of a ResNet is "layer1.1.conv1"."""
  return FAMILIES[type(module).__name__].names(module, "/".join(path))


def _create(name, fields):
  module = models.create(name, **fields)
  if type(module).__name__ not in FAMILIES:
    known = [key for key in models.MODELS if has_namesake(key)]
    raise UserError(f"model {name!r} has no public namesake; these have: {', '.join(known)}")
  return module


def has_namesake(name: str) -> bool:
  """Whether the model of this name has public names."""
  return type(models.create(name)).__name__ in FAMILIES


def _expected(module, tensors) -> dict:
  """{public name: (our path, its shape and type in torch's layout)} of all that the model has."""
  family = FAMILIES[type(module).__name__]
  given = family.example(family, module, tensors)
  shapes = jax.eval_shape(lambda: module.init(jax.random.PRNGKey(0), *given, train=False))
  expected = {}
  for path, leaf in flatten_dict(shapes).items():
    key = _torch_name(module, path)
    leaf = _as_seen(path, leaf, tensors.get(key), module)
    expected[key] = (path, jax.eval_shape(lambda x, path=path: _transposed(path, x, module, jnp), leaf))
  return expected


def _as_seen(path, leaf, tensor, module):
  """The leaf; if it is a dense layer behind a map as large as the image makes it, with as many inputs as the tensor."""
  channels = FAMILIES[type(module).__name__].flattened(module).get("/".join(path[1:-1]))
  if channels is None or hasattr(module, "pool") or leaf.ndim != 2 or tensor is None or tensor.ndim != 2:
    return leaf
  square = tensor.shape[1] > 0 and channels * math.isqrt(tensor.shape[1] // channels) ** 2 == tensor.shape[1]
  return jax.ShapeDtypeStruct((tensor.shape[1], leaf.shape[1]), leaf.dtype) if square else leaf


def _torch_name(module, path) -> str:
  return FAMILIES[type(module).__name__].tensor(torch_module(module, path[1:-1]), path[-1])


def _theirs(path, value, module):
  return np.ascontiguousarray(_transposed(path, value, module, np))


def _transposed(path, value, module, xp):
  """One of our arrays in torch's layout."""
  if value.ndim == 4:
    return xp.transpose(value, (3, 2, 0, 1))
  if value.ndim == 2 and path[-1] != "embedding":  # [ids, features] on both sides
    if shape := _flattened(path, value, module):
      value = xp.transpose(xp.reshape(value, (*shape, -1)), (2, 0, 1, 3)).reshape(value.shape)
    return value.T
  return value


def _ours(path, value, module):
  """One of torch's arrays in our layout, float32."""
  value = np.asarray(value, np.float32)
  if value.ndim == 4:
    return np.ascontiguousarray(value.transpose(2, 3, 1, 0))
  if value.ndim == 2 and path[-1] != "embedding":
    value = value.T
    if shape := _flattened(path, value, module):
      h, w, c = shape
      value = value.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(value.shape)
    return np.ascontiguousarray(value)
  return value


def _flattened(path, value, module) -> tuple[int, int, int] | None:
  """[H, W, C] of the map that a dense layer sees flattened; torch's rows are in the order C, H, W."""
  channels = FAMILIES[type(module).__name__].flattened(module).get("/".join(path[1:-1]))
  if channels is None:
    return None
  side = math.isqrt(value.shape[0] // channels)
  if side**2 * channels != value.shape[0]:
    raise UserError(f"public weights need images whose map before {path[-2]!r} is square; this one is not")
  return side, side, channels


def _some(names) -> str:
  return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
