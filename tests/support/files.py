"""A directory of made-up files."""

from pathlib import Path

from psyco_ray.run import storage


def fill(target: str | Path, text: str = "one") -> None:
    with storage.atomic_dir(target) as staging:
        (staging / "a.txt").write_text(text)
        (staging / "below").mkdir()
        (staging / "below" / "b.bin").write_bytes(bytes(range(256)) * 40000)


def write_content(path: Path, content: str | bytes) -> Path:
    """Write a file and return its path."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path
