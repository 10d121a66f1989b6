"""SSD300 on Pascal VOC 2007 and 2012, 300 x 300.

Liu et al. 2016, sections 2.2, 3.1 and 3.6, as the released code has it: SGD with momentum .9, weight decay 5e-4, batch
32, lr .001 for 80,000 steps, .0001 and .00001 for 20,000 each; zoom-out of up to 4 times the side, crops by overlap,
flips, colours. Published: 77.2 % mAP on VOC 2007's test set, 74.3 % without zoom-out and with fewer steps. Not run
here; the paper tells no training time.

DIR holds VOC2007 and VOC2012, each with Annotations, JPEGImages and ImageSets, as VOC's archives have them.

Deviations: without --config.model.init_from=FILE, torchvision's vgg16, weights start anew where the paper's come from
ImageNet, and with it fc6 and fc7 still do (torchvision's weights want its own data.mean and data.std); difficult
objects are not learned from, in the code they are; biases learn at the weights' rate, there at twice that; colours
change every time, there each way every other time, and contrast is about the picture's mean; crops are cut from what
was brought to 300 x 300, there from the original.

  python launch.py --config=configs/ssd300_voc.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Scenes, Train


def get_config() -> Config:
  return Config(
    task="detection",
    model=Model("ssd300_vgg16", {"scales": (10, 20, 37, 54, 71, 88, 105)}),
    data=Data(
      "voc_xml", train_split="trainval", eval_split="test", image_size=(300, 300), fit="stretch", channels=3,
      batch_size=32, eval_batch_size=32, workers=8, mean=(0.48235, 0.45882, 0.40784), std=(1 / 255,) * 3,
      augment=Augment(
        zoom_out=4.0, iou_crop=True, flip_horizontal=True, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.1
      ),
      scenes=Scenes(objects=60),
    ),
    optim=Optim(
      "momentum", lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="step", boundaries=(80_000, 100_000)
    ),
    train=Train(steps=120_000, eval_every=10_000),
  )  # fmt: skip
