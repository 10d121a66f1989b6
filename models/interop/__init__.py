"""Public checkpoints to our variables and back: NumPy dicts under the public names; torch is never imported.

`from_torch("resnet50", tensors)` takes what torchvision's state_dict holds. Names, layouts and what a checkpoint tells
of its model (number of classes, auxiliary classifiers) stand in a file for each family.

Batch norm's running variance is torch's unbiased one on both sides (models/norm.py), so it goes over unchanged.
`num_batches_tracked`, which torch counts and nothing reads, is dropped on import and 0 on export. Tensors that are
others again, and constants that our models compute, must be just that on import, if they are there, and are written on
export.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from flaxonomy import models
from flaxonomy.errors import UserError
from flaxonomy.models.interop import classifiers, detectors, recurrent, seq2seq, transformers

FAMILIES = classifiers.FAMILIES | detectors.FAMILIES | recurrent.FAMILIES | seq2seq.FAMILIES | transformers.FAMILIES
SHOWN = 8  # names in an error
CONSTANT = 1e-3  # how far a stored constant may be from ours; single precision loses 1e-4 on sines of thousands


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
  tensors = _without_derived(name, module, family_of(module).cleaned(tensors))
  wanted = _expected(module, tensors)
  missing = [key for key in wanted if key not in tensors]
  unexpected = [key for key in tensors if key not in wanted]
  shaped = [
    f"{key} {tensors[key].shape} for {shape}"
    for key, (_, shape) in wanted.items()
    if key in tensors and tensors[key].shape != shape
  ]
  problems = {"missing": missing, "unexpected": unexpected, "of another shape": shaped}
  if any(problems.values()):
    said = [f"{len(names)} {kind}: {_some(names)}" for kind, names in problems.items() if names]
    raise _other_weights(name, "; ".join(said))
  found = {path: _ours(path, tensors[key], module) for key, (paths, _) in wanted.items() for path in paths}
  return unflatten_dict(_stacked(module, found))


def _other_weights(name, why):
  return UserError(f"these are not the weights of model {name!r}; {why}")


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
  family, tensors, packed = family_of(module), {}, {}
  for path, value in _unstacked(module, flatten_dict(variables)).items():
    key = _torch_name(module, path)
    value = _transposed(path, np.asarray(value, np.float32), module, np)
    if part := family.part(module, "/".join(path[1:])):
      packed.setdefault(key, [part[0]]).append((part[1], value))
    else:
      tensors[key] = np.ascontiguousarray(value)
    if path[-1] == "mean":
      tensors[key.removesuffix("running_mean") + "num_batches_tracked"] = np.zeros((), np.int64)
  for key, (axis, *pieces) in packed.items():
    values = [value for _, value in sorted(pieces, key=lambda piece: piece[0])]
    tensors[key] = np.ascontiguousarray(np.concatenate(values, axis))
  tensors |= {key: np.asarray(value, np.float32) for key, value in family.constants(module).items()}
  return tensors | {alias: tensors[source] for alias, source in family.tied(module).items()}


def model_of(name: str, tensors: dict[str, np.ndarray], **fields):
  """The module that a checkpoint is of: its number of classes and the like are read from the tensors.

  Args: as in `from_torch`.
  """
  family = family_of(_create(name, fields))
  told = family.told(family.cleaned(tensors))
  known = models.lookup(name)[1]
  return models.create(name, **{k: v for k, v in told.items() if k in known and k not in fields}, **fields)


def of_any_size(name: str, tensors: dict[str, np.ndarray]) -> dict:
  """`from_torch` for a net as deep and wide as the tensors are: a ResNet by the name of any.

  Args: as in `from_torch`.
  """
  module = _create(name, {})
  return from_torch(name, tensors, **family_of(module).sizes(module, tensors))


def has_stem(name: str, tensors: dict[str, np.ndarray]) -> bool:
  """Whether tensors hold the first convolution of a model, by its public name."""
  module = _create(name, {})
  return family_of(module).names(module, family_of(module).stem) + ".weight" in tensors


def torch_module(module, path: tuple[str, ...]) -> str:
  """The public name of one of our modules: ("stage1_block2", "conv1") of a ResNet is "layer1.1.conv1"."""
  return family_of(module).names(module, "/".join(path))


def family_of(module):
  """The family of a module that has one."""
  return FAMILIES[type(module).__name__]


def _create(name, fields):
  module = models.create(name, **fields)
  if type(module).__name__ not in FAMILIES:
    known = [key for key in models.MODELS if has_namesake(key)]
    raise UserError(f"model {name!r} has no public namesake; these have: {', '.join(known)}")
  return module


def has_namesake(name: str) -> bool:
  """Whether the model of this name has public names."""
  return type(models.create(name)).__name__ in FAMILIES


def _without_derived(name, module, tensors):
  """The tensors but for those that follow from others or from nothing; a UserError where they do not."""
  family = family_of(module)
  kept = dict(tensors)
  for alias, source in family.tied(module).items():
    other = kept.pop(alias, None)
    if other is not None and source in tensors and not np.array_equal(other, tensors[source]):
      raise _other_weights(name, f"{alias} is not {source} again")
  for key, constant in family.constants(module).items():
    other = kept.pop(key, None)
    if other is not None and (other.shape != constant.shape or not np.allclose(other, constant, 0, CONSTANT)):
      raise _other_weights(name, f"{key} is not what the model computes")
  return kept


def _expected(module, tensors) -> dict:
  """{public name: (our paths, shape in the public layout)} of all that the model has."""
  family = family_of(module)
  given = family.example(family, module, tensors)
  shapes = jax.eval_shape(lambda: module.init(jax.random.PRNGKey(0), *given, train=False))
  expected = {}
  for path, leaf in _unstacked(module, flatten_dict(shapes)).items():
    key = _torch_name(module, path)
    leaf = _as_seen(path, leaf, tensors.get(key), module)
    shape = list(jax.eval_shape(lambda x, path=path: _transposed(path, x, module, jnp), leaf).shape)
    if part := family.part(module, "/".join(path[1:])):
      shape[part[0]] *= part[2]
    expected.setdefault(key, ([], tuple(shape)))[0].append(path)
  return expected


def _unstacked(module, flat) -> dict:
  """{our path: leaf} with stacks of layers taken apart."""
  stacks, found = family_of(module).stacks(module), {}
  for (collection, top, *rest), leaf in flat.items():
    if top not in stacks:
      found[collection, top, *rest] = leaf
      continue
    layer, count = stacks[top]
    one = leaf if isinstance(leaf, jax.ShapeDtypeStruct) else np.asarray(leaf)
    for i in range(count):
      piece = jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) if one is leaf else one[i]
      found[collection, layer.format(i), *rest] = piece
  return found


def _stacked(module, flat) -> dict:
  """The inverse of `_unstacked`, for arrays."""
  found = dict(flat)
  for stack, (layer, count) in family_of(module).stacks(module).items():
    for collection, top, *rest in flat:
      if top == layer.format(0):
        pieces = [found.pop((collection, layer.format(i), *rest)) for i in range(count)]
        found[collection, stack, *rest] = np.stack(pieces)
  return found


def _as_seen(path, leaf, tensor, module):
  """The leaf; if it is a dense layer behind a map as large as the image makes it, with as many inputs as the tensor."""
  channels = family_of(module).flattened(module).get("/".join(path[1:-1]))
  if channels is None or hasattr(module, "pool") or leaf.ndim != 2 or tensor is None or tensor.ndim != 2:
    return leaf
  square = tensor.shape[1] > 0 and channels * math.isqrt(tensor.shape[1] // channels) ** 2 == tensor.shape[1]
  return jax.ShapeDtypeStruct((tensor.shape[1], leaf.shape[1]), leaf.dtype) if square else leaf


def _torch_name(module, path) -> str:
  return family_of(module).tensor(torch_module(module, path[1:-1]), path[-1])


def _transposed(path, value, module, xp):
  """One of our arrays in the public layout."""
  layout = family_of(module).layout(module, "/".join(path[1:]))
  if layout != "torch":
    return value[None] if layout == "row" else value
  if value.ndim == 4:
    return xp.transpose(value, (3, 2, 0, 1))
  if value.ndim == 2:
    if shape := _flattened(path, value, module):
      value = xp.transpose(xp.reshape(value, (*shape, -1)), (2, 0, 1, 3)).reshape(value.shape)
    return value.T
  return value


def _ours(path, value, module):
  """One of the public arrays, or our part of it, in our layout, float32."""
  family = family_of(module)
  value = np.asarray(value, np.float32)
  if part := family.part(module, "/".join(path[1:])):
    axis, index, count = part
    value = np.split(value, count, axis)[index]
  layout = family.layout(module, "/".join(path[1:]))
  if layout != "torch":
    return np.ascontiguousarray(value[0] if layout == "row" else value)
  if value.ndim == 4:
    return np.ascontiguousarray(value.transpose(2, 3, 1, 0))
  if value.ndim == 2:
    value = value.T
    if shape := _flattened(path, value, module):
      h, w, c = shape
      value = value.reshape(c, h, w, -1).transpose(1, 2, 0, 3).reshape(value.shape)
    return np.ascontiguousarray(value)
  return value


def _flattened(path, value, module) -> tuple[int, int, int] | None:
  """[H, W, C] of the map that a dense layer sees flattened; torch's rows are in the order C, H, W."""
  channels = family_of(module).flattened(module).get("/".join(path[1:-1]))
  if channels is None:
    return None
  side = math.isqrt(value.shape[0] // channels)
  if side**2 * channels != value.shape[0]:
    raise UserError(f"public weights need images whose map before {path[-2]!r} is square; this one is not")
  return side, side, channels


def _some(names) -> str:
  return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
