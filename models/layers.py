"""Layers that more than one paper uses: convolution, transposed convolution, pooling.

`Conv` and `ConvTranspose` name and shape their parameters as Flax's do. All paddings are integers on both sides.
"""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

Pair = tuple[int, int]


def conv(
  x: jax.Array, w: jax.Array, strides: Pair = (1, 1), padding: tuple[Pair, Pair] = ((0, 0), (0, 0))
) -> jax.Array:
  """2-D convolution with explicit padding, fast on CPUs too, gradients and loops included.

  XLA's CPU backend runs a convolution as a matrix product only in one layout and without dilation; it brings the
  gradients of a convolution to that form in a program's entry computation, but inside a loop they fall to a code path
  30 times slower (jax-ml/jax#12868). So on CPUs both gradients are written in that form here. Elsewhere this is
  `lax.conv_general_dilated`.

  Args:
    x: [B, H, W, I].
    w: [kh, kw, I, O].
    strides: of the window.
    padding: ((top, bottom), (left, right)), zeros.

  Returns:
    [B, (H + top + bottom - kh) // stride + 1, ..., O]
  """
  return lax.platform_dependent(
    x, w, cpu=lambda x, w: _conv_cpu(x, w, strides, padding), default=lambda x, w: _plain(x, w, strides, padding)
  )


def _plain(x, w, strides=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1)):
  layout = ("NHWC", "HWIO", "NHWC")
  return lax.conv_general_dilated(x, w, strides, padding, rhs_dilation=dilation, dimension_numbers=layout)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_cpu(x, w, strides, padding):
  return _packed(x, w, strides, padding)


def _conv_cpu_fwd(x, w, strides, padding):
  return _packed(x, w, strides, padding), (x, w)


def _conv_cpu_bwd(strides, padding, saved, g):
  x, w = saved
  kernel = w.shape[:2]
  # Rows and columns of the padded input that the last windows do not reach.
  rest = [n + sum(p) - ((m - 1) * s + k) for n, p, m, s, k in zip(x.shape[1:3], padding, g.shape[1:3], strides, kernel)]
  back = tuple((k - 1 - lo, k - 1 - hi + r) for k, (lo, hi), r in zip(kernel, padding, rest))
  spread = g
  if strides != (1, 1) or min(min(back)) < 0:  # zeros between the rows; a padding above k - 1 becomes a crop
    spread, back = _pad(g, back, strides), ((0, 0), (0, 0))
  dx = _packed(spread, w[::-1, ::-1].swapaxes(2, 3), (1, 1), back)
  # Channels play the batch, the batch plays the channels, g is the kernel. x is padded beforehand: with padding of its
  # own this convolution falls to the slow path too.
  x = _pad(x, tuple((lo, hi - r) for (lo, hi), r in zip(padding, rest)))
  dw = _plain(x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), dilation=strides).transpose(1, 2, 0, 3)
  return dx, dw


_conv_cpu.defvjp(_conv_cpu_fwd, _conv_cpu_bwd)


def _packed(x, w, strides, padding):
  """The convolution; where channels are few, two output columns at a time.

  Neighbouring pixels are read as one of twice the channels (a free reshape) against a kernel that holds both shifted
  copies of w: a third more multiplications for a 3 x 3 kernel, in a matrix product twice as wide.
  """
  (top, bottom), (left, right) = padding
  (_, h, v, c), (kh, kw, _, o) = x.shape, w.shape
  ho, vo = h + top + bottom - kh + 1, v + left + right - kw + 1
  if strides != (1, 1) or kw == 1 or max(c, o) > 16 or vo % 2:
    return _plain(x, w, strides, padding)
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
    padding: zeros on all four sides.
    use_bias: adds a bias for each channel.
    kernel_init, bias_init: initialisers; kernel [kh, kw, I, O].
    dtype: compute type; parameters are float32.
  """

  features: int
  kernel_size: tuple[int, int]
  strides: int = 1
  padding: int = 0
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x) -> jax.Array:
    """Args: x: [B, H, W, I]. Returns: [B, (H + 2 padding - kh) // strides + 1, ..., O]."""
    w = self.param("kernel", self.kernel_init, (*self.kernel_size, x.shape[-1], self.features), jnp.float32)
    pad = (self.padding, self.padding)
    x = conv(x.astype(self.dtype), w.astype(self.dtype), (self.strides, self.strides), (pad, pad))
    if self.use_bias:
      x = x + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)[None, None, None]
    return x


