"""Makes the helpers importable beside the tests; what several files of tests stand on."""

import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory):
  """A cache of the file's own."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("FLAXONOMY_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield


@pytest.fixture
def timely():
  """Ends a test that hangs."""

  def late(*_):
    raise TimeoutError("60 s")

  before = signal.signal(signal.SIGALRM, late)
  signal.alarm(60)
  yield
  signal.alarm(0)
  signal.signal(signal.SIGALRM, before)
