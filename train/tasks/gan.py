"""Adversarial training: two nets, two optimizers, one State.

Goodfellow et al. 2014, "Generative Adversarial Nets", algorithm 1 with the non-saturating generator loss of section 3,
in the order of pytorch/examples dcgan: the discriminator sees real and generated images in separate passes, so each
has its own batch statistics; then the generator is judged by the discriminator just updated. Its running statistics
move at all three passes. Noise is N(0, 1), as there (the DCGAN paper draws it uniformly from [-1, 1]).
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from flaxonomy.data import augment, views
from flaxonomy.errors import UserError
from flaxonomy.train import figures, optim, sharding, step, tasks
from flaxonomy.train.sharding import DATA
from flaxonomy.train.step import Serve, State, Task

POOLED = 8  # the Frechet distance is taken between images averaged down to this side


def build(config, info, devices: int) -> Task:
  """The task of making images like those of the dataset; see `tasks.build`.

  Raises:
    UserError: images that are not square powers of two or not scaled to [-1, 1], or gradient accumulation.
  """
  height, width, channels = info.image_shape
  if height != width or height < 8 or height & (height - 1):
    raise UserError(
      f"task 'gan' makes square images of 8, 16, 32, ... pixels, not {height} x {width}; set data.image_size"
    )
  if config.train.accumulate not in (None, 1):
    raise UserError("task 'gan' cannot accumulate gradients; set train.accumulate to 1")
  if set(config.data.mean) != {0.5} or set(config.data.std) != {0.5} or config.data.augment.mixup:
    raise UserError(
      "task 'gan' needs images in [-1, 1]: set data.mean and data.std to (0.5,), and data.augment.mixup to 0"
    )
  if config.data.crop_size is not None or views.count(config.data) > 1:
    raise UserError("task 'gan' takes images whole: leave data.crop_size, data.eval_crops and data.eval_scales out")
  if config.train.loss != "softmax":
    raise UserError(f"task 'gan' has its own losses; leave config field 'train.loss' ({config.train.loss!r}) out")
  model = tasks.module(config, image_size=height, channels=channels)
  tasks.require(config, hasattr(model, "generate"))
  shards = devices if config.train.zero else 1

  def variables(rng):
    return model.init(rng, jnp.zeros((1, model.nz)), train=False)

  shapes = jax.eval_shape(variables, jax.random.PRNGKey(0))["params"]
  plans = {net: sharding.plan(shapes[net], shards) for net in shapes}
  optim.require(config.optim.freeze, [path for net in shapes for path in optim.paths(shapes[net])], "optim.freeze")
  optimizers = {net: optim.create(config.optim, config.train.steps, shapes[net], shards) for net in shapes}

  def init(rng):
    made = variables(rng)
    ema = jax.tree.map(jnp.copy, made["params"]) if config.train.ema_decay is not None else None
    opt_state = {net: optimizers[net].init(made["params"][net]) for net in optimizers}
    collections = {"batch_stats": made["batch_stats"]}
    return State(jnp.zeros([], jnp.int32), rng, made["params"], collections, opt_state, ema)

  change = augment.build(config.data, DATA)

  def train_step(state, batch):
    rng = jax.random.fold_in(state.rng, state.step)
    real = change(rng, batch)["image"]
    rng = jax.random.fold_in(rng, lax.axis_index(DATA))
    z = jax.random.normal(rng, (len(real), model.nz))
    params = {net: plans[net].gather(state.params[net]) for net in plans}
    stats = state.collections["batch_stats"]
    new, opt_state, infos = dict(state.params), dict(state.opt_state), {}

    def update(net, grads):
      grads = jax.tree.map(lambda g: g / lax.axis_size(DATA), plans[net].sum(grads)[0])
      new[net], opt_state[net], infos[net] = optimizers[net].update(grads, opt_state[net], new[net], state.step)
      return plans[net].gather(new[net])

    fake, pull, stats = generate(model, params, stats, z)
    grads, (d_loss, d_real, d_fake, stats) = discriminator_gradient(model, params, stats, real, fake)
    params["discriminator"] = update("discriminator", grads)
    grad_fake, (g_loss, stats) = generator_gradient(model, params, stats, fake)
    update("generator", pull(grad_fake)[0])

    log = lax.pmean({"d_loss": d_loss, "g_loss": g_loss, "d_real": d_real, "d_fake": d_fake}, DATA)
    norms = {f"{net[0]}_grad_norm": info["grad_norm"] for net, info in infos.items()}
    state = state.replace(
      step=state.step + 1,
      params=new,
      collections=lax.pmean({"batch_stats": stats}, DATA),
      opt_state=opt_state,
      ema=step.average(state.ema, new, config.train.ema_decay, state.step),
    )
    return state, {"loss": log["d_loss"] + log["g_loss"]} | log | norms | {"lr": infos["generator"]["lr"]}

  def sample(variables, z):
    return {"sample": model.apply(variables, z, train=False, method="generate")}

  def predict_step(state, batch):
    """The same noise for the same index at every evaluation."""
    z = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(jax.random.PRNGKey(0), i), (model.nz,)))(batch["index"])
    made = sample(state.variables(), z)["sample"]
    judge = lambda x: model.apply(state.variables(), x, train=False, method="discriminate")
    real = augment.normalise(batch["image"], config.data.mean, config.data.std)
    return {"sample": made, "real": real, "real_logit": judge(real), "fake_logit": judge(made)}

  return Task(
    init=init,
    train_step=train_step,
    predict_step=predict_step,
    score=score,
    metrics=metrics,
    measures=("real_score", "fake_score", "frechet_pixels"),
    best="-frechet_pixels",
    pictures=pictures,
    augment=change,
    specs=step.specs(jax.eval_shape(init, jax.random.PRNGKey(0)), shards),
    serve=Serve(sample, (model.nz,), jnp.float32, lambda rng, b: jax.random.normal(rng, (b, model.nz))),
    tiles=functools.partial(views.tiles, config.data),
  )


def _apply(model, params, stats, x, method):
  """A training pass of one of the nets: (result, batch statistics after it)."""
  out, new = model.apply(
    {"params": params, "batch_stats": stats}, x, train=True, method=method, mutable=["batch_stats"]
  )
  return out, new["batch_stats"]


def generate(model, params, stats, z):
  """Images from noise in training.

  Returns:
    (images [B, S, S, C], the map from their gradient to that of the generator's parameters, statistics)
  """

  def made(generator):
    return _apply(model, params | {"generator": generator}, stats, z, "generate")

  fake, pull, stats = jax.vjp(made, params["generator"], has_aux=True)
  return fake, pull, stats


def discriminator_gradient(model, params, stats, real, fake):
  """Gradient of -mean log D(x) - mean log (1 - D(G(z))) with respect to the discriminator's parameters.

  Returns:
    (gradient, (loss, mean D(x), mean D(G(z)), statistics))
  """

  def loss(discriminator):
    own = params | {"discriminator": discriminator}
    x, after = _apply(model, own, stats, real, "discriminate")
    y, after = _apply(model, own, after, fake, "discriminate")
    value = jax.nn.softplus(-x).mean() + jax.nn.softplus(y).mean()
    return value, (value, jax.nn.sigmoid(x).mean(), jax.nn.sigmoid(y).mean(), after)

  return jax.grad(loss, has_aux=True)(params["discriminator"])


def generator_gradient(model, params, stats, fake):
  """Gradient of -mean log D(G(z)) with respect to the generated images.

  Returns:
    (gradient [B, S, S, C], (loss, statistics))
  """

  def loss(fake):
    y, after = _apply(model, params, stats, fake, "discriminate")
    value = jax.nn.softplus(-y).mean()
    return value, (value, after)

  return jax.grad(loss, has_aux=True)(fake)


def score(outputs: dict, batch: dict) -> dict:
  """Sums over a batch: judgements, and moments of the images averaged down to 8 x 8, real and generated."""
  mask = batch["mask"]
  sums = {
    "count": mask.sum(),
    "real": (jax.nn.sigmoid(outputs["real_logit"]) * mask).sum(),
    "fake": (jax.nn.sigmoid(outputs["fake_logit"]) * mask).sum(),
  }
  for kind in ("real", "sample"):
    x = outputs[kind]
    b, h, w, c = x.shape
    x = x.reshape(b, POOLED, h // POOLED, POOLED, w // POOLED, c).mean((2, 4)).reshape(b, -1) * mask[:, None]
    sums |= {f"{kind}_first": x.sum(0), f"{kind}_second": jnp.matmul(x.T, x, precision="highest")}
  return sums


def metrics(sums: dict) -> dict[str, float]:
  """Mean judgements D(x) and D(G(z)), and the Frechet distance between real and generated images in pixels.

  The distance is FID's formula (Heusel et al. 2017, equation 6) on 8 x 8 averaged pixels instead of Inception features:
  it falls when means and covariances agree, and cannot be compared with a published FID.
  """
  n = sums["count"]
  moments = []
  for kind in ("real", "sample"):
    mean = sums[f"{kind}_first"] / n
    moments.append((mean, sums[f"{kind}_second"] / n - np.outer(mean, mean)))
  return {
    "real_score": sums["real"] / n,
    "fake_score": sums["fake"] / n,
    "frechet_pixels": frechet(*moments[0], *moments[1]),
  }


def frechet(mean1, cov1, mean2, cov2) -> float:
  """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)); NumPy vectors [D] and matrices [D, D]."""
  values, vectors = np.linalg.eigh(cov1)
  root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
  cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov2 @ root), 0)).sum()
  return float(((mean1 - mean2) ** 2).sum() + np.trace(cov1) + np.trace(cov2) - 2 * cross)


def pictures(batch: dict, outputs: dict, sums: dict) -> dict:
  """samples.png: the generator's images from fixed noise."""
  made = np.clip((outputs["sample"] + 1) * 127.5, 0, 255).astype(np.uint8)
  return {"samples.png": figures.gallery(made, None, None, "generated from fixed noise")}