class ConvTranspose(nn.Module):
  """2-D transposed convolution, the gradient of `Conv` with respect to its input, as torch's ConvTranspose2d.

  Computed without dilating the input: each of the strides x strides phases of the output is a plain convolution
  with every strides-th tap of the kernel; all phases are one convolution whose channels are then laid out in space.

  Attributes:
    features: output channels.
    kernel_size: (height, width).
    strides: factor by which the image grows.
    padding: pixels cut from all four sides of the full output.
    use_bias, kernel_init, bias_init, dtype: as in `Conv`; kernel [kh, kw, O, I], as Flax's with transpose_kernel.
  """

  features: int
  kernel_size: tuple[int, int]
  strides: int = 1
  padding: int = 0
  use_bias: bool = True
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x) -> jax.Array:
    """Args: x: [B, H, W, I]. Returns: [B, (H - 1) strides - 2 padding + kh, ..., O]."""
    w = self.param("kernel", self.kernel_init, (*self.kernel_size, self.features, x.shape[-1]), jnp.float32)
    x = conv_transpose(x.astype(self.dtype), w.astype(self.dtype), self.strides, self.padding)
    if self.use_bias:
      x = x + self.param("bias", self.bias_init, (self.features,), jnp.float32).astype(self.dtype)[None, None, None]
    return x


def conv_transpose(x: jax.Array, w: jax.Array, strides: int, padding: int) -> jax.Array:
  """Transposed convolution of x [B, H, W, I] with w [kh, kw, O, I]; see `ConvTranspose`."""
  (b, h, v, i), (kh, kw, o, _), s = x.shape, w.shape, strides
  th, tw = -(-kh // s), -(-kw // s)  # taps of a phase
  w = jnp.pad(w, ((0, th * s - kh), (0, tw * s - kw), (0, 0), (0, 0)))
  w = w.reshape(th, s, tw, s, o, i)[::-1, :, ::-1]  # y[s a + r] = sum_t x[a - t] w[s t + r]
  w = w.transpose(0, 2, 5, 1, 3, 4).reshape(th, tw, i, s * s * o)
  y = conv(x, w, (1, 1), ((th - 1, th - 1), (tw - 1, tw - 1)))
  y = y.reshape(b, h + th - 1, v + tw - 1, s, s, o).transpose(0, 1, 3, 2, 4, 5)
  y = y.reshape(b, (h + th - 1) * s, (v + tw - 1) * s, o)
  return y[:, padding : (h - 1) * s + kh - padding, padding : (v - 1) * s + kw - padding]


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def max_pool(x: jax.Array, window: int) -> jax.Array:
  """Largest value of each window x window block, stride as the window; a remainder at the right or bottom is dropped.

  Without `reduce_window`, whose gradient takes up to half of a small net's step on CPUs. Of equal values the first in
  row order takes the gradient, as in torch.

  Args:
    x: [B, H, W, C].
    window: side of a block.

  Returns:
    [B, H // window, W // window, C]
  """
  return functools.reduce(jnp.maximum, _taps(x, window))


def _taps(x, window):
  """The window^2 images that hold the first, second, ... pixel of every block."""
  h, w = (n // window * window for n in x.shape[1:3])
  return [x[:, i:h:window, j:w:window] for i in range(window) for j in range(window)]


def _max_pool_fwd(x, window):
  y = max_pool(x, window)
  return y, (x, y)


def _max_pool_bwd(window, saved, g):
  x, y = saved
  (b, h, w, c), (_, rows, columns, _) = x.shape, y.shape
  taken, grads = jnp.zeros(y.shape, bool), []
  for tap in _taps(x, window):
    first = (tap == y) & ~taken
    grads.append(jnp.where(first, g, 0))
    taken |= first
  dx = jnp.stack([jnp.stack(grads[i * window :][:window], 3) for i in range(window)], 2)  # [B, h, window, w, window, C]
  dx = dx.reshape(b, rows * window, columns * window, c)
  return (_pad(dx, ((0, h - rows * window), (0, w - columns * window))),)


max_pool.defvjp(_max_pool_fwd, _max_pool_bwd)
