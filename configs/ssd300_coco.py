"""SSD300 on COCO 2017, 300 x 300.

Liu et al. 2016, sections 3.4 and 3.6, as the released code has it: SGD with momentum .9, weight decay 5e-4, batch 32,
lr .001 for 280,000 steps, .0001 for 80,000 and .00001 for 40,000; smaller default boxes than VOC's; zoom-out of up to 4
times the side, crops by overlap, flips, colours. Published: 25.1 % AP on test-dev 2015, 23.2 % without zoom-out;
torchvision's weights reach 25.1 % on val2017. Not run here; the paper tells no training time.

Deviations: those of ssd300_voc.py but for difficult objects, which COCO has not; COCO's split of 2017 rather than
trainval35k of 2014.

  python launch.py --config=configs/ssd300_coco.py --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Scenes, Train


def get_config() -> Config:
  return Config(
    task="detection",
    model=Model("ssd300_vgg16"),
    data=Data(
      "coco/2017", train_split="train", eval_split="validation", image_size=(300, 300), fit="stretch", channels=3,
      batch_size=32, eval_batch_size=32, workers=16, mean=(0.48235, 0.45882, 0.40784), std=(1 / 255,) * 3,
      augment=Augment(
        zoom_out=4.0, iou_crop=True, flip_horizontal=True, brightness=0.125, contrast=0.5, saturation=0.5, hue=0.1
      ),
      scenes=Scenes(objects=100),
    ),
    optim=Optim(
      "momentum", lr=1e-3, momentum=0.9, weight_decay=5e-4, schedule="step", boundaries=(280_000, 360_000)
    ),
    train=Train(steps=400_000, eval_every=20_000),
  )  # fmt: skip
