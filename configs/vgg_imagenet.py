"""VGG on ImageNet: 11, 13, 16 or 19 layers, with and without batch norm.

Simonyan and Zisserman 2014, section 3.1: SGD with momentum .9, weight decay 5e-4, batch 256, lr .01 divided by ten
three times, 74 epochs; parts of 224 x 224 of images whose short side is drawn from 256 to 512. Published single-scale
accuracies of torchvision's weights: 69.0, 69.9, 71.6, 72.4 %, with batch norm 70.4, 71.6, 73.4, 74.2 %. Not run here:
two to three weeks on four GPUs in 2014.

Deviations: the size is drawn as the area of the part, with aspects from 3/4 to 4/3, within the central square; the
rate falls after 25, 50 and 65 epochs where the paper waits for the error to stop improving; weights start as He's
rather than from a shallower net's. For the paper's multi-scale test: --config.data.eval_scales="(1.0, 1.25, 1.5)".

  python launch.py --config=configs/vgg_imagenet.py:vgg16_bn --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import IMAGENET_MEAN, IMAGENET_STD, Augment, Config, Data, Model, Optim, Train, variant

VARIANTS = ("vgg16", "vgg11", "vgg13", "vgg19", "vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn")
EPOCH = 1_281_167 // 256


def get_config(name: str = VARIANTS[0]) -> Config:
  return Config(
    model=Model(variant(name, VARIANTS)),
    data=Data(
      "imagenet2012", eval_split="validation", image_size=(256, 256), fit="cover", crop_size=(224, 224), channels=3,
      batch_size=256, eval_batch_size=256, workers=16, mean=IMAGENET_MEAN, std=IMAGENET_STD,
      augment=Augment(random_resized_crop=(0.19, 0.77), flip_horizontal=True, color_pca=0.1),
    ),
    optim=Optim(
      "momentum", lr=0.01, weight_decay=5e-4, schedule="step", boundaries=(25 * EPOCH, 50 * EPOCH, 65 * EPOCH)
    ),
    train=Train(steps=74 * EPOCH, eval_every=EPOCH),
  )  # fmt: skip
