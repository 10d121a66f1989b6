"""Annotated images on their way to the devices: pictures on a canvas of one shape, with the boxes of their objects.

The batch is that of "Scenes" in data/__init__.py. By `data.fit` a picture is stretched to its canvas, or ("contain")
keeps its aspect ratio and lies at the top left: as large as the canvas holds, or with `data.scenes.short_side` with a
short side of so many pixels, if the canvas holds that. Sides are rounded down, as torchvision's detectors do.

`Feed.texts` is the truth that detections are judged by, in pixels of the image as it is stored, one dict for each:

  image_id  int, COCO's, or the dataset's own; else the index
  height, width  int; 0 of an example that cannot be read and is skipped, which has no objects
  boxes     [n, 4] float32, x1 y1 x2 y2, of all objects, also those beyond data.scenes.objects
  labels    [n] int32, 1 + class
  crowd     [n] bool
  area      [n] float32, as COCO tells; else of the mask; else of the box
  masks     [height, width] bool of each, in a list; None without data.scenes.masks
"""

import io
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
from PIL import Image

from flaxonomy.data import annotated, images, masks, pipeline
from flaxonomy.data.datasets import annotations
from flaxonomy.data.pipeline import Feed, Info
from flaxonomy.data.reader import Reader
from flaxonomy.data.sources import Source
from flaxonomy.errors import DataError, UserError, first_line, warn

FITS = ("stretch", "contain")


def open_split(config, split: str, trained: Info | None = None) -> tuple[Source, Info]:
  """Opens a split of annotated images.

  Args:
    config: configs.base.Data.
    split: a TFDS split, or of a folder such as "train[:90%]".
    trained: what is known of the training split, where this is another.

  Returns:
    (its examples, what a task must know of them)

  Raises:
    UserError: see `annotated.open_source`; fields that cannot be, or other classes than those of training.
  """
  _check(config)
  source = annotated.open_source(config, split, trained.class_names if trained else ())
  if config.image_size is None and source.shape is None:
    raise UserError(f"the images of dataset {config.name!r} may differ in size; set config field 'data.image_size'")
  shape = (*(config.image_size or source.shape[:2]), 3)
  info = Info(config.name, source.class_names, shape, len(source.records), categories=source.categories)
  if trained and (info.class_names, info.categories) != (trained.class_names, trained.categories):
    raise UserError(
      f"split {split!r} of dataset {config.name!r} has other classes than that of training: "
      f"{_some(info.class_names)}, not {_some(trained.class_names)}, or the same by other ids"
    )
  return source, info


def _some(names) -> str:
  return f"{len(names)} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


def _check(config) -> None:
  """Whether the fields about images go together with scenes.

  Raises:
    UserError: names the one that does not.
  """
  scenes = config.scenes
  if config.fit not in FITS:
    raise UserError(f"config field 'data.fit' must be {' or '.join(map(repr, FITS))} for scenes, not {config.fit!r}")
  if config.channels not in (None, 3):
    raise UserError(f"config field 'data.channels' must be 3 or None for scenes, not {config.channels}")
  if config.image_size and min(config.image_size) < 1:
    raise UserError(f"config field 'data.image_size' must be positive, not {config.image_size}")
  if config.crop_size is not None or config.eval_crops != 1 or tuple(config.eval_scales) != (1.0,):
    raise UserError("config fields 'data.crop_size', 'data.eval_crops' and 'data.eval_scales' are not for scenes")
  for name, least in (("objects", 1), ("short_side", 1), ("proposals", 0)):
    if (value := getattr(scenes, name)) is not None and value < least:
      raise UserError(f"config field 'data.scenes.{name}' must be {least} or more, not {value}")
  if scenes.short_side and config.fit != "contain":
    raise UserError(f"config field 'data.scenes.short_side' needs data.fit 'contain', not {config.fit!r}")
  for name in ("mean", "std"):
    if (count := len(getattr(config, name))) not in (1, 3):
      raise UserError(f"config field 'data.{name}' has {count} entries, but the images have 3 channels")


