"""Nothing that a build leaves holds a key of its environment, or a name that scrubbing removes."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from support.files import write_content
from support.raw_speeches import speech

GIVEN = ("Alessia", "Bartosz", "Chiamaka", "Dagmar", "Eirik", "Fatoumata", "Giedrius", "Hyejin", "Ilmari", "Jacinda")
FAMILY = ("Okonkwoski", "Brunnhilder", "Castelvecchi", "Drozdzewicz", "Ekwueme", "Fjordheim", "Gwizdala", "Hakonarson")
NAMES = [f"{GIVEN[number % 10]} {FAMILY[number % 8]}" for number in range(20)]
FORMS = (
    "My name is {}.",
    "I'm {}, 34.",
    "I am {} and I need help.",
    "Thank you, {}",
    "Write to me at {mail}.",
    "Hi, this is {}.",
)
SECRETS = {
    **{
        f"{maker}_API_KEY": f"sk-proj-{maker.lower()}S3cr3tV4lue0000"
        for maker in ("OPENAI", "COHERE", "MISTRAL", "GROQ")
    },
    **{f"SECRET_{number}": f"hf_plantedSecret{number:02}abcdef" for number in range(13)},
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefplanted0",
    "AWS_SECRET_ACCESS_KEY": "planted/secret+of/a/bucket/0123456789",
    "DATABASE_PASSWORD": "planted-password-0123",
}


def planted(number: int) -> str:
    name = NAMES[number]
    mail = f"{name.replace(' ', '.').lower()}@example.org"
    form = FORMS[number % len(FORMS)].format(name, mail=mail)
    return f"{form} {speech(number)}" if not form.startswith("Thank") else f"{speech(number)}\n\n{form}"


def holding(root: Path, words: list[str]) -> list[str]:
    """The files below a directory that hold one of some words, in their bytes or in the values of a Parquet file."""
    found = []
    for path in (path for path in root.rglob("*") if path.is_file() and not path.is_symlink()):
        content = path.read_bytes().decode("utf-8", "replace")
        if path.suffix == ".parquet":
            content += repr(pq.read_table(path).to_pylist())
        found += [f"{path}: {word}" for word in words if word.lower() in content.lower()]
    return found


@pytest.mark.long
def test_a_build_leaves_no_key_and_no_scrubbed_name(tmp_path, serve) -> None:
    assert len(SECRETS) == 20
    for name in ("raw", "output"):
        (tmp_path / name).mkdir()
    url = serve("--share", "0.2", "--kinds", "429,500,malformed")
    rows = "\n".join(f'"{planted(number)}"' for number in range(20))
    raw = write_content(tmp_path / "raw" / "notes.csv", f"text\n{rows}\n")
    api = {"base_url": url, "key_env": "OPENAI_API_KEY"}
    members = [{"name": f"m{number}", "api": {**api, "model": f"m{number}"}} for number in range(4)]
    members.append({"name": "refusing", "api": {**api, "model": "echo"}})  # repeats prompt and key in its errors
    job = {
        "run_dir": str(tmp_path / "run"),
        "sources": [{"name": "mine", "path": str(raw)}],
        "scrub": {"enabled": True},
        "topics": {"endpoint": {**api, "model": "labeller"}},
        "respond": {"pool": str(write_content(tmp_path / "pool.yaml", yaml.safe_dump(members))), "max_tokens": 60},
        "rate": {"endpoint": {**api, "model": "judge"}},
    }
    path = write_content(tmp_path / "job.yaml", yaml.safe_dump(job))
    sessions = set(Path("/tmp/ray").glob("session_*"))
    environment = {**os.environ, **SECRETS, "PSYCO_RAY_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "psyco_ray.cli", "data", "build", "-v", str(path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    write_content(tmp_path / "output" / "log", done.stdout + done.stderr)
    left = [tmp_path / "run", tmp_path / "cache", tmp_path / "output"]
    left += [path for path in Path("/tmp/ray").glob("session_*") if path not in sessions and not path.is_symlink()]
    assert len(left) > 3, "Ray's logs are looked at too"
    assert [line for root in left for line in holding(root, list(SECRETS.values()))] == []
    words = [word for name in NAMES for word in name.split()]
    assert [line for root in left for line in holding(root, words)] == []
    assert holding(raw.parent, words), "the source holds them"
