"""DCGAN against the reference layout in torch: images, judgements, losses, gradients, in training mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seeded

from flaxonomy import models
from flaxonomy.train.tasks import gan

G = {0: "up0", 1: "norm0", 3: "up1", 4: "norm1", 6: "up2", 7: "norm2", 9: "up3", 10: "norm3", 12: "up4"}
D = {0: "down0", 2: "down1", 3: "norm1", 5: "down2", 6: "norm2", 8: "down3", 9: "norm3", 11: "down4"}
NETS = {"generator": ("G", G), "discriminator": ("D", D)}


def to_variables(weights):
  """{torch name: array} to our (params, batch statistics)."""
  params, stats = {}, {}
  for net, (letter, layers) in NETS.items():
    params[net], stats[net] = {}, {}
    for number, name in layers.items():
      w = jnp.asarray(weights[f"{letter}.{number}.weight"])
      if name.startswith("norm"):
        params[net][name] = {"scale": w, "bias": jnp.asarray(weights[f"{letter}.{number}.bias"])}
        running = [jnp.asarray(weights[f"{letter}.{number}.running_{kind}"]) for kind in ("mean", "var")]
        stats[net][name] = dict(zip(("mean", "var"), running))
      else:
        params[net][name] = {"kernel": w.transpose(2, 3, 1, 0)}
  return params, stats


@pytest.fixture(scope="module")
def case(request):
  return seeded.load(request.config.rootpath / "tests/goldens/dcgan.npz")


def close(ours, theirs, tolerance=1e-5):
  theirs = np.asarray(theirs)
  np.testing.assert_allclose(ours, theirs, atol=tolerance * np.abs(theirs).max(), rtol=0)


def test_images_losses_and_gradients(case):
  model = models.create("dcgan", generator_features=8, discriminator_features=8, nz=20)
  params, stats = to_variables(case["weights"])
  z, real = jnp.asarray(case["in"]["z"][:, :, 0, 0]), jnp.asarray(case["in"]["real"].transpose(0, 2, 3, 1))

  @jax.jit
  def both(params, stats):
    fake, pull, after = gan.generate(model, params, stats, z)
    d_grads, (d_loss, _, _, after) = gan.discriminator_gradient(model, params, after, real, fake)
    grad_fake, (g_loss, _) = gan.generator_gradient(model, params, after, fake)
    judge = lambda x: gan._apply(model, params, stats, x, "discriminate")[0]
    return fake, judge(real), judge(fake), d_loss, g_loss, d_grads, pull(grad_fake)[0]

  fake, d_real, d_fake, d_loss, g_loss, d_grads, g_grads = both(params, stats)
  close(fake.transpose(0, 3, 1, 2), case["out"]["fake"])
  close(d_real, case["out"]["d_real"])
  close(d_fake, case["out"]["d_fake"])
  close(d_loss, case["out"]["d_loss"])
  close(g_loss, case["out"]["g_loss"])
  for net, grads in (("discriminator", d_grads), ("generator", g_grads)):
    letter, layers = NETS[net]
    for number, name in layers.items():
      for leaf, theirs in (("kernel", "weight"), ("scale", "weight"), ("bias", "bias")):
        if leaf in grads[name]:
          norm = jnp.linalg.norm(grads[name][leaf].ravel())
          np.testing.assert_allclose(
            norm, case["grad"][f"{letter}/{number}.{theirs}"], rtol=1e-4, err_msg=f"{net} {name} {leaf}"
          )
