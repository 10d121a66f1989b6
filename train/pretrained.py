"""Starting from weights that are there already: public ones, exported ones, or another run's.

`model.init_from` names a safetensors file or a workdir. In a file, public names ("layer1.0.conv1.weight") go through
models/interop, and names with slashes ("params/conv1_1/kernel") are our own, as `--mode=export` writes them. A file
whose name ends in ".weights" is darknet's, for YOLO. They are the model's own weights, or for a detector those of the
classifier that it is built on.
"""

import re
from pathlib import Path
from typing import NamedTuple

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from flaxonomy import models
from flaxonomy.configs import base
from flaxonomy.errors import UserError, first_line, warn
from flaxonomy.models import interop
from flaxonomy.models.interop import darknet
from flaxonomy.train import checkpoint, optim, processes, tasks, weights, workdir

BODIES = {  # by the class of a detector: classifiers that it may start from, and what of its paths is the classifier's
  "SSD": (("vgg16",), r"(conv[1-5]_\d/.*)"),  # not fc6 and fc7, whose kernels the paper thins out
  "FastRCNN": (("vgg16",), r"((?:conv|fc).*)"),
  "FasterRCNNVGG16": (("vgg16",), r"(?:backbone|box_head)/((?:conv|fc).*)"),
  "FasterRCNN": (("resnet50",), r"backbone/(.*)"),
  "MaskRCNN": (("resnet50",), r"backbone/(.*)"),
  "YOLOv2": (("darknet19",), r"(conv(?:\d|1[0-8])/.*)"),
  "YOLOv3": (("darknet53",), r"(conv(?:\d|[1-4]\d|5[0-2])/.*)"),
  "RCNN": (("alexnet", "alexnet_original"), r"net/((?:conv|fc[67]).*)"),
}
_LAST = re.compile(r"(fc[678]|head|conv19|conv53)/")  # a classifier's layers behind its maps
_STAGE = re.compile(r"(conv|stage)\d+_")
_AUXILIARY = re.compile(r"params/aux|batch_stats/aux|(params|batch_stats)/AuxLogits")
SHOWN = 5  # names in an error


class Given(NamedTuple):
  """What there is to start from.

  Attributes:
    arrays: by the paths of the model that starts.
    classes: names of those that it knows; None: not told.
    body: paths that should be there, if it is a classifier and the model a detector; None: all.
  """

  arrays: dict
  classes: tuple[str, ...] | None = None
  body: frozenset[str] | None = None


def load(config: base.Config, info, mesh) -> dict:
  """What a run starts from: {our path: array} for the leaves that `model.init_from` has.

  Last layers for other classes are left out, auxiliary classifiers that one side lacks, and what a detector has beside
  its classifier: the first process says so. A run's classes are known by name, a file's by number alone.

  Args:
    config: whose `model.init_from` is set.
    info: pipeline.Info of the data.
    mesh: the devices.

  Raises:
    UserError: no such file or run, another format, or weights that are not this model's, with their names.
  """
  source = config.model.init_from
  wanted = _shapes(config, info, mesh)
  other = _shapes(config, info._replace(class_names=(*info.class_names, "another")), mesh)
  given = _placed(config.model.name, _read(Path(source).expanduser(), config.model, wanted, other, mesh), wanted, other)
  heads = _heads(given, wanted, other, info.class_names)
  new = _matching(config.model.init_new, wanted)
  taken, fresh, wrong = {}, {}, []
  for name, leaf in wanted.items():
    value = given.arrays.get(name)
    if name in new:
      fresh[name] = "as asked"
    elif given.body is not None and name not in given.body:
      fresh[name] = "not taken from a classifier"
    elif _layer(name) in heads:
      fresh[name] = f"{heads[_layer(name)]} there, {len(info.class_names)} here"
    elif value is None and _AUXILIARY.match(name):
      fresh[name] = "not there"
    elif value is None:
      wrong.append(f"{name} is not there")
    elif value.shape != leaf.shape:
      wrong.append(f"{name} is {value.shape} there, {leaf.shape} here")
    else:
      taken[name] = value
  wrong += [f"{name} is not here" for name in given.arrays if name not in wanted and not _AUXILIARY.match(name)]
  if wrong:
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    raise UserError(f"config field 'model.init_from': {source!r} does not fit: {'; '.join(wrong[:SHOWN])}{more}")
  if fresh and processes.first():
    warn(f"from {source!r}, but these layers start anew: {_said(fresh, taken)}")
  return taken


