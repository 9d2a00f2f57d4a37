"""Importing this makes the package and the scripts of this checkout importable, here and in Ray's actors."""

import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [path for path in (str(_HERE), str(_HERE.parent)) if path not in sys.path]
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_HERE), str(_HERE.parent), os.environ.get("PYTHONPATH")]))
