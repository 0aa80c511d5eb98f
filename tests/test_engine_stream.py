"""Text while it is decoded: whole characters, nothing of a stop string, the same text in the end."""

import asyncio
import threading

import pytest
from byte_model import byte_model, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from still.backends.engine import Decode, Engine, Forced, Request, Sampling, StepResult
from still.backends.engine.sequence import cut_at_stop
from still.backends.engine.stream import TextPieces
from still.errors import EngineError

LONG = Request(tuple(range(50)), (Decode(3000, ignore_eos=True),))


@pytest.fixture(scope="module")
def engine(tiny_int8):
    with Engine(byte_model(tiny_int8), cache_tokens=8192) as engine:
        yield engine


def ask(seed, *steps, temperature=1.5):
    return Request(tuple(range(60, 90)), steps, Sampling(temperature=temperature, seed=seed))


@pytest.mark.parametrize("seed", range(5))
def test_the_pieces_are_the_text(engine, seed):
    request = ask(seed, Decode(60, ignore_eos=True), Forced((40, 50)), Decode(30, ignore_eos=True))
    stream = engine.stream(request)
    pieces = list(stream)
    assert len(pieces) > 2
    assert all(pieces)
    assert "".join(pieces) == stream.result.text == engine.submit(request).result().text


def test_pieces_come_before_the_end(engine):
    """With the engine held after some steps, the text up to there is there."""
    step, gate = engine._core.step, threading.Semaphore(10)

    def gated():
        gate.acquire()
        step()

    engine._core.step = gated
    try:
        stream = engine.stream(Request((1, 2, 3), (Decode(40, grammar="start: /[a-z]{40}/"),)))
        reading = iter(stream)  # kept: dropping it would leave the loop
        assert next(reading)
        assert not stream._future.done()
    finally:
        engine._core.step = step
        gate.release(1000)


TEXTS = st.text(st.sampled_from("ab\nE é🙂\ufffd"), max_size=30)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), text=TEXTS, stop=st.lists(st.text(st.sampled_from("ab\né🙂"), min_size=1, max_size=4), max_size=3))
def test_no_piece_has_to_be_taken_back(data, text, stop):
    """Bytes in any runs, up to the run that completes a stop string: all that was given begins the final text."""
    tokenizer = byte_tokenizer()
    raw = text.encode() + bytes(data.draw(st.lists(st.integers(0, 255), max_size=4)))
    pieces = TextPieces(tokenizer, Request((1,), (Decode(100, stop=tuple(stop)),)))
    given, seen = "", 0
    while seen < len(raw) and not any(s in tokenizer.decode(raw[:seen]) for s in stop):
        begin, seen = seen, min(len(raw), seen + data.draw(st.integers(1, 5)))
        given += pieces.take(list(raw[begin:seen]))[1]
    final = cut_at_stop(tokenizer.decode(raw[:seen]), tuple(stop))
    assert final.startswith(given)
    assert given + pieces.take(StepResult(tuple(raw[:seen]), final, "stop"))[1] == final


def test_stop_strings_never_show(engine):
    free = engine.submit(ask(1, Decode(60, ignore_eos=True))).result().text
    stop = free[20:23]
    stream = engine.stream(ask(1, Decode(60, stop=(stop,), ignore_eos=True)))
    assert "".join(stream) == free[: free.index(stop)] == stream.result.text
    assert stream.result.steps[0].finish_reason == "stop"


def test_a_stop_string_of_characters_of_several_tokens_is_found(engine):
    grammar = 'start: "🙂🙃" /[a-z]{9}/'
    result = engine.generate((1, 2, 3), max_tokens=30, grammar=grammar, stop=["🙃"])
    assert (result.text, result.steps[0].finish_reason) == ("🙂", "stop")


def wait_until_idle(engine):
    while not engine._scheduler.idle or not engine._inbox.empty():
        engine.generate((1, 2), max_tokens=1)


def test_leaving_the_loop_cancels(engine):
    stream = engine.stream(LONG)
    for piece in stream:
        assert piece
        break
    assert stream._future.cancelled()
    wait_until_idle(engine)


def test_a_slow_consumer_holds_up_nobody(engine):
    stream = engine.stream(ask(3, Decode(200, ignore_eos=True)))
    engine.submit(ask(4, Decode(300, ignore_eos=True))).result()
    assert stream.result.text == "".join(stream), "everything piled up meanwhile"


def test_failures_reach_the_reader(engine):
    with pytest.raises(EngineError, match="does not fit"):
        engine.stream(Request((1,), (Decode(10**6),)))
    compute = engine._core.runner.compute

    def broken(_):
        raise EngineError("the step broke")

    engine._core.runner.compute = broken
    try:
        with pytest.raises(EngineError, match="the step broke"):
            list(engine.stream(LONG))
    finally:
        engine._core.runner.compute = compute


def test_async_results_and_streams(engine):
    requests = [ask(seed, Decode(30, ignore_eos=True)) for seed in range(8)]

    async def read(request):
        stream = engine.stream_async(request)
        with pytest.raises(EngineError, match="unfinished stream"):
            _ = stream.result
        text = "".join([piece async for piece in stream])
        assert stream.result.text == text
        return text

    async def everything():
        texts = await asyncio.gather(*map(read, requests))
        return texts, await asyncio.gather(*map(engine.submit_async, requests))

    texts, results = asyncio.run(everything())
    assert texts == [result.text for result in results]


def test_cancelling_the_task_cancels_the_request(engine):
    async def main():
        stream = engine.stream_async(LONG)

        async def read():
            async for _ in stream:
                started.set()

        started = asyncio.Event()
        tasks = [asyncio.create_task(engine.submit_async(LONG)), asyncio.create_task(read())]
        await started.wait()
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
        assert stream._future.cancelled()

    asyncio.run(main())
    wait_until_idle(engine)
