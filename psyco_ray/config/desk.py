"""Settings of a desk, where people judge in a browser."""

from __future__ import annotations

from typing import Literal

from psyco_ray.config.job_file import Count, Positive, Section


class Desk(Section):
    """How a desk asks; `desk.yaml` in its directory holds it, and each start reads it."""

    seed: int = 0
    """Of the order and the sides of each person; change it only before the first judgement."""
    overlap: Count | Literal["all"] = "all"
    """Annotators for each pair or scored response; all: every annotator, as in the paper. A draft goes to one."""
    ties: bool = False
    """Whether both responses may be equally good; the paper asks for a decision."""
    principles: bool = True
    """Whether a pair is also judged by each of the seven principles."""
    confidence: bool = True
    """Whether a judgement of a pair says how sure it is, from 1 to 5."""
    crisis_text: str = "The lead has to set crisis_text in desk.yaml: the emergency numbers of your place."
    """Local emergency numbers and what to do, shown with items in which a client may be at risk."""
    content_warning: str = (
        "The next items may speak of suicide, self-harm or violence. Take a pause whenever you need one."
    )
    """Shown before the first item in which a client may be at risk."""
    session_hours: Positive = 12
    """Hours until a person has to log in again."""
    invitation_hours: Positive = 72
    """Hours in which an invitation can be used."""
    approve_own: bool = False
    """Whether a reviewer may approve an edit of their own; false: a second person has to."""
