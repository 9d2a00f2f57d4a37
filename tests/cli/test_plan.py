"""Forecasts of an iteration: by hand on round rates, against a measured run, and advice from finished runs."""

import itertools
import json
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from support.paths import ROOT

from psyco_ray.cli.main import main
from psyco_ray.cli.plan import advice, allocation, cost_model, devices, lengths
from psyco_ray.cli.plan.cost_model import GpuSplit, Scenario
from psyco_ray.cli.plan.devices import Profile
from psyco_ray.config import errors, job_file
from psyco_ray.config.errors import InputError
from psyco_ray.config.resources import Rollouts
from psyco_ray.config.training import Job
from psyco_ray.models.shape import SHAPES, ModelShape, shape_of

DEMO_SECONDS, DEMO_TOKENS = (97.4, 86.2, 88.7), 42  # mean tokens of a response
SHAPE = ModelShape("thousand", 1000, 2, 10, 100, 40, 2, 1, 5, False)
RATES = {
    "start_s": 1,
    "prompt_token_s": 0.001,
    "decode_step_s": 0.5,
    "decode_token_s": 0.01,
    "score_token_s": 0.002,
    "reference_token_s": 0.004,
    "train_token_s": 0.1,
    "optimizer_step_s": 3,
    "save_bytes_per_s": 60,
    "sync_bytes_per_s": 100,
}


def profile(kind: str = "gpu", **changes: object) -> Profile:
    defaults = {"device": "a slide rule", "kind": kind, "estimated": False, "memory_gb": 80, "model": "thousand"}
    return Profile(**{**defaults, "parameters": 1000, **RATES, **changes})


def job(**changes: object) -> Job:
    """8 speeches in items of 2, 4 responses of 10 tokens, 2 held-out speeches, steps of 4 pairs."""
    settings = {
        "speeches_per_iteration": 8,
        "sampling": {"responses": 4, "max_tokens": 16},
        "rollouts": {"speeches_per_item": 2, "max_num_seqs": 8, "feed": "items"},
        "evaluation": {"speeches": 2},
        "dpo": {"optimizer": {"batch_size": 4}},
        **changes,
    }
    return Job.model_validate(settings)


def test_stages_by_hand() -> None:
    settings, rates = job(), profile()
    prompt = lengths.prompt_tokens(settings.prompts, settings.data)
    result = cost_model.forecast(Scenario(settings, SHAPE, rates, GpuSplit(2, 1, 2), 10)).stages
    item = 2 * prompt * 0.001 + 16 * 0.5 + 8 * 10 * 0.01
    scorer = 8 * (prompt + 40) * 0.002 + 8 * (prompt + 20) * 0.004
    assert result["sample and score"] == pytest.approx(max(2 * item, scorer))
    assert result["train"] == pytest.approx(8 * (prompt + 20) / 2 * 0.1 + 2 * 3)
    assert result["save"] == pytest.approx(100 - result["evaluate"]), "it goes on beside the evaluation"
    assert result["sync"] == pytest.approx(20)
    answers = 2 * prompt * 0.001 + 16 * 0.5 + 2 * 10 * 0.01
    assert result["evaluate"] == pytest.approx(max(answers, 2 * 2 * (prompt + 10) * 0.002))


def test_engines_that_never_drain_by_hand() -> None:
    settings = job(rollouts={"speeches_per_item": 2, "max_num_seqs": 8, "feed": "continuous"})
    work = Scenario(settings, SHAPE, profile(), GpuSplit(2, 1, 2), 10)
    prompt = lengths.prompt_tokens(settings.prompts, settings.data)
    # of each engine: 4 speeches with 4 responses of 10 tokens, 8 at a time; the last ones take up to 16 steps
    engine = 4 * prompt * 0.001 + (10 + 16) * 0.5 + 16 * 10 * 0.01
    assert work.sampling(8, 4).slowest == pytest.approx(engine)
    assert work.sampling(8, 4).total == pytest.approx(2 * engine)
    assert work.sampling(1, 4).total == pytest.approx(work.sampling(1, 4).slowest), "one speech is of one engine"
    drained = Scenario(job(), SHAPE, profile(), GpuSplit(2, 1, 2), 10)
    assert work.sampling(8, 4).slowest < drained.sampling(8, 4).slowest


