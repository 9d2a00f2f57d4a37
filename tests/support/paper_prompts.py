"""A prompts file of the paper's form: its placeholders, a ranker without principles, JSON with braces."""

from pathlib import Path

import yaml

from psyco_ray.config.prompts import PACKAGED

_RATE = """Here are a client's words and what four counsellors said to them. Score each of the four by the principle.
Client: {client_speech}
Reply one: {response1}
Reply two: {response2}
Reply three: {response3}
Reply four: {response4}

Write JSON such as {"response_1_rating": 2, "rationale_1": "vague {sic}", ...} with the keys
response_1_rating, rationale_1, response_2_rating, rationale_2, response_3_rating, rationale_3,
response_4_rating and rationale_4."""

_RANK = """Which of these two counsellors answers the client better?
Client: {client_speech}
Reply one: {response_1}
Reply two: {response_2}"""

_RESPOND = "You are a counsellor. Answer your client.\nClient: {client_speech}"


def write_paper_prompts(path: Path) -> Path:
    """Write the packaged prompts with `rate`, `rank` and `respond` of the paper's form."""
    prompts = yaml.safe_load(PACKAGED.read_text())
    prompts |= {"rate": {"user": _RATE}, "rank": {"user": _RANK}, "respond": {"user": _RESPOND}}
    path.write_text(yaml.safe_dump(prompts))
    return path
