"""Where things are, from any depth of the tests."""

from pathlib import Path

SUPPORT = Path(__file__).parent
TESTS = SUPPORT.parent
ROOT = TESTS.parent
PACKAGE = ROOT / "psyco_ray"
JOBS = ROOT / "jobs"
SHARED_DATA = ROOT.parent / "shared" / "data"
"""Real data beside the checkout; tests that need it skip where it is absent."""
