"""Layers, activations, losses and initialisers against torch, one function for each golden file.

Each takes a case as `seeded.load` reads it and returns {key of "out": (ours, theirs, tolerance)}, in torch's layout.
The tolerance is on the largest difference, relative to theirs of largest magnitude.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from flaxonomy.models import layers, norm, pooling, resize
from flaxonomy.models.activations import ACTIVATIONS
from flaxonomy.models.initializers import INITIALIZERS
from flaxonomy.train import losses

SINGLE = 1e-5  # of a single layer in float32


def pairs(ours, case, tolerance=SINGLE):
  """{key: (ours, theirs, tolerance)} for the keys of `ours`."""
  return {key: (np.asarray(y), case["out"][key], tolerance) for key, y in ours.items()}


def channels_first(images):
  """{key: [B, H, W, C]} as [B, C, H, W]."""
  return {key: np.asarray(y).transpose(0, 3, 1, 2) for key, y in images.items()}


def check_layers(case):
  """Convolutions, poolings, resizing, normalisation."""
  x = jnp.asarray(case["in"]["x"].transpose(0, 2, 3, 1))
  images = _convolutions(case, x) | _poolings(x) | _resized(x)
  normal, rest = _normalised(case, x)
  rest |= {f"bilinear_kernel_{n}": resize.bilinear_kernel(n, c).transpose(3, 2, 0, 1) for n, c in ((4, 2), (16, 1))}
  return pairs(channels_first(images | normal), case) | pairs(rest, case)


def _convolutions(case, x):
  modules = {
    "conv_s2p1": layers.Conv(8, (3, 3), strides=2, padding=1),
    "conv_dil2": layers.Conv(8, (3, 3), padding=2, dilation=2),
    "conv_group2": layers.Conv(8, (3, 3), padding=1, groups=2),
    "convT_k4s2p1": layers.ConvTranspose(5, (4, 4), strides=2, padding=1),
    "convT_k3s2p1op1": layers.ConvTranspose(5, (3, 3), strides=2, padding=1, output_padding=1),
    "convT_group": layers.ConvTranspose(6, (4, 4), strides=2, padding=1, groups=6, use_bias=False),
  }
  found = {}
  for name, module in modules.items():
    params = {"kernel": jnp.asarray(case["weights"][f"{name}.weight"].transpose(2, 3, 1, 0))}
    if module.use_bias:
      params["bias"] = jnp.asarray(case["weights"][f"{name}.bias"])
    found[name] = module.apply({"params": params}, x)
  return found


def _poolings(x):
  pooled, indices = pooling.max_pool_with_indices(x, 2)
  found = {
    "maxpool_k2s2_ceil1": pooling.max_pool(x, 2, ceil_mode=True),
    "maxpool_k3s1p1": pooling.max_pool(x, 3, 1, padding=1),
    "pool_idx": indices,
    "unpool": pooling.max_unpool(pooled, indices, x.shape[1:3]),
  }
  for flag in (False, True):
    found[f"maxpool_k3s2_ceil{flag:d}"] = pooling.max_pool(x, 3, 2, ceil_mode=flag)
    found[f"maxpool_k3s2p1_ceil{flag:d}"] = pooling.max_pool(x, 3, 2, padding=1, ceil_mode=flag)
    found[f"avgpool_k3s1p1_incl{flag:d}"] = pooling.avg_pool(x, 3, 1, padding=1, include_padding=flag)
  for size in ((1, 1), (6, 6), (7, 7), (20, 9)):
    found[f"adaptive_avg_{size[0]}x{size[1]}"] = pooling.adaptive_avg_pool(x, size)
  return found


def _resized(x):
  return {
    "bilinear_23x17_ac0": resize.bilinear(x, (23, 17)),
    "bilinear_23x17_ac1": resize.bilinear(x, (23, 17), align_corners=True),
    "bilinear_down_5x6": resize.bilinear(x, (5, 6)),
    "bilinear_down_aa": resize.bilinear(x, (5, 6), antialias=True),
    "nearest_23x17": resize.nearest(x, (23, 17)),
  }


def _normalised(case, x):
  """(images, the rest): batch norm's first step from the stored statistics, then with what it leaves; the others."""
  w = {key: jnp.asarray(value) for key, value in case["weights"].items()}
  batch_norm = norm.BatchNorm()
  params = {"scale": w["bn.weight"], "bias": w["bn.bias"]}
  stats = {"mean": w["bn.running_mean"], "var": w["bn.running_var"]}
  train, new = batch_norm.apply({"params": params, "batch_stats": stats}, x, train=True, mutable=["batch_stats"])
  layer_norm = nn.LayerNorm(epsilon=1e-5)  # over the width, the last axis of torch's layout
  rows = layer_norm.apply({"params": {"scale": w["ln.weight"], "bias": w["ln.bias"]}}, x.transpose(0, 3, 1, 2))
  images = {
    "bn_train": train,
    "bn_eval": batch_norm.apply({"params": params} | new, x, train=False),
    "lrn_n5_a1e-4_b.75_k2": norm.local_response_norm(10 * x, 5, 1e-4, 0.75, 2.0),
    "lrn_big_alpha": norm.local_response_norm(x, 5, 1.0, 0.75, 1.0),
    "l2norm_c20": norm.l2_normalise(x, jnp.full(x.shape[-1], 20.0)),
  }
  return images, {"bn_rm": new["batch_stats"]["mean"], "bn_rv": new["batch_stats"]["var"], "ln": rows}


NAMED = {"leaky_relu_01": "leaky_relu", "leaky_relu_2": "leaky_relu_0.2"}
CURVES = ("sigmoid", "tanh", "relu", "leaky_relu_01", "leaky_relu_2", "elu", "selu", "gelu", "gelu_tanh", "silu",
          "softplus")  # fmt: skip
