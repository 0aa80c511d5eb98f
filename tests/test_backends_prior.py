"""Contextual calibration: what the model prefers without any input is taken out, once per plan."""

import asyncio
import math
from typing import Literal

import pytest
import still
from still.backends.context_prior import CONTENT_FREE
from still.backends.engine import END, option_probabilities
from still.signatures.executor import Sampling
from still.signatures.layout import lower


class Route(still.Signature):
    """Route the message."""

    message: str = still.Input()
    team: Literal["orders", "order desk", "shipping"] = still.Output(decide="score")


DEMOS = [{"message": "hello", "team": "orders"}]


def scores(lm, plan, text):
    request, engine = lm.request(plan, {"message": text}, Sampling()), lm.local.engine
    found = []
    for option in request.steps[0].options:
        assert option[-1] == END
        ends = [(*option[:-1], eos) for eos in engine.model.tokenizer.eos_ids]
        found.append(math.log(math.fsum(math.exp(math.fsum(each)) for each in engine.score(request.prompt, ends))))
    return found


def test_the_bias_is_minus_the_log_of_the_mean_probability_without_content(tiny_lm):
    plan = lower(Route)
    shares = [option_probabilities(scores(tiny_lm, plan, text)) for text in CONTENT_FREE]
    means = [math.fsum(column) / len(shares) for column in zip(*shares, strict=True)]
    step = tiny_lm.local.prior.correct(plan).decodes[0]
    assert step.scoring.bias == pytest.approx([-math.log(mean) for mean in means], abs=1e-3)


def test_without_content_no_option_is_preferred(tiny_lm):
    with still.context(lm=tiny_lm):
        answers = [still.Predict(Route)(message=text) for text in CONTENT_FREE]
    means = [math.fsum(a.probabilities["team"][option] for a in answers) / 3 for option in answers[0].probabilities["team"]]
    assert max(means) - min(means) < 0.25
    raw = [option_probabilities(list(a.completion.scores["team"].values())) for a in answers]
    assert max(raw[0]) > max(answers[0].probabilities["team"].values())


def test_demonstrations_and_fitted_calibrations_are_left_alone(tiny_lm):
    correct = tiny_lm.local.prior.correct
    shown = lower(Route, DEMOS)
    assert correct(shown) is shown
    fitted = lower(Route.with_updated_fields("team", calibration={"bias": {"orders": 1.0}}))
    assert correct(fitted) is fitted
    decoded = lower(Route.with_updated_fields("team", decide="decode"))
    assert correct(decoded) is decoded


def test_a_plan_is_measured_once(tiny_lm, monkeypatch):
    prior, calls = tiny_lm.local.prior, []
    run = prior._run
    monkeypatch.setattr(prior, "_run", lambda plan, texts: calls.append(plan) or run(plan, texts))
    program = still.Predict(Route.with_instructions("Route it, please."))

    async def ask():
        with still.context(lm=tiny_lm):
            return await asyncio.gather(*(program.acall(message=f"message {i}") for i in range(8)))

    answers = asyncio.run(ask())
    with still.context(lm=tiny_lm):
        assert program(message="message 0").team == answers[0].team
    assert len(calls) == 1
