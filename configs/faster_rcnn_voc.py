"""Faster R-CNN on VOC 2007: VGG16, nine anchors a place, both stages at once.

Ren, He, Girshick, Sun 2015: 69.9 % mAP on VOC 2007's test set after training on trainval, 73.2 % with VOC 2012. As the
released code's joint training does it: short side 600, two images a step, .001 for 50,000 steps and .0001 for 20,000,
momentum .9, weight decay 5e-4 but for biases, the first two stages of VGG frozen. Not run here; the paper tells no
training time.

Deviations: the long side is at most 1008 pixels, a multiple of the stride, not 1000; biases learn as fast as kernels,
not twice as fast; pixels are standardised as for torchvision's VGG. Without weights in `model.init_from` the frozen
stages are random: then set --config.optim.freeze="()".

  python launch.py --config=configs/faster_rcnn_voc.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import IMAGENET_MEAN, IMAGENET_STD, Augment, Config, Data, Model, Optim, Scenes, Train


def get_config() -> Config:
  return Config(
    task="detection",
    model=Model("fasterrcnn_vgg16"),
    data=Data(
      "voc/2007", train_split="train+validation", eval_split="test", image_size=(1008, 1008), fit="contain",
      channels=3, batch_size=2, eval_batch_size=8, workers=8, mean=IMAGENET_MEAN, std=IMAGENET_STD,
      augment=Augment(flip_horizontal=True), scenes=Scenes(objects=48, short_side=600),
    ),
    optim=Optim(
      "momentum", lr=0.001, momentum=0.9, weight_decay=5e-4, schedule="step", boundaries=(50_000,),
      freeze=(r"^backbone/conv[12]_",),
    ),
    train=Train(steps=70_000, eval_every=5_000),
  )  # fmt: skip
