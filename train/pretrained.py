"""Starting from weights that are there already: public ones, exported ones, or another run's.

`model.init_from` names a safetensors file or a workdir. In a file, public names ("layer1.0.conv1.weight") go through
models/interop, and names with slashes ("params/conv1_1/kernel") are our own, as `--mode=export` writes them. A file
whose name ends in ".weights" is darknet's, for YOLO.
"""

import re
from pathlib import Path

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from flaxonomy.configs import base
from flaxonomy.errors import UserError, first_line, warn
from flaxonomy.models import interop
from flaxonomy.models.interop import darknet
from flaxonomy.train import checkpoint, optim, processes, tasks, weights, workdir

_AUXILIARY = re.compile(r"params/aux|batch_stats/aux|(params|batch_stats)/AuxLogits")
SHOWN = 5  # names in an error


def load(config: base.Config, info, mesh) -> dict:
  """What a run starts from: {our path: array} for the leaves that `model.init_from` has.

  A last layer for other classes is left out, and so are auxiliary classifiers that one side lacks: the first process
  says so. A run's classes are known by name, a file's by number alone.

  Args:
    config: whose `model.init_from` is set.
    info: pipeline.Info of the data.
    mesh: the devices.

  Raises:
    UserError: no such file or run, another format, or weights that are not this model's, with their names.
  """
  source = config.model.init_from
  path = Path(source).expanduser()
  wanted = _shapes(config, info, mesh)
  other = _shapes(config, info._replace(class_names=(*info.class_names, "another")), mesh)
  if path.is_dir():
    given, classes = _run(path, mesh)
  elif path.suffix == ".weights":
    given, classes = _darknet(path, wanted, other), None
  else:
    given, classes = _file(path, config.model), None
  heads = {name for name in wanted if wanted[name].shape != other[name].shape}
  new = _matching(config.model.init_new, wanted)
  taken, fresh, wrong = {}, set(), []
  for name, leaf in wanted.items():
    if name in new:
      fresh.add(f"{name.split('/')[-2]} (as asked)")
      continue
    same = name in given and given[name].shape == leaf.shape
    if name in given and name in heads and not (same and classes in (None, info.class_names)):
      there = "other classes" if same else f"{given[name].shape[-1]} classes"
      fresh.add(f"{name.split('/')[-2]} ({there} there, {len(info.class_names)} here)")
    elif same:
      taken[name] = given[name]
    elif name in given:
      wrong.append(f"{name} is {given[name].shape} there, {leaf.shape} here")
    elif _AUXILIARY.match(name):
      fresh.add(f"{name.split('/')[1]} (not there)")
    else:
      wrong.append(f"{name} is not there")
  wrong += [f"{name} is not here" for name in given if name not in wanted and not _AUXILIARY.match(name)]
  if wrong:
    more = f"; and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    raise UserError(f"config field 'model.init_from': {source!r} does not fit: {'; '.join(wrong[:SHOWN])}{more}")
  if fresh and processes.first():
    warn(f"from {source!r}, but these layers start anew: {', '.join(sorted(fresh))}")
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


def _matching(patterns, names) -> set:
  """The names in which, behind the collection, any of the regular expressions is found."""
  inner = {name.partition("/")[2]: name for name in names}
  optim.require(patterns, list(inner), "model.init_new")
  found = optim.matches(inner, patterns)
  return {inner[path] for path, matched in found.items() if matched}


def _shapes(config, info, mesh) -> dict:
  """{our path: shape and type} of a config's variables for some data."""
  state = _state(tasks.build(config, info, mesh.size))
  return weights.flatten({"params": state.params, **state.collections}, lambda leaf: leaf)


def _state(task):
  return jax.eval_shape(task.init, jax.random.PRNGKey(0))


def _file(path, model) -> dict:
  """{our path: array} of a safetensors file."""
  arrays = weights.read(path)
  if any("/" in name for name in arrays):
    return arrays
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
