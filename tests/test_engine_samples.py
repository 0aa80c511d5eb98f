"""Several samples of one request: what comes before the first draw is computed once, and each is as if alone."""

from concurrent.futures import CancelledError as FutureCancelled
from dataclasses import replace

import pytest
from still.backends.engine import Decode, Engine, Forced, Request, Sampling
from still.backends.engine.kernels import native_level
from still.backends.models import Adapter
from still.errors import EngineError

PROMPT = tuple(range(1000, 1107))
HOT = Sampling(temperature=1.0, seed=5)


@pytest.fixture
def engine(tiny_int8):
    with Engine(tiny_int8, cache_tokens=4096) as engine:
        yield engine
        assert engine._scheduler.idle
        assert engine._scheduler.pool.num_used == 0


def alone(engine, request, seed):
    return engine.submit(replace(request, sampling=replace(request.sampling, seed=seed))).result()


exact = pytest.mark.skipif(native_level() == 0, reason="bit-equality is a promise of the compiled decoder")


@exact
@pytest.mark.parametrize(
    "steps",
    [
        (Decode(20, ignore_eos=True),),
        (Forced((7, 8), score=True), Forced((4, 5)), Decode(9, ignore_eos=True), Forced((6,)), Decode(5, ignore_eos=True)),
        (Decode(30, grammar='start: "the number is " /[0-9]{2,9}/ "\\n"'), Forced((1, 2)), Decode(4, ignore_eos=True)),
    ],
    ids=["decode", "steps", "grammar"],
)
def test_each_sample_is_the_request_with_its_seed(engine, steps):
    request = Request(PROMPT, steps, HOT)
    results = [future.result() for future in engine.submit_samples(request, 6)]
    assert len({tuple(step.tokens for step in result.steps) for result in results}) > 1
    for i, result in enumerate(results):
        expected = alone(engine, request, HOT.seed + i)
        assert result.steps == expected.steps
        assert result.usage.decoded_tokens == expected.usage.decoded_tokens
        assert result.usage.jumped_tokens == expected.usage.jumped_tokens
        assert result.usage.prompt_tokens == expected.usage.prompt_tokens


def test_the_prompt_is_computed_once_and_reported_as_cached(engine):
    results = [f.result() for f in engine.submit_samples(Request(PROMPT, (Decode(8, ignore_eos=True),), HOT), 16)]
    assert [result.usage.cached_tokens for result in results] == [0] + 15 * [len(PROMPT)]
    assert engine.stats.prefilled_tokens + engine.stats.decoded_tokens == len(PROMPT) - 1 + 16 * 8
    assert engine.stats.requests == 16


def test_samples_share_the_prompts_pages_while_they_run(engine):
    seen = []
    core = engine._core
    compute = core.runner.compute

    def watching(plan):
        seen.append(core.scheduler.pool.num_used)
        return compute(plan)

    core.runner.compute = watching
    for future in engine.submit_samples(Request(PROMPT, (Decode(5, ignore_eos=True),), HOT), 16):
        future.result()
    # 107 tokens are six full pages, held once, and one open page, of which each sample has its own.
    assert max(seen) == 6 + 16


def test_requests_that_arrive_together_and_their_samples_compute_a_prefix_once(engine):
    requests = [Request((*PROMPT, 2000 + i), (Decode(4, ignore_eos=True),), HOT) for i in range(16)]
    futures = [future for request in requests for future in engine.submit_samples(request, 4)]
    for future in futures:
        future.result()
    assert engine.stats.prefilled_tokens < len(PROMPT) + 16 * 16


def test_cancelling_one_sample_leaves_the_others(engine):
    request = Request(PROMPT, (Decode(30, ignore_eos=True),), HOT)
    expected = [alone(engine, request, HOT.seed + i).steps[0].tokens for i in range(4)]
    for victim in range(4):
        futures = engine.submit_samples(request, 4)
        assert futures[victim].cancel()
        for i, future in enumerate(futures):
            if i == victim:
                with pytest.raises(FutureCancelled):
                    future.result()
            else:
                assert future.result().steps[0].tokens == expected[i]
    engine.generate((1, 2, 3), max_tokens=1)  # one more step, so that cancelled samples are swept


@exact
def test_samples_survive_preemption(tiny_int8, engine):
    request = Request(PROMPT[:40], (Decode(60, ignore_eos=True),), HOT)
    expected = [alone(engine, request, HOT.seed + i).steps for i in range(6)]
    with Engine(tiny_int8, cache_tokens=256) as tight:
        assert [f.result().steps for f in tight.submit_samples(request, 6)] == expected
        assert tight.stats.preemptions > 0
    with Engine(tiny_int8, cache_tokens=4096, max_running=2) as narrow:
        assert [f.result().steps for f in narrow.submit_samples(request, 6)] == expected


def test_samples_without_a_draw_all_have_the_same_answer(engine):
    for steps in ((Forced((2, 3)),), (Forced((2, 3), score=True),), (Decode(9, grammar='start: "yes"'),)):
        results = [future.result() for future in engine.submit_samples(Request((1, 5), steps, HOT), 3)]
        assert results[0].steps == results[1].steps == results[2].steps


def test_no_samples_are_refused(engine):
    with pytest.raises(EngineError, match="n=0 samples"):
        engine.submit_samples(Request((1,), (Decode(1),)), 0)


def test_a_broken_step_fails_all_samples(engine):
    def broken(_):
        raise EngineError("the step broke")

    compute, engine._core.runner.compute = engine._core.runner.compute, broken
    futures = engine.submit_samples(Request((1, 2), (Decode(4),)), 3)
    for future in futures:
        with pytest.raises(EngineError, match="the step broke"):
            future.result()
    engine._core.runner.compute = compute
    assert engine.generate((1, 2, 3), max_tokens=2).usage.decoded_tokens >= 1


def test_adapters_do_not_share_pages(engine):
    """The same prompt under the same name finds its pages; under another, or after a reload, it does not."""

    def cached(adapter):
        return engine.submit(Request(PROMPT, (Decode(1),), adapter=adapter)).result().usage.cached_tokens

    engine._core.adapters.update(red=Adapter("red", "1", ({}, {})), blue=Adapter("blue", "2", ({}, {})))
    everything = len(PROMPT) - 1
    assert [cached(None), cached("red"), cached("blue")] == [0, 0, 0]
    assert [cached(None), cached("red"), cached("blue")] == [everything] * 3
    engine._core.adapters["red"] = Adapter("red", "3", ({}, {}))
    assert cached("red") == 0
    with pytest.raises(EngineError, match=r"adapter 'green' is not loaded \(loaded: blue, red\)"):
        cached("green")


def test_waste_is_the_open_rest_of_the_last_pages(tiny_int8):
    """A prompt of 17 tokens has 15 open slots of 32; each drawn token that is computed takes one."""
    with Engine(tiny_int8, cache_tokens=4096) as engine:
        engine.submit(Request(PROMPT[:17], (Decode(3, ignore_eos=True),))).result()
        stats = engine.stats
    assert stats.wasted_fraction == pytest.approx((15 + 14 + 13) / (3 * 32))
    assert stats.wasted_now == pytest.approx(13 / 32)
