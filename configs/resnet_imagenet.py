"""ResNet on ImageNet: 18 to 152 layers.

He, Zhang, Ren, Sun 2015, section 3.4: SGD with momentum .9, weight decay 1e-4, batch 256, lr .1 divided by ten. Crops
and length are torchvision's reference recipe, which gave its public weights: parts of 8 to 100 % of the area, 90
epochs, the rate divided after 30 and 60. Published: 69.8, 73.3, 76.1, 77.4, 78.3 %. Not run here.

Deviation: parts are taken from the central square. The paper's nets have --config.model.fields.stride_in_1x1=True;
its test averages ten parts (--config.data.eval_crops=10) and scales (--config.data.eval_scales="(1.0, 1.25, 1.5)").
On GPUs and TPUs add --config.train.dtype=bfloat16.

  python launch.py --config=configs/resnet_imagenet.py:resnet50 --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import IMAGENET_MEAN, IMAGENET_STD, Augment, Config, Data, Model, Optim, Train, variant

VARIANTS = ("resnet50", "resnet18", "resnet34", "resnet101", "resnet152")
EPOCH = 1_281_167 // 256


def get_config(name: str = VARIANTS[0]) -> Config:
  return Config(
    model=Model(variant(name, VARIANTS)),
    data=Data(
      "imagenet2012", eval_split="validation", image_size=(256, 256), fit="cover", crop_size=(224, 224), channels=3,
      batch_size=256, eval_batch_size=256, workers=16, mean=IMAGENET_MEAN, std=IMAGENET_STD,
      augment=Augment(random_resized_crop=(0.08, 1.0), flip_horizontal=True),
    ),
    optim=Optim("momentum", lr=0.1, weight_decay=1e-4, schedule="step", boundaries=(30 * EPOCH, 60 * EPOCH)),
    train=Train(steps=90 * EPOCH, eval_every=EPOCH),
  )  # fmt: skip