def test_engines_and_ranks_that_share_gpus_work_in_turn_and_hand_over() -> None:
    settings = job()
    apart, shared = (
        cost_model.forecast(Scenario(settings, SHAPE, profile(), GpuSplit(2, 1, 2, colocated=colocated), 10)).stages
        for colocated in (False, True)
    )
    assert GpuSplit(2, 1, 2, colocated=True).gpus == 3
    assert shared.pop("sync") - apart.pop("sync") == pytest.approx(2 * 16 * 1000 / 2 / 2e10)
    assert shared.pop("save") - apart.pop("save") == pytest.approx(apart["evaluate"]), "they save before they sample"
    assert shared == apart


def test_a_job_that_evaluates_all_dev_speeches_is_planned_with_the_papers_number() -> None:
    def stages(speeches: int | None) -> dict[str, float]:
        return cost_model.forecast(
            Scenario(job(evaluation={"speeches": speeches}), SHAPE, profile(), GpuSplit(2, 1, 2), 10)
        ).stages

    assert stages(None) == stages(2319)
    assert stages(None)["evaluate"] > stages(200)["evaluate"]


def test_cores_are_shared_and_gpus_are_not() -> None:
    settings = job()
    apart = cost_model.forecast(Scenario(settings, SHAPE, profile(score_token_s=0.2), GpuSplit(2, 2, 2), 10))
    shared = cost_model.forecast(
        Scenario(settings, SHAPE, profile("cpu", score_token_s=0.2), GpuSplit(2, 2, 2), 10, cores=1)
    )
    prompt = lengths.prompt_tokens(settings.prompts, settings.data)
    engines = 4 * (2 * prompt * 0.001 + 16 * 0.5 + 8 * 10 * 0.01)
    scorers = 8 * (prompt + 40) * 0.2 + 8 * (prompt + 20) * 0.004
    assert apart.stages["sample and score"] == pytest.approx(max(engines, scorers) / 2)
    assert shared.stages["sample and score"] == pytest.approx(engines + scorers)
    assert shared.stages["train"] > 1.5 * apart.stages["train"]


def test_a_model_of_twice_the_size_takes_twice_the_time() -> None:
    large = replace(SHAPE, name="two thousand", parameters=2000)
    one, two = (
        cost_model.forecast(Scenario(job(), shape, profile(), GpuSplit(2, 1, 2), 10)) for shape in (SHAPE, large)
    )
    assert two.stages == pytest.approx({stage: 2 * seconds for stage, seconds in one.stages.items()})
    assert two.idle == pytest.approx(one.idle)


def test_offline_pairs_are_not_sampled_and_a_reference_of_the_learner_is_not_scored() -> None:
    both = cost_model.forecast(Scenario(job(), SHAPE, profile(), GpuSplit(1, 1, 1), 10)).stages
    offline = cost_model.forecast(Scenario(job(pairs_from="file"), SHAPE, profile(), GpuSplit(1, 1, 1), 10)).stages
    prompt = lengths.prompt_tokens(job().prompts, job().data)
    assert offline["sample and score"] == pytest.approx(8 * (prompt + 20) * 0.004)
    moved = job(dpo={"reference": "previous", "optimizer": {"batch_size": 4}})
    result = cost_model.forecast(Scenario(moved, SHAPE, profile(), GpuSplit(1, 1, 1), 10)).stages
    assert result["train"] - both["train"] == pytest.approx(8 * (prompt + 20) * 0.004)


@pytest.mark.parametrize("gpus", [8, 32])
@pytest.mark.parametrize("zero_stage", [2, 3])
def test_an_allocation_uses_all_gpus_and_fits_their_memory(gpus: int, zero_stage: int) -> None:
    settings = Job.model_validate(
        {"learners": {"zero_stage": zero_stage, "gradient_checkpointing": True}, "rollouts": {"kv_cache_gb": 40}}
    )
    shape, h100 = SHAPES["llama-3.1-8b"], devices.profile_of("h100")
    result = allocation.allocate(settings, shape, h100, gpus, 256)
    assert result.gpus == gpus
    assert min(result.rollouts, result.scorers, result.learners) >= 1
    assert allocation.learner_bytes(settings, shape, result.learners, result.zero_stage) <= 0.95 * 84.9e9
    seconds = cost_model.forecast(Scenario(settings, shape, h100, result, 256)).seconds
    others = [
        GpuSplit(r, s, gpus - r - s, 1, 3) for r, s in itertools.product(range(1, gpus), repeat=2) if r + s < gpus
    ]
    fitting = [
        o for o in others if allocation.learner_bytes(settings, shape, o.learners, result.zero_stage) <= 0.95 * 84.9e9
    ]
    fitting += [GpuSplit(n, gpus - n, n, 1, 3, colocated=True) for n in range(4, gpus)]
    assert seconds == min(cost_model.forecast(Scenario(settings, shape, h100, other, 256)).seconds for other in fitting)


