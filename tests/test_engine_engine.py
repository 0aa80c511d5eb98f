"""The engine as callers see it: batching, reuse, stopping, sampling, refusal, cancellation. On a tiny random model."""

import subprocess
import sys
import threading
from concurrent.futures import CancelledError as FutureCancelled
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.engine import Decode, Engine, Forced, Request, Sampling
from still.backends.engine.sampler import draw
from still.errors import CancelledError, EngineError

WORDS = ["red", "green", "blue", "one", "two", "three", "sun", "moon", "rain", "tree"]


def prompt(tokenizer, seed, length):
    text = " ".join(WORDS[(seed * 7 + i * (seed + 3)) % len(WORDS)] for i in range(length))
    return tuple(tokenizer.encode(text))


@pytest.fixture(params=["torch", "compiled"])
def engine(request, tiny_model, tiny_int8):
    """Both decoders; where nothing is compiled, torch runs int8 too."""
    with Engine(tiny_model if request.param == "torch" else tiny_int8, cache_tokens=4096) as engine:
        yield engine
        assert engine._scheduler.idle
        engine._scheduler.pool.check()
        assert engine._scheduler.pool.num_used == 0, "finished requests gave every page back"


def test_batched_requests_answer_as_alone(tiny_model):
    requests = [Request(prompt(tiny_model.tokenizer, i, 5 + 9 * i), (Decode(12, ignore_eos=True),)) for i in range(12)]
    with Engine(tiny_model, cache_tokens=4096) as engine:
        together = [f.result().steps[0].tokens for f in [engine.submit(r) for r in requests]]
    for request, tokens in zip(requests, together, strict=True):
        with Engine(tiny_model, cache_tokens=4096) as fresh:
            assert fresh.submit(request).result().steps[0].tokens == tokens


@pytest.mark.parametrize("samples", [1, 3])
def test_a_request_that_breaks_leaves_the_others_alone(engine, samples):
    """A grammar that turns out not to compile when its step is reached, in the middle of a batch."""
    tokenizer = engine.model.tokenizer
    good = [Request(prompt(tokenizer, i, 30 + i), (Decode(12, ignore_eos=True),)) for i in range(4)]
    alone = [engine.submit(request).result().steps[0].tokens for request in good]
    bad = Request(prompt(tokenizer, 9, 20), (Decode(3, ignore_eos=True), Decode(3, "start: nowhere")), Sampling(0.8))
    futures = [engine.submit(request) for request in good]
    broken = engine.submit_samples(bad, samples)
    futures += [engine.submit(request) for request in good]
    for future in broken:
        with pytest.raises(EngineError, match="does not compile"):
            future.result()
    assert [future.result().steps[0].tokens for future in futures] == alone * 2


def test_a_prefix_is_computed_once_for_requests_that_arrive_together(engine):
    tokenizer = engine.model.tokenizer
    prefix = prompt(tokenizer, 1, 400)
    requests = [Request(prefix + prompt(tokenizer, 2 + i, 8), (Decode(3, ignore_eos=True),)) for i in range(32)]
    for future in [engine.submit(r) for r in requests]:
        future.result()
    total = sum(len(r.prompt) for r in requests)
    assert engine.stats.prefilled_tokens < len(prefix) + 32 * 40
    assert engine.stats.reused_tokens > 0.8 * total


def test_a_cached_prefix_changes_no_token(engine):
    request = Request(prompt(engine.model.tokenizer, 3, 150), (Decode(20, ignore_eos=True),))
    cold = engine.submit(request).result()
    warm = engine.submit(request).result()
    assert cold.usage.cached_tokens == 0
    assert warm.usage.cached_tokens == len(request.prompt) - 1, "all but the token whose logits are needed"
    assert warm.steps[0].tokens == cold.steps[0].tokens
    # float32 sums depend on the number of rows; the compiled decoder's do not (test_engine_native).
    assert warm.steps[0].logprobs == pytest.approx(cold.steps[0].logprobs, abs=1e-4)


def test_a_small_cache_preempts_and_still_answers_the_same(tiny_model):
    requests = [Request(prompt(tiny_model.tokenizer, i, 30), (Decode(60, ignore_eos=True),)) for i in range(8)]
    with Engine(tiny_model, cache_tokens=4096) as roomy:
        expected = [f.result().steps[0].tokens for f in [roomy.submit(r) for r in requests]]
    with Engine(tiny_model, cache_tokens=256) as tight:
        found = [f.result().steps[0].tokens for f in [tight.submit(r) for r in requests]]
        assert tight.stats.preemptions > 0
        tight._scheduler.pool.check()
    assert found == expected


