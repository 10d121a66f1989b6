"""YOLOv3 on COCO 2017, 416 x 416.

Redmon and Farhadi 2018, whose numbers are in darknet's yolov3.cfg: SGD with momentum .9, weight decay 5e-4, batch 64,
500,200 steps: a burn-in of 1,000 to a rate of .001, divided by ten behind 400,000 and 450,000. Published: 55.3 % AP50
and 31.0 % AP at 416, 57.9 and 33.0 at 608. Not run here; the paper tells no
training time.

Deviations: weights start anew where the authors' come from ImageNet; one image size rather than several; the burn-in is
linear, darknet's of the fourth power; the picture lies at the top left of its canvas rather than in the middle;
darknet's jittered crops are scalings and translations, its exposure an offset; COCO's split of 2017 rather than 2014.
To start from ImageNet, too: darknet53.conv.74, renamed to end in ".weights", as model.init_from, and
model.init_new=("conv5[3-9]", "conv[67][0-9]") for what it lacks.

  python launch.py --config=configs/yolo_v3_coco.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Scenes, Train


def get_config() -> Config:
  return Config(
    task="detection",
    model=Model("yolo_v3"),
    data=Data(
      "coco/2017", train_split="train", eval_split="validation", image_size=(416, 416), fit="contain", channels=3,
      batch_size=64, eval_batch_size=64, workers=16, scenes=Scenes(objects=90),
      augment=Augment(scale=(0.7, 1.3), translate=0.2, flip_horizontal=True, saturation=0.5, brightness=0.2, hue=0.1),
    ),
    optim=Optim(
      "momentum", lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="step", warmup_steps=1000,
      boundaries=(400_000, 450_000),
    ),
    train=Train(steps=500_200, eval_every=10_000),
  )  # fmt: skip
