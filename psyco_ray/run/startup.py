"""Starting processes quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Imports and models are loaded without Python's garbage collector; usable as a decorator.

    It would look through all the modules that are there each time some thousand objects have come: a quarter of the
    time that torch, transformers and vLLM take to import. Nor does it ever look through them later.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
