"""Fast R-CNN with VGG16 on PASCAL VOC 2007, on boxes of selective search.

Girshick 2015, sections 2.3 and 4.1: SGD with momentum .9, weight decay 5e-4, 40,000 steps of two images, 64 regions
each, lr .001, a tenth of it after 30,000; the first two stages of VGG16 stay as ImageNet left them; short side 600,
long side 1,000 at most; flips. Published mAP on test 66.9 %. Not run here: 9.5 hours on a K40 in 2015.

Deviations: biases learn at the weights' rate, where the released code doubles it; train and validation are one split.
The first stages are of use only with ImageNet's weights: --config.model.init_from=FILE, torchvision's vgg16 or one of
ours. Without a file add --config.optim.freeze='()'. The search takes hours of CPU for 10,000 images, once; it needs the
extra "proposals".

  python launch.py --config=configs/fast_rcnn_voc.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import IMAGENET_MEAN, IMAGENET_STD, Augment, Config, Data, Model, Optim, Scenes, Train


def get_config() -> Config:
  return Config(
    task="detection",
    model=Model("fast_rcnn_vgg16"),
    data=Data(
      "voc/2007", train_split="train+validation", image_size=(1000, 1000), fit="contain", channels=3, batch_size=2,
      eval_batch_size=2, workers=8, mean=IMAGENET_MEAN, std=IMAGENET_STD, augment=Augment(flip_horizontal=True),
      scenes=Scenes(objects=48, short_side=600, proposals=2000),
    ),
    optim=Optim(
      "momentum", lr=0.001, weight_decay=5e-4, schedule="step", boundaries=(30_000,), freeze=(r"(^|/)conv[12]_",)
    ),
    train=Train(steps=40_000, eval_every=10_000),
  )  # fmt: skip