def open_feed(config, source: Source, info: Info, seed: int, batch_size: int, mesh) -> Feed:
  """Readies a split for training and evaluation; if it fits on the devices, all of it is read and put there.

  Args:
    config: configs.base.Data.
    source: from `open_split`.
    info: likewise.
    seed: of the order of training examples.
    batch_size: examples of a batch, over all devices; divisible by them.
    mesh: the devices, one axis.
  """
  reader = SceneReader(source, info, config)
  size = sum(x.nbytes for x in reader.blank().values())
  return pipeline.of_reader(reader, config, size, seed, batch_size, mesh)._replace(texts=reader.truths)


def extent(height: int, width: int, canvas: tuple[int, int], fit: str, short_side: int | None) -> tuple[int, int]:
  """(height, width) of a picture on its canvas.

  Args:
    height: of the image as it is stored.
    width: likewise.
    canvas: (height, width).
    fit: one of FITS.
    short_side: configs.base.Scenes.short_side.
  """
  if fit == "stretch":
    return canvas
  scale = min(Fraction(canvas[0], height), Fraction(canvas[1], width))
  if short_side:
    scale = min(scale, Fraction(short_side, min(height, width)))
  return max(1, int(height * scale)), max(1, int(width * scale))


def canvas(image: np.ndarray, shape: tuple[int, int, int], fit: str, config) -> dict:
  """What a batch holds of a picture alone: "image", "size", "scale" and perhaps "proposals"; see data/__init__.py.

  Args:
    image: [h, w, 3] uint8.
    shape: [H, W, 3] of the canvas.
    fit: one of FITS.
    config: configs.base.Scenes.
  """
  tall, wide = extent(*image.shape[:2], shape[:2], fit, config.short_side)
  row = {"image": np.zeros(shape, np.uint8), "size": np.array([tall, wide], np.int32)}
  row["image"][:tall, :wide] = images.decode(image, 3, (tall, wide))
  row["scale"] = np.array([tall / image.shape[0], wide / image.shape[1]], np.float32)
  if config.proposals:
    from flaxonomy.data import proposals

    found = proposals.proposals(image, config.proposals)[: config.proposals]
    row["proposals"] = np.zeros((config.proposals, 4), np.float32)
    row["proposals"][: len(found)] = found * _factors(image, row)
  return row


def _factors(image, row) -> np.ndarray:
  """[4] what boxes of the image become those of its canvas with."""
  return np.tile((row["size"] / image.shape[:2])[::-1], 2)


