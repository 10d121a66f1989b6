"""Image files of every kind to arrays; what is no image ends in one line."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from flaxonomy.data import images
from flaxonomy.errors import UserError

HEIGHT, WIDTH = 5, 7
COLOUR = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


def encoded(image, form="png", **options) -> bytes:
  out = io.BytesIO()
  (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(out, form, **options)
  return out.getvalue()


def luma(rgb):
  """ITU-R 601's grey of a colour."""
  return rgb.astype(np.float64) @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("channels", [None, 1, 3])
def test_grey(channels):
  x = images.decode(encoded(GREY), channels)
  assert x.dtype == np.uint8
  np.testing.assert_array_equal(x, np.repeat(GREY[..., None], channels or 1, -1))


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("form", ["png", "bmp", "tiff", "ppm", "webp"])
def test_colour(channels, form):
  x = images.decode(encoded(COLOUR, form, **({"lossless": True} if form == "webp" else {})), channels)
  if channels == 1:
    assert x.shape == (HEIGHT, WIDTH, 1)
    assert np.abs(x[..., 0] - luma(COLOUR)).max() <= 1
  else:
    np.testing.assert_array_equal(x, COLOUR)


def test_alpha_is_dropped():
  alpha = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
  x = np.concatenate([COLOUR, alpha], -1)
  np.testing.assert_array_equal(images.decode(encoded(x)), COLOUR)
  np.testing.assert_array_equal(images.decode(encoded(x[..., [0, 3]])), GREY[..., None])  # grey stays grey
  np.testing.assert_array_equal(images.decode(encoded(x[..., [0, 3]]), 3), np.repeat(GREY[..., None], 3, -1))


@pytest.mark.parametrize("form", ["png", "gif"])
def test_palette(form):
  colours = np.random.default_rng(2).integers(0, 256, (16, 3), dtype=np.uint8)
  index = np.random.default_rng(3).integers(0, 16, (HEIGHT, WIDTH), dtype=np.uint8)
  image = Image.fromarray(index).convert("L")
  image.putpalette(colours.tobytes())
  assert image.mode == "P"
  np.testing.assert_array_equal(images.decode(encoded(image, form)), colours[index])
  assert np.abs(images.decode(encoded(image, form), 1)[..., 0] - luma(colours[index])).max() <= 1


def test_one_bit():
  bits = GREY > 127
  np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(bits)))[..., 0], bits * 255)


