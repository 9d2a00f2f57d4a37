"""What texts have in common: tokens with which several of them begin are computed once.

Pairs of one prompt have the prompt in common, and a response may occur in several of them. The contexts of a dialogue
at its turns have more in common the later they are, since each begins with the one before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from psyco_ray.models.layout import Forest, common, common_start, plan_rows

Tree = tuple[Sequence[int], Sequence[Sequence[int]]]
"""A prompt's token ids and those of each response to it."""

Computed = Literal["packed", "shared", "plain"]
"""How a model computes the texts of a pass; each prompt once for its responses, unless `plain`, and each of these once.

packed: in rows, in which prompts that begin alike are joined where that pays. shared: what all prompts begin with is
there once, and so is what some of them share beyond it. plain: each conversation in a row of its own, as long as the
longest.
"""

LEAST = 64
"""Tokens that prompts must share beyond the start of all to be joined: a short segment costs more than it saves."""

_ROW_TOKENS = 2048
"""A token of a row costs as much as attention to so many others, or to more in models above 1B parameters."""

_Ids = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """Trees whose prompts are joined, so that they belong in one pass."""

    members: list[int]  # their numbers
    tokens: int  # of all, each once
    texts: int  # different conversations
    longest: int  # tokens of the longest one

    def size(self, computed: Computed) -> int:
        """Return the tokens of a pass of this family alone, padding included."""
        return self.texts * self.longest if computed == "plain" else self.tokens


@dataclass(frozen=True)
class Joined:
    """Trees as one forest."""

    forest: Forest
    ids: list[int]  # of all segments, one after another
    leaves: dict[tuple[_Ids, _Ids], int]  # segment of each response, by its prompt and itself


def families(trees: Sequence[Tree], computed: Computed, limit: int | None = None) -> list[Family]:
    """Find the trees that are joined, in the order of each family's first tree.

    Args:
        trees: prompts and their responses.
        computed: how a model computes them.
        limit: size of a family, which only a single tree exceeds; None: no limit.
    """
    prompts = [tuple(prompt) for prompt, _ in trees]
    start = _start(prompts, computed)
    found: list[Family] = []
    before: _Ids = ()
    known: set[_Ids] = set()  # responses to that prompt in the last family
    for number in sorted(range(len(trees)), key=prompts.__getitem__):
        prompt, responses = prompts[number], set(map(tuple, trees[number][1]))
        longest = len(prompt) + max(map(len, responses))
        same = prompt == before
        shared = len(prompt) if same else common(before, prompt)
        new = responses - known if same else responses
        added = len(prompt) - shared + sum(map(len, new))
        if found and (same or _joins(found[-1].tokens, shared, added, start, computed)):
            last = found[-1]
            joined = Family(
                [*last.members, number], last.tokens + added, last.texts + len(new), max(last.longest, longest)
            )
            if limit is None or joined.size(computed) <= limit:
                found[-1], known, before = joined, known | new if same else new, prompt
                continue
        found.append(Family([number], len(prompt) + sum(map(len, responses)), len(responses), longest))
        known, before = responses, prompt
    for family in found:
        family.members.sort()
    return sorted(found, key=lambda family: family.members[0])


def _joins(tokens: int, shared: int, added: int, start: int, computed: Computed) -> bool:
    """Whether a prompt joins a family of so many tokens, of which it shares some and to which it adds others."""
    if computed == "plain" or shared < start + LEAST:
        return False
    return computed == "shared" or _cost(tokens + added) < _cost(tokens) + _cost(shared + added)


def _cost(tokens: int) -> int:
    """What a row costs: each of its tokens attends to all of them."""
    return tokens * (tokens + _ROW_TOKENS)


def _start(prompts: Sequence[_Ids], computed: Computed) -> int:
    """Tokens with which all prompts begin, if these are computed once."""
    different = list(dict.fromkeys(prompts))
    return common_start(different) if computed == "shared" and len(different) > 1 else 0


def plan_trees(trees: Sequence[Tree], budget: int, computed: Computed, start: int = 0) -> list[list[int]]:
    """Sort trees into passes by length, shortest first, those of a family together.

    Args:
        trees: prompts and their responses.
        budget: tokens of a pass; a longer tree has a pass of its own.
        computed: how a model computes them.
        start: tokens with which all prompts begin, and which count once in a pass.

    Returns:
        The numbers of each pass's trees.
    """
    found = families(trees, computed, budget)
    rows = plan_rows([family.tokens - start for family in found], budget - start)
    return [[number for index in row for number in found[index].members] for row in rows]


@dataclass
class _Node:
    """Tokens `begin` to `end` of all prompts below it."""

    end: int
    first: int  # the first of these prompts
    prompt: int | None = None  # that ends here
    children: list[_Node] = field(default_factory=list)


def join(trees: Sequence[Tree], computed: Computed) -> Joined:
    """Join trees into a forest; prompts, and the responses to each, keep the order in which they first appear."""
    answers: dict[_Ids, dict[_Ids, None]] = {}
    for prompt, responses in trees:
        answers.setdefault(tuple(prompt), {}).update(dict.fromkeys(map(tuple, responses)))
    prompts = list(answers)
    root = _Node(_start(prompts, computed), 0)
    for family in families([(prompt, list(found)) for prompt, found in answers.items()], computed):
        _add(root, prompts, family.members)
    tokens: list[int] = []
    parents: list[int] = []
    ids: list[int] = []
    leaves: dict[tuple[_Ids, _Ids], int] = {}

    def append(segment: _Ids, parent: int) -> int:
        tokens.append(len(segment))
        parents.append(parent)
        ids.extend(segment)
        return len(tokens) - 1

    waiting = [(root, 0, -1)]
    while waiting:
        node, begin, parent = waiting.pop()
        own = append(prompts[node.first][begin : node.end], parent) if node.end > begin else parent
        if node.prompt is not None:
            prompt = prompts[node.prompt]
            leaves |= {(prompt, response): append(response, own) for response in answers[prompt]}
        below = sorted(node.children, key=lambda child: child.first, reverse=True)
        waiting += [(child, node.end, own) for child in below]
    return Joined(Forest(tuple(tokens), tuple(parents)), ids, leaves)


def _add(root: _Node, prompts: Sequence[_Ids], members: Sequence[int]) -> None:
    """Add the prompts of a family below what all prompts share."""
    path = [root]  # to the prompt before
    before: _Ids = ()
    for number in sorted(members, key=prompts.__getitem__):
        prompt = prompts[number]
        shared = common(before, prompt) if before else root.end
        last = None
        while path[-1].end > shared:
            last = path.pop()
        if path[-1].end < shared:
            assert last is not None, "what is shared ends within the prompt before"
            between = _Node(shared, last.first, children=[last])
            path[-1].children[-1] = between
            path.append(between)
        if len(prompt) == shared:  # all other prompts begin with it
            path[-1].prompt = number
        else:
            path[-1].children.append(_Node(len(prompt), number, number))
            path.append(path[-1].children[-1])
        for node in path:
            node.first = min(node.first, number)
        before = prompt
