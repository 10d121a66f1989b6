"""What the model sees of an image: its shape, and the parts of a test image over which evaluation averages.

One view is the central part of `crop_size`. Ten are the four corners, the centre and their mirror images (Krizhevsky et
al. 2012, section 4.1). With `eval_scales` they are taken of the image resized by each factor; without a crop_size the
model sees the resized image whole (Simonyan and Zisserman 2014, section 3.2).

Deviation: that paper averages the classes' maps over all places of a scaled image; ours pool before the classifier, so
it is as near to it as the model's own pooling.
"""

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy.data import augment
from flaxonomy.errors import UserError


def input_shape(config, image_shape: tuple[int, int, int]) -> tuple[int, int, int]:
  """[H, W, C] that the model sees of images of a shape.

  Args:
    config: configs.base.Data.
    image_shape: of the stored images, as `pipeline.image_shape`.

  Raises:
    UserError: as `check`.
  """
  check(config, image_shape)
  return (*(config.crop_size or image_shape[:2]), image_shape[2])


def count(config) -> int:
  """Views of each test image.

  Args:
    config: configs.base.Data.
  """
  return len(config.eval_scales) * config.eval_crops


def views(images: jax.Array, config) -> list[jax.Array]:
  """The views of test images, normalised: for each scale the centre, or four corners, the centre and those mirrored.

  Args:
    images: [B, H, W, C] uint8.
    config: configs.base.Data.

  Returns:
    `count(config)` arrays [B, h, w, C] float32: of crop_size, or without one as large as the scaled image.
  """
  found = []
  for factor in config.eval_scales:
    x = _scaled(images, factor)
    if config.crop_size is not None:
      x = _padded(x, config.crop_size)
    size = config.crop_size or x.shape[1:3]
    parts = [central(x, size)]
    if config.eval_crops == 10:
      below, beside = x.shape[1] - size[0], x.shape[2] - size[1]
      corners = [_part(x, size, top, left) for top in (0, below) for left in (0, beside)]
      parts = [*corners, *parts]
      parts += [part[:, :, ::-1] for part in parts]
    found += [augment.normalise(part, config.mean, config.std) for part in parts]
  return found


def tiles(config, batch: dict, augmented: bool) -> np.ndarray:
  """Images for a preview, [B, h, w, C] uint8.

  Args:
    config: configs.base.Data.
    batch: as stored, of which the middle of `crop_size` is shown, or augmented.
    augmented: which.
  """
  if not augmented:
    return np.asarray(central(batch["image"], input_shape(config, batch["image"].shape[1:])[:2]))
  return augment.pixels(batch["image"], config.mean, config.std)


def central(images: jax.Array, size: tuple[int, int]) -> jax.Array:
  """The middle [B, h, w, C] of images [B, H, W, C]; smaller ones are first padded with zeros."""
  images = _padded(images, size)
  return _part(images, size, *(round((n - part) / 2) for n, part in zip(images.shape[1:3], size)))


def check(config, image_shape: tuple[int, int, int]) -> None:
  """Whether the fields about crops, scales and colours go together with each other and with the images.

  Args:
    config: configs.base.Data.
    image_shape: [H, W, C] of the stored images.

  Raises:
    UserError: names the fields that do not.
  """
  for field in ("saturation", "color_pca"):
    if getattr(config.augment, field) and image_shape[2] != 3:
      raise UserError(f"config field 'data.augment.{field}' needs images of 3 channels, not {image_shape[2]}")
  size, stored, padding = config.crop_size, tuple(image_shape[:2]), config.augment.crop_padding
  if size is None:
    if config.eval_crops > 1:
      raise UserError(f"config field 'data.eval_crops' ({config.eval_crops}) needs parts to take; set 'data.crop_size'")
    return
  if min(size) < 1:
    raise UserError(f"config field 'data.crop_size' must be positive, not {size}")
  if _exceeds(size, [n + 2 * padding for n in stored]):
    also = f" with data.augment.crop_padding {padding} on every side" if padding else ""
    raise UserError(
      f"config field 'data.crop_size' {size} is larger than the images, {stored}{also}; set 'data.image_size'"
    )
  for factor in config.eval_scales:
    if factor != 1 and _exceeds(size, _sides(stored, factor)):
      raise UserError(
        f"config field 'data.eval_scales': images {stored} times {factor:g} are {_sides(stored, factor)}, smaller than "
        f"data.crop_size {size}"
      )


def _exceeds(size, other) -> bool:
  return any(part > n for part, n in zip(size, other))


def _sides(sides, factor) -> tuple[int, ...]:
  return tuple(max(1, round(n * factor)) for n in sides)


def _scaled(images, factor):
  """Resized by a factor, float32 unrounded; by 1 the images themselves."""
  if factor == 1:
    return images
  b, *sides, channels = images.shape
  return jax.image.resize(images.astype(jnp.float32), (b, *_sides(sides, factor), channels), "bilinear")


def _padded(images, size):
  """With zeros around, where they are smaller than the size, as in training with crop_padding."""
  lack = [max(0, part - n) for n, part in zip(images.shape[1:3], size)]
  return jnp.pad(images, [(0, 0), *((n // 2, n - n // 2) for n in lack), (0, 0)]) if any(lack) else images


def _part(images, size, top, left):
  return images[:, top : top + size[0], left : left + size[1]]