@settings(max_examples=6, deadline=None)  # the state machine does most of this without threads
@given(data=st.data())
def test_random_traffic_leaks_nothing_and_answers_as_alone(tiny_model, data):
    """Random lengths, shared prefixes and cancellations on a small cache."""
    tokenizer = tiny_model.tokenizer
    prefixes = [prompt(tokenizer, i, 60) for i in range(3)]
    plans = data.draw(
        st.lists(
            st.tuples(st.integers(0, 2), st.integers(0, 60), st.integers(1, 30), st.booleans()), min_size=1, max_size=10
        )
    )
    requests = [
        Request(prefixes[which][:cut] + prompt(tokenizer, n, 6), (Decode(new, ignore_eos=True),))
        for n, (which, cut, new, _) in enumerate(plans)
    ]
    with Engine(tiny_model, cache_tokens=320) as engine:
        futures = [engine.submit(r) for r in requests]
        for future, plan in zip(futures, plans, strict=True):
            if plan[3]:
                future.cancel()
        answers = [None if f.cancelled() else f.result().steps[0].tokens for f in futures]
        with pytest.raises(EngineError):
            engine.generate(prefixes[0], max_tokens=1000)
        engine.generate(prefixes[0], max_tokens=1)  # one more step, so that cancelled sequences are swept
        engine._scheduler.pool.check()
        assert engine._scheduler.pool.num_used == 0
        alone = [engine.submit(r).result().steps[0].tokens for r in requests]
    for answer, expected in zip(answers, alone, strict=True):
        assert answer is None or answer == expected


def test_sampling_is_a_function_of_request_and_seed(engine):
    tokens = prompt(engine.model.tokenizer, 4, 20)

    def sample(seed, **kwargs):
        sampling = Sampling(temperature=1.0, seed=seed, **kwargs)
        return engine.generate(tokens, max_tokens=16, sampling=sampling).steps[0].tokens

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(6)}) > 1
    greedy = engine.generate(tokens, max_tokens=16).steps[0].tokens
    assert sample(5, top_k=1) == greedy
    assert sample(5, top_p=1e-9) == greedy
    assert sample(5, min_p=0.999999) == greedy


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_frequencies_follow_the_distribution(temperature):
    """Chi-square of 4000 draws over five tokens; 99.99 % quantile for 4 degrees of freedom."""
    logits = torch.tensor([1.0, 0.0, float("-inf"), -1.0, 0.5, -0.3])
    sampling = [Sampling(temperature=temperature, seed=seed) for seed in range(4000)]
    counts = torch.bincount(torch.tensor([draw(logits, s, position=7) for s in sampling]), minlength=6)
    assert counts[2] == 0
    expected = (logits / temperature).softmax(0) * 4000
    allowed = expected > 0
    assert ((counts - expected) ** 2 / expected)[allowed].sum() < 23.5


def test_nucleus_keeps_the_smallest_sufficient_set():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    drawn = {draw(logits, Sampling(temperature=1.0, top_p=0.7, seed=s), 0) for s in range(200)}
    assert drawn == {0, 1}


def test_stop_string_is_cut_off_and_ends_the_step(engine):
    tokens = prompt(engine.model.tokenizer, 6, 12)
    free = engine.generate(tokens, max_tokens=30).steps[0].text
    stop = free[10:13]
    result = engine.generate(tokens, max_tokens=30, stop=[stop]).steps[0]
    assert result.finish_reason == "stop"
    assert result.text == free[: free.index(stop)]


def test_grammar_limits_what_can_be_said(engine):
    tokens = prompt(engine.model.tokenizer, 7, 12)
    for seed in range(20):
        sampling = Sampling(temperature=2.0, seed=seed)
        step = engine.generate(tokens, max_tokens=20, grammar='start: " " /[0-9]{3}-[a-f]{2}/ "\\n"', sampling=sampling)
        assert step.steps[0].finish_reason == "grammar"
        head, tail = step.text.strip().split("-")
        assert len(head) == 3
        assert head.isdigit()
        assert set(tail) <= set("abcdef")


def test_forced_text_in_a_grammar_is_not_decoded(engine):
    tokens = prompt(engine.model.tokenizer, 8, 12)
    grammar = 'start: "the answer is always the same and costs nothing: " /[ab]/'
    result = engine.generate(tokens, max_tokens=40, grammar=grammar)
    assert result.usage.jumped_tokens > result.usage.decoded_tokens
    assert result.text[:-1] == "the answer is always the same and costs nothing: "


