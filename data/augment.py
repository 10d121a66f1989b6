"""Augmentation on the device: pure functions of (rng, batch).

Each example's randomness is keyed by its index in the dataset and the step's key, so that neither the number of
devices nor the order in a batch changes it. Everything geometric is one affine map for each image and one gather.

Deviations: a random-resized crop draws once and clips to the image where torchvision draws up to ten times; it and
`scale` sample bilinearly without antialiasing.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """Pixels [B, H, W, C] uint8 to (pixel / 255 - mean) / std, float32; mean and std have 1 or C entries."""
  return standardise(images.astype(jnp.float32) / 255, mean, std)


def pixels(images, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
  """What `normalise` was given, [B, H, W, C] uint8, as near as normalised images tell."""
  return np.clip((np.asarray(images) * np.asarray(std) + np.asarray(mean)) * 255, 0, 255).astype(np.uint8)


def standardise(x: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
  """(x - mean) / std of images [B, H, W, C] in [0, 1]; mean and std have 1 or C entries."""
  return (x - jnp.asarray(mean)[None, None, None]) / jnp.asarray(std)[None, None, None]


def build(config, axis: str):
  """The augmentation that a config lists.

  Args:
    config: configs.base.Data, of which `augment`, `crop_size`, `mean` and `std` are used.
    axis: name of the mapped axis over which a batch is split.

  Returns:
    augment(rng, batch) -> batch, per device: images [b, H, W, C] uint8 become normalised float32 [b, h, w, C] of
    crop_size; with mixup the batch gains "label2" and "mix".
  """
  aug, size = config.augment, config.crop_size

  def augment(rng, batch):
    keys = keys_of(rng, batch["index"])
    x = batch["image"].astype(jnp.float32) / 255
    if geometric := _geometry(aug, size):
      matrices = jax.vmap(lambda key: _matrix(aug, key, x.shape[1:3], size))(keys)
      x = affine(x, matrices, interpolate=geometric == "fractional", size=size)
    if aug.brightness or aug.contrast or aug.saturation or aug.color_pca:
      x = jax.vmap(lambda key, image: colour(aug, key, image))(keys, x)
    x = standardise(x, config.mean, config.std)
    if aug.cutout:
      x = jax.vmap(lambda key, image: _cutout(aug.cutout, _key(key, "cutout"), image))(keys, x)
    batch = batch | {"image": x}
    return _mixup(aug.mixup, keys, batch, axis) if aug.mixup else batch

  return augment


_KINDS = (
  "crop", "area", "rotate", "translate", "scale", "flip", "brightness", "contrast", "cutout", "mixup", "part",
  "saturation", "color_pca", "hue", "zoom_out", "iou_crop", "mosaic",
)  # fmt: skip


def keys_of(rng: jax.Array, index: jax.Array) -> jax.Array:
  """The examples' own keys: rng [2] and index [B] to [B, 2]."""
  return jax.vmap(lambda i: jax.random.fold_in(rng, i))(index)


def uniform(key: jax.Array, kind: str, shape: tuple[int, ...] = (), low: float = 0.0, high: float = 1.0) -> jax.Array:
  """An example's draws for a kind of augmentation, float32 of a shape in [low, high)."""
  return jax.random.uniform(_key(key, kind), shape, minval=low, maxval=high)


def _key(key, kind):
  """A key of its own for each kind, so that switching one on leaves the others as they were."""
  return jax.random.fold_in(key, _KINDS.index(kind))


def _geometry(aug, crop_size) -> str | None:
  """How pixels move: "fractional" if they may land between pixels, "whole" if never, None if nothing moves."""
  if aug.rotate or aug.translate or aug.scale or aug.random_resized_crop:
    return "fractional"
  return "whole" if crop_size or aug.crop_padding or aug.flip_horizontal or aug.flip_vertical else None


