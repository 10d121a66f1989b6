"""Layouts of papers that torchvision lacks, in torch's own layers, for make_goldens.py.

Names of modules are those of the golden files: akamaster's for the CIFAR ResNets, and plain ones for the others.
"""

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class CifarBlock(nn.Module):
  """akamaster's BasicBlock, option A: every second pixel and zeros for the new channels, half on either side."""

  def __init__(self, inputs, features, stride, residual):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.bn2 = nn.BatchNorm2d(features)
    self.stride, self.features, self.residual = stride, features, residual

  def forward(self, x):
    y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
    if self.residual and self.stride != 1:
      x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.features // 4, self.features // 4))
    return F.relu(y + x if self.residual else y)


class CifarResNet(nn.Module):
  """He et al. 2015, section 4.2: 6 n + 2 layers."""

  def __init__(self, n, num_classes=10, residual=True):
    super().__init__()
    self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
    self.bn1 = nn.BatchNorm2d(16)
    inputs = 16
    for i, features in enumerate((16, 32, 64), 1):
      strides = [2 if i > 1 else 1] + [1] * (n - 1)
      blocks = [CifarBlock(inputs if j == 0 else features, features, s, residual) for j, s in enumerate(strides)]
      setattr(self, f"layer{i}", nn.Sequential(*blocks))
      inputs = features
    self.linear = nn.Linear(64, num_classes)

  def forward(self, x):
    x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
    return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


def alexnet_original(num_classes=1000):
  """Krizhevsky et al. 2012. torch divides alpha by the window's size, the paper does not: 5e-4 for its 1e-4."""
  return nn.Sequential(
    OrderedDict(
      conv1=nn.Conv2d(3, 96, 11, 4), relu1=nn.ReLU(), norm1=nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0),
      pool1=nn.MaxPool2d(3, 2),
      conv2=nn.Conv2d(96, 256, 5, padding=2, groups=2), relu2=nn.ReLU(),
      norm2=nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0), pool2=nn.MaxPool2d(3, 2),
      conv3=nn.Conv2d(256, 384, 3, padding=1), relu3=nn.ReLU(),
      conv4=nn.Conv2d(384, 384, 3, padding=1, groups=2), relu4=nn.ReLU(),
      conv5=nn.Conv2d(384, 256, 3, padding=1, groups=2), relu5=nn.ReLU(), pool5=nn.MaxPool2d(3, 2),
      flatten=nn.Flatten(),
      fc6=nn.LazyLinear(4096), relu6=nn.ReLU(), drop6=nn.Dropout(),
      fc7=nn.Linear(4096, 4096), relu7=nn.ReLU(), drop7=nn.Dropout(), fc8=nn.Linear(4096, num_classes),
    )
  )  # fmt: skip


class Inception(nn.Module):
  """Szegedy et al. 2014, figure 2b: 1 x 1; 3 x 3 and 5 x 5 behind a reduction; pooling and a projection."""

  def __init__(self, inputs, one, reduce3, three, reduce5, five, project):
    super().__init__()
    self.branch1 = nn.Conv2d(inputs, one, 1)
    self.branch2_reduce = nn.Conv2d(inputs, reduce3, 1)
    self.branch2 = nn.Conv2d(reduce3, three, 3, padding=1)
    self.branch3_reduce = nn.Conv2d(inputs, reduce5, 1)
    self.branch3 = nn.Conv2d(reduce5, five, 5, padding=2)
    self.branch4 = nn.Conv2d(inputs, project, 1)

  def forward(self, x):
    branch2 = self.branch2(F.relu(self.branch2_reduce(x)))
    branch3 = self.branch3(F.relu(self.branch3_reduce(x)))
    return F.relu(torch.cat([self.branch1(x), branch2, branch3, self.branch4(F.max_pool2d(x, 3, 1, 1))], 1))


class Auxiliary(nn.Module):
  """Section 5 of the same."""

  def __init__(self, inputs, num_classes):
    super().__init__()
    self.conv = nn.Conv2d(inputs, 128, 1)
    self.fc1 = nn.LazyLinear(1024)
    self.drop = nn.Dropout(0.7)
    self.fc2 = nn.Linear(1024, num_classes)

  def forward(self, x):
    x = F.relu(self.conv(F.avg_pool2d(x, 5, 3))).flatten(1)
    return self.fc2(self.drop(F.relu(self.fc1(x))))


# Table 1: 1x1, 3x3 reduce, 3x3, 5x5 reduce, 5x5, pool proj.
MODULES = {
  "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64), "4a": (192, 96, 208, 16, 48, 64),
  "4b": (160, 112, 224, 24, 64, 64), "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
  "4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128), "5b": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


class GoogLeNetOriginal(nn.Module):
  """Table 1 of the same. What the paper leaves open is bvlc_googlenet's: poolings round up, constants of the norms."""

  def __init__(self, num_classes=1000, aux_logits=True):
    super().__init__()
    self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
    self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
    self.norm = nn.LocalResponseNorm(5, 1e-4, 0.75, 1.0)
    self.conv2_reduce = nn.Conv2d(64, 64, 1)
    self.conv2 = nn.Conv2d(64, 192, 3, padding=1)
    self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
    self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    inputs = 192
    for name, features in MODULES.items():
      self.add_module(f"inception{name}", Inception(inputs, *features))
      inputs = features[0] + features[2] + features[4] + features[5]
    if aux_logits:
      self.aux1, self.aux2 = Auxiliary(512, num_classes), Auxiliary(528, num_classes)
    self.drop = nn.Dropout(0.4)
    self.fc = nn.Linear(1024, num_classes)
    self.aux_logits = aux_logits

  def forward(self, x):
    x = self.norm(self.pool1(F.relu(self.conv1(x))))
    x = self.norm(F.relu(self.conv2(F.relu(self.conv2_reduce(x)))))
    x = self.inception3b(self.inception3a(self.pool2(x)))
    four_a = self.inception4a(self.pool(x))
    four_d = self.inception4d(self.inception4c(self.inception4b(four_a)))
    x = self.inception5a(self.pool(self.inception4e(four_d)))
    logits = self.fc(self.drop(self.inception5b(x).mean((2, 3))))
    if self.training and self.aux_logits:
      return logits, self.aux2(four_d), self.aux1(four_a)  # torchvision's order
    return logits


def simple_convnet(num_classes=10, kernel_size=5, convs=1):
  """Saito 2016, chapter 7."""
  layers = OrderedDict()
  for i in range(1, convs + 1):
    layers |= {f"conv{i}": nn.Conv2d(1 if i == 1 else 30, 30, kernel_size), f"relu{i}": nn.ReLU()}
  layers |= {"pool1": nn.MaxPool2d(2), "flatten": nn.Flatten(), "fc1": nn.LazyLinear(100), "hidden": nn.ReLU()}
  return nn.Sequential(layers | {"fc2": nn.Linear(100, num_classes)})


def xo_net(num_classes=2):
  """Three filters for 9 x 9 drawings."""
  return nn.Sequential(
    OrderedDict(
      conv1=nn.Conv2d(1, 3, 3), relu1=nn.ReLU(), pool1=nn.MaxPool2d(2), flatten=nn.Flatten(),
      fc=nn.Linear(27, num_classes),
    )
  )  # fmt: skip
