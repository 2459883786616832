"""The search by itself, without processes and on a clock of the test's own: who is tried, who leads, who may be chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.inference.engines import engine_entry_points
from cloister.inference.machine import Machine, Node
from cloister.inference.machine_limits import Limits
from cloister.inference.optimizer.candidates import Candidate, Source, list_candidates, variants
from cloister.inference.optimizer.contest import FULL, Contest, Surroundings
from cloister.inference.optimizer.forms import Given
from cloister.inference.optimizer.measurement import Load, Meter, Sample, median, rate_together
from cloister.inference.optimizer.pool import Pool
from cloister.inference.optimizer.standing import (
    Entrant,
    Judgement,
    affordable,
    chosen,
    cost,
    ranked,
    references_of,
    refused,
)
from cloister.inference.optimizer.trial_process import TrialFailed

GB = 10**9
HUGGING_FACE = Source("huggingface", 2 * GB, 16.0)


def machine(available: int = 20 * GB) -> Machine:
    cores = (frozenset({0}), frozenset({1}))
    return Machine(
        architecture="x86_64",
        vendor="V",
        model="M",
        features=frozenset({"avx2"}),
        cores=cores,
        nodes=(Node(0, frozenset({0, 1}), available),),
        limits=Limits(None, available, available),
        page_size=4096,
        huge_pages="madvise",
    )


def everything(_: str) -> bool:
    return True


def entrant(name: str, *, decode: float = 10.0, memory: int = GB, **about: Any) -> Entrant:
    candidate = Candidate(engine=name, **about)
    sample = Sample(512, first_token=5.0, decode=decode, streams=8, streams_together=3 * decode)
    return Entrant(candidate, state="measured", samples=[sample], memory=memory)


def judged(one: Entrant, change: float) -> Entrant:
    one.judgement = Judgement(
        perplexity=10.0, tokens=100, change=change, change_error=0.001, agreement=0.9,
        reference="r", text_sha256="00" * 32,
    )  # fmt: skip
    return one


def test_the_most_promising_is_tried_first_and_what_is_absent_has_its_reason() -> None:
    found, out = list_candidates(
        HUGGING_FACE, machine(), "latency", installed=lambda package: "openvino" not in package
    )
    assert found[0].name == "llamacpp q4_0"
    assert {one.name for one in found} >= {"torch int8", "torch fp32", "llamacpp f16", "llamacpp q4_k_m"}
    assert {one.reason for one in out if one.engine == "openvino"} == {"openvino_genai is not installed"}


def test_what_does_not_fit_the_memory_is_left_out() -> None:
    found, out = list_candidates(HUGGING_FACE, machine(available=2 * GB), "latency", installed=everything)
    assert "llamacpp q4_0" in {one.name for one in found}
    reasons = {one.name: one.reason for one in out}
    assert reasons["torch fp32"] == "needs about 5.5 GB of memory, and 2.0 GB are free"
    assert "llamacpp f16" in reasons


def test_for_throughput_an_engine_with_an_integer_product_comes_first() -> None:
    found, _ = list_candidates(HUGGING_FACE, machine(), "throughput", installed=everything)
    assert found[0].name == "torch int8"


def test_for_memory_the_smallest_comes_first() -> None:
    found, _ = list_candidates(HUGGING_FACE, machine(), "memory", installed=everything)
    assert found[0].bits == min(one.bits for one in found)


@pytest.mark.parametrize(
    ("kind", "engines"), [("gguf", {"llamacpp", "openvino"}), ("openvino", {"openvino"})]
)
def test_a_model_that_is_converted_already_is_computed_as_it_is(kind: Any, engines: set[str]) -> None:
    found, _ = list_candidates(Source(kind, GB, 8.5), machine(), "latency", installed=everything)
    assert {one.engine for one in found} - (
        engine_entry_points().keys() - {"llamacpp", "openvino", "torch"}
    ) == engines
    assert {one.form for one in found} == {"as it is"}


def test_variants_change_threads_and_the_cache_alone() -> None:
    best = Candidate(engine="llamacpp", form="q4_0")
    found = variants(best, machine())
    assert [one.name for one in found] == [
        "llamacpp q4_0, kv q8_0",
        "llamacpp q4_0, 1 thread",
    ]
    assert {one.form for one in found} == {"q4_0"}
    openvino = variants(Candidate(engine="openvino", form="q4_0"), machine())
    assert [one.name for one in openvino] == ["openvino q4_0, 2 threads"]


def test_the_goal_decides_who_leads() -> None:
    quick, small = entrant("quick", decode=20.0, memory=3 * GB), entrant("small", decode=9.0, memory=GB)
    wide = entrant("wide", decode=8.0, memory=2 * GB)
    wide.samples = [replace(wide.sample, streams_together=900.0)]
    everybody = [small, wide, quick]
    assert ranked(everybody, "latency")[0] is quick
    assert ranked(everybody, "throughput")[0] is wide
    assert ranked(everybody, "memory")[0] is small


def test_latency_is_the_time_of_one_whole_answer() -> None:
    assert cost(entrant("a", decode=16.0), "latency") == pytest.approx(5.0 + 128 / 16)


def test_what_loses_too_much_quality_is_not_chosen() -> None:
    quick = judged(entrant("quick", decode=30.0, form="q4_0"), change=0.04)
    good = judged(entrant("good", decode=20.0, form="q8_0"), change=0.001)
    assert chosen([quick, good], "latency", 0.03) is good
    assert chosen([quick, good], "latency", 0.05) is quick
    assert "loses 4.0% of quality" in refused(quick, 0.03)


def test_whose_quality_is_unknown_is_not_chosen_unless_it_computes_what_was_given() -> None:
    quantised = entrant("a", decode=30.0, form="q4_0")
    given = entrant("b", decode=10.0)
    small_cache = entrant("c", decode=40.0, kv_cache="q8_0")
    assert chosen([quantised, given, small_cache], "latency", 0.03) is given
    assert chosen([quantised], "latency", 0.03) is None


def test_a_variant_has_to_be_better_by_more_than_noise() -> None:
    best = entrant("a", decode=20.0)
    variant = entrant("a", decode=20.2, threads=1)
    assert ranked([variant, best], "latency")[0] is best
    variant.samples = [replace(variant.sample, decode=25.0)]
    assert ranked([variant, best], "latency")[0] is variant


def test_sixteen_bits_are_reference_enough_and_torch_looks_at_a_whole_text_at_once() -> None:
    slow = Candidate(engine="torch", precision="fp32", bits=32, promise=0.1)
    half = Candidate(engine="torch", precision="bf16", bits=16, promise=0.2)
    other = Candidate(engine="llamacpp", form="f16", bits=16, promise=0.5)
    small = Candidate(engine="llamacpp", form="q4_0", bits=4.5, promise=1.0)
    assert references_of([small, slow, other, half]) == [half, slow, other]
    assert references_of([small, slow, other, half], short=True) == [other, half, slow]
    assert references_of([small]) == [small]
    assert references_of([]) == []


def test_wide_instructions_promise_most_to_engines_that_have_them() -> None:
    plain, _ = list_candidates(HUGGING_FACE, machine(), "latency", installed=everything)
    wide = replace(machine(), features=frozenset({"avx2", "amx_int8"}))
    quick, _ = list_candidates(HUGGING_FACE, wide, "latency", installed=everything)
    assert plain[0].name == "llamacpp q4_0"
    assert {one.engine for one in quick[:3]} == {"openvino", "torch"}
    short, _ = list_candidates(HUGGING_FACE, wide, "latency", short=True, installed=everything)
    assert [one.name for one in short] == [one.name for one in plain]


def test_as_much_text_is_looked_at_as_there_is_time() -> None:
    assert affordable(1.0, 1.0) == 4
    assert affordable(60.0, 20.0) == 18
    assert affordable(1e6, 1e6) == 32


def test_streams_count_from_when_the_last_began() -> None:
    assert rate_together([[0.0, 1.0, 2.0, 3.0], [1.5, 2.5, 3.5]]) == pytest.approx(4 / 2.0)
    assert rate_together([[], []]) == 0.0
    assert rate_together([[1.0]]) == 0.0


def test_the_median_of_rounds_is_taken_column_by_column() -> None:
    rounds = [Sample(500, float(n), 10.0 * n, 8, 100.0 * n) for n in (1, 9, 2)]
    assert median(rounds) == Sample(500, 2.0, 20.0, 8, 200.0)


class Paced:
    """An engine on a clock of the test's: two seconds to the first token, a tenth for each."""

    context_length, slots, embedding_length, tools = 640, 1, None, False

    def __init__(self) -> None:
        self.now = 0.0
        self.prompts: list[str] = []

    def generate(
        self, kind: str, request: Mapping[str, Any], sink: Any, *, tenant: bytes | None = None
    ) -> None:
        assert tenant is None
        self.prompts.append(request["prompt"])
        self.now += 1.9
        for _ in range(request["max_tokens"]):
            self.now += 0.1
            sink({"choices": [{"index": 0, "text": "a", "finish_reason": None}]})
        words = len(request["prompt"].split())
        sink(
            {
                "choices": [],
                "usage": {"prompt_tokens": 2 * words + 1, "completion_tokens": request["max_tokens"]},
            }
        )

    def embed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        return request

    def stats(self) -> Any:
        return None

    def close(self) -> None:
        pass


