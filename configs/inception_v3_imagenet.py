"""Inception v3 on ImageNet.

Szegedy et al. 2015, section 8: RMSProp with decay .9 and epsilon 1, lr .045 times .94 every two epochs, gradients
clipped at 2, batch 32 on each of 50 replicas, 100 epochs, label smoothing .1, averaged parameters. Published: 78.8 %
top-1 of one part, 77.3 % of torchvision's weights. Not run here.

Deviations: RMSProp's epsilon stands outside the root, as torch's; the auxiliary loss has weight .4, of which the
paper says nothing; parts of 8 to 100 % of the area are taken from the central square; colours change by brightness,
contrast and saturation.

  python launch.py --config=configs/inception_v3_imagenet.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Train

EPOCH = 1_281_167 // 1600


def get_config() -> Config:
  return Config(
    model=Model("inception_v3"),
    data=Data(
      "imagenet2012", eval_split="validation", image_size=(342, 342), fit="cover", crop_size=(299, 299), channels=3,
      batch_size=1600, eval_batch_size=256, workers=16, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5),
      augment=Augment(
        random_resized_crop=(0.08, 1.0), flip_horizontal=True, brightness=0.125, contrast=0.5, saturation=0.5
      ),
    ),
    optim=Optim(
      "rmsprop", lr=0.045, rho=0.9, eps=1.0, clip_norm=2.0, schedule="exponential", decay_rate=0.94,
      decay_every=2 * EPOCH, staircase=True,
    ),
    train=Train(steps=100 * EPOCH, eval_every=EPOCH, label_smoothing=0.1, ema_decay=0.9999),
  )  # fmt: skip
