"""Mask R-CNN on Penn-Fudan's pedestrians, from a net that was trained here: minutes on a CPU.

He et al. 2017, narrower, on 170 photographs of streets. The start is the workdir of the run on digit scenes, whose
layers for classes begin anew. Figures, time and machine stand in README.md. The published photographs have no split:
a fifth by their names is "test".

  python launch.py --config=configs/detectors_digit_scenes.py:mask_rcnn
  python launch.py --config=configs/mask_rcnn_penn_fudan.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import IMAGENET_MEAN, Augment, Config, Data, Model, Optim, Scenes, Train
from flaxonomy.configs.detectors_digit_scenes import PYRAMID


def get_config() -> Config:
  return Config(
    task="detection",
    model=Model(
      "maskrcnn_resnet50_fpn", PYRAMID | {"sizes": ((28,), (52,), (88,), (140,))},
      init_from="runs/detectors_digit_scenes_mask_rcnn",
    ),
    data=Data(
      "penn_fudan", image_size=(192, 256), fit="contain", batch_size=8, eval_batch_size=8, mean=IMAGENET_MEAN,
      std=(0.25,) * 3, augment=Augment(flip_horizontal=True, scale=(0.7, 1.4), brightness=0.1, contrast=0.2),
      scenes=Scenes(objects=12, masks=True),
    ),
    optim=Optim("adamw", lr=1e-3, weight_decay=1e-4, schedule="cosine", warmup_steps=50, clip_norm=10.0),
    train=Train(steps=500, eval_every=100),
  )  # fmt: skip