def test_running_out_of_tokens_inside_a_grammar_closes_the_line(engine):
    tokens = tuple(prompt(engine.model.tokenizer, 9, 12))
    decode = Decode(5, 'start: /[a-z ]{1,500}/ "\\n"', closing=8)
    step = engine.submit(Request(tokens, (decode,))).result().steps[0]
    assert step.finish_reason == "closed"
    assert step.text.endswith("\n")
    assert len(step.tokens) > 5
    (step,) = engine.submit(Request(tokens, (replace(decode, closing=0),))).result().steps
    assert step.finish_reason == "length"
    assert len(step.tokens) == 5


def test_score_is_the_log_probability_of_each_token(engine):
    tokenizer = engine.model.tokenizer
    tokens, continuation = prompt(tokenizer, 10, 20), prompt(tokenizer, 11, 6)
    (scores,) = engine.score(tokens, [continuation])
    assert len(scores) == len(continuation)
    stepwise = [engine.score(tokens + continuation[:i], [continuation[i : i + 1]])[0][0] for i in range(6)]
    assert scores == pytest.approx(stepwise, abs=1e-4)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request((), (Decode(1),)), "empty prompt"),
        (Request((10**9,), (Decode(1),)), "token id 1000000000"),
        (Request((1, -2), (Decode(1),)), "token id -2"),
        (Request((1,), (Forced((99999999,)), Decode(1))), "token id 99999999"),
        (Request((1,) * 5000, (Decode(1),)), "does not fit into a context of 4096"),
        (Request((1,), (Decode(9000),)), "does not fit into a context of 4096"),
        (Request((1,), (Decode(5, grammar="start: ("),)), "grammar does not compile"),
    ],
)
def test_impossible_requests_are_refused_at_once(engine, request_, message):
    with pytest.raises(EngineError, match=message):
        engine.submit(request_)
    assert engine.generate((1, 2, 3), max_tokens=2).usage.decoded_tokens >= 1


@pytest.mark.parametrize(
    "arguments", [{"temperature": -1}, {"top_p": 0.0}, {"top_k": -3}, {"min_p": 1.0}, {"temperature": float("nan")}]
)
def test_bad_sampling_is_refused(arguments):
    with pytest.raises(EngineError):
        Sampling(**arguments)


def test_broken_weights_fail_the_request_and_not_the_engine(tiny_model):
    with Engine(tiny_model, cache_tokens=1024) as engine:
        norm = engine._runner.decoder.norm
        engine._runner.decoder.norm = torch.full_like(norm, float("nan"))
        with pytest.raises(EngineError, match="not numbers"):
            engine.generate((1, 2, 3), max_tokens=4)
        engine._runner.decoder.norm = norm
        assert engine.generate((1, 2, 3), max_tokens=4).usage.decoded_tokens >= 1


def test_many_threads_submit_at_once(engine):
    tokenizer = engine.model.tokenizer
    results: dict[int, str] = {}

    def work(i):
        results[i] = engine.generate(prompt(tokenizer, i % 8, 30), max_tokens=6).text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 64
    assert all(results[i] == results[i % 8] for i in range(64))


def test_cancelled_request_frees_its_pages(engine):
    future = engine.submit(Request(prompt(engine.model.tokenizer, 1, 50), (Decode(3000, ignore_eos=True),)))
    assert future.cancel()
    with pytest.raises(FutureCancelled):
        future.result()
    engine.generate((1, 2, 3), max_tokens=2)


def test_closing_fails_what_is_unfinished(tiny_model):
    engine = Engine(tiny_model, cache_tokens=4096)
    future = engine.submit(Request((1, 2, 3), (Decode(4000, ignore_eos=True),)))
    engine.close()
    engine.close()
    with pytest.raises(CancelledError):
        future.result()
    with pytest.raises(CancelledError):
        engine.submit(Request((1,), (Decode(1),)))


def test_requests_without_decoding_finish_without_the_model(engine):
    result = engine.submit(Request((1,), (Forced((2, 3)),))).result()
    assert result.steps[0].tokens == (2, 3)
    assert engine.stats.steps == 0


def test_scoring_what_is_cached_scores_it_again(engine):
    tokenizer = engine.model.tokenizer
    tokens, continuation = prompt(tokenizer, 10, 20), prompt(tokenizer, 11, 40)
    first, second = (engine.score(tokens, [continuation])[0] for _ in range(2))
    assert len(second) == len(continuation)
    assert second == pytest.approx(first, abs=1e-4)


def test_a_program_may_end_in_the_middle_of_a_step():
    """A thread that is inside the decoder when the interpreter goes away must not abort the process."""
    script = """
from still.backends.engine import Decode, Engine, Request
from still.backends.models import load_model
engine = Engine(load_model("smollm2-135m"), cache_tokens=4096)
future = engine.submit(Request((1, 2, 3), (Decode(3000, ignore_eos=True),)))
engine.generate((4, 5, 6), max_tokens=2)
print("ends")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stdout) == (0, "ends\n"), done.stderr
