"""``python -m psyco_ray.cli`` is the command ``psyco-ray``."""

import sys

from psyco_ray.cli.main import main

sys.exit(main())
