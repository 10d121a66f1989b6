"""ZeRO sharding: which dimension of a leaf is cut over the devices, and the collectives that go with it.

Rajbhandari et al. 2019, "ZeRO", stage 3 on one axis: parameters and optimizer state rest in shards; a step gathers the
parameters, scatters the summed gradients and updates only its own shard. The rule is a function of the leaf's global
shape alone, so parameters, momenta and averages of one shape are cut alike. A `Plan` is made outside the mapped step,
where shapes are global, and used inside it, where they are local.
"""

from typing import Any, NamedTuple

import jax
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec as P

DATA = "data"  # the one axis over which batches, and with ZeRO states, are split
WHOLE = -1  # the dimension of a leaf that is not cut


class Plan(NamedTuple):
  """For each leaf of a tree, the dimension cut over the devices or `WHOLE`."""

  dims: Any

  @property
  def specs(self):
    """The tree's PartitionSpecs."""
    return jax.tree.map(lambda d: P() if d == WHOLE else P(*[None] * d, DATA), self.dims)

  def gather(self, tree):
    """Local shards to whole leaves, on every device."""
    return self._map(lambda x, d: lax.all_gather(x, DATA, axis=d, tiled=True), lambda x: x, tree)

  def sum(self, tree, numbers=()):
    """Sums over the devices.

    Args:
      tree: whole leaves that differ by device.
      numbers: a second tree, to be summed whole.

    Returns:
      (tree summed, its cut leaves as each device's shard; numbers summed)
    """
    leaves, dims = jax.tree.leaves(tree), jax.tree.leaves(self.dims)
    whole, numbers = total(([x for x, d in zip(leaves, dims) if d == WHOLE], numbers))
    rest = iter(whole)
    scatter = lambda x, d: lax.psum_scatter(x, DATA, scatter_dimension=d, tiled=True)
    summed = [next(rest) if d == WHOLE else scatter(x, d) for x, d in zip(leaves, dims)]
    return jax.tree.unflatten(jax.tree.structure(tree), summed), numbers

  def cut(self, tree):
    """Whole leaves, equal on all devices, to each device's shard."""

    def own(x, d):
      size = x.shape[d] // lax.axis_size(DATA)
      return lax.dynamic_slice_in_dim(x, lax.axis_index(DATA) * size, size, axis=d)

    return self._map(own, lambda x: x, tree)

  def squared_norm(self, tree):
    """Sum of squares over all leaves and shards, [] float32."""
    own = self._map(lambda x, d: (x**2).sum(), lambda x: 0.0, tree)
    shared = self._map(lambda x, d: 0.0, lambda x: (x**2).sum(), tree)
    total = sum(jax.tree.leaves(shared))
    if any(d != WHOLE for d in jax.tree.leaves(self.dims)):
      total += lax.psum(sum(jax.tree.leaves(own)), DATA)
    return total

  def _map(self, cut, whole, tree):
    return jax.tree.map(lambda d, x: whole(x) if d == WHOLE else cut(x, d), self.dims, tree)


def total(tree):
  """The sum of a float32 tree over the devices: on CPUs as one vector, since there each leaf costs a rendezvous."""
  if jax.default_backend() != "cpu":
    return lax.psum(tree, DATA)
  flat, unravel = ravel_pytree(tree)
  return unravel(lax.psum(flat, DATA))


def plan(shapes, shards: int) -> Plan:
  """The plan for a tree of global shapes.

  Args:
    shapes: tree of arrays or ShapeDtypeStructs, whole.
    shards: devices to cut over; 1 leaves every leaf whole.

  Returns:
    Plan: each leaf of at least 1024 numbers is cut along its longest dimension that `shards` divides, if any.
  """

  def longest(x):
    fitting = [(n, -i) for i, n in enumerate(x.shape) if n % shards == 0]
    return -max(fitting)[1] if shards > 1 and x.size >= 1024 and fitting else WHOLE

  return Plan(jax.tree.map(longest, shapes))
