"""Initialisers by explicit names, as `init(key, shape, dtype)`.

What a name promises here. Fans are taken as for a kernel [..., in, out]: fan_in is the product of all sizes but the
last, fan_out that of all but the last but one.

  xavier_uniform_fan_in   U(+-1 / sqrt(fan_in))                 deviation 1 / sqrt(3 fan_in)
  xavier_uniform          U(+-sqrt(6 / (fan_in + fan_out)))     deviation sqrt(2 / (fan_in + fan_out))
  xavier_normal           N(0, .), the same deviation
  xavier_normal_fan_in    N(0, .), deviation 1 / sqrt(fan_in)
  he_uniform              U(+-sqrt(6 / fan_in))                 deviation sqrt(2 / fan_in)
  he_normal               N(0, .), the same deviation
  he_fan_out              N(0, .), deviation sqrt(2 / fan_out)
  torch_default           U(+-1 / sqrt(fan_in))
  std_1, std_0.01         N(0, .) of that deviation

Xavier is two things. Glorot and Bengio 2010 give U(+-1 / sqrt(n_in)) as the usual heuristic (equation 1), which
tutorials call "Xavier", or 1 / sqrt(n_in) as the deviation of a normal one (Saito 2016, section 6.2), and propose
U(+-sqrt(6 / (n_in + n_out))) as the "normalized initialization" (equation 16), which torch's `xavier_uniform_` and
JAX's `glorot_uniform` are.

Normal means normal: JAX's `he_normal` and `glorot_normal` are cut at two deviations and widened again, torch's, and
these here, are not.
"""

from flax import linen as nn

_scaled = nn.initializers.variance_scaling  # variance: scale / fan; uniform: the limit is sqrt(3 scale / fan)

INITIALIZERS = {
  "xavier_uniform_fan_in": _scaled(1 / 3, "fan_in", "uniform"),
  "xavier_uniform": _scaled(1.0, "fan_avg", "uniform"),
  "xavier_normal": _scaled(1.0, "fan_avg", "normal"),
  "xavier_normal_fan_in": _scaled(1.0, "fan_in", "normal"),
  "he_uniform": _scaled(2.0, "fan_in", "uniform"),
  "he_normal": _scaled(2.0, "fan_in", "normal"),  # He et al. 2015, equation 10
  "he_fan_out": _scaled(2.0, "fan_out", "normal"),  # equation 14; torchvision's ResNets
  "torch_default": _scaled(1 / 3, "fan_in", "uniform"),  # kaiming_uniform_(a=sqrt(5)); its biases are drawn too
  "std_1": nn.initializers.normal(1.0),
  "std_0.01": nn.initializers.normal(0.01),
}
