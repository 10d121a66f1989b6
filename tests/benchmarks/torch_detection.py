"""Detectors in torch.nn, for timing only: the nets of torchvision's, which has no CPU build to install.

Without what torchvision does around them: no anchors, matching, sampling, decoding, RoIAlign and suppression. The last
two are here as operators by themselves, in plain torch.
"""

import torch
from torch import nn
from torch.nn import functional
from torch_models import Block

DEPTHS, FEATURES = (2, 2, 3, 3, 3), (64, 128, 256, 512, 512)
EXTRA = ((256, 512, 2, 1), (128, 256, 2, 1), (128, 256, 1, 0), (128, 256, 1, 0))
PLACES = (4, 6, 6, 6, 4, 4)


class SSD300(nn.Module):
  """VGG16's convolutions, four more pairs, and two heads on six maps."""

  def __init__(self, num_classes):
    super().__init__()
    self.num_classes = num_classes
    body, inputs = [], 3
    for i, (depth, features) in enumerate(zip(DEPTHS, FEATURES), 1):
      for j in range(1, depth + 1):
        body += [nn.Conv2d(inputs, features, 3, 1, 1), nn.ReLU(True)]
        inputs = features
        if (i, j) == (4, 3):
          self.begin, body = nn.Sequential(*body), []
      body.append(nn.MaxPool2d(2, ceil_mode=i == 3) if i < 5 else nn.MaxPool2d(3, 1, 1))
    body += [nn.Conv2d(512, 1024, 3, 1, 6, 6), nn.ReLU(True), nn.Conv2d(1024, 1024, 1), nn.ReLU(True)]
    self.end = nn.Sequential(*body)
    self.scale = nn.Parameter(torch.full((512,), 20.0))
    pairs, inputs = [], 1024
    for narrow, features, stride, padding in EXTRA:
      pair = nn.Conv2d(inputs, narrow, 1), nn.ReLU(True), nn.Conv2d(narrow, features, 3, stride, padding), nn.ReLU(True)
      pairs.append(nn.Sequential(*pair))
      inputs = features
    self.extra = nn.ModuleList(pairs)
    channels = (512, 1024, *(features for _, features, _, _ in EXTRA))
    head = lambda outputs: nn.ModuleList(nn.Conv2d(c, k * outputs, 3, 1, 1) for c, k in zip(channels, PLACES))
    self.boxes, self.logits = head(4), head(num_classes)

  def forward(self, x):
    """[B, 3, 300, 300] -> (offsets [B, 8732, 4], logits [B, 8732, num_classes])."""
    x = self.begin(x)
    maps = [functional.normalize(x) * self.scale[:, None, None]]
    x = self.end(x)
    maps.append(x)
    for pair in self.extra:
      x = pair(x)
      maps.append(x)
    return joined(self.boxes, maps, 4), joined(self.logits, maps, self.num_classes)


def joined(heads, maps, outputs):
  """What heads say of maps [B, C, H, W], place by place: [B, A, outputs]."""
  return torch.cat([head(x).permute(0, 2, 3, 1).reshape(x.shape[0], -1, outputs) for head, x in zip(heads, maps)], 1)


def multibox(offsets, logits, targets, labels, ratio=3):
  """SSD's loss as torchvision's, default boxes being matched: targets [B, A, 4], labels [B, A], 0: background."""
  objects = labels > 0
  apart = functional.smooth_l1_loss(offsets[objects], targets[objects], reduction="sum")
  entropy = functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
  order = entropy.detach().masked_fill(objects, -torch.inf).sort(1, descending=True)[1]
  hard = order.sort(1)[1] < ratio * objects.sum(1, keepdim=True)
  return (apart + entropy[objects].sum() + entropy[hard].sum()) / objects.sum().clamp(min=1)


class FasterRCNN(nn.Module):
  """ResNet-50, a feature pyramid, the proposals' head, and the box head on regions that are given."""

  def __init__(self, num_classes, depths=(3, 4, 6, 3), places=3):
    super().__init__()
    self.num_classes = num_classes
    self.stem = nn.Sequential(
      nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)
    )
    stages, inputs = [], 64
    for i, depth in enumerate(depths):
      blocks = []
      for j in range(depth):
        blocks.append(Block(inputs, 64 * 2**i, 2 if i and not j else 1, True))
        inputs = 256 * 2**i
      stages.append(nn.Sequential(*blocks))
    self.stages = nn.ModuleList(stages)
    self.inner = nn.ModuleList(nn.Conv2d(256 * 2**i, 256, 1) for i in range(len(depths)))
    self.layer = nn.ModuleList(nn.Conv2d(256, 256, 3, 1, 1) for _ in depths)
    self.shared = nn.Sequential(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(True))
    self.scores, self.deltas = nn.Conv2d(256, places, 1), nn.Conv2d(256, 4 * places, 1)
    self.fc = nn.Sequential(nn.Linear(256 * 49, 1024), nn.ReLU(True), nn.Linear(1024, 1024), nn.ReLU(True))
    self.logits, self.offsets = nn.Linear(1024, num_classes), nn.Linear(1024, 4 * num_classes)
    for norm in self.modules():  # frozen, as in torchvision's trained ones
      if isinstance(norm, nn.BatchNorm2d):
        norm.requires_grad_(False)

  def train(self, mode=True):
    """Batch norm stays as it is."""
    super().train(mode)
    for norm in self.modules():
      if isinstance(norm, nn.BatchNorm2d):
        norm.eval()
    return self

  def forward(self, x, regions):
    """As torchvision's two stages without what lies between them.

    Args:
      x: [B, 3, H, W].
      regions: [R, 256, 7, 7], pooled, of all images.

    Returns:
      (objectness [B, N, 1], deltas [B, N, 4], logits [R, num_classes], offsets [R, num_classes, 4])
    """
    x, maps = self.stem(x), []
    for stage in self.stages:
      x = stage(x)
      maps.append(x)
    above, levels = None, []
    for x, inner, layer in zip(maps[::-1], self.inner[::-1], self.layer[::-1]):
      x = inner(x)
      above = x if above is None else x + functional.interpolate(above, size=x.shape[-2:])
      levels.insert(0, layer(above))
    levels.append(functional.max_pool2d(levels[-1], 1, 2))
    shared = [self.shared(level) for level in levels]
    objectness, deltas = (joined([head] * len(levels), shared, n) for head, n in ((self.scores, 1), (self.deltas, 4)))
    features = self.fc(regions.flatten(1))
    return objectness, deltas, self.logits(features), self.offsets(features).view(-1, self.num_classes, 4)


