"""The shape of the house: who imports whom, what is packaged, that every config and public function is sound."""

import ast
import configparser
import importlib
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import jax
import pytest

from flaxonomy.configs import base
from flaxonomy.errors import UserError

ROOMS = ("configs", "data", "models", "train")
# What the files of a room may import of the project; `errors` is free to all.
MAY_IMPORT = {
  "models": {"models"},
  "data": {"data"},
  "configs": {"configs"},
  "train": {"train", "data", "models", "configs"},
  "launch.py": {"train", "configs"},
  "errors.py": set(),
  "__init__.py": set(),
}
MODELS_MAY_USE = {
  "jax", "flax", "flaxonomy", "dataclasses", "functools", "itertools", "math", "importlib", "collections", "types",
  "typing",
}  # fmt: skip


def sources(root):
  """(room, path) of every file of the package."""
  for path in sorted(root.glob("*.py")):
    yield path.name, path
  for room in ROOMS:
    for path in sorted((root / room).rglob("*.py")):
      yield room, path


def imports(path):
  """Dotted names that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}: relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_who_knows_whom(root):
  for room, path in sources(root):
    for name in imports(path):
      parts = name.split(".")
      assert parts[0] not in ROOMS, f"{path} imports {name} without the package's name"
      if parts[0] == "flaxonomy" and parts[1] not in ("errors", "__version__"):
        assert parts[1] in MAY_IMPORT[room], f"{path} must not know {name}"
      if room == "models":
        more = {"numpy", "re"} if path.parent.name == "interop" else set()  # public weights are NumPy dicts
        assert parts[0] in MODELS_MAY_USE | more, f"{path} must know jax and flax only, not {name}"


RUNS_CODE = {  # modules that load code or write where an archive says
  "pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "torch", "yaml", "tarfile", "zipfile", "msgpack",
}  # fmt: skip
READS_ARCHIVES = {"data/datasets/files.py": {"zipfile"}}  # in memory


def test_nothing_that_is_read_can_run_code(root):
  """No loader of pickles, archives or code in the package: what a workdir or a file holds stays data."""
  for _, path in sources(root):
    names = {name.split(".")[0] for name in imports(path)} - READS_ARCHIVES.get(
      path.relative_to(root).as_posix(), set()
    )
    assert not names & RUNS_CODE, f"{path} imports {names & RUNS_CODE}"
    called = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    assert not called & {"extract", "extractall", "unpack_archive"}, path
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call):
        called = ast.unparse(node.func)
        assert called not in {"eval", "exec", "compile", "__import__", "np.load", "numpy.load"}, (
          f"{path} calls {called}"
        )
        if called == "importlib.import_module":  # from literal tables only
          tables = {
                "models/__init__.py", "train/detection/__init__.py", "train/tasks/__init__.py", "data/sources.py",
              }  # fmt: skip
          assert path.relative_to(root).as_posix() in tables


def test_no_circles(root):
  edges = {}
  for _, path in sources(root):
    module = ".".join(["flaxonomy", *path.relative_to(root).with_suffix("").parts]).removesuffix(".__init__")
    edges[module] = {name for name in imports(path) if name.startswith("flaxonomy.")}
  known = set(edges)
  resolve = lambda name: name if name in known else name.rpartition(".")[0]
  graph = {module: {resolve(n) for n in names} & known for module, names in edges.items()}
  done, path = set(), []

  def visit(module):
    assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
    if module not in done:
      path.append(module)
      for other in sorted(graph[module] - {module}):
        visit(other)
      path.pop()
      done.add(module)

  for module in graph:
    visit(module)


def packages(root):
  parser = configparser.ConfigParser()
  parser.read(root / "setup.cfg")
  return set(parser["options"]["packages"].split())


def test_packages_are_the_folders(root):
  folders = {"flaxonomy"}
  for room in ROOMS:
    for path in (root / room).rglob("__init__.py"):
      folders.add(".".join(["flaxonomy", *path.parent.relative_to(root).parts]))
    for path in (root / room).rglob("*.py"):
      assert (path.parent / "__init__.py").exists(), f"{path.parent} has no __init__.py"
  assert packages(root) == folders


def test_wheel_holds_the_package_and_nothing_else(root, tmp_path):
  import shutil

  kept = shutil.ignore_patterns(".git", "build", "*.egg-info", "runs", ".venv*", "__pycache__")
  shutil.copytree(root, tmp_path / "source", ignore=kept)
  command = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path), str(tmp_path / "source")]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr + done.stdout
  (wheel,) = tmp_path.glob("*.whl")
  held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
  assert held == {f"flaxonomy/{path.relative_to(root)}" for _, path in sources(root)}


CONFIGS = sorted(
  p.stem for p in Path(base.__file__).parent.glob("*.py") if p.stem not in ("__init__", "base", "values")
)
SHAPES = {  # of the datasets that configs name
  "digits": (8, 8, 1), "mnist": (28, 28, 1), "fashion_mnist": (28, 28, 1), "cifar10": (32, 32, 3), "xo": (9, 9, 1),
  "imagenet2012": (500, 400, 3), "digit_scenes": (128, 128, 3), "digit_scenes_cropped": (32, 32, 3),
}  # fmt: skip
SCENES = {  # datasets of annotated images: classes, and whether objects have masks
  "digit_scenes": (10, True), "penn_fudan": (1, True), "voc/2007": (20, False), "voc_xml": (20, True),
  "coco/2017": (80, False), "coco_json": (80, True),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_configs_are_complete_and_build(name):
  """Every experiment says what it is, validates, survives JSON, and builds its task without data or a compilation."""
  module = importlib.import_module(f"flaxonomy.configs.{name}")
  assert "python launch.py" in module.__doc__
  for variant in getattr(module, "VARIANTS", (None,)):
    config = base.validate(module.get_config() if variant is None else module.get_config(variant))
    assert base.from_dict(base.to_dict(config)) == config
    for changes in config.study.compare.values() or [{}]:
      builds(base.override(config, changes))
  if hasattr(module, "VARIANTS"):
    with pytest.raises(UserError, match="unknown variant 'x'"):
      module.get_config("x")


def builds(config):
  """A task's state takes shape."""
  from flaxonomy.data import sentences, text, views
  from flaxonomy.data.pipeline import Info
  from flaxonomy.data.series import Series
  from flaxonomy.train import tasks

  if config.task in ("language_model", "text_classification", "translation"):
    tokenizer = text.train("chars", ["ab\n"], specials=sentences.SPECIALS)
    tokenizers = dict.fromkeys(("source", "target") if config.task == "translation" else ("text",), tokenizer)
    task = tasks.build(config, Info(config.data.name, ("a", "b"), size=100, tokenizers=tokenizers), 2)
    jax.eval_shape(task.init, jax.random.PRNGKey(0))
    return
  if config.task == "forecasting":
    asked, inputs = config.data.series, 2 if config.data.name == "adding" else 1
    known = Series(inputs, 1, asked.window, asked.horizon, asked.period, None, (0.0,), (1.0,))
    jax.eval_shape(tasks.build(config, Info(config.data.name, series=known._asdict()), 2).init, jax.random.PRNGKey(0))
    return
  if config.task == "detection":
    classes, has_masks = SCENES[config.data.name]
    assert has_masks or not config.data.scenes.masks
    shape = (*(config.data.image_size or SHAPES[config.data.name][:2]), 3)
    task = tasks.build(config, Info(config.data.name, tuple(map(str, range(classes))), shape, 100), 2)
    state = jax.eval_shape(task.init, jax.random.PRNGKey(0))
    assert sum(x.size for x in jax.tree.leaves(state.params)) > 10_000
    return
  shape = SHAPES[config.data.name]
  shape = (*(config.data.image_size or shape[:2]), config.data.channels or shape[2])
  classes = {"imagenet2012": 1000, "xo": 2}.get(config.data.name, 10)
  views.check(config.data, shape)
  task = tasks.build(config, Info(config.data.name, tuple(map(str, range(classes))), shape, 100), 2)
  state = jax.eval_shape(task.init, jax.random.PRNGKey(0))
  assert sum(x.size for x in jax.tree.leaves(state.params)) >= 86


def test_nothing_heavy_is_imported_before_it_is_needed(tmp_path):
  """The command line starts without JAX; no file of the package needs TensorFlow or torch."""
  program = (
    "import sys, flaxonomy.train.command; assert 'jax' not in sys.modules; "
    "from flaxonomy.train import loop, export, inference; from flaxonomy.data.datasets import digits; "
    "assert not {'tensorflow', 'torch', 'tensorboardX', 'matplotlib.pyplot'} & set(sys.modules)"
  )
  subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
