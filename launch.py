"""The command line: absl flags in, one run out.

python launch.py                                              train the default, DeepConvNet on digits
python launch.py --config=configs/mnist.py --config.optim.lr=3e-4 --workdir=runs/x
python launch.py --mode=eval --workdir=runs/x                 also several, as an ensemble: --workdir=runs/a,runs/b
python launch.py --mode=predict --workdir=runs/x --inputs=photos/
python launch.py --mode=chat --workdir=runs/x                 type a line, read the answer, of a run that translates
python launch.py --mode=export --workdir=runs/x
python launch.py --mode=explain --workdir=runs/x              what it has learnt, where it looks, where it errs
python launch.py --mode=preview --config=configs/mnist_augmented.py
python launch.py --mode=doctor                                is this machine fit to train on?
python launch.py --list
"""

import os
import signal
import sys
from pathlib import Path

# `python launch.py` puts this folder first on the path, where `models` and `train` would shadow other packages.
sys.path[:] = [p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent]

from flaxonomy.train import cpu  # noqa: E402

if __name__ == "__main__":
  cpu.huge_pages()  # starts anew, so before anything that takes time

from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from flaxonomy.errors import Preempted, UserError  # noqa: E402
from flaxonomy.train import command  # noqa: E402

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/NAME. Several, with commas, for eval.")
_MODE = flags.DEFINE_enum("mode", "train", list(command.MODES), "What to do.")
_INPUTS = flags.DEFINE_list("inputs", [], "predict, explain: image files and folders; of text, files of a line each.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "latest", "eval, predict, export, explain: latest, best or a step.")
_PROMPT = flags.DEFINE_string("prompt", "", "sample: what the text begins with.")
_LENGTH = flags.DEFINE_integer("length", 500, "sample: tokens to write.")
_TEMPERATURE = flags.DEFINE_float(
  "temperature", 1.0, "sample: below 1 the likely grows likelier; 0 takes the likeliest."
)
_TOP_K = flags.DEFINE_integer("top_k", None, "sample: draw among so many likeliest tokens.")
_TOP_P = flags.DEFINE_float("top_p", None, "sample: draw among the fewest likeliest tokens of this total probability.")
_SEED = flags.DEFINE_integer("seed", 0, "sample: of what is drawn.", lower_bound=0)
_CACHE = flags.DEFINE_bool("compilation_cache", True, "Keep compiled code in a private folder between starts.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "One of several processes; by itself on TPU pods and Slurm.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "distributed: HOST:PORT of the first process.")
_PROCESSES = flags.DEFINE_integer("num_processes", None, "distributed: how many.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "distributed: which one this is, from 0.", lower_bound=0)
_TIMEOUT = flags.DEFINE_integer("start_timeout", 300, "distributed: seconds to wait for the others.", lower_bound=1)
_LIST = flags.DEFINE_bool("list", False, "Print every config with its description.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show tracebacks of user errors.")


def main() -> None:
  """Runs the command line and exits with its code, see errors.py."""
  for signum in (signal.SIGINT, signal.SIGTERM):  # outside of a run, and while it leaves; inside, train/watch.py
    signal.signal(signum, lambda signum, frame: os._exit(128 + signum))
  code = 0
  try:
    _run(sys.argv)
  except (UserError, Preempted) as error:
    if flags.FLAGS.is_parsed() and _DEBUG.value:
      raise
    print(f"{'error: ' if isinstance(error, UserError) else ''}{error}", file=sys.stderr)
    code = error.exit_code
  except Exception as error:
    if not flags.FLAGS.is_parsed() or not _DISTRIBUTED.value:
      raise
    code = command.broken(error)
  if flags.FLAGS.is_parsed() and _DISTRIBUTED.value:
    command.leave(code)
  sys.exit(code)


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
  peers = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  if not _DISTRIBUTED.value and peers != (None, None, None):
    raise UserError("--coordinator, --num_processes and --process_id need --distributed")
  joined = (*peers, _TIMEOUT.value) if _DISTRIBUTED.value else None
  drawn = {"temperature": _TEMPERATURE.value, "top_k": _TOP_K.value, "top_p": _TOP_P.value, "seed": _SEED.value}
  writing = {"prompt": _PROMPT.value, "length": _LENGTH.value} | drawn
  ask = command.Ask(config, folders, changes, _INPUTS.value, _CHECKPOINT.value, writing)
  command.run(_MODE.value, ask, _CACHE.value, joined)


if __name__ == "__main__":
  main()
