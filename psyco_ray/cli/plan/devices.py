"""Device profiles: how fast a device samples, scores and trains."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from psyco_ray.config import job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.job_file import NotNegative, Positive, Section

_PROFILES = files("psyco_ray") / "cli" / "plan" / "profiles"


class Profile(Section):
    """The rates of one device, in seconds, measured with a model of `parameters`."""

    device: str
    """Name of the device."""
    kind: Literal["cpu", "gpu"]
    estimated: bool
    """Whether the rates are calculated instead of measured."""
    memory_gb: Positive | None = None
    """Memory of one GPU, 10^9 bytes."""
    model: str
    """Name of the measured model."""
    parameters: Annotated[int, Field(ge=1)]
    start_s: Positive
    """Start of an engine."""
    prompt_token_s: NotNegative
    """One prompt token in an engine."""
    decode_step_s: Positive
    """One decoding step of an engine, for any number of sequences."""
    decode_token_s: NotNegative
    """Each sequence's token in a decoding step, in addition to the step."""
    score_token_s: Positive
    """One token read by a reward model."""
    reference_token_s: Positive
    """One token read by the reference model."""
    train_token_s: Positive
    """Forward and backward pass on one token, on one rank."""
    optimizer_step_s: NotNegative
    """One optimizer step with the exchange of gradients."""
    save_bytes_per_s: Positive
    """Checkpoint bytes written to disk per second."""
    sync_bytes_per_s: Positive
    """Weight bytes sent from the learner to the engines per second."""

    @property
    def memory_bytes(self) -> float:
        """Memory of one GPU.

        Raises:
            InputError: the profile is not of a GPU.
        """
        if self.kind != "gpu" or self.memory_gb is None:
            raise InputError(f"the profile of {self.device} is not of a GPU; name another with --device")
        return self.memory_gb * 1e9


def profile_of(device: str) -> Profile:
    """The packaged profile of that name, or the one in a file that ``benchmarks/device_profile.py`` wrote.

    Raises:
        InputError: the profile does not exist or is invalid.
    """
    packaged = Path(str(_PROFILES / f"{device}.yaml"))
    path = packaged if packaged.is_file() else Path(device)
    if not path.is_file():
        known = ", ".join(sorted(Path(entry.name).stem for entry in _PROFILES.iterdir()))
        raise InputError(
            f"device {device!r} has no profile; known are {known}, and "
            f"benchmarks/device_profile.py measures others: name the file that it writes"
        )
    return job_file.load_as(Profile, path)
