"""YOLOv2 on Pascal VOC 2007, 416 x 416.

Redmon and Farhadi 2017, section 2, "training for detection": 160 epochs, the rate from .001 divided by ten behind 60
and 90, weight decay 5e-4, momentum .9; batch 64 and a burn-in of 1,000 steps as yolov2-voc.cfg has them. Published:
76.8 % mAP on VOC 2007 with VOC 2012 in training. Not run here; the paper tells no training time.

Deviations: VOC 2007 alone; weights start anew where the paper's come from ImageNet; one image size rather than ten
drawn from 320 to 608; the burn-in is linear, darknet's of the fourth power; darknet's jittered crops are scalings and
translations, its exposure an offset. To start from ImageNet, too: darknet19_448.conv.23, renamed to end in ".weights",
as model.init_from, and model.init_new=("conv19", "conv2[0-9]") for what it lacks.

  python launch.py --config=configs/yolo_v2_voc.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Train

EPOCH = 5_011 // 64


def get_config() -> Config:
  return Config(
    task="detection",
    model=Model("yolo_v2"),
    data=Data(
      "voc/2007", train_split="train+validation", eval_split="test", image_size=(416, 416), fit="stretch", channels=3,
      batch_size=64, eval_batch_size=64, workers=8,
      augment=Augment(scale=(0.7, 1.3), translate=0.2, flip_horizontal=True, saturation=0.5, brightness=0.2, hue=0.1),
    ),
    optim=Optim(
      "momentum", lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="step", warmup_steps=1000,
      boundaries=(60 * EPOCH, 90 * EPOCH),
    ),
    train=Train(steps=160 * EPOCH, eval_every=5 * EPOCH),
  )  # fmt: skip