def test_an_engine_is_measured_by_what_it_tells_and_when() -> None:
    engine = Paced()
    meter = Meter(engine, clock=lambda: engine.now)
    samples = [
        meter.measure(Load(prompt=512, decode=11, streams=8, stream_tokens=4), seed=n) for n in range(3)
    ]
    assert samples[0].first_token == pytest.approx(2.0)
    assert samples[0].decode == pytest.approx(10.0)
    assert 460 <= samples[0].prompt_tokens <= 512
    assert len({prompt.split()[0] for prompt in engine.prompts}) == len(engine.prompts), (
        "no prompt begins like another"
    )


class Site:
    """A contest without processes: each candidate's figures and fate are told, each question takes time."""

    def __init__(self, tmp_path: Path, fates: Mapping[str, Any], *, seconds: float = 1.0) -> None:
        self.now = 0.0
        self.fates = fates
        self.seconds = seconds
        self.asked: list[tuple[str, str]] = []
        self.open = 0
        self.most_open = 0
        self.started = 0
        self.folder = tmp_path
        (tmp_path / "room").mkdir()
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "w.safetensors").write_bytes(b"x")
        self.given = Given(tmp_path / "model", "model", HUGGING_FACE, ("w.safetensors",))

    def contest(self, *candidates: Candidate, budget: float = 100.0, max_loss: float = 0.03) -> Contest:
        return Contest(
            self.given, candidates, [], goal="latency", budget=budget, max_loss=max_loss, text=None,
            room=self.folder / "room",
            surroundings=Surroundings(
                machine=machine(), start=lambda: FakeTrial(self), free_memory=lambda: 20 * GB,
                progress=lambda *_: None, clock=lambda: self.now,
            ),
        )  # fmt: skip


