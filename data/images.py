"""Image files and encoded images to arrays."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from flaxonomy.errors import DataError, UserError, first_line

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_ORIENTATIONS = {"exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type APP1"}  # may be there
_MODES = {1: "L", 3: "RGB"}
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM")  # others start programs, such as EPS
MAX_PIXELS = 2**26  # of an encoded image: a small file may name any size


def decode(
  source, channels: int | None = None, size: tuple[int, int] | None = None, fit: str = "stretch"
) -> np.ndarray:
  """An image as an array.

  Args:
    source: encoded bytes, a path, or an array [H, W] or [H, W, C] uint8.
    channels: 1 for grey, 3 for colour; None: grey stays grey, everything else becomes colour.
    size: (height, width) to resize to, bilinear with antialiasing; None: as it is.
    fit: to the size: "stretch", or "cover", which keeps the aspect ratio and cuts what then juts out.

  Returns:
    [H, W, C] uint8, turned upright by its EXIF orientation.

  Raises:
    DataError: not an image, or too large a one.
  """
  if isinstance(source, np.ndarray):
    return _array(
      Image.fromarray(source[..., 0] if source.ndim == 3 and source.shape[-1] == 1 else source), channels, size, fit
    )
  try:
    image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
      raise ValueError(f"{image.width} x {image.height} pixels, and {MAX_PIXELS:,} are the most that is read")
    image.load()
    if image.format == "TIFF" or not _ORIENTATIONS.isdisjoint(image.info):
      image = ImageOps.exif_transpose(image)
    return _array(image, channels, size, fit)
  except Exception as error:  # damaged files make Pillow raise nearly anything
    raise DataError(f"cannot read image {_name(source)}: {first_line(error)}") from None


def _array(image, channels, size, fit) -> np.ndarray:
  if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits: keep the high byte
    image = Image.fromarray((np.asarray(image, np.uint32) >> 8).astype(np.uint8))
  mode = _MODES[channels] if channels else ("L" if image.mode in ("1", "L", "LA") else "RGB")
  if image.mode != mode:
    image = image.convert(mode)
  if size and (image.height, image.width) != tuple(size):
    image = _cover(image, *size) if fit == "cover" else image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
  array = np.asarray(image)
  return array[..., None] if array.ndim == 2 else array


def _cover(image, height, width):
  """The image's middle, of the size: resized until it covers the size, then cut; rounded as torchvision does."""
  if height * image.width >= width * image.height:
    tall, wide = height, height * image.width // image.height
  else:
    tall, wide = width * image.height // image.width, width
  if tall * wide > MAX_PIXELS:
    raise DataError(f"{image.width} x {image.height} pixels are too long a strip to cover {width} x {height}")
  top, left = round((tall - height) / 2), round((wide - width) / 2)
  resized = image.resize((wide, tall), Image.Resampling.BILINEAR)
  return resized.crop((left, top, left + width, top + height))


def _name(source) -> str:
  return f"of {len(source)} bytes" if isinstance(source, bytes) else repr(str(source))


def find(inputs: list[str]) -> list[Path]:
  """The image files that paths name: files as they are, folders with all images below them, sorted.

  Raises:
    UserError: a path that does not exist, or a folder without images.
  """
  found = []
  for given in inputs:
    path = Path(given)
    if path.is_dir():
      inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
      if not inside:
        raise UserError(f"no images in folder {given!r} (looked for {' '.join(SUFFIXES)})")
      found += inside
    elif path.exists():
      found.append(path)
    else:
      raise UserError(f"no such image file or folder: {given!r}")
  return found
