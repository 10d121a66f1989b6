"""AlexNet on ImageNet: the recipe of 2012, for the net of 2012 or torchvision's.

Krizhevsky, Sutskever, Hinton 2012, section 5: SGD with momentum .9, weight decay 5e-4, batch 128, lr .01 divided by
ten three times, 90 epochs; random 224 x 224 parts of 256 x 256 images, mirrored, colours shifted along ImageNet's
principal components; test on ten parts. Published: 40.7 % top-1 error (`alexnet_original`), 56.5 % accuracy
(torchvision's `alexnet`). Not run here: five to six days on two GPUs in 2012.

Deviations: the paper divides the rate when the error stops improving; here after 30, 60 and 80 epochs. It subtracts
the mean image; here each channel's mean, divided by its deviation.

  python launch.py --config=configs/alexnet_imagenet.py:alexnet_original --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import IMAGENET_MEAN, IMAGENET_STD, Augment, Config, Data, Model, Optim, Train, variant

VARIANTS = ("alexnet", "alexnet_original")
EPOCH = 1_281_167 // 128


def get_config(name: str = VARIANTS[0]) -> Config:
  side = 227 if variant(name, VARIANTS) == "alexnet_original" else 224
  return Config(
    model=Model(name),
    data=Data(
      "imagenet2012", eval_split="validation", image_size=(256, 256), fit="cover", crop_size=(side, side), channels=3,
      batch_size=128, eval_batch_size=256, workers=16, eval_crops=10, mean=IMAGENET_MEAN, std=IMAGENET_STD,
      augment=Augment(flip_horizontal=True, color_pca=0.1),
    ),
    optim=Optim(
      "momentum", lr=0.01, weight_decay=5e-4, schedule="step", boundaries=(30 * EPOCH, 60 * EPOCH, 80 * EPOCH)
    ),
    train=Train(steps=90 * EPOCH, eval_every=EPOCH),
  )  # fmt: skip