class SceneReader(Reader):
  """A Reader whose rows are scenes; "beyond", how many objects a row has no room for, ends in a warning."""

  def __init__(self, source: Source, info: Info, config):
    """Reads nothing yet.

    Args:
      source: from `open_split`.
      info: likewise.
      config: configs.base.Data.
    """
    super().__init__(source, info, config.on_error, config.error_limit, config.fit)
    self.scenes = config.scenes
    self.warned = set()  # shared with copies

  def _objects(self, record, height, width) -> annotations.Annotation:
    """What is said of an image, in its pixels."""
    told = annotations.placed(record["objects"], height, width, len(self.info.class_names))
    if self.scenes.masks and told.masks is None:
      if len(told.labels):
        raise DataError(f"{told.where} has no masks")
      told = told._replace(masks=())
    return told

  def arrays(self, index: int) -> dict:
    """See `Reader.arrays`."""
    try:
      return self._arrays(self.records[index])
    except Exception as error:  # files hold anything, and every library says so in its own way
      raise DataError(f"example {index} of {self.where}: {first_line(error)}") from None

  def _arrays(self, record) -> dict:
    image = images.decode(record["image"], 3)
    height, width = image.shape[:2]
    told = self._objects(record, height, width)
    kept = self._kept(told)
    row = self.blank() | canvas(image, self.info.image_shape, self.fit, self.scenes)
    count, (tall, wide) = len(kept), row["size"]
    row["boxes"][:count] = told.boxes[kept] * _factors(image, row)
    row["labels"][:count], row["crowd"][:count] = told.labels[kept], told.crowd[kept]
    row["beyond"] += len(told.labels) - count
    if self.scenes.masks:
      small = np.zeros((count, *self.info.image_shape[:2]), bool)
      for out, mask in zip(small, _masks(told.masks, kept, height, width)):
        out[:tall, :wide] = Image.fromarray(mask).resize((wide, tall), Image.Resampling.NEAREST)
      row["masks"][:count] = np.packbits(small, axis=-1)
    return row

  def _kept(self, told) -> np.ndarray:
    """Places of the objects that a row has room for, in their order: the largest, and crowds only then."""
    size = np.prod(told.boxes[:, 2:] - told.boxes[:, :2], axis=1)
    return np.sort(np.lexsort((-size, told.crowd))[: self.scenes.objects])

  def blank(self) -> dict:
    """See `Reader.blank`."""
    most, (height, width, _) = self.scenes.objects, self.info.image_shape
    row = {
      "image": np.zeros(self.info.image_shape, np.uint8),
      "size": np.zeros(2, np.int32),
      "scale": np.zeros(2, np.float32),
      "boxes": np.zeros((most, 4), np.float32),
      "labels": np.zeros(most, np.int32),
      "crowd": np.zeros(most, bool),
      "beyond": np.zeros((), np.int32),
    }
    if self.scenes.masks:
      row["masks"] = np.zeros((most, height, -(-width // 8)), np.uint8)
    if self.scenes.proposals:
      row["proposals"] = np.zeros((self.scenes.proposals, 4), np.float32)
    return row

  def checked(self, batch: dict) -> dict:
    """See `Reader.checked`."""
    batch = super().checked(batch)
    beyond = batch.pop("beyond")
    if beyond.any() and not self.warned:
      self.warned.add("beyond")
      warn(
        f"{self.where}: {np.count_nonzero(beyond)} of {len(beyond)} images have {beyond.sum()} objects more than "
        f"data.scenes.objects, {self.scenes.objects}; the largest are kept. Said once"
      )
    return batch

  def truths(self, indices: Iterable[int]) -> list[dict]:
    """What `Feed.texts` gives; see above.

    Raises:
      DataError: an example cannot be read, and none is to be skipped.
    """
    return [self._truth(int(index)) for index in indices]

  def _truth(self, index) -> dict:
    try:
      record = self.records[index]
      height, width = _extent(record["image"])
      told = self._objects(record, height, width)
      area = np.where(np.isnan(told.area), np.prod(told.boxes[:, 2:] - told.boxes[:, :2], axis=1), told.area)
      found, of = None, np.arange(len(told.labels))
      if self.scenes.masks or (told.masks is not None and np.isnan(told.area).any()):
        found = list(_masks(told.masks, of, height, width))
        area = np.where(np.isnan(told.area), [np.count_nonzero(mask) for mask in found], told.area)
    except Exception as error:
      if self.on_error == "raise":
        raise DataError(f"example {index} of {self.where}: {first_line(error)}") from None
      record, height, width = {}, 0, 0
      told, area = annotations.annotation("", (), ()), np.zeros(0)
      found = []
    return {
      "image_id": record.get("image_id", index),
      "height": height,
      "width": width,
      "boxes": told.boxes.astype(np.float32),
      "labels": told.labels.astype(np.int32),
      "crowd": told.crowd,
      "area": area.astype(np.float32),
      "masks": found if self.scenes.masks else None,
    }


def _masks(segmentations, kept: np.ndarray, height: int, width: int) -> np.ndarray:
  """Masks [n, height, width] bool of some objects."""
  if isinstance(segmentations, masks.Instances):
    chosen = segmentations._replace(values=tuple(segmentations.values[i] for i in kept))
  else:
    chosen = [segmentations[i] for i in kept]
  return masks.arrays(chosen, height, width)


def _extent(source) -> tuple[int, int]:
  """(height, width) of an image as `images.decode` turns it; of JPEG files without decoding them."""
  image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=images.FORMATS)
  if image.format != "JPEG":
    return images.decode(source).shape[:2]
  turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
  return (image.width, image.height) if turned else (image.height, image.width)