@pytest.mark.parametrize("form", ["png", "tiff"])
@pytest.mark.parametrize("channels", [None, 3])
def test_sixteen_bits_keep_the_high_byte(form, channels):
  x = np.random.default_rng(4).integers(0, 2**16, (HEIGHT, WIDTH), dtype=np.uint16)
  x[0, :2] = 0, 2**16 - 1
  np.testing.assert_array_equal(images.decode(encoded(x, form), channels)[..., -1], x // 256)


@pytest.mark.parametrize("form", ["tiff", "jpeg"])
def test_cmyk(form):
  c, m, y, k = 200, 30, 90, 40
  x = images.decode(encoded(Image.new("CMYK", (WIDTH, HEIGHT), (c, m, y, k)), form))
  assert x.shape == (HEIGHT, WIDTH, 3)
  expected = np.array([(255 - ink) * (255 - k) / 255 for ink in (c, m, y)])
  assert np.abs(x - expected).max() <= (1 if form == "tiff" else 5)


# What the EXIF standard's figure of each orientation says must be done to the stored pixels.
UPRIGHT = {
  1: lambda x: x,
  2: np.fliplr,
  3: lambda x: np.rot90(x, 2),
  4: np.flipud,
  5: lambda x: x.swapaxes(0, 1),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: np.rot90(x.swapaxes(0, 1), 2),
  8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_is_undone(orientation):
  exif = Image.Exif()
  exif[0x0112] = orientation
  x = images.decode(encoded(COLOUR, exif=exif))
  np.testing.assert_array_equal(x, UPRIGHT[orientation](COLOUR))


@pytest.mark.parametrize("size", [(3, 4), (5, 3), (11, 9), (1, 1)], ids=str)
@pytest.mark.parametrize("channels", [1, 3])
def test_resizing_is_bilinear_with_antialiasing(size, channels):
  stored = COLOUR if channels == 3 else GREY[..., None]
  x = images.decode(encoded(stored if channels == 3 else GREY), size=size)
  expected = jax.image.resize(stored.astype(np.float32), (*size, channels), "linear", antialias=True)
  assert x.shape == expected.shape
  assert np.abs(x - np.asarray(expected)).max() <= 1  # Pillow rounds after each axis


def test_size_as_stored_is_left_alone():
  np.testing.assert_array_equal(images.decode(encoded(COLOUR), size=(HEIGHT, WIDTH)), COLOUR)


@pytest.mark.parametrize(
  "stored, size, resized, place",
  [
    ((375, 500), (256, 256), (256, 341), (0, 42)),  # 341.3 and 42.5, which torchvision rounds so
    ((500, 375), (256, 256), (341, 256), (42, 0)),
    ((20, 31), (8, 8), (8, 12), (0, 2)),
    ((20, 31), (8, 20), (12, 20), (2, 0)),  # the width is what must grow
    ((6, 9), (12, 12), (12, 18), (0, 3)),
    ((6, 9), (6, 6), (6, 9), (0, 2)),  # cut alone: 1.5 to the even number
    ((6, 9), (4, 6), (4, 6), (0, 0)),
  ],
  ids=str,
)
@pytest.mark.parametrize("channels", [1, 3])
def test_covering_keeps_the_aspect_and_the_middle(stored, size, resized, place, channels):
  image = np.random.default_rng(0).integers(0, 256, (*stored, 3), dtype=np.uint8)[..., : 3 if channels == 3 else 1]
  by_hand = Image.fromarray(image.squeeze()).resize(resized[::-1], Image.Resampling.BILINEAR)
  top, left = place
  by_hand = np.asarray(by_hand).reshape(*resized, channels)[top : top + size[0], left : left + size[1]]
  np.testing.assert_array_equal(images.decode(encoded(image.squeeze()), size=size, fit="cover"), by_hand)
  np.testing.assert_array_equal(images.decode(image, size=size, fit="cover"), by_hand)


def test_a_strip_is_not_made_huge():
  for strip in (np.zeros((1, 30000), np.uint8), encoded(np.zeros((30000, 1), np.uint8))):
    with pytest.raises(UserError, match="too long a strip to cover 256 x 256"):
      images.decode(strip, size=(256, 256), fit="cover")
    assert images.decode(strip, size=(256, 256)).shape == (256, 256, 1)


@pytest.mark.parametrize("array", [COLOUR, GREY, GREY[..., None]], ids=["colour", "grey", "grey with axis"])
def test_arrays(array):
  expected = array if array.ndim == 3 else array[..., None]
  np.testing.assert_array_equal(images.decode(array), expected)
  np.testing.assert_array_equal(images.decode(array, 3), np.broadcast_to(expected, (HEIGHT, WIDTH, 3)))


def test_paths(tmp_path):
  path = tmp_path / "a.png"
  path.write_bytes(encoded(COLOUR))
  np.testing.assert_array_equal(images.decode(path), COLOUR)
  np.testing.assert_array_equal(images.decode(str(path)), COLOUR)


def one_line(error) -> str:
  message = str(error.value)
  assert message
  assert len(message.splitlines()) == 1
  return message


def broken_png():
  """The checksum of a chunk does not fit, which Pillow calls a SyntaxError."""
  whole = encoded(np.zeros((64, 64, 3), np.uint8) + np.arange(64, dtype=np.uint8)[:, None])
  at = whole.index(b"IDAT")
  return whole[:at] + b"\xf5\xc15\x8c" + whole[at + 4 :]


@pytest.mark.parametrize(
  "data",
  [
    b"",
    b"no image at all",
    encoded(COLOUR)[:60],
    encoded(COLOUR, "jpeg")[:300],
    broken_png(),
    b"P6\n7 2\x8c\n255\n" + b"0" * 105,
    b"BM" + encoded(COLOUR, "bmp")[2:18] + b"\xff\xff\x0f\x00\xff\xff\x0f\x00" + encoded(COLOUR, "bmp")[26:],
  ],
  ids=["empty", "text", "short png", "short jpeg", "broken png", "broken ppm", "huge"],
)
def test_not_an_image(data):
  with pytest.raises(UserError) as error:
    images.decode(data)
  assert f"cannot read image of {len(data)} bytes" in one_line(error)


def test_not_an_image_file(tmp_path):
  path = tmp_path / "notes.png"
  path.write_text("no image")
  for given in (path, str(path), tmp_path / "missing.png"):
    with pytest.raises(UserError) as error:
      images.decode(given)
    assert str(given) in one_line(error)


def test_find(tmp_path):
  for name in ("b/2.png", "b/1.JPG", "a.webp", "b/c/3.tiff", "notes.txt", "b/notes"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
  inside = [tmp_path / name for name in ("a.webp", "b/1.JPG", "b/2.png", "b/c/3.tiff")]
  assert images.find([str(tmp_path)]) == inside
  assert images.find([str(tmp_path / "b" / "c"), str(tmp_path / "notes.txt"), str(tmp_path / "a.webp")]) == [
    tmp_path / "b/c/3.tiff",
    tmp_path / "notes.txt",  # a file that is named is taken at its word
    tmp_path / "a.webp",
  ]
  assert images.find([]) == []


def test_find_nothing(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "empty" / "notes.txt").touch()
  for given, words in ((tmp_path / "empty", "no images in folder"), (tmp_path / "missing", "no such")):
    with pytest.raises(UserError, match=words) as error:
      images.find([str(given)])
    assert str(given) in one_line(error)
