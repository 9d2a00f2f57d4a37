"""A directory of made-up files."""

from pathlib import Path

from psyco_ray.run import storage


def fill(target: str | Path, text: str = "one") -> None:
    with storage.atomic_dir(target) as staging:
        (staging / "a.txt").write_text(text)
        (staging / "below").mkdir()
        (staging / "below" / "b.bin").write_bytes(bytes(range(256)) * 40000)
