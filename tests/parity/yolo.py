"""The loss of YOLO's first version against torch's five sums; its boxes are sides, ours their roots."""

import jax

from flaxonomy.models.detection import yolo_v1
from flaxonomy.models.detection.boxes import iou
from flaxonomy.train.detection import yolo_v1 as training_of_yolo_v1

FACTORS = {"places": 5, "sizes": 5, "objects": 1, "background": 0.5, "classes": 1}  # lambda coord, lambda noobj


def check_yolo_v1(case):
  """Terms without their factors, their sum with them, and the IoU of every box with the truth of its cell."""
  given = {name.removeprefix("yolo_"): value for name, value in case["in"].items() if name.startswith("yolo_")}
  logits = given["pred"].copy()
  count = (logits.shape[-1] - int(given["cls"].max()) - 1) // 5
  for n in range(count):
    logits[..., 5 * n + 2 : 5 * n + 4] **= 0.5
  found = jax.jit(training_of_yolo_v1.equation, static_argnums=4)(
    logits, given["obj"] > 0, given["box"], given["cls"], count
  )
  boxes = yolo_v1.split(logits, count)[0]
  truth = given["box"][..., None, :]
  placed = yolo_v1.corners(truth[..., :2], truth[..., 2:])
  overlap = jax.vmap(iou)(boxes.reshape(-1, count, 4), placed.reshape(-1, 1, 4))
  ours = {
    "yolo_terms": [float(found[name]) / FACTORS[name] for name in training_of_yolo_v1.TERMS],
    "yolo_total": sum(found.values()),
    "yolo_iou": overlap.reshape(boxes.shape[:-1]),
  }
  return {key: (value, case["out"][key], 1e-5) for key, value in ours.items()}


CHECKS = {"small_losses": check_yolo_v1, "yolo_v1": check_yolo_v1}  # by a file's name
