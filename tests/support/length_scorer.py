"""A planted fault: a reward model that likes nothing but length, and a judge that does not."""

import time
from collections.abc import Iterator

from psyco_ray.rollout.scorer import REFERENCE, ScorerActor
from psyco_ray.run.types import Group


class LengthScorer(ScorerActor):
    """Gives a response its number of tokens as `reward`, and less of `heldout` the longer it is."""

    def __init__(self, name, rewards, reference, settings) -> None:
        super().__init__(name, {}, reference, settings)

    def score(self, item) -> Iterator[tuple[Group, float]]:
        began = time.perf_counter()
        group, messages, names = item
        [(group, _)] = super().score((group, messages, tuple(name for name in names if name == REFERENCE)))
        lengths = [float(len(response.token_ids)) for response in group.responses]
        given = {"reward": tuple(lengths), "heldout": tuple(-0.1 * n for n in lengths)}
        scores = group.scores | {name: given[name] for name in names if name != REFERENCE}
        yield Group(group.prompt, group.responses, group.version, scores), time.perf_counter() - began
