"""DeepConvNet from MNIST to scikit-learn's digits with few labels: fine-tuned against trained from scratch.

Yosinski et al. 2014, "How transferable are features in deep neural networks?", in small: the digits are other
people's, at 8 x 8 pixels in 17 grey levels. The last layer starts anew; "frozen" trains nothing but the two dense
layers. The argument is the number of labels. With 50 labels 84.3 % from scratch, 96.7 % fine-tuned, 96.7 % frozen;
with 20 labels 59.6, 86.8, 86.8 %; 3 minutes on two busy CPU cores.

  python launch.py --config=configs/mnist_augmented.py --workdir=runs/mnist_0 --config.data.data_dir=DIR
  python launch.py --config=configs/finetune_digits.py:50
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Study, Train, variant

VARIANTS = ("50", "20", "100", "200")


def get_config(labels: str = VARIANTS[0]) -> Config:
  """A study: from scratch, all layers fine-tuned, and only the dense ones."""
  split = f"train[:{variant(labels, VARIANTS)}]"
  return Config(
    model=Model("deep_convnet", {"dropout": 0.3}, init_from="runs/mnist_0", init_new=("^fc2/",)),
    data=Data(
      "digits", train_split=split, image_size=(28, 28), batch_size=20, augment=Augment(rotate=10, translate=0.1)
    ),
    optim=Optim("adam", lr=1e-3, schedule="cosine"),
    train=Train(steps=500, eval_every=100),
    study=Study(
      compare={
        "scratch": {"model.init_from": None, "model.init_new": ()},
        "finetuned": {},
        "frozen": {"optim.freeze": ("^conv",)},
      }
    ),
  )