def _matrix(aug, key, size, crop_size=None):
  """[2, 3] map from output to input pixel offsets (y, x) from the centre of each.

  The image is cropped, scaled, rotated, translated and flipped in this order, so the map undoes them in reverse. What
  is cropped to crop_size is a random part of the padded image, or with a random-resized crop that crop, resampled.
  """
  height, width = crop_size or size
  m = jnp.eye(3)

  def then(m, linear, shift=(0.0, 0.0)):
    (a, b), (c, d) = linear
    step = jnp.stack([jnp.stack([a, b, shift[0]]), jnp.stack([c, d, shift[1]]), jnp.array([0.0, 0.0, 1.0])])
    return jnp.matmul(step, m, precision="highest")

  one, zero = jnp.float32(1), jnp.float32(0)
  if aug.flip_horizontal or aug.flip_vertical:
    flips = jnp.where(jax.random.bernoulli(_key(key, "flip"), 0.5, (2,)), -1.0, 1.0)
    v, h = (flips[0] if aug.flip_vertical else one), (flips[1] if aug.flip_horizontal else one)
    m = then(m, ((v, zero), (zero, h)))
  if aug.translate:
    dy, dx = jax.random.uniform(_key(key, "translate"), (2,), minval=-aug.translate, maxval=aug.translate)
    m = then(m, ((one, zero), (zero, one)), (-dy * height, -dx * width))
  if aug.rotate:
    angle = jax.random.uniform(_key(key, "rotate"), minval=-aug.rotate, maxval=aug.rotate) * (math.pi / 180)
    m = then(m, ((jnp.cos(angle), -jnp.sin(angle)), (jnp.sin(angle), jnp.cos(angle))))
  if aug.scale:
    zoom = jax.random.uniform(_key(key, "scale"), minval=aug.scale[0], maxval=aug.scale[1])
    m = then(m, ((1 / zoom, zero), (zero, 1 / zoom)))
  if crop_size and not aug.random_resized_crop:
    m = then(m, ((one, zero), (zero, one)), _part(aug.crop_padding, _key(key, "part"), size, crop_size))
  elif aug.crop_padding:
    p = aug.crop_padding
    dy, dx = jax.random.randint(_key(key, "crop"), (2,), -p, p + 1).astype(jnp.float32)
    m = then(m, ((one, zero), (zero, one)), (dy, dx))
  if aug.random_resized_crop:
    h, w, dy, dx = _area(aug.random_resized_crop, _key(key, "area"), *size)
    m = then(m, ((h / height, zero), (zero, w / width)), (dy, dx))
  return m[:2]


def _part(padding, key, size, crop_size):
  """Centre offsets (y, x) of a part of whole pixels, anywhere in the padded image."""
  room = [n + 2 * padding - part for n, part in zip(size, crop_size)]
  place = jax.random.randint(key, (2,), 0, jnp.array(room) + 1)
  return tuple(at - n / 2 for at, n in zip(place.astype(jnp.float32), room))


def _area(limits, key, height, width):
  """Height, width and centre offsets of a crop of random area and aspect 3/4 to 4/3 (Szegedy et al. 2014, 6)."""
  k1, k2, k3 = jax.random.split(key, 3)
  area = jax.random.uniform(k1, minval=limits[0], maxval=limits[1]) * height * width
  aspect = jnp.exp(jax.random.uniform(k2, minval=-math.log(4 / 3), maxval=math.log(4 / 3)))
  h, w = jnp.minimum(jnp.sqrt(area / aspect), height), jnp.minimum(jnp.sqrt(area * aspect), width)
  uy, ux = jax.random.uniform(k3, (2,), minval=-0.5, maxval=0.5)
  return h, w, uy * (height - h), ux * (width - w)


