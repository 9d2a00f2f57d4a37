"""A planted fault: a reward model that likes nothing but length, and a judge that does not."""

from collections.abc import Iterator
from dataclasses import replace

from psyco_ray.rollout.scorer import REFERENCE, ScorerActor
from psyco_ray.run.types import Group


class LengthScorer(ScorerActor):
    """Gives a response its number of tokens as `reward`, and less of `heldout` the longer it is."""

    def __init__(self, name, rewards, reference, settings) -> None:
        super().__init__(name, {}, reference, settings)

    def score(self, batch) -> Iterator[tuple[Group, float]]:
        referenced = replace(batch, names=tuple(name for name in batch.names if name == REFERENCE))
        for group, seconds in super().score(referenced):
            lengths = [float(len(response.token_ids)) for response in group.responses]
            given = {"reward": tuple(lengths), "heldout": tuple(-0.1 * n for n in lengths)}
            scores = group.scores | {name: given[name] for name in batch.names if name != REFERENCE}
            yield Group(group.prompt, group.responses, group.version, scores), seconds