def test_engines_and_ranks_share_gpus_only_where_the_job_allows_it() -> None:
    shape, h100 = SHAPES["llama-3.1-8b"], devices.profile_of("h100")
    settings = Job.model_validate(
        {
            "rollouts": {"gpus": 1},
            "scorers": {"gpus": 1},
            "learners": {"gpus": 1, "zero_stage": 3, "micro_batch_tokens": 4096},
        }
    )
    split = allocation.allocate(settings, shape, h100, 8, 256)
    assert split.colocated, "no engine waits for training, and no rank for sampling"
    proposed = allocation.placed(settings, split)
    assert proposed.colocated
    assert proposed.rollouts.actors == proposed.learners.actors == 8 - proposed.scorers.actors
    grows = settings.model_copy(update={"rollouts": Rollouts(gpus=1, autoscale={"min": 1, "max": 9})})
    assert not allocation.allocate(grows, shape, h100, 8, 256).colocated


@pytest.mark.parametrize(
    ("name", "gpus", "before_s", "bar_s"),
    [("psyco-llama3-8b", 8, 995, 600), ("psyco-llama3-3b", 8, 470, 260), ("psyco-llama3-8b-32gpu", 26, 531, 320)],
)
def test_the_shipped_jobs_use_the_split_with_the_best_forecast(name, gpus, before_s, bar_s) -> None:
    settings = job_file.load_as(Job, ROOT / "jobs" / f"{name}.yaml")
    shape, h100 = shape_of(settings.model), devices.profile_of("h100")
    split = cost_model.split_of(settings)
    assert split.gpus == gpus
    work = Scenario(settings, shape, h100, split, 256)
    result = cost_model.forecast(work)
    assert result.seconds <= bar_s < before_s
    scored = (work.scoring(6400, 8, 1) + work.reference) / split.scorers
    assert scored <= 1.1 * work.sampling(6400, 8).slowest, "scorers keep up with the engines"
    best = cost_model.forecast(
        Scenario(settings, shape, h100, allocation.allocate(settings, shape, h100, gpus, 256), 256)
    )
    # a cluster whose learner is one machine of 8 GPUs has fewer choices
    assert result.seconds <= (1.15 if "32gpu" in name else 1.001) * best.seconds


def test_the_learner_gets_the_zero_stage_that_fits() -> None:
    settings = Job.model_validate({"learners": {"zero_stage": 1, "gradient_checkpointing": True}})
    h100 = devices.profile_of("h100")
    assert allocation.allocate(settings, SHAPES["llama-3.1-8b"], h100, 8, 256).zero_stage == 1
    large = ModelShape("a 13b", 13_000_000_000, 40, 5120, 32_000, 13_824, 40, 40, 128, False)
    previous = settings.model_copy(update={"dpo": settings.dpo.model_copy(update={"reference": "previous"})})
    result = allocation.allocate(previous, large, h100, 8, 256)
    assert result.zero_stage == 2
    assert allocation.learner_bytes(settings, large, result.learners, 1) > 0.95 * 84.9e9


def test_the_estimated_profile_follows_from_its_stated_peaks() -> None:
    result = devices.profile_of("h100")
    parameters = SHAPES["llama-3.1-8b"].parameters
    assert result.estimated
    assert result.parameters == parameters
    assert result.decode_step_s == pytest.approx(2 * parameters / (0.6 * 3.35e12), rel=0.01)
    assert result.train_token_s == pytest.approx(6 * parameters / (0.35 * 989e12), rel=0.01)
    for rate in (result.prompt_token_s, result.score_token_s, result.reference_token_s):
        assert rate == pytest.approx(2 * parameters / (0.4 * 989e12), rel=0.01)


def test_the_shape_of_a_model_by_its_name_or_directory(tiny_model) -> None:
    for name in ("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct"):
        assert shape_of(name).parameters == 8_030_261_248
    result = shape_of(str(tiny_model))
    assert (result.layers, result.hidden, result.heads, result.kv_heads, result.head_size) == (2, 64, 2, 1, 32)
    assert 3e6 < result.parameters < 4e6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "plan needs JOB.yaml, or --gpus"),
        (["--gpus", "8", "--model", "llama-9"], "the size of model 'llama-9' is not known; give one of llama-3.1-8b"),
        (["--gpus", "8", "--device", "tpu"], "device 'tpu' has no profile; known are cpu-2-cores, h100"),
        (["--gpus", "8", "--device", "cpu-2-cores"], "is not of a GPU"),
        (["--gpus", "3", "--model", "llama-3.1-8b"], "3 GPUs do not hold llama-3.1-8b"),
        (["--gpus", "8", "--cluster"], "plan --cluster shows a job's own actors"),
        (["--gpus", "8", "--run", "nowhere"], "nowhere holds no complete iteration"),
    ],
)
def test_invalid_arguments_are_refused_in_one_sentence(capsys, arguments, sentence) -> None:
    assert main(["plan", *arguments]) == errors.INPUT_ERROR
    assert sentence in capsys.readouterr().err