def affine(
  images: jax.Array, matrices: jax.Array, interpolate: bool = True, size: tuple[int, int] | None = None
) -> jax.Array:
  """Resamples images through affine maps; outside the image is 0.

  Args:
    images: [B, H, W, C] float.
    matrices: [B, 2, 3], output to input offsets (y, x, 1) in pixels from the centre of each.
    interpolate: bilinear; otherwise the nearest pixel, for maps that send pixels to pixels.
    size: (h, w) of the output; None: as the images.

  Returns:
    [B, h, w, C]
  """
  b, height, width, channels = images.shape
  h, w = size or (height, width)
  ys, xs = jnp.arange(h) - (h - 1) / 2, jnp.arange(w) - (w - 1) / 2
  grid = jnp.stack([jnp.repeat(ys, w), jnp.tile(xs, h), jnp.ones(h * w)])  # [3, hw]
  at = jnp.einsum("bij,jn->bin", matrices, grid, precision="highest")
  y, x = at[:, 0] + (height - 1) / 2, at[:, 1] + (width - 1) / 2  # [B, hw]
  if interpolate:
    y0, x0 = jnp.floor(y), jnp.floor(x)
    wy, wx = y - y0, x - x0
    rows, columns = jnp.stack([y0, y0, y0 + 1, y0 + 1], -1), jnp.stack([x0, x0 + 1, x0, x0 + 1], -1)
    weights = jnp.stack([(1 - wy) * (1 - wx), (1 - wy) * wx, wy * (1 - wx), wy * wx], -1)  # [B, hw, 4]
  else:
    rows, columns = jnp.round(y)[..., None], jnp.round(x)[..., None]
    weights = jnp.ones_like(rows)
  weights *= (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
  index = jnp.clip(rows, 0, height - 1) * width + jnp.clip(columns, 0, width - 1)
  flat = images.reshape(b, height * width, channels)
  taps = jnp.take_along_axis(flat, index.astype(jnp.int32).reshape(b, -1, 1), axis=1)
  taps = taps.reshape(b, h * w, -1, channels)
  return (taps * weights[..., None]).sum(2).reshape(b, h, w, channels)


_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601's weights of a grey image
# The colour components of ImageNet's pixels (Krizhevsky et al. 2012, 4.1), in the values that public recipes share: a
# column for each component.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def colour(aug, key: jax.Array, image: jax.Array, inside: jax.Array | None = None) -> jax.Array:
  """Contrast about the image's own mean, brightness, saturation, colour components, in this order; then clipped.

  Args:
    aug: configs.base.Augment.
    key: the example's own.
    image: [H, W, C] in [0, 1].
    inside: bool [H, W, 1], the pixels of which the mean is taken; None: all.

  Returns:
    [H, W, C] in [0, 1]
  """
  factor = jax.random.uniform(_key(key, "contrast"), minval=1 - aug.contrast, maxval=1 + aug.contrast)
  offset = jax.random.uniform(_key(key, "brightness"), minval=-aug.brightness, maxval=aug.brightness)
  mean = image.mean(where=inside)
  image = (image - mean) * factor + mean + offset
  if aug.saturation:
    factor = jax.random.uniform(_key(key, "saturation"), minval=1 - aug.saturation, maxval=1 + aug.saturation)
    grey = (image * jnp.array([[_LUMA]])).sum(-1, keepdims=True)
    image = (image - grey) * factor + grey
  if aug.color_pca:
    share = aug.color_pca * jax.random.normal(_key(key, "color_pca"), (3,)) * jnp.array(_EIGENVALUES)
    image += (jnp.array(_EIGENVECTORS) * share[None]).sum(-1)[None, None]
  return jnp.clip(image, 0, 1)


def _cutout(side, key, image):
  """A square of zeros centred anywhere in the image, cut off at its border (DeVries and Taylor 2017, 3)."""
  height, width, _ = image.shape
  cy, cx = jax.random.randint(key, (2,), 0, jnp.array([height, width]))
  inside = lambda n, c: (jnp.arange(n) >= c - side // 2) & (jnp.arange(n) < c - side // 2 + side)
  return jnp.where((inside(height, cy)[:, None] & inside(width, cx)[None])[..., None], 0.0, image)


def _mixup(alpha, keys, batch, axis):
  """Zhang et al. 2018, equation 1, with a lambda for each example; the partner is the next one in the global batch."""
  mix = jax.vmap(lambda key: jax.random.beta(_key(key, "mixup"), alpha, alpha))(keys)
  share = mix[:, None, None, None]
  image = share * batch["image"] + (1 - share) * following(batch["image"], axis)
  return batch | {"image": image, "label2": following(batch["label"], axis), "mix": mix}


def following(x: jax.Array, axis: str) -> jax.Array:
  """For each example of a local batch x [b, ...] the next one of the global batch, for the last the first."""
  devices = lax.axis_size(axis)
  first = lax.ppermute(x[:1], axis, [((d + 1) % devices, d) for d in range(devices)])
  return jnp.concatenate([x[1:], first])
