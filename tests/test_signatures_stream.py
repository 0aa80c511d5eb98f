"""Answers while they are written."""

import asyncio
import itertools
import threading
from typing import Literal

import dspy
import pytest
import still
from scripted import ScriptedLM
from still.errors import SignatureError, StillError
from still.signatures.executor import Completion, Piece


class Reply(still.Signature):
    """Answer the customer."""

    message: str = still.Input()
    team: Literal["orders", "shipping"] = still.Output(decide="score")
    subject: str = still.Output(max_length=40)
    body: str = still.Output(max_length=200)


class Picky(still.Signature):
    """Say a word."""

    message: str = still.Input()
    word: str = still.Output(max_length=12)


HOT = {"temperature": 1.3, "seed": 3}


def joined(pieces):
    texts = {}
    for piece in pieces:
        texts[piece.field] = texts.get(piece.field, "") + piece.text
    return texts


@pytest.mark.parametrize("seed", range(5))
def test_pieces_joined_are_the_answer(tiny_lm, seed):
    options = {"temperature": 1.3, "seed": seed}
    with still.context(lm=tiny_lm):
        stream = still.Predict(Reply).stream(message="Where is it?", config=options)
        pieces = list(stream)
        called = still.Predict(Reply)(message="Where is it?", config=options)
    answer = stream.prediction
    assert joined(pieces) == {"team": answer.team, "subject": answer.subject, "body": answer.body}
    assert (answer.team, answer.subject, answer.body) == (called.team, called.subject, called.body)
    assert answer.probabilities == called.probabilities
    assert sum(piece.field == "body" for piece in pieces) > 3
    assert [piece.field for piece in pieces] == sorted((p.field for p in pieces), key=["team", "subject", "body"].index)


def test_pieces_arrive_one_after_the_other(tiny_lm):
    with still.context(lm=tiny_lm):
        stream = still.Predict(Reply).stream(message="Where is it?", config=HOT)
        first = next(iter(stream))
        assert isinstance(first, Piece)
        with pytest.raises(StillError, match="not finished"):
            _ = stream.prediction


def test_async_pieces(tiny_lm):
    async def read(seed):
        options = {"temperature": 1.3, "seed": seed}
        stream = still.ChainOfThought(Picky).astream(message="Hello", config=options)
        return joined([piece async for piece in stream]), stream.prediction

    async def main():
        with still.context(lm=tiny_lm):
            return await asyncio.gather(*(read(seed) for seed in range(8)))

    for texts, answer in asyncio.run(main()):
        assert texts == {"reasoning": answer.reasoning, "word": answer.word}


def test_escaped_lines_are_shown_as_lines(tiny_lm):
    class Two(still.Signature):
        """Write."""

        message: str = still.Input()
        first: str = still.Output(max_length=60)
        second: bool = still.Output()

    constraint = still.Predict(Two).signature.output_fields["first"]
    assert constraint is not None
    from still.signatures.fieldset import constraints

    line = constraints(Two)["first"]
    written = line.render("one\ntwo \\ three")
    seen = [line.shown(written[:i]) for i in range(len(written) + 1)]
    assert seen[-1] == "one\ntwo \\ three"
    assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(seen))


def test_what_cannot_stream_says_so(tiny_lm):
    with still.context(lm=dspy.utils.DummyLM([{"word": "x"}])), pytest.raises(SignatureError, match=r"still\.LM"):
        still.Predict(Picky).stream(message="Hello")
    with still.context(lm=tiny_lm), pytest.raises(SignatureError, match="leave n out"):
        still.Predict(Picky).stream(message="Hello", config={"n": 3, "temperature": 1.0})


def test_the_chat_protocol_streams(tiny_lm):
    from still.signatures.bridge import lm15

    request = lm15.Request(model="x", messages=(lm15.Message.user("Say something"),), config=lm15.Config(max_tokens=12))
    from still.backends.chat import ChatEngine

    engine = ChatEngine(tiny_lm.local)
    events = list(engine.stream(request))
    text = "".join(event.delta.text for event in events if isinstance(event, lm15.StreamDeltaEvent))
    assert text == engine.complete(request).message.text
    assert sum(isinstance(event, lm15.StreamDeltaEvent) for event in events) > 3
    assert isinstance(events[0], lm15.StreamStartEvent)
    assert isinstance(events[-1], lm15.StreamEndEvent)
    assert events[-1].usage.output_tokens == 12


class Dictating(ScriptedLM):
    """Streams the word abc; knows how many streams are under way, and how it was asked."""

    def __init__(self):
        super().__init__(lambda plan, inputs: {"word": "abc"}, "dictating")
        self.under_way, self.asked = 0, []

    def stream_plan(self, plan, inputs, sampling=None):
        self.under_way += 1
        self.asked.append(sampling)
        try:
            for letter in "abc":
                yield Piece("word", letter)
            yield Completion({"word": "abc"}, {"word": " abc"})
        finally:
            self.under_way -= 1

    async def astream_plan(self, plan, inputs, sampling=None):
        stream = self.stream_plan(plan, inputs, sampling)
        try:
            for item in stream:
                yield item
        finally:
            stream.close()


def test_leaving_the_loop_early_ends_the_call():
    lm = Dictating()
    with still.context(lm=lm):
        stream = still.Predict(Picky).stream(message="Hello")
        for piece in stream:
            assert (piece.text, lm.under_way) == ("a", 1)
            break
        assert lm.under_way == 0, "though the stream is still there"
        with pytest.raises(StillError, match="not finished"):
            _ = stream.prediction


def test_leaving_the_loop_early_ends_an_async_call():
    lm = Dictating()

    async def leave():
        with still.context(lm=lm):
            stream = still.Predict(Picky).astream(message="Hello")
            async for piece in stream:
                assert (piece.text, lm.under_way) == ("a", 1)
                break
            while lm.under_way:  # the loop closes what was left behind
                await asyncio.sleep(0)
            return stream

    with pytest.raises(StillError, match="not finished"):
        _ = asyncio.run(asyncio.wait_for(leave(), 10)).prediction


def test_a_program_that_votes_streams_one_answer():
    lm, predict = Dictating(), still.Predict(Picky)
    predict.samples = 3
    with still.context(lm=lm):
        stream = predict.stream(message="Hello")
        assert "".join(piece.text for piece in stream) == stream.prediction.word == "abc"
        assert lm.asked[0].temperature == 0, "nobody votes"
        with pytest.raises(SignatureError, match="leave n out"):
            predict.stream(message="Hello", config={"n": 3})


class Elsewhere(list):
    """Demonstrations that know in which threads they were chosen."""

    def __init__(self):
        super().__init__()
        self.threads = []

    def select(self, inputs):
        self.threads.append(threading.get_ident())
        return []


def test_demonstrations_of_an_async_stream_are_chosen_off_the_event_loop():
    predict = still.Predict(Picky)
    predict.demos = Elsewhere()

    async def read():
        with still.context(lm=Dictating()):
            return "".join([piece.text async for piece in predict.astream(message="Hello")])

    assert asyncio.run(read()) == "abc"
    assert predict.demos.threads and threading.get_ident() not in predict.demos.threads
