"""Faster R-CNN on COCO: ResNet-50 and a feature pyramid, torchvision's recipe.

Ren et al. 2015, Lin et al. 2017; torchvision's weights reach 37.0 box AP on val2017: 26 epochs of 16 images, .02
divided by ten after 16 and 22, a warm-up of 1000 steps, momentum .9, weight decay 1e-4, flips, short side 800, long
side 1333; the stem, the first stage and batch norm stay as ImageNet's weights have them. Not run here;
no training time is published with the recipe.

Deviations: the long side is at most 1344 pixels; images without objects are learned from, too. Without weights in
`model.init_from` what is frozen is random: then set --config.model.fields.frozen=False --config.optim.freeze="()".

  python launch.py --config=configs/faster_rcnn_coco.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import IMAGENET_MEAN, IMAGENET_STD, Augment, Config, Data, Model, Optim, Scenes, Train

EPOCH = 118_287 // 16


def get_config() -> Config:
  return Config(
    task="detection",
    model=Model("fasterrcnn_resnet50_fpn"),
    data=Data(
      "coco/2017", train_split="train", eval_split="validation", image_size=(1344, 1344), fit="contain", channels=3,
      batch_size=16, eval_batch_size=16, workers=16, mean=IMAGENET_MEAN, std=IMAGENET_STD,
      augment=Augment(flip_horizontal=True), scenes=Scenes(objects=100, short_side=800),
    ),
    optim=Optim(
      "momentum", lr=0.02, momentum=0.9, weight_decay=1e-4, weight_decay_exclude=(), schedule="step",
      warmup_steps=1000, boundaries=(16 * EPOCH, 22 * EPOCH), freeze=(r"^backbone/(stem|stage1_)",),
    ),
    train=Train(steps=26 * EPOCH, eval_every=EPOCH),
  )  # fmt: skip
