"""Which texts may be used: those that a reviewer or lead approved as they are."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass

from psyco_ray.desk import answers, audit, judgements
from psyco_ray.desk.people import Person
from psyco_ray.desk.store import Item, Store

_MAY_APPROVE = ("reviewer", "lead")


class NotAllowedError(Exception):
    """The person may not decide this; the message says why and may be shown."""


@dataclass(frozen=True)
class Waiting:
    """A text that somebody proposes for use: the draft as it is, or their edit.

    Attributes:
        item: the draft.
        text: that is proposed.
        edited: whether it differs from the draft.
        by: ids of the people who propose it.
        reasons: of theirs.
        comments: of theirs.
    """

    item: Item
    text: str
    edited: bool
    by: tuple[int, ...]
    reasons: tuple[str, ...]
    comments: tuple[str, ...]


@dataclass(frozen=True)
class Approved:
    """A text that may be used.

    Attributes:
        item: the draft.
        text: that was approved, and nothing else.
        edited: whether it differs from the draft.
        by: ids of those who approved it.
    """

    item: Item
    text: str
    edited: bool
    by: tuple[int, ...]


def waiting(store: Store, person: Person) -> list[Waiting]:
    """Proposed texts about which nobody has decided and this person may; those with flags of risk first."""
    if person.role not in _MAY_APPROVE:
        return []
    decided = _decisions(store)
    open_ones = [
        proposal
        for proposal in _proposals(store)
        if (proposal.item.id, digest(proposal.text)) not in decided and not _is_own(store, proposal, person.id)
    ]
    return sorted(open_ones, key=lambda proposal: not proposal.item.crisis)


def decide(store: Store, person: Person, item_id: str, text: str, approved: bool, reason: str) -> None:
    """Approve or refuse a proposed text; the person's later decision about it replaces their earlier one.

    Args:
        store: the desk.
        person: a reviewer or lead.
        item_id: of the draft.
        text: as it was shown; the decision is about this text alone.
        approved: or refused.
        reason: needed for a refusal.

    Raises:
        NotAllowedError: the person is an annotator, or the only one who proposes this edit and `approve_own` is false.
        ConflictError: of `judgements`; nobody proposes this text (any more).
        InvalidAnswerError: of `judgements`; a refusal without a reason.
    """
    if person.role not in _MAY_APPROVE:
        raise NotAllowedError("a reviewer or lead decides which texts may be used")
    text, reason = answers.cleaned(text), answers.cleaned(reason).strip()
    answers.require_text(reason, "the reason", answers.LONGEST_COMMENT)
    if not approved and not reason:
        raise judgements.InvalidAnswerError("a refusal needs a reason")
    with store.transaction() as db:
        proposal = next((p for p in _proposals(store, item_id) if p.text == text), None)
        if proposal is None:
            newest = db.execute("SELECT max(version) FROM judgements WHERE item_id=?", (item_id,)).fetchone()[0]
            raise judgements.ConflictError(newest or 0)
        if _is_own(store, proposal, person.id):
            raise NotAllowedError("this edit is yours; a second person decides about it")
        db.execute(
            "INSERT OR REPLACE INTO approvals VALUES(?,?,?,?,?,?,?)",
            (item_id, person.id, digest(text), text, int(approved), reason, time.time()),
        )
        audit.record(db, person.id, "approve" if approved else "refuse", item_id, f"text={digest(text)[:16]}")


def approved(store: Store) -> list[Approved]:
    """The texts that may be used: proposed now, approved, and refused by nobody."""
    decisions = _decisions(store)
    usable = []
    for proposal in _proposals(store):
        about = decisions.get((proposal.item.id, digest(proposal.text)), {})
        by = tuple(person for person in about if not _is_own(store, proposal, person))
        if by and all(about.values()):
            usable.append(Approved(proposal.item, proposal.text, proposal.edited, by))
    return usable


def _proposals(store: Store, item_id: str | None = None) -> list[Waiting]:
    """The texts that people propose now, by item and text; of a draft that somebody rejects, only edits."""
    items = {item.id: item for item in store.items("draft")} if item_id is None else {item_id: store.item(item_id)}
    found: dict[tuple[str, str], list[judgements.Judgement]] = {}
    rejected = set()
    for judgement in judgements.latest(store, "draft", item_id=item_id):
        item = items[judgement.item_id]
        assert item is not None, "a judgement is about an item"
        if judgement.answer["decision"] == "reject":
            rejected.add(item.id)
        else:
            edited = judgement.answer["decision"] == "edit"
            text = judgement.answer["edit"] if edited else answers.cleaned(item.responses[0])
            found.setdefault((item.id, text), []).append(judgement)
    proposals = []
    for (of_item, text), by in found.items():
        item = items[of_item]
        assert item is not None, "checked above"
        edited = text != answers.cleaned(item.responses[0])
        if edited or of_item not in rejected:
            proposals.append(
                Waiting(
                    item,
                    text,
                    edited,
                    by=tuple(judgement.person_id for judgement in by),
                    reasons=tuple(reason for judgement in by for reason in judgement.answer.get("reasons") or ()),
                    comments=tuple(judgement.answer["comment"] for judgement in by if judgement.answer.get("comment")),
                )
            )
    return proposals


def _decisions(store: Store) -> dict[tuple[str, str], dict[int, bool]]:
    """By item and digest of a text: whether each person who decided approved it."""
    found: dict[tuple[str, str], dict[int, bool]] = {}
    for row in store.read().execute("SELECT * FROM approvals ORDER BY at"):
        found.setdefault((row["item_id"], row["text_hash"]), {})[row["person_id"]] = bool(row["approved"])
    return found


def _is_own(store: Store, proposal: Waiting, person_id: int) -> bool:
    """Whether somebody would approve an edit that they alone propose."""
    return proposal.edited and proposal.by == (person_id,) and not store.settings.approve_own


def digest(text: str) -> str:
    """Names a text, so that a decision is about no other."""
    return hashlib.sha256(text.encode()).hexdigest()