def put(state, taken: dict):
  """A state on the devices with the leaves that `load` gave; the average of parameters starts from them too."""

  def place(prefix, tree):
    def leaf(path, x):
      value = taken.get("/".join([*prefix, *(key.key for key in path)]))
      if value is None:
        return x
      return jax.make_array_from_callback(x.shape, x.sharding, lambda index: value[index].astype(x.dtype))

    return jax.tree_util.tree_map_with_path(leaf, tree)

  params = place(["params"], state.params)
  ema = None if state.ema is None else place(["params"], state.ema)
  return state.replace(params=params, collections=place([], state.collections), ema=ema)


def _place(name) -> str:
  """A path without its collection, as users write it; R-CNN's "svm/weights" has nothing else to tell it by."""
  collection, _, path = name.partition("/")
  return path if "/" in path or collection == "params" else name


def _layer(name) -> str:
  """The path of the module that a leaf is of; a leaf of the whole net stands for itself."""
  return _place(name).rpartition("/")[0] or _place(name)


def _said(fresh, taken) -> str:
  """Layers by the reason why they start anew; a module of which nothing is taken is named as a whole."""
  kept, layers = {_place(name).split("/")[0] for name in taken}, {}
  for name, why in fresh.items():
    top = _place(name).split("/")[0]
    layers.setdefault(why, set()).add(_layer(name) if top in kept else top)
  return "; ".join(f"{', '.join(sorted(names))} ({why})" for why, names in sorted(layers.items()))


def _heads(given, wanted, other, names) -> dict[str, str]:
  """{layer: what classes there are} for the layers whose shapes depend on the classes, where these are others."""
  found = {}
  for name, leaf in wanted.items():
    if leaf.shape != other[name].shape and name in given.arrays:
      shapes = given.arrays[name].shape, leaf.shape, other[name].shape
      found.setdefault(_layer(name), set()).add(_count(*shapes, len(names)))
  heads = {}
  for layer, counts in found.items():
    count = counts.pop() if len(counts) == 1 else None
    if count not in (None, len(names)):
      heads[layer] = f"{count} class{'es' * (count > 1)}"
    elif count and given.classes not in (None, names):
      heads[layer] = "other classes"
  return heads


def _count(there, here, more, classes: int) -> int | None:
  """For how many classes a shape is, if `here` is for `classes` and `more` for one more; None if for no number."""
  if len(there) != len(here):
    return None
  counts = set()
  for n, m, k in zip(there, here, more):
    apart, left = divmod(n - m, k - m) if k != m else (0, n - m)
    if left:
      return None
    counts |= {classes + apart} if k != m else set()
  return counts.pop() if len(counts) == 1 and min(counts) > 0 else None


def _matching(patterns, names) -> set:
  """The names in which, behind the collection, any of the regular expressions is found."""
  places = {name: _place(name) for name in names}
  optim.require(patterns, list(places.values()), "model.init_new")
  found = optim.matches(dict.fromkeys(places.values(), 0), patterns)
  return {name for name, place in places.items() if found[place]}


def _shapes(config, info, mesh) -> dict:
  """{our path: shape and type} of a config's variables for some data."""
  state = _state(tasks.build(config, info, mesh.size))
  return weights.flatten({"params": state.params, **state.collections}, lambda leaf: leaf)


def _state(task):
  return jax.eval_shape(task.init, jax.random.PRNGKey(0))


