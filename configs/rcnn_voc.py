"""R-CNN with AlexNet on PASCAL VOC 2007, on boxes of selective search.

Girshick et al. 2014, section 2.3 and appendices: SGD with momentum .9, weight decay 5e-4, lr .001, a tenth of it every
20,000 steps, 70,000 steps of 32 objects and 96 of background; then SVMs and box regressions on the net's features.
Published mAP on test 54.2 %, 58.5 % with box regression. Not run here: 22 hours on a K40 (Girshick 2015, table 4), and
85 GB of features in the private cache while the SVMs are learned.

Deviations: the regions of a step come from two images rather than from anywhere; lr is not ten times larger for the
last layer; train and validation are one split; the net starts from scratch, where the paper's knows ImageNet, unless
--config.model.init_from names an alexnet_original that was trained here. Scores
are sigmoids of the SVMs', .5 at their planes, so that pictures show what is above. Needs the extra "proposals".

  python launch.py --config=configs/rcnn_voc.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import (
  IMAGENET_MEAN,
  IMAGENET_STD,
  Augment,
  Config,
  Data,
  Detect,
  Model,
  Optim,
  Scenes,
  Train,
)


def get_config() -> Config:
  return Config(
    task="detection",
    model=Model("rcnn_alexnet"),
    data=Data(
      "voc/2007", train_split="train+validation", image_size=(500, 500), fit="contain", channels=3, batch_size=2,
      eval_batch_size=2, workers=8, mean=IMAGENET_MEAN, std=IMAGENET_STD, augment=Augment(flip_horizontal=True),
      scenes=Scenes(objects=48, proposals=2000),
    ),
    optim=Optim("momentum", lr=0.001, weight_decay=5e-4, schedule="step", boundaries=(20_000, 40_000, 60_000)),
    train=Train(steps=70_000, eval_every=10_000),
    detect=Detect(draw_score=0.5),
  )  # fmt: skip
