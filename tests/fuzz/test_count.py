"""As many inputs in all as are promised."""

from made_up import INPUTS


def test_ten_thousand_inputs():
  assert sum(INPUTS.values()) == 10_000
