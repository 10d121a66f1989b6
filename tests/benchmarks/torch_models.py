"""ResNet and VGG in torch.nn, for timing only: the layouts of torchvision, which has no CPU build to install."""

from torch import nn
from torch.nn import functional


class Block(nn.Module):
  """Two 3 x 3 convolutions (or 1 x 1, 3 x 3, 1 x 1) and a shortcut."""

  def __init__(self, inputs, features, stride, bottleneck):
    super().__init__()
    outputs = 4 * features if bottleneck else features
    shape = [(inputs, features, 1, 1), (features, features, 3, stride), (features, outputs, 1, 1)]
    shape = shape if bottleneck else [(inputs, features, 3, stride), (features, outputs, 3, 1)]
    self.convs = nn.ModuleList(nn.Conv2d(i, o, k, s, k // 2, bias=False) for i, o, k, s in shape)
    self.norms = nn.ModuleList(nn.BatchNorm2d(o) for _, o, _, _ in shape)
    self.shortcut = nn.Sequential()
    if stride > 1 or inputs != outputs:
      self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

  def forward(self, x):
    y = x
    for i, (conv, norm) in enumerate(zip(self.convs, self.norms), 1):
      y = norm(conv(y))
      y = functional.relu(y, inplace=True) if i < len(self.convs) else y
    return functional.relu(y + self.shortcut(x), inplace=True)


def resnet(depths, bottleneck, num_classes, small_images=False):
  """ResNet for ImageNet, or with a small stem for 32 x 32."""
  stem = [nn.Conv2d(3, 64, 3, 1, 1, bias=False)] if small_images else [nn.Conv2d(3, 64, 7, 2, 3, bias=False)]
  layers = [*stem, nn.BatchNorm2d(64), nn.ReLU(True)] + ([] if small_images else [nn.MaxPool2d(3, 2, 1)])
  inputs = 64
  for i, depth in enumerate(depths):
    for j in range(depth):
      layers.append(Block(inputs, 64 * 2**i, 2 if i and not j else 1, bottleneck))
      inputs = 64 * 2**i * (4 if bottleneck else 1)
  return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, num_classes))


def vgg(depths, hidden, pool, num_classes):
  """VGG without batch norm."""
  layers, inputs = [], 3
  for depth, features in zip(depths, (64, 128, 256, 512, 512)):
    for _ in range(depth):
      layers += [nn.Conv2d(inputs, features, 3, 1, 1), nn.ReLU(True)]
      inputs = features
    layers.append(nn.MaxPool2d(2))
  layers += [nn.AdaptiveAvgPool2d(pool), nn.Flatten(), nn.Linear(512 * pool * pool, hidden), nn.ReLU(True)]
  layers += [nn.Dropout(0.5), nn.Linear(hidden, hidden), nn.ReLU(True), nn.Dropout(0.5)]
  return nn.Sequential(*layers, nn.Linear(hidden, num_classes))
