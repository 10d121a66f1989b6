"""Layers that more than one paper uses: convolution and transposed convolution.

`Conv` and `ConvTranspose` name and shape their parameters as Flax's do. All paddings are integers on both sides.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from flaxonomy.errors import UserError

Pair = tuple[int, int]


def conv(
  x: jax.Array,
  w: jax.Array,
  strides: Pair = (1, 1),
  padding: tuple[Pair, Pair] = ((0, 0), (0, 0)),
  dilation: Pair = (1, 1),
  groups: int = 1,
) -> jax.Array:
  """2-D convolution with explicit padding, fast on CPUs too, gradients and loops included.

  XLA's CPU backend runs a convolution as a matrix product only in one layout and without dilation of its input; it
  brings the gradients of a convolution to that form in a program's entry computation, but inside a loop they fall to a
  code path 30 times slower (jax-ml/jax#12868). So on CPUs both gradients are written in that form here, and groups are
  convolutions side by side (4 to 40 times faster). Elsewhere this is `lax.conv_general_dilated`.

  Args:
    x: [B, H, W, I].
    w: [kh, kw, I / groups, O].
    strides: of the window.
    padding: ((top, bottom), (left, right)), zeros.
    dilation: distance between neighbouring taps of the kernel.
    groups: the first I / groups channels make the first O / groups, and so on.

  Returns:
    [B, (H + top + bottom - dilation (kh - 1) - 1) // stride + 1, ..., O]
  """

  def side_by_side(x, w):
    parts = zip(jnp.split(x, groups, 3), jnp.split(w, groups, 3))
    return jnp.concatenate([_conv_cpu(x, w, strides, padding, dilation) for x, w in parts], 3)

  return lax.platform_dependent(
    x, w, cpu=side_by_side, default=lambda x, w: _plain(x, w, strides, padding, dilation, groups)
  )


def _plain(x, w, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups=1):
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(
    x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=layout, feature_group_count=groups
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv_cpu(x, w, strides, padding, dilation):
  return _packed(x, w, strides, padding, dilation)


def _conv_cpu_fwd(x, w, strides, padding, dilation):
  return _packed(x, w, strides, padding, dilation), (x, w)


def _conv_cpu_bwd(strides, padding, dilation, saved, g):
  x, w = saved
  spans = [(k - 1) * d for k, d in zip(w.shape, dilation)]  # from the first tap to the last
  # Rows and columns of the padded input that the last windows do not reach.
  rest = [
    n + sum(p) - ((m - 1) * s + span + 1)
    for n, p, m, s, span in zip(x.shape[1:3], padding, g.shape[1:3], strides, spans)
  ]
  back = tuple((span - lo, span - hi + r) for span, (lo, hi), r in zip(spans, padding, rest))
  size = x.shape[1:3]
  if w.shape[:2] == strides == (1, 1) and padding == ((0, 0), (0, 0)):
    dx = (g.reshape(-1, g.shape[3]) @ w[0, 0].T).reshape(x.shape)
  elif size[0] * size[1] <= SMALL and max(spans) > 0:
    dx = _few(_pad(g, back, strides), w, size, spans, dilation)
  else:
    spread = g
    if strides != (1, 1) or min(min(back)) < 0:  # zeros between the rows; a padding above k - 1 becomes a crop
      spread, back = _pad(g, back, strides), ((0, 0), (0, 0))
    turned = lax.optimization_barrier(w[::-1, ::-1]).swapaxes(2, 3)  # in one go XLA does it four times slower
    dx = _packed(spread, turned, (1, 1), back, dilation)
  around = tuple((lo, hi - r) for (lo, hi), r in zip(padding, rest))
  return dx, _weight_gradient(x, g, w.shape[:2], strides, around, dilation)


_conv_cpu.defvjp(_conv_cpu_fwd, _conv_cpu_bwd)

SMALL = 16  # pixels of an output that is computed as one matrix product
ROWS = 1024  # windows that are laid out at once: see below


def _few(g, w, size, spans, dilation):
  """The gradient for x [B, *size, I] from the padded, spread g [B, H, W, O]: tap by tap, the kernel as it lies."""
  (h, v), dx = size, 0
  for y, z in itertools.product(*map(range, w.shape[:2])):
    top, left = spans[0] - y * dilation[0], spans[1] - z * dilation[1]
    dx += lax.dot_general(g[:, top : top + h, left : left + v], w[y, z], (((3,), (1,)), ((), ())))
  return dx


def _weight_gradient(x, g, kernel, strides, padding, dilation):
  """Gradient of the kernel: the sum over pixels of window times g, as matrix products of about a thousand pixels each.

  As a convolution with g for a kernel, which is how XLA writes it, it is two to eight times slower. Products of fewer
  than 512 pixels are slow too, and so are those whose windows do not stay in the cache.

  Args:
    x: [B, H, W, I].
    g: [B, h, w, O].
    kernel: (kh, kw).
    strides: of the convolution, as are
    padding: such that the last windows end with the padded input, and
    dilation: likewise.

  Returns:
    [kh, kw, I, O]
  """
  (b, h, v, o), c = g.shape, x.shape[3]
  images = _divisor(b, ROWS // (h * v))
  lines = h if h * v <= ROWS else _divisor(h, ROWS // v)
  blocks = h // lines
  if blocks > 1:
    x, padding = _pad(x, padding), ((0, 0), (0, 0))
  x = x.reshape(b // images, images, *x.shape[1:])
  g = g.reshape(b // images * blocks, images * lines * v, o)
  taps = kernel[0] * kernel[1]
  wide = o < taps * c and b * h * v >= 256  # of fewer pixels, turning the result costs more than it saves

  def part(i):
    near = x[i // blocks]
    if blocks > 1:
      high = (lines - 1) * strides[0] + 1 + (kernel[0] - 1) * dilation[0]
      near = lax.dynamic_slice_in_dim(near, i % blocks * lines * strides[0], high, 1)
    windows = _windows(_pad(near, padding), (lines, v), kernel, strides, dilation)
    # The wider factor last: twice as fast where the other is narrow.
    return lax.dot_general(*((g[i], windows) if wide else (windows, g[i])), (((0,), (0,)), ((), ())))

  count = g.shape[0]
  start = jnp.zeros((o, taps * c) if wide else (taps * c, o), g.dtype)
  dw = part(0) if count == 1 else lax.fori_loop(0, count, lambda i, total: total + part(i), start)
  if wide:
    dw = lax.optimization_barrier(dw).T  # XLA would make it a product of factors in the other order
  return dw.reshape(*kernel, c, o)


def _windows(x, size, kernel, strides, dilation):
  """What each of [B, h, w] outputs sees of x [B, H, W, I], padded: [B h w, kh kw I]."""
  spans = [(n - 1) * s + 1 for n, s in zip(size, strides)]  # from one tap's first pixel to its last
  corners = [(y * dilation[0], z * dilation[1]) for y in range(kernel[0]) for z in range(kernel[1])]
  taps = [x[:, y : y + spans[0] : strides[0], z : z + spans[1] : strides[1]] for y, z in corners]
  return jnp.concatenate(taps, 3).reshape(x.shape[0] * size[0] * size[1], -1)


def _divisor(n, most):
  """The largest divisor of n that is no larger than `most`; 1 if that is below 1."""
  return next((size for size in range(min(n, most), 0, -1) if n % size == 0), 1)


def _packed(x, w, strides, padding, dilation):
  """The convolution; for small images as one matrix product, and where channels are few, two output columns at a time.

  XLA's CPU backend computes an image smaller than the kernel up to a hundred times slower than a larger one.

  Neighbouring pixels are read as one of twice the channels (a free reshape) against a kernel that holds both shifted
  copies of w: a third more multiplications for a 3 x 3 kernel, in a matrix product twice as wide.
  """
  (top, bottom), (left, right) = padding
  (_, h, v, c), (kh, kw, _, o) = x.shape, w.shape
  ho, vo = (
    (n + sum(p) - (k - 1) * d - 1) // s + 1 for n, p, k, d, s in zip((h, v), padding, (kh, kw), dilation, strides)
  )
  if min(ho, vo) < 1:
    raise UserError(f"{h} x {v} pixels are too few for a {kh} x {kw} kernel: the images are too small for this model")
  if ho * vo <= SMALL and kh * kw > 1:
    x = _windows(_pad(x, padding), (ho, vo), (kh, kw), strides, dilation)
    return (x @ w.reshape(-1, o)).reshape(-1, ho, vo, o)
  if (strides, dilation) != ((1, 1), (1, 1)) or kw == 1 or max(c, o) > 16 or vo % 2:
    return _plain(x, w, strides, padding, dilation)
  pairs = kw // 2 + 1  # kernel width in pairs of pixels
  width = vo + 2 * (pairs - 1)
  x = _pad(x, ((top, bottom), (left, width - v - left)))
  x = x.reshape(x.shape[0], h + top + bottom, width // 2, 2 * c)
  shifted = [jnp.pad(w, ((0, 0), (j, 2 * pairs - kw - j), (0, 0), (0, 0))) for j in (0, 1)]
  w = jnp.stack(shifted, 3).reshape(kh, pairs, 2 * c, 2 * o)
  return _plain(x, w).reshape(x.shape[0], ho, vo, o)


def _pad(x, padding, strides=(1, 1)):
  """Zeros around the two middle axes (a crop where negative), and strides - 1 of them between neighbours."""
  around = [(lo, hi, s - 1) for (lo, hi), s in zip(padding, strides)]
  return lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *around, (0, 0, 0)])


class Conv(nn.Module):
  """2-D convolution (cross-correlation) with explicit padding.

  Attributes:
    features: output channels.
    kernel_size: (height, width).
    strides: step of the window in both directions.
    padding: zeros on all four sides, or (above and below, left and right).
    dilation: distance between neighbouring taps of the kernel.
    groups: number of groups into which input and output channels are cut; each sees its own alone.
    use_bias: adds a bias for each channel.
    kernel_init, bias_init: initialisers; kernel [kh, kw, I / groups, O].
    dtype: compute type; parameters are float32.
  """

  features: int
  kernel_size: Pair
  strides: int = 1
  padding: int | Pair = 0
  dilation: int = 1
  groups: int = 1
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x) -> jax.Array:
    """Args: x: [B, H, W, I]. Returns: [B, (H + 2 padding - dilation (kh - 1) - 1) // strides + 1, ..., O]."""
    _check_groups(self.groups, x.shape[-1], self.features)
    shape = (*self.kernel_size, x.shape[-1] // self.groups, self.features)
    w = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
    high, wide = (self.padding, self.padding) if isinstance(self.padding, int) else self.padding
    strides, dilation = (self.strides, self.strides), (self.dilation, self.dilation)
    x = conv(x.astype(self.dtype), w, strides, ((high, high), (wide, wide)), dilation, self.groups)
    if self.use_bias:
      x = x + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)[None, None, None]
    return x


def _check_groups(groups, inputs, features):
  if groups < 1 or inputs % groups or features % groups:
    raise UserError(f"groups={groups} must divide the {inputs} input channels and the {features} features")


class ConvTranspose(nn.Module):
  """2-D transposed convolution, the gradient of `Conv` with respect to its input, as torch's ConvTranspose2d.

  Computed without dilating the input: each of the strides x strides phases of the output is a plain convolution
  with every strides-th tap of the kernel; all phases are one convolution whose channels are then laid out in space.

  Attributes:
    features: output channels.
    kernel_size: (height, width).
    strides: factor by which the image grows.
    padding: pixels cut from all four sides of the full output.
    output_padding: rows and columns added again at the bottom and right, less than strides: of the sizes that `Conv`
      would make into x's, the smallest and so many more.
    groups: number of groups into which input and output channels are cut; each sees its own alone.
    use_bias, kernel_init, bias_init, dtype: as in `Conv`; kernel [kh, kw, O / groups, I], as Flax's with
      transpose_kernel.
  """

  features: int
  kernel_size: Pair
  strides: int = 1
  padding: int = 0
  output_padding: int = 0
  groups: int = 1
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x) -> jax.Array:
    """Args: x: [B, H, W, I]. Returns: [B, (H - 1) strides - 2 padding + kh + output_padding, ..., O]."""
    _check_groups(self.groups, x.shape[-1], self.features)
    shape = (*self.kernel_size, self.features // self.groups, x.shape[-1])
    w = self.param("kernel", self.kernel_init, shape, jnp.float32).astype(self.dtype)
    x = conv_transpose(x.astype(self.dtype), w, self.strides, self.padding, self.output_padding, self.groups)
    if self.use_bias:
      x = x + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)[None, None, None]
    return x


def conv_transpose(
  x: jax.Array, w: jax.Array, strides: int, padding: int, output_padding: int = 0, groups: int = 1
) -> jax.Array:
  """Transposed convolution of x [B, H, W, I] with w [kh, kw, O / groups, I]; see `ConvTranspose`."""
  (b, h, v, i), (kh, kw, o, _), s, n = x.shape, w.shape, strides, groups
  th, tw = -(-kh // s), -(-kw // s)  # taps of a phase
  w = jnp.pad(w, ((0, th * s - kh), (0, tw * s - kw), (0, 0), (0, 0)))
  w = w.reshape(th, s, tw, s, o, n, i // n)[::-1, :, ::-1]  # y[s a + r] = sum_t x[a - t] w[s t + r]
  w = w.transpose(0, 2, 6, 5, 1, 3, 4).reshape(th, tw, i // n, n * s * s * o)
  y = conv(x, w, (1, 1), ((th - 1, th - 1), (tw - 1, tw - 1)), groups=n)
  y = y.reshape(b, h + th - 1, v + tw - 1, n, s, s, o).transpose(0, 1, 4, 2, 5, 3, 6)
  y = y.reshape(b, (h + th - 1) * s, (v + tw - 1) * s, n * o)
  ends = [(m - 1) * s + k - padding + output_padding - full for m, k, full in zip((h, v), (kh, kw), y.shape[1:3])]
  return _pad(y, tuple((-padding, end) for end in ends))
