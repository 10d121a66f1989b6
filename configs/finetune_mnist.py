"""DeepConvNet from Fashion-MNIST to MNIST with few labels: fine-tuned against trained from scratch.

Yosinski et al. 2014, "How transferable are features in deep neural networks?", in small: layers that have learned
clothes learn digits from 100 examples. The last layer starts anew, as its classes are others. The argument is the
number of labels. FIGURES

  python launch.py --config=configs/deep_convnet_fashion_mnist.py --config.data.data_dir=DIR
  python launch.py --config=configs/finetune_mnist.py:100 --config.data.data_dir=DIR
"""

from flaxonomy.configs.base import Augment, Config, Data, Model, Optim, Study, Train, variant

VARIANTS = ("100", "50", "200", "500", "1000")


def get_config(labels: str = VARIANTS[0]) -> Config:
  """A study: from scratch, all layers fine-tuned, and only the dense ones."""
  split = f"train[:{variant(labels, VARIANTS)}]"
  return Config(
    model=Model("deep_convnet", {"dropout": 0.3}, init_from="runs/deep_convnet_fashion_mnist"),
    data=Data(
      "mnist", train_split=split, batch_size=50, eval_batch_size=1000,
      augment=Augment(rotate=15, translate=0.1, scale=(0.85, 1.15)),
    ),
    optim=Optim("adam", lr=1e-3, schedule="cosine"),
    train=Train(steps=600, eval_every=200),
    study=Study(
      compare={"scratch": {"model.init_from": None}, "finetuned": {}, "frozen": {"optim.freeze": ("^conv",)}}
    ),
  )  # fmt: skip