INITS = {"std1": 1.0, "std.01": 0.01, "xavier": 100**-0.5, "he": (2 / 100) ** 0.5}


def check_activations(case):
  """Curves and their derivatives, and the table of vanishing gradients: 20 layers of 100 units."""
  x, found = jnp.asarray(case["in"]["x"]), {}
  for name in CURVES:
    function = ACTIVATIONS[NAMED.get(name, name)]
    found |= {name: function(x), f"d_{name}": jax.vmap(jax.grad(function))(x)}
  found = pairs(found, case)
  for name in ("relu", "tanh", "sigmoid"):
    table = _vanishing(ACTIVATIONS[name])
    for init, scale in INITS.items():
      deviations, norms = table(jnp.asarray(case["in"]["mlp_W"] * np.float32(scale)), jnp.asarray(case["in"]["mlp_x"]))
      chaos = (name, init) == ("tanh", "std1")
      for kind, ours in (("actstd", deviations), ("gradnorm", norms)):
        key = f"vanish/{name}_{init}_{kind}"
        found[key] = _ratios(ours, case["out"][key], chaos)
  return found


def _vanishing(function):
  """A jitted function: weights [20, 100, 100], x [64, 100] -> each layer's deviation and norm of gradient, [20] each.

  The loss is the mean square of the last layer's activations; gradients are with respect to the scaled weights.
  """

  @jax.jit
  def table(weights, x):
    def forward(weights):
      activations = [x]
      for w in weights:
        activations.append(function(activations[-1] @ w))
      return jnp.square(activations[-1]).mean(), jnp.stack(activations[1:])

    grads, activations = jax.grad(forward, has_aux=True)(weights)
    largest = jnp.abs(activations).max((1, 2), keepdims=True)  # their squares would underflow
    deviations = largest[:, 0, 0] * (activations / largest).std((1, 2), ddof=1)
    return deviations, jnp.sqrt(jnp.square(grads).sum((1, 2)))

  return table


def _ratios(ours, theirs, chaos):
  """Every row relative to itself: ratios to be 1. Two zeros or overflows are equal; where squares underflow, below
  1e-16, all is zero.

  tanh with deviation 1 is chaotic: gradients grow 6 million times on their way down, rounding errors grow alike. There
  the logarithms are compared, to a factor of ten at the bottom of 20 layers.
  """
  ours, theirs = (np.asarray(values, np.float64) for values in (ours, theirs))
  if chaos:
    return np.log10(ours), np.log10(theirs), 0.2
  low = 1e-16 if theirs.min() == 0 else 0.0
  ours, theirs = np.maximum(ours, low), np.maximum(theirs, low)
  same = ours == theirs
  ratio = np.where(same, 1.0, np.where(same, 1.0, ours) / np.where(same, 1.0, theirs))
  return ratio, np.ones_like(ratio), 1e-4


def check_losses(case):
  """Reduced as torch does by default, but for smooth L1 of beta 1 / 9, which is summed."""
  x = {key: jnp.asarray(value) for key, value in case["in"].items()}
  logits, labels, a, b, probs, y = (x[key] for key in ("logits", "target", "a", "b", "prob", "y"))

  def mean(labels, **options):
    values, weights = losses.label_cross_entropy(logits, labels, **options)
    return values.sum() / weights.sum()

  log_probs = jax.nn.log_softmax(logits)
  found = {
    "ce": losses.cross_entropy(logits, jax.nn.one_hot(labels, 5)).mean(),
    "ce_ls": mean(labels, smoothing=0.1),
    "ce_weighted": mean(labels, class_weights=jnp.arange(1.0, 6.0)),
    "ce_ignore": mean(x["target_ignore"], ignore=-100),
    "nll": losses.nll(log_probs, labels).mean(),
    "bce": losses.binary_cross_entropy(probs, y).mean(),
    "bce_edge": losses.binary_cross_entropy(jnp.zeros(1), jnp.ones(1)).mean(),
    "bce_logits": losses.binary_cross_entropy_with_logits(logits[:, 0], y).mean(),
    "mse": losses.squared_error(a, b).mean(),
    "l1": losses.absolute_error(a, b).mean(),
    "huber": losses.huber(a, b).mean(),
    "sl1": losses.smooth_l1(a, b).mean(),
    "sl1_b19": losses.smooth_l1(a, b, beta=1 / 9).sum(),
    "kl": losses.kl(log_probs, jnp.full(logits.shape, 1 / 5)).mean(),
  }
  return pairs(found, case)


SHAPES = {"400x300": (300, 400), "64x32x3x3": (3, 3, 32, 64)}  # torch's and ours


def check_inits(case):
  """[deviation, largest magnitude, mean] of two kernels, which are random: each in units of the deviation.

  20,000 numbers know their deviation to .5 %. The largest of a uniform draw is its limit, of a normal one 4 to 5
  deviations; cut at 2, it would be 2.3.
  """
  found = {}
  for key, theirs in case["out"].items():
    name, shape = key.split("/")
    init = INITIALIZERS[{"torch_default_linear": "torch_default"}.get(name, name)]
    kernel = np.asarray(init(jax.random.PRNGKey(0), SHAPES[shape], jnp.float32))
    ours = np.array([kernel.std(), np.abs(kernel).max(), kernel.mean()])
    scale = np.array([0.02, 0.02 if theirs[1] < 2 * theirs[0] else 1.0, 0.04])  # allowed
    found[key] = ours / theirs[0] / scale, theirs / theirs[0] / scale, 1.0 / np.abs(theirs / theirs[0] / scale).max()
  return found


CHECKS = {"layers": check_layers, "activations": check_activations, "losses": check_losses, "inits": check_inits}
