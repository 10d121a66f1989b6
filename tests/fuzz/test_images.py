"""Images of random bytes, and damaged ones."""

import functools
import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import strategies as st
from made_up import damage, damaged, fuzz, read
from PIL import Image

from flaxonomy.data import images

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of much that it reads


def encoded(image, form, **options) -> bytes:
  out = io.BytesIO()
  image.save(out, form, **options)
  return out.getvalue()


@functools.cache
def samples() -> list[bytes]:
  """Small images of every format and kind."""
  grid = np.indices((9, 12)).sum(0, dtype=np.uint8) * 11
  colour = Image.fromarray(np.stack([grid, grid.T.reshape(9, 12), 255 - grid], -1))
  grey, alpha = colour.convert("L"), colour.convert("RGBA")
  exif = Image.Exif()
  exif[0x0112] = 6
  png = [colour, grey, alpha, colour.convert("P"), colour.convert("1"), colour.convert("LA")]
  found = [encoded(image, "png") for image in [*png, Image.fromarray(grid.astype(np.uint16) << 8)]]
  found += [encoded(colour, "png", exif=exif), encoded(alpha.quantize(), "png", transparency=0)]
  found += [encoded(colour, "png", save_all=True, append_images=[colour.rotate(180)])]
  found += [encoded(image, "jpeg") for image in (colour, grey, colour.convert("CMYK"))]
  found += [encoded(colour, "jpeg", progressive=True, exif=exif)]
  found += [encoded(grey, "gif"), encoded(colour.convert("P"), "gif", save_all=True, append_images=[grey])]
  found += [encoded(image, "bmp") for image in png[:5]] + [encoded(colour, "dib")]
  for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
    found += [encoded(colour, "tiff", compression=compression)]
  found += [encoded(colour.convert("1"), "tiff", compression="group4"), encoded(grey.convert("F"), "tiff")]
  found += [encoded(colour.convert("CMYK"), "tiff", exif=exif), encoded(grey.convert("I"), "tiff")]
  found += [encoded(colour, "webp", lossless=True, exif=exif), encoded(alpha, "webp", quality=50)]
  found += [encoded(colour, "webp", save_all=True, append_images=[colour.rotate(180)])]
  found += [encoded(image, "ppm") for image in (colour, grey, colour.convert("1"))]
  return found + [b"P3\n2 1\n255\n1 2 3 4 5 6\n", b"P2\n# grey\n2 2\n9\n1 2\n3 4\n", b"Pf\n1 1\n-1.0\n\0\0\x80\x3f"]


def checksums_mended(data: bytes) -> bytes:
  """A PNG whose chunks have the right checksums, so that damage gets further in."""
  at = 8
  while data.startswith(b"\x89PNG") and at + 12 <= len(data):
    (length,) = struct.unpack(">I", data[at : at + 4])
    end = at + 8 + length
    if end + 4 > len(data):
      break
    data = data[:end] + struct.pack(">I", zlib.crc32(data[at + 4 : end])) + data[end + 4 :]
    at = end + 4
  return data


def check_image(data, channels, size):
  x = read(images.decode, data, channels, size)
  if x is not None:
    assert x.dtype == np.uint8
    assert x.ndim == 3
    assert x.size
    assert x.shape[-1] in ((channels,) if channels else (1, 3))
    assert size is None or x.shape[:2] == size


shapes = {"channels": st.sampled_from([None, 1, 3]), "size": st.sampled_from([None, (5, 7)])}
MAGIC = [
  b"",
  b"\x89PNG\r\n\x1a\n",
  b"\xff\xd8\xff",
  b"GIF89a",
  b"BM",
  b"II*\0",
  b"MM\0*",
  b"RIFF\x20\0\0\0WEBPVP8 ",
  b"P6\n",
]


@fuzz("images of random bytes", magic=st.sampled_from(MAGIC), data=st.binary(max_size=300), **shapes)
def test_images_of_random_bytes(magic, data, channels, size):
  check_image(magic + data, channels, size)


@fuzz(
  "damaged images",
  number=st.integers(0, len(samples()) - 1),
  changes=st.lists(damage, min_size=1, max_size=4),
  mend=st.booleans(),
  **shapes,
)
def test_damaged_images(number, changes, mend, channels, size):
  data = damaged(samples()[number], changes)
  check_image(checksums_mended(data) if mend else data, channels, size)


def test_samples_are_images():
  for data in samples():
    assert images.decode(data).ndim == 3
