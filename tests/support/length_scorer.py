"""A planted fault: a reward model that likes nothing but length, and a judge that does not."""

from dataclasses import replace

from psyco_ray.rollout.scorer import REFERENCE, GroupScores, ScorerActor


class LengthScorer(ScorerActor):
    """Gives a response its number of tokens as `reward`, and less of `heldout` the longer it is."""

    def __init__(self, name, rewards, reference, settings) -> None:
        super().__init__(name, {}, reference, settings)

    def score(self, batch) -> list[GroupScores]:
        referenced = replace(batch, names=tuple(name for name in batch.names if name == REFERENCE))
        found = []
        for (group, _), scored in zip(batch.groups, super().score(referenced), strict=True):
            lengths = [float(len(response.token_ids)) for response in group.responses]
            given = {"reward": tuple(lengths), "heldout": tuple(-0.1 * n for n in lengths)}
            scores = scored.scores | {name: given[name] for name in batch.names if name != REFERENCE}
            found.append(scored._replace(scores=scores))
        return found
