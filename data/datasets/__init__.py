"""Our own TFDS builders, by name, and the private folder in which they prepare their files."""

import os
from pathlib import Path

from flaxonomy.errors import UserError

BUILDERS = {
  "digits": "flaxonomy.data.datasets.digits:Digits",
  "digit_scenes": "flaxonomy.data.datasets.digit_scenes:DigitScenes",
  "digit_scenes_cropped": "flaxonomy.data.datasets.digit_scenes_cropped:DigitScenesCropped",
  "xo": "flaxonomy.data.datasets.xo:Xo",
  "python_source": "flaxonomy.data.datasets.python_source:PythonSource",
  "mackey_glass": "flaxonomy.data.datasets.mackey_glass:MackeyGlass",
  "dates": "flaxonomy.data.datasets.dates:Dates",
  "text": "flaxonomy.data.datasets.text:Text",
  "labelled": "flaxonomy.data.datasets.labelled:Labelled",
  "pairs": "flaxonomy.data.datasets.pairs:Pairs",
}
OF_FILES = ("text", "labelled", "pairs")  # data.data_dir holds the user's own files; prepared in the cache alone


def cache_folder() -> Path:
  """The private folder for what can be made again: $FLAXONOMY_CACHE, else flaxonomy in the user's cache."""
  root = os.environ.get("FLAXONOMY_CACHE")
  folder = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flaxonomy"
  try:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
  except OSError as error:
    raise UserError(
      f"cannot make cache folder {str(folder)!r}: {error.strerror}; set FLAXONOMY_CACHE to another"
    ) from None
  return folder
