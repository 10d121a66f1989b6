"""Pictures of what every course begins with; none needs data. Each comes from a function that gives its numbers.

activations         curves and derivatives; how gradients vanish and explode with depth
vanishing_gradient  the latter alone
initialisers        histograms of the activations by layer; Saito 2016, section 6.2
valley              optimizers in x^2 / 20 + y^2; Saito 2016, section 6.1.3
receptive_field     small convolutions in place of a large one; Simonyan and Zisserman 2014, section 2.3
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from flaxonomy.configs.base import Optim
from flaxonomy.errors import unknown
from flaxonomy.models import layers
from flaxonomy.models.activations import ACTIVATIONS
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.train import figures, optim

CURVES = ("sigmoid", "tanh", "relu", "leaky_relu", "elu")
SATURATING = ("sigmoid", "tanh", "relu")
DEPTHS = (20, 50)
UNITS = 100  # of every layer


def picture(name: str):
  """The function of a picture: () -> {file name: figure}.

  Raises:
    UserError: there is no such picture.
  """
  if name not in PICTURES:
    raise unknown("picture", name, PICTURES, "(config field 'study.picture')")
  return PICTURES[name]


def curves(name: str, x) -> tuple[np.ndarray, np.ndarray]:
  """An activation at the points x [N], and its derivative there."""
  f = ACTIVATIONS[name]
  return np.asarray(f(x)), np.asarray(jax.vmap(jax.grad(f))(x))


def weights(init: str, depth: int, seed: int = 0) -> jax.Array:
  """Kernels [depth, UNITS, UNITS] of a perceptron, drawn by an initialiser."""
  keys = jax.random.split(jax.random.PRNGKey(seed), depth)
  return jax.vmap(lambda key: INITIALIZERS[init](key, (UNITS, UNITS), jnp.float32))(keys)


def inputs(count: int, seed: int = 1) -> jax.Array:
  """Standard normal inputs [count, UNITS]."""
  return jax.random.normal(jax.random.PRNGKey(seed), (count, UNITS))


@functools.partial(jax.jit, static_argnames="activation")
def layer_outputs(kernels: jax.Array, x: jax.Array, activation: str) -> jax.Array:
  """Activations of every layer of a perceptron without biases: kernels [L, N, N], x [B, N] to [L, B, N]."""

  def layer(x, kernel):
    x = ACTIVATIONS[activation](x @ kernel)
    return x, x

  return jax.lax.scan(layer, x, kernels)[1]


@functools.partial(jax.jit, static_argnames="activation")
def gradient_norms(kernels: jax.Array, x: jax.Array, activation: str) -> jax.Array:
  """Norm [L] of each layer's gradient, for the loss mean(output^2); in float32, where it can underflow and overflow.

  Args:
    kernels: [L, N, N].
    x: [B, N].
    activation: name.
  """
  loss, grads = jax.value_and_grad(lambda k: (layer_outputs(k, x, activation)[-1] ** 2).mean())(kernels)
  # A rectifier passes no gradient where its input is NaN: behind a loss that has overflowed there would be zeros.
  return jnp.where(jnp.isfinite(loss), jnp.sqrt((grads**2).sum((1, 2))), jnp.inf)


VALLEY_START, VALLEY_STEPS = (-7.0, 2.0), 30
VALLEY = {  # rates of Saito's program for sgd, momentum, adagrad and adam; the others have none there
  "sgd": Optim("sgd", lr=0.95),
  "momentum": Optim("momentum", lr=0.1),
  "adagrad": Optim("adagrad", lr=1.5),
  "adadelta": Optim("adadelta", lr=1.0, eps=1e-2),  # the paper's 1e-6 would hardly leave the start in 30 steps
  "rmsprop": Optim("rmsprop", lr=0.3, rho=0.9),
  "adam": Optim("adam", lr=0.3),
}


def valley(x, y):
  """The long valley: x^2 / 20 + y^2."""
  return x**2 / 20 + y**2


def walk(settings: Optim, steps: int = VALLEY_STEPS) -> tuple[np.ndarray, np.ndarray]:
  """The way of an optimizer through the valley: x and y, each [steps + 1], the start included."""
  params = dict(zip("xy", map(jnp.float32, VALLEY_START)))
  tx = optim.create(settings, steps, params)

  def step(carry, at):
    params, state = carry
    grads = jax.grad(lambda p: valley(p["x"], p["y"]))(params)
    params, state, _ = tx.update(grads, state, params, at)
    return (params, state), params

  start = (params, tx.init(params))
  _, made = jax.jit(lambda start: jax.lax.scan(step, start, jnp.arange(steps)))(start)
  return tuple(np.append(params[k], made[k]) for k in "xy")


def seen(kernel_size: int, convs: int, channels: int = 16, side: int = 11, draws: int = 64) -> np.ndarray:
  """How much each input pixel moves the middle output pixel of rectified convolutions, as [side, side].

  Args:
    kernel_size: side of the kernels.
    convs: how many convolutions, each with a rectifier behind it.
    channels: of the input and of every convolution.
    side: of the image.
    draws: kernels (He et al. 2015) and images that are averaged over.

  Returns:
    Mean absolute gradient over draws and input channels.
  """

  def respond(x, kernels):
    around = (kernel_size // 2, kernel_size // 2)
    for kernel in kernels:
      x = jax.nn.relu(layers.conv(x, kernel, padding=(around, around)))
    return x[0, side // 2, side // 2].sum()

  def one(key):
    key, drawn = jax.random.split(key)
    shape = (convs, kernel_size, kernel_size, channels, channels)
    kernels = jax.random.normal(key, shape) * np.sqrt(2 / (kernel_size**2 * channels))
    image = jax.random.normal(drawn, (1, side, side, channels))
    return jnp.abs(jax.grad(respond)(image, kernels)[0]).mean(-1)

  keys = jax.random.split(jax.random.PRNGKey(0), draws)
  return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys).mean(0))(keys))


def cost(kernel_size: int, convs: int, channels: int) -> tuple[int, int]:
  """(parameters, biases included; multiply-adds for an output pixel) of convolutions on so many channels."""
  products = convs * kernel_size**2 * channels**2
  return products + convs * channels, products


def _activations():
  x = jnp.linspace(-6, 6, 241)
  drawn = {name: curves(name, x) for name in CURVES}
  panels = {
    "activation": {name: (x, value) for name, (value, _) in drawn.items()},
    "derivative": {name: (x, slope) for name, (_, slope) in drawn.items()},
  }
  return {"activations.png": figures.lines(panels, "x")} | _vanishing_gradient()


GRADIENT_INITS = ("std_1", "std_0.01", "xavier_normal", "he_normal")


def _vanishing_gradient():
  panels = {}
  for depth in DEPTHS:
    for activation in SATURATING:
      panels[f"{activation}, {depth} layers: norm of the gradient"] = {
        init: (np.arange(1, depth + 1), np.asarray(gradient_norms(weights(init, depth), inputs(64), activation)))
        for init in GRADIENT_INITS
      }
  return {"vanishing_gradient.png": figures.lines(panels, "layer; down: 0 in float32, up: overflow", list(panels))}


HISTOGRAM_INITS = (
  "std_1", "std_0.01", "xavier_uniform_fan_in", "xavier_uniform", "xavier_normal", "he_normal",
)  # fmt: skip


def _initialisers():
  spans = {"sigmoid": (0, 1), "tanh": (-1, 1), "relu": (0, 4)}
  columns, made = [f"layer {i}" for i in range(1, 6)], {}
  for activation, span in spans.items():
    rows = {init: list(layer_outputs(weights(init, 5), inputs(1000), activation)) for init in HISTOGRAM_INITS}
    heading = f"{activation}: what five layers of {UNITS} make of 1,000 standard normal inputs"
    made[f"initialisers_{activation}.png"] = figures.histograms(rows, columns, span, heading)
  return made


def _valley():
  x, y = np.linspace(-10, 10, 201), np.linspace(-5, 5, 101)
  walks = {f"{name}, lr {settings.lr:g}": walk(settings) for name, settings in VALLEY.items()}
  return {"valley.png": figures.paths(valley(x[None], y[:, None]), x, y, walks)}


def _receptive_field(channels: int = 16):
  maps = {}
  for kernel_size, convs in ((5, 1), (3, 2), (7, 1), (3, 3)):
    parameters, products = cost(kernel_size, convs, channels)
    title = f"{convs} convolution{'s' if convs > 1 else ''} of {kernel_size} x {kernel_size}, {channels} channels"
    told = f"{parameters:,} parameters\n{products:,} multiply-adds a pixel"
    maps[f"{title}\n{told}"] = seen(kernel_size, convs, channels)
  return {"receptive_field.png": figures.heat_maps(maps)}


PICTURES = {
  "activations": _activations,
  "vanishing_gradient": _vanishing_gradient,
  "initialisers": _initialisers,
  "valley": _valley,
  "receptive_field": _receptive_field,
}
