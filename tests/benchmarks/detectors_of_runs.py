"""Seconds that trained detectors take for an image, from the file to its boxes: R-CNN to Faster R-CNN, and others.

  python tests/benchmarks/detectors_of_runs.py runs/rcnn runs/fast_rcnn runs/faster_rcnn [--images=50] [--rounds=3]

The pictures are test scenes of digit_scenes, one after another, on one CPU core. "search" is selective search, for
those that are given its boxes, and "net" all that comes behind it; the runs take turns, medians are told.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

from detection_cpu import devices
from PIL import Image


def main() -> None:
  """Measures and prints."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("runs", nargs="+", help="workdirs")
  parser.add_argument("--images", type=int, default=50, help="pictures of a round (default: 50)")
  parser.add_argument("--rounds", type=int, default=3, help="turns of every run (default: 3)")
  given = parser.parse_args()
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
  devices(1)
  from flaxonomy.train import inference, loop

  with tempfile.TemporaryDirectory() as folder:
    draw(Path(folder), given.images)
    mesh, runs = loop.make_mesh(1), {}
    for path in given.runs:
      run = inference.load(path, mesh)
      runs[path] = run, inference.labeller(run, mesh, 1), run.task.given([folder])
    times = {path: [] for path in runs}
    for _ in range(given.rounds):
      for path, (_, label, pictures) in runs.items():
        times[path].append([seconds / given.images for seconds in once(label, pictures)])
  print(f"one core, float32, {given.images} pictures one by one; seconds of an image, medians of {given.rounds}")
  for path, (run, *_) in runs.items():
    search, net = (statistics.median(each) for each in zip(*times[path]))
    print(f"{run.config.model.name}: search {search:.4f}  net {net:.4f}  together {search + net:.4f}  ({path})")


def draw(folder: Path, count: int) -> None:
  """Test scenes as PNG files."""
  from flaxonomy.data.datasets import digit_scenes

  for i in range(count):
    Image.fromarray(digit_scenes.scene("test", i).image).save(folder / f"{i:05}.png")


def once(label, pictures) -> tuple[float, float]:
  """Seconds of (search, the rest) for all pictures."""
  with tempfile.TemporaryDirectory() as cache:
    os.environ["FLAXONOMY_CACHE"] = f"{cache}/warm"
    label(pictures._replace(names=pictures.names[:1]))  # compiled
    os.environ["FLAXONOMY_CACHE"] = f"{cache}/cold"  # where nothing has been searched yet
    begin = time.perf_counter()
    label(pictures)
    middle = time.perf_counter()
    label(pictures)  # whose boxes are found in the cache now
    end = time.perf_counter()
  return max(0.0, (middle - begin) - (end - middle)), end - middle


if __name__ == "__main__":
  main()