class FakeTrial:
    def __init__(self, site: Site) -> None:
        self.site = site
        self.name = ""
        self.closed = False
        site.open += 1
        site.started += 1
        site.most_open = max(site.most_open, site.open)

    def ask(self, do: str, deadline: float, **request: Any) -> Mapping[str, Any]:
        site = self.site
        if do == "make":
            Path(request["target"]).write_bytes(b"made")
            return {}
        engine = request.get("engine", self.name)
        self.name = engine
        site.asked.append((do, engine))
        fate = site.fates.get(engine, {})
        site.now += fate.get(f"seconds to {do}", fate.get("seconds", site.seconds))
        if site.now > deadline:
            site.now = deadline
            raise TrialFailed("it was not done when its time was over")
        if fate.get("fails") == do:
            raise TrialFailed("it crashed")
        if do == "open":
            return {"load_seconds": 1.0, "context_length": 640}
        if do == "quality":
            return {
                "perplexity": 10.0, "change": fate.get("change", 0.0), "change_error": 0.0, "agreement": 1.0,
                "tokens": 100, "text_sha256": "00" * 32,
            }  # fmt: skip
        sample = {
            "prompt_tokens": 512, "first_token": 1.0, "decode": fate.get("decode", 10.0), "streams": 8,
            "streams_together": 20.0,
        }  # fmt: skip
        return {"sample": sample, "memory": GB}

    def pause(self) -> None:
        pass

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.site.open -= 1


def some(*engines: str) -> list[Candidate]:
    return [
        Candidate(engine=name, form="q4_0", bits=4.5, promise=1 - n / 10) for n, name in enumerate(engines)
    ]


REFERENCE = Candidate(engine="reference", form="f16", bits=16, promise=0.1)


def test_the_leaders_are_measured_most_often_and_nothing_stays_open(tmp_path: Path) -> None:
    site = Site(tmp_path, {"a": {"decode": 30.0}, "b": {"decode": 29.0}, "c": {"decode": 5.0}})
    entrants = site.contest(*some("a", "b", "c"), REFERENCE, budget=200.0).run()
    best = chosen(entrants, "latency", 0.03)
    assert best is not None
    assert best.candidate.engine == "a"
    rounds = {one.candidate.name: len(one.samples) for one in entrants}
    assert rounds["a q4_0"] > rounds["c q4_0"]
    assert rounds["b q4_0"] > 1
    assert site.open == 0


def test_a_candidate_that_fails_is_out_and_the_others_go_on(tmp_path: Path) -> None:
    site = Site(tmp_path, {"a": {"fails": "open"}, "b": {"fails": "measure"}})
    entrants = site.contest(*some("a", "b", "c"), REFERENCE).run()
    states = {
        one.candidate.engine: (one.state, one.reason) for one in entrants if one.candidate.threads is None
    }
    assert states["a"] == states["b"] == ("failed", "it crashed")
    assert states["c"][0] == "measured"
    assert site.open == 0