def two_stage(found, anchors, learned, objects, labels, targets):
  """The four losses, once anchors and regions are matched and sampled.

  Args:
    found: of `FasterRCNN`.
    anchors: [S], places of those sampled from the B N of a batch.
    learned: [S] float, 1 for objects.
    objects: [S, 4], the sampled anchors' targets.
    labels: [R], 0: background.
    targets: [R, 4].
  """
  objectness, deltas, logits, offsets = found
  there, fit = learned > 0, labels > 0
  loss = functional.binary_cross_entropy_with_logits(objectness.flatten()[anchors], learned)
  apart = functional.smooth_l1_loss(deltas.flatten(0, 1)[anchors][there], objects[there], beta=1 / 9, reduction="sum")
  own = offsets[fit.nonzero().flatten(), labels[fit]]
  beside = functional.smooth_l1_loss(own, targets[fit], beta=1 / 9, reduction="sum")
  return loss + apart / len(anchors) + functional.cross_entropy(logits, labels) + beside / len(labels)


def suppressed(boxes, scores, threshold, most):
  """Places of boxes that stay, by falling score: greedy suppression within each class, all classes side by side.

  Args:
    boxes: [C, N, 4] of each class.
    scores: [C, N].
    threshold: IoU above which the less likely box goes.
    most: places given.

  Returns:
    [<= most] places in C N.
  """
  ordered, order = scores.sort(1, descending=True)
  boxes = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
  over = torch.stack([_overlaps(some) > threshold for some in boxes])  # class by class stays in the cache
  stays = torch.ones(scores.shape, dtype=torch.bool)
  for i in range(boxes.shape[1] - 1):
    stays[:, i + 1 :] &= ~(over[:, i, i + 1 :] & stays[:, i, None])
  best = ordered.masked_fill(~stays, -1).flatten().topk(min(most, int(stays.sum())))[1]
  return (order + torch.arange(len(boxes))[:, None] * boxes.shape[1]).flatten()[best]


def _overlaps(boxes):
  """IoU of boxes [N, 4] with each other, [N, N]."""
  x1, y1, x2, y2 = boxes.T
  both = (torch.minimum(x2[:, None], x2) - torch.maximum(x1[:, None], x1)).clamp_(min=0)
  both *= (torch.minimum(y2[:, None], y2) - torch.maximum(y1[:, None], y1)).clamp_(min=0)
  area = (x2 - x1) * (y2 - y1)
  return both / (area[:, None] + area - both)


def pyramid_roi_align(levels, boxes, size=7, sampling=2):
  """RoIAlign of boxes [R, 4] on the levels [1, C, H, W] that fit them, P2 to P5, by `grid_sample`: [R, C, size, size].

  For boxes within the image: what lies outside the map takes the border's value, never 0.
  """
  side = (boxes[:, 2:] - boxes[:, :2]).prod(1).sqrt()
  at = torch.floor(4 + torch.log2(side / 224) + 1e-6).clamp(2, 5)
  pooled = boxes.new_empty(len(boxes), levels[0].shape[1], size, size)
  for k, level in enumerate(levels, 2):
    rows = (at == k).nonzero().flatten()
    if len(rows) == 0:
      continue
    low, high = (boxes[rows] / 2**k).chunk(2, 1)
    bins = (high - low).clamp(min=1) / (size * sampling)
    places = low[:, None] + (torch.arange(size * sampling)[None, :, None] + 0.5) * bins[:, None]  # [r, samples, (x, y)]
    places = places / (torch.tensor(level.shape[:1:-1]) - 1) * 2 - 1
    x, y = places[:, None, :, 0], places[:, :, None, 1]
    grid = torch.stack(torch.broadcast_tensors(x, y), -1).flatten(0, 1)[None]
    samples = functional.grid_sample(level, grid, padding_mode="border", align_corners=True)
    samples = functional.avg_pool2d(samples, sampling)[0].unflatten(1, (len(rows), size)).transpose(0, 1)
    pooled = pooled.index_copy(0, rows, samples)
  return pooled
