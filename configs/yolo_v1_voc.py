"""YOLO on Pascal VOC 2007, 448 x 448.

Redmon et al. 2016, section 2.2: SGD with momentum .9, weight decay 5e-4, batch 64, 135 epochs: the rate rises to .01 in
the first ones, and falls to .001 behind 75 and to .0001 behind 105; scaling and translations of up to 20 %, exposure
and saturation by a factor of up to 1.5. Published: 63.4 % mAP on VOC 2007 with VOC 2012 in training, 45 images a second
on a Titan X. Not run here; the paper tells the time of ImageNet before it alone, about a week.

Deviations: VOC 2007 alone; weights start anew where the paper's first 20 convolutions come from ImageNet; the rate
rises from 0 over two epochs, the paper's from .001 over an unknown number; exposure is an offset and contrast.

  python launch.py --config=configs/yolo_v1_voc.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Train

EPOCH = 5_011 // 64


def get_config() -> Config:
  return Config(
    task="detection",
    model=Model("yolo_v1"),
    data=Data(
      "voc/2007", train_split="train+validation", eval_split="test", image_size=(448, 448), fit="stretch", channels=3,
      batch_size=64, eval_batch_size=64, workers=8,
      augment=Augment(
        scale=(0.8, 1.2), translate=0.2, flip_horizontal=True, saturation=0.5, brightness=0.2, contrast=0.5
      ),
    ),
    optim=Optim(
      "momentum", lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="step", warmup_steps=2 * EPOCH,
      boundaries=(75 * EPOCH, 105 * EPOCH),
    ),
    train=Train(steps=135 * EPOCH, eval_every=5 * EPOCH),
  )  # fmt: skip
