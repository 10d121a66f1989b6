"""The command line: absl flags in, one run out.

python launch.py                                              train the default, DeepConvNet on digits
python launch.py --config=configs/mnist.py --config.optim.lr=3e-4 --workdir=runs/x
python launch.py --mode=eval --workdir=runs/x                 also several, as an ensemble: --workdir=runs/a,runs/b
python launch.py --mode=predict --workdir=runs/x --inputs=photos/
python launch.py --mode=export --workdir=runs/x
python launch.py --mode=preview --config=configs/mnist_augmented.py
python launch.py --list
"""

import sys
from pathlib import Path

# `python launch.py` puts this folder first on the path, where `models` and `train` would shadow other packages.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from flaxonomy.errors import UserError  # noqa: E402
from flaxonomy.train import command  # noqa: E402

MODES = ("train", "eval", "predict", "export", "preview")

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/NAME. Several, with commas, for eval.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_INPUTS = flags.DEFINE_list("inputs", [], "predict: image files and folders.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "eval, predict, export: latest, best or a step.")
_CACHE = flags.DEFINE_bool("compilation_cache", True, "Keep compiled code in a private folder between starts.")
_LIST = flags.DEFINE_bool("list", False, "Print every config with its description.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks of user errors.")


def main() -> None:
  """Runs the command line and exits with its code."""
  try:
    _run(sys.argv)
  except UserError as error:
    if flags.FLAGS.is_parsed() and _DEBUG.value:
      raise
    print(f"error: {error}", file=sys.stderr)
    sys.exit(error.exit_code)


def _run(given: list[str]) -> None:
  argv, fields = command.prepare(given)
  config_flags.DEFINE_config_file("config", None, "Python file with get_config() -> Config; it is run.", sys_argv=argv)
  if {"--help", "-help", "-h"} & set(given):
    print(__doc__ + flags.FLAGS.module_help(sys.modules[__name__]))
    return
  command.parse(argv, flags.FLAGS)
  if _LIST.value:
    print(command.listing())
    return
  flag, named = flags.FLAGS["config"], command.config_path(given) is not None
  config, folders, changes = command.resolve(flag, fields, named, _WORKDIR.value, _MODE.value)
  command.run(_MODE.value, config, folders, changes, _INPUTS.value, _CHECKPOINT.value, _CACHE.value)


if __name__ == "__main__":
  main()