def test_quality_that_cannot_be_measured_leaves_a_candidate_unchosen(tmp_path: Path) -> None:
    site = Site(tmp_path, {"a": {"decode": 30.0, "fails": "quality"}, "b": {"decode": 20.0}})
    entrants = site.contest(*some("a", "b"), REFERENCE).run()
    best = chosen(entrants, "latency", 0.03)
    assert best is not None
    assert best.candidate.engine == "b"


def test_the_search_goes_down_the_ranking_until_quality_is_good(tmp_path: Path) -> None:
    bad = {"decode": 30.0, "change": 0.5}
    site = Site(tmp_path, {"a": bad, "b": bad, "c": {"decode": 20.0}})
    best = chosen(site.contest(*some("a", "b", "c"), REFERENCE).run(), "latency", 0.03)
    assert best is not None
    assert best.candidate.engine == "c"


TORCH = Candidate(engine="torch", precision="bf16", bits=16, promise=0.0)


def test_what_others_are_compared_with_need_not_be_measured(tmp_path: Path) -> None:
    site = Site(tmp_path, {"a": {"decode": 30.0}, "torch": {"seconds to open": 60.0}})
    entrants = site.contest(*some("a"), TORCH, budget=100.0).run()
    reference = next(one for one in entrants if one.candidate is TORCH)
    assert reference.samples == []
    assert reference.judgement is not None
    best = chosen(entrants, "latency", 0.03)
    assert best is not None
    assert (best.candidate.engine, best.judgement and best.judgement.reference) == ("a", "torch bf16")


def test_another_is_compared_with_where_the_first_cannot_be_judged(tmp_path: Path) -> None:
    site = Site(tmp_path, {"torch": {"fails": "quality"}, "a": {"decode": 30.0}})
    entrants = site.contest(*some("a"), TORCH, REFERENCE, budget=300.0).run()
    best = chosen(entrants, "latency", 0.03)
    assert best is not None
    assert (best.candidate.engine, best.judgement and best.judgement.reference) == ("a", "reference f16")


def test_a_model_of_torch_that_is_open_is_judged_where_it_is(tmp_path: Path) -> None:
    site = Site(tmp_path, {})
    site.contest(Candidate(engine="torch", precision="int8", bits=8.5, promise=1.0), TORCH, budget=30.0).run()
    opened = [one for one in site.asked if one == ("open", "torch")]
    assert ("quality", "torch") in site.asked
    assert site.started == len(opened)


def test_a_candidate_that_hangs_leaves_time_for_the_others(tmp_path: Path) -> None:
    site = Site(tmp_path, {"a": {"seconds": 1e9}})
    entrants = site.contest(*some("a", "b"), REFERENCE, budget=60.0).run()
    best = chosen(entrants, "latency", 0.03)
    assert best is not None
    assert best.candidate.engine == "b"
    assert site.now <= 60.0


@pytest.mark.parametrize("budget", [5.0, 10.0, 20.0, 50.0, 500.0])
def test_the_budget_is_kept(tmp_path: Path, budget: float) -> None:
    site = Site(tmp_path, {"c": {"seconds": 40.0}}, seconds=2.0)
    entrants = site.contest(*some("a", "b", "c", "d"), REFERENCE, budget=budget).run()
    assert site.now <= budget
    assert budget < 20 or any(one.state == "measured" for one in entrants)
    assert all(one.state != "waiting" for one in entrants)
    assert all(one.reason for one in entrants if one.state in ("failed", "left out"))


def test_the_load_of_a_round_fits_the_slots_that_are_opened() -> None:
    assert FULL.prompt + FULL.decode < 640


def test_few_models_are_open_at_once(tmp_path: Path) -> None:
    site = Site(tmp_path, {})
    site.contest(*some(*"abcdefgh"), REFERENCE, budget=500.0).run()
    assert site.most_open <= 6


def test_memory_is_made_by_closing_the_last_of_the_ranking(tmp_path: Path) -> None:
    site = Site(tmp_path, {})
    free = [1, 1, 5]
    pool = Pool(lambda: FakeTrial(site), lambda: free.pop(0))
    for name in ("first", "second", "third", "unknown"):
        pool.start(name)
    pool.make_room(5, ["first", "second", "third"])
    assert [name for name in ("first", "second", "third", "unknown") if pool.get(name)] == ["first", "second"]
    pool.close()
    assert site.open == 0