def test_plan_for_gpus_prints_a_split_a_forecast_and_its_most_sensitive_assumption(capsys) -> None:
    assert main(["plan", "--gpus", "32", "--model", "llama-3.1-8b"]) == 0
    printed = capsys.readouterr().out
    assert "ESTIMATED" in printed
    assert "32 GPUs as rollout and learner in turn : scorer = " in printed
    assert "set colocated=true rollouts.actors=" in printed
    assert "most sensitive to: a quarter more tokens of a response (256)" in printed


def test_plan_for_few_gpus_sets_the_sizes_with_which_the_learner_fits(capsys) -> None:
    assert main(["plan", "--gpus", "6", "--model", "llama-3.1-8b"]) == 0
    assert "learners.gradient_checkpointing=true" in capsys.readouterr().out


def test_plan_of_a_job_on_the_cpu_forecasts_it(capsys, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)  # of this machine, not of a Ray that other tests brought up
    assert main(["plan", str(ROOT / "jobs" / "demo.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "every phase fits" in printed
    assert "an iteration" in printed


def test_the_measured_profile_forecasts_the_demos_iterations_within_a_quarter() -> None:
    """DEMO_SECONDS are three iterations of the demo on the machine of the profile."""
    rates = devices.profile_of("cpu-2-cores")
    assert not rates.estimated
    settings = job_file.load_as(Job, ROOT / "jobs" / "demo.yaml")
    shape = shape_of(settings.model)
    result = cost_model.forecast(Scenario(settings, shape, rates, cost_model.split_of(settings), DEMO_TOKENS, cores=2))
    assert result.seconds == pytest.approx(statistics.mean(DEMO_SECONDS), rel=0.25)


def test_dialogues_take_the_time_of_their_turns_and_clients() -> None:
    shape, h100 = SHAPES["llama-3.1-8b"], devices.profile_of("h100")
    client = {"model": "llama-3.2-3b", "rollouts": {"gpus": 1, "actors": 2}}

    def seconds(simulate: dict | None) -> dict[str, float]:
        job = Job.model_validate({"simulate": simulate})
        return cost_model.forecast(Scenario(job, shape, h100, GpuSplit(4, 2, 2), 256)).stages

    alone, at_turn = seconds(None), seconds({"client": client, "turns": 3})
    assert at_turn["sample and score"] == alone["sample and score"], "nothing but the evaluation has dialogues"
    assert at_turn["evaluate"] > 3 * alone["evaluate"]
    later = seconds({"client": client, "turns": 3, "branch_turn": 3})
    dialogue = seconds({"client": client, "turns": 3, "rank": "dialogue"})
    assert alone["sample and score"] < later["sample and score"] < dialogue["sample and score"]
    slower = seconds({"client": {**client, "rollouts": {"gpus": 1}}, "turns": 3, "rank": "dialogue"})
    assert slower["sample and score"] > dialogue["sample and score"]


def test_a_prompt_grows_with_the_conversation() -> None:
    shape, h100 = SHAPES["llama-3.1-8b"], devices.profile_of("h100")

    def work(**settings) -> Scenario:
        return Scenario(Job.model_validate(settings), shape, h100, GpuSplit(4, 2, 2), 256)

    alone, contexts = work(), work(data={"conversations": "contexts", "max_turns": 7})
    assert contexts.prompt_tokens == alone.prompt_tokens + 3 * lengths.EXCHANGE_TOKENS
    short = work(data={"conversations": "contexts", "max_turns": 7, "max_context_chars": 400})
    assert short.prompt_tokens == alone.prompt_tokens + 100
    talks = work(simulate={"client": {"model": "llama-3.2-3b"}, "turns": 4, "rank": "dialogue"})
    assert talks.after(2).prompt_tokens == alone.prompt_tokens + 2 * (256 + lengths.CLIENT_TOKENS)
    each = [talks.turns(64, range(number, number + 1), 1).seconds for number in (1, 2, 3)]
    assert each == sorted(set(each)), "a later turn has more to read"
    assert talks.turns(64, range(1, 4), 1).seconds == pytest.approx(sum(each))
    idle = cost_model.forecast(talks).idle
    assert idle.keys() == {"rollouts", "scorers", "learners", "clients"}
    assert min(idle["scorers"], idle["rollouts"]) < 0.5, "the turns of dialogues are work"
    late = {"client": {"model": "llama-3.2-3b"}, "turns": 4, "branch_turn": 4}
    assert cost_model.forecast(work(simulate=late)).stages["train"] > cost_model.forecast(alone).stages["train"]


def test_clients_keep_their_gpus_in_a_split() -> None:
    shape, h100 = SHAPES["llama-3.2-3b"], devices.profile_of("h100")
    client = {"model": "llama-3.2-3b", "rollouts": {"gpus": 1, "actors": 2}}
    job = Job.model_validate({"simulate": {"client": client}})
    assert allocation.allocate(job, shape, h100, 8, 256.0).gpus == 6
    with pytest.raises(InputError, match="0 GPUs, without the 2 of simulated clients, do not hold"):
        allocation.allocate(job, shape, h100, 2, 256.0)


def write_run(place: Path, gpus: float, rollout_busy: float, scorer_busy: float, train_s: float) -> str:
    """A run of two iterations with 2 rollouts, 4 scorers and 2 ranks; sampling took 100 s."""
    settings = {
        "rollouts": {"actors": 2, "gpus": gpus},
        "scorers": {"actors": 4, "gpus": gpus},
        "learners": {"actors": 2, "gpus": gpus},
    }
    place.mkdir()
    (place / "job.yaml").write_text(yaml.safe_dump(Job.model_validate(settings).model_dump(mode="json")))
    for iteration in (1, 2):
        stages = {
            "pairs": {
                "seconds": 90.0,
                "mean_tokens": 50.0 * iteration,
                "busy": {"rollout": 0.9 * rollout_busy, "scorer": 0.9 * scorer_busy},
            },
            "evaluate": {"seconds": 10.0, "busy": {"rollout": 0.1 * rollout_busy, "scorer": 0.1 * scorer_busy}},
            "train": {"seconds": train_s},
            "sync": {"export_s": 1.0, "load_s": 1.0},
        }
        (place / f"iteration-{iteration:03d}").mkdir()
        for name, facts in stages.items():
            (place / f"iteration-{iteration:03d}" / f"{name}.json").write_text(json.dumps(facts))
    return str(place)


def advice_for(run: str) -> str:
    return advice.forecast(job(), device="cpu-2-cores", finished=run)


def test_idle_scorers_become_engines(tmp_path) -> None:
    printed = advice_for(write_run(tmp_path / "run", 1, rollout_busy=198, scorer_busy=40, train_s=40))
    # of 142 s: engines worked 99, scorers 10, ranks 40
    assert "idle: rollouts 30 %, scorers 93 %, learners 72 %" in printed
    assert "from 2 : 4 : 2 to 4 : 1 : 3, which shortens an iteration by about 44 %" in printed
    assert "75 per response (measured in" in printed


def test_a_slow_learner_gets_gpus(tmp_path) -> None:
    printed = advice_for(write_run(tmp_path / "run", 1, rollout_busy=198, scorer_busy=100, train_s=1000))
    assert "train takes 91 % of an iteration" in printed
    assert "from 2 : 4 : 2 to 2 : 1 : 5" in printed


def test_a_balanced_run_stays_as_it_is(tmp_path) -> None:
    printed = advice_for(write_run(tmp_path / "run", 1, rollout_busy=100, scorer_busy=200, train_s=50))
    assert "the roles are in balance" in printed


def test_roles_that_share_cores_gain_nothing_from_other_numbers(tmp_path) -> None:
    printed = advice_for(write_run(tmp_path / "run", 0, rollout_busy=150, scorer_busy=100, train_s=50))
    assert "all roles share the same cores" in printed
    assert "pairs takes 59 % of an iteration" in printed


def test_records_without_busy_seconds_are_refused(tmp_path) -> None:
    run = write_run(tmp_path / "run", 0, rollout_busy=150, scorer_busy=100, train_s=50)
    (tmp_path / "run" / "iteration-002" / "evaluate.json").write_text(json.dumps({"seconds": 10.0}))
    with pytest.raises(ValueError, match="was made by an older version"):
        advice_for(run)


def test_plan_for_a_cluster_needs_an_address(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "job.yaml").write_text("seed: 1\n")
    assert main(["plan", str(tmp_path / "job.yaml"), "--cluster"]) == errors.INPUT_ERROR
    assert "give --address or set RAY_ADDRESS" in capsys.readouterr().err