def _body(model: str) -> tuple[tuple[str, ...], str] | None:
  """What `BODIES` has for a model."""
  kind, _ = models.lookup(model)
  return BODIES.get(getattr(kind, "func", kind).__name__)


def _placed(model: str, given: Given, wanted, other) -> Given:
  """The same by the paths of the model: a classifier's in a detector, and norms that learn there but are frozen here.

  A classifier is known by lacking all that depends on the detector's classes.
  """
  places, arrays = {_place(name): name for name in wanted}, given.arrays
  heads = [name for name in wanted if wanted[name].shape != other[name].shape]
  if (known := _body(model)) and not any(name in arrays for name in heads):
    found = {name: re.fullmatch(known[1], place) for place, name in places.items()}
    body = {match[1]: name for name, match in found.items() if match}
    if any(_place(name) in body for name in arrays):
      return Given(_inside(body, arrays), None, frozenset(body.values()))
  here = lambda name: name if name in wanted else places.get(_place(name), name)
  return given._replace(arrays={here(name): value for name, value in arrays.items()})


def _inside(body: dict[str, str], arrays: dict) -> dict:
  """A classifier's arrays by the paths of a detector.

  Its last layers are left out where the detector lacks them, and stages of which the detector has nothing at all. What
  else the detector lacks keeps its name, to be refused: it is a deeper net, or another.

  Args:
    body: {the classifier's path: the detector's, with its collection}.
    arrays: by the classifier's paths.
  """
  stages, found = {stage[0] for path in body if (stage := _STAGE.match(path))}, {}
  for name, value in arrays.items():
    path, stage = _place(name), _STAGE.match(_place(name))
    if path in body:
      found[body[path]] = value
    elif not (_LAST.match(path) or stage and stage[0] not in stages):
      found[name] = value
  return found


def _read(path, model, wanted, other, mesh) -> Given:
  """What a path holds, by its own names."""
  if path.is_dir():
    return Given(*_run(path, mesh))
  if not (path.suffix or path.exists()):
    raise UserError(
      f"config field 'model.init_from': no run lies at {str(path)!r}; train it first, or name another run or a file"
    )
  if path.suffix == ".weights":
    return Given(_darknet(path, wanted, other))
  return Given(_file(path, model))


def _file(path, model) -> dict:
  """{our path: array} of a safetensors file; a classifier's, if it is one that a detector starts from."""
  arrays = weights.read(path)
  if any("/" in name for name in arrays):
    return arrays
  classifiers, _ = _body(model.name) or ((), "")
  if public := [name for name in classifiers if interop.has_namesake(name)]:
    names = [name for name in public if interop.has_stem(name, arrays)]
    if names or not interop.has_namesake(model.name):
      return weights.flatten(interop.of_any_size([*names, *public][0], arrays))
  fields = {key: value for key, value in model.fields.items() if key != "aux_logits"}
  return weights.flatten(interop.from_torch(model.name, arrays, **fields))


def _darknet(path, wanted, other) -> dict:
  """{our path: array} of darknet's file, of any number of classes."""
  try:
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f"cannot read weights {str(path)!r}: {first_line(error)}") from None
  shapes, more = ({name: leaf.shape for name, leaf in each.items()} for each in (wanted, other))
  return darknet.from_bytes(data, shapes, more, str(path))[0]


def _run(path, mesh) -> tuple[dict, tuple]:
  """({our path: array}, names of the classes) of the newest checkpoint of a run, with averaged parameters if it has."""
  folder = workdir.absolute(path)
  config = workdir.load_config(folder)
  info = workdir.load_info(folder)
  task = tasks.build(config, info, mesh.size)
  saves = checkpoint.Checkpoints(folder, best=config.train.best_metric or task.best, read_only=True)
  try:
    whole = NamedSharding(mesh, P())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), _state(task))
    state, _ = saves.restore(saves.choose("latest"), like)
  finally:
    saves.close()
  return weights.flatten(jax.device_get(state.variables())), info.class_names
