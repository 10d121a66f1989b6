"""GoogLeNet on ImageNet: torchvision's with batch norm, or the paper's.

Szegedy et al. 2014, section 6: SGD with momentum .9, lr less 4 % every 8 epochs, averaged parameters, parts of 8 to
100 % of the area with aspects from 3/4 to 4/3, photometric distortions, two auxiliary losses of weight .3. Published:
69.8 % top-1 (torchvision's weights), 10.07 % top-5 error of one net and one part (the paper's). Not run here.

Deviations: the paper trains asynchronously and gives neither batch, first rate, weight decay nor length: 256, .01 (as
Caffe), 2e-4 (as Caffe) and 250 epochs here. Parts are taken from the central square.

  python launch.py --config=configs/googlenet_imagenet.py:googlenet_original --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import IMAGENET_MEAN, IMAGENET_STD, Augment, Config, Data, Model, Optim, Train, variant

VARIANTS = ("googlenet", "googlenet_original")
EPOCH = 1_281_167 // 256


def get_config(name: str = VARIANTS[0]) -> Config:
  return Config(
    model=Model(variant(name, VARIANTS)),
    data=Data(
      "imagenet2012", eval_split="validation", image_size=(256, 256), fit="cover", crop_size=(224, 224), channels=3,
      batch_size=256, eval_batch_size=256, workers=16, mean=IMAGENET_MEAN, std=IMAGENET_STD,
      augment=Augment(
        random_resized_crop=(0.08, 1.0), flip_horizontal=True, brightness=0.125, contrast=0.5, saturation=0.5
      ),
    ),
    optim=Optim(
      "momentum", lr=0.01, weight_decay=2e-4, schedule="exponential", decay_rate=0.96, decay_every=8 * EPOCH,
      staircase=True,
    ),
    train=Train(steps=250 * EPOCH, eval_every=EPOCH, ema_decay=0.9999),
  )  # fmt: skip
