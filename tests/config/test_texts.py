import json
import string
from collections import Counter

import pytest
import yaml
from support.paths import PACKAGE

from psyco_ray.config import job_file
from psyco_ray.config.endpoint import Endpoint
from psyco_ray.config.prompts import PRINCIPLES, load_prompt
from psyco_ray.config.training import Prompts
from psyco_ray.files import records

PROMPTS = yaml.safe_load((PACKAGE / "config" / "prompts.yaml").read_text("utf-8"))
TOPICS = yaml.safe_load((PACKAGE / "data" / "topics.yaml").read_text("utf-8"))
POOL = yaml.safe_load((PACKAGE / "data" / "responders.yaml").read_text("utf-8"))

SIZES = {"3-4B": 3, "7-9B": 5, "12-14B": 4, "65-75B": 4, "commercial": 4}  # paper table 6


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("respond", {"client_speech"}),
        ("respond-small", {"client_speech"}),
        ("rate", {"principle", "client_speech", "responses", "keys"}),
        ("rank", {"principles", "client_speech", "response_1", "response_2"}),
        ("topic", {"client_speech", "topics"}),
    ],
)
def test_every_prompt_has_its_places_once(name: str, places: set[str]) -> None:
    prompt = load_prompt(Prompts(respond=name))
    found = [
        field
        for text in prompt.values()
        if isinstance(text, str)
        for _, field, _, _ in string.Formatter().parse(text)
        if field is not None
    ]
    assert sorted(found) == sorted(places)


def test_prompts_for_json_name_their_keys_and_ask_for_nothing_around_it() -> None:
    for name, words in (("rate", "{keys}"), ("rank", "- better: "), ("topic", "- topic: ")):
        text = PROMPTS[name]["user"]
        assert text.split("\n")[-1].startswith(words), name
        assert "JSON object and nothing around it" in " ".join(text.split())


def test_the_seven_principles_have_titles_and_texts() -> None:
    principles = PROMPTS["principles"]
    assert tuple(principles) == PRINCIPLES
    titles = [principle["title"] for principle in principles.values()]
    assert len(set(titles)) == len(titles)
    for principle in principles.values():
        assert set(principle) == {"title", "text"}
        assert principle["text"].startswith("The response ")
        assert "{" not in principle["text"], "principles are put into prompts and have no places of their own"


def test_topics_are_those_of_the_paper_and_of_the_sample() -> None:
    fine = {topic: about for group in TOPICS.values() for topic, about in group.items()}
    assert len(TOPICS) == 8
    assert len(fine) == sum(map(len, TOPICS.values())) == 42, "no label is in two groups"
    assert sum(about["paper_count"] for about in fine.values()) == 26_483
    sample = {json.loads(line)["topic"] for line in records.SAMPLE.read_text("utf-8").splitlines()}
    assert set(fine) == sample
    for topic, about in fine.items():
        assert isinstance(topic, str)
        assert set(about) == {"about", "paper_count"}
        assert 10 < len(about["about"]) < 100
        assert "\n" not in about["about"]


def test_the_pool_is_the_papers_twenty() -> None:
    assert len({member["name"] for member in POOL}) == len(POOL) == 20
    assert Counter(member["size"] for member in POOL) == SIZES
    for member in POOL:
        assert ("model" in member) != ("api" in member), member["name"]
        assert set(member) <= {"name", "model", "api", "size", "family", "revision", "allow_code", "rollouts"}
        if "model" in member:
            owner, _, name = member["model"].partition("/")
            assert owner
            assert name.removesuffix("-hf") == member["name"]
        else:
            endpoint = job_file.parse(Endpoint, member["api"], where=member["name"])
            assert endpoint.base_url.startswith("https://")
            assert endpoint.key_env is not None
            assert endpoint.price_in is not None
            assert endpoint.price_out is not None
            assert 0 < endpoint.price_in < endpoint.price_out
