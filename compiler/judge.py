"""`judge`: a language model says how good a prediction is, and why."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any
from weakref import WeakKeyDictionary

from ..backends.lm import LM
from ..backends.meter import UsageCounter, metered
from ..errors import MetricError, StillError
from ..signatures.adapter import PlanAdapter
from ..signatures.bridge import BaseLM, DspySignature, Example, context, settings
from ..signatures.predict import Predict
from .canonical import digest
from .identity import model_digest
from .judge_scale import Scale
from .judge_task import Question, default_signature
from .metric import Metric, Score, short
from .verdicts import Verdicts, current_verdicts

Answers = dict[str, Future[Score]]
"""What a judge said or is being asked, by question."""


def judge(
    instructions: Any,
    *,
    lm: Any = None,
    fields: Sequence[str] | str = (),
    temperature: float | None = 0.0,
) -> Metric:
    """A metric that asks an LM: it is told inputs, label (if there is one) and prediction, and gives a reason and a score.

    instructions: what to judge by, in words, for a score from 1 to 5 (1 counts 0, 5 counts 1, what is between by its place);
    or a Signature with a bounded output `score` (an int or float with ge and le, a bool, a Literal of numbers) and, if
    there is to be feedback, a text `reason`. Its inputs may be called `inputs`, `label` and `prediction` (texts with all
    fields), `label_NAME` and `predicted_NAME` (a field of the example and of the prediction), or as a field of the
    example's inputs or of the prediction.
    lm: any still.LM or dspy.LM, or the name of a local model (default: the configured LM). fields: show the judge only these
    of label and prediction. temperature: 0 makes answers repeatable; None leaves it to the LM.

    The feedback is the reason. Answers are kept, in memory and by a compile in its ledger, so that the same prediction for
    the same example is judged once. What the judge's calls cost counts against a compile's budget, apart from the program's
    own. A prediction without any of the fields counts 0, unasked. Raises MetricError where the LM fails or gives no valid
    answer, and for a signature that has no such score.

    Source: Zheng et al. 2023, "Judging LLM-as-a-Judge", section 3.1: single answer grading, guided by a reference if there
    is one; as in their prompts, the reason comes before the score.
    """
    return JudgeMetric(instructions, _lm(lm), (fields,) if isinstance(fields, str) else tuple(fields), temperature)


class JudgeMetric(Metric):
    """One judge with its signature, its LM and the answers it gave."""

    def __init__(self, instructions: Any, lm: Any, fields: tuple[str, ...], temperature: float | None) -> None:
        if wrong := [name for name in fields if not isinstance(name, str)]:
            raise MetricError(f"judge: {wrong[0]!r} is not a field name; write fields=['field']")
        if isinstance(instructions, str) and instructions.strip():
            signature, title = default_signature(instructions), f"{instructions.strip():.40}"
        elif isinstance(instructions, type) and issubclass(instructions, DspySignature):
            signature, title = instructions, instructions.__name__
        else:
            raise MetricError(f"judge: {instructions!r:.80} is neither a text nor a Signature")
        self._scale = Scale.of(signature)
        self._question = Question(signature, fields)
        self._lm, self._config = lm, {} if temperature is None else {"temperature": temperature}
        model = lm.local.model if isinstance(lm, LM) else lm.model
        # Two judges that ask differently have different names: a run's identity has the metric's name in it.
        identity = digest([self._question.described(), fields, temperature])[:8]
        self.name = f"judge({title!r} {identity}, lm={model!r})"
        self._answers: Answers = {}  # outside of a compile
        # A compile has its own: answers of an earlier one it meets in the ledger, where they count what they cost.
        self._compiled: WeakKeyDictionary[Verdicts, Answers] = WeakKeyDictionary()
        self._lock = threading.Lock()

    def score(self, example: Example, prediction: Any, trace: Any = None) -> Score:
        try:
            asked = self._question.values(example, prediction)
            key = digest(asked)
        except StillError as error:
            raise MetricError(f"metric {self.name}: example {short(example)}: {error}") from error
        if asked is None:
            return Score(0.0, "the prediction has nothing to judge")
        return self._once(key, example, asked)

    def _once(self, key: str, example: Example, asked: dict[str, Any]) -> Score:
        """The answer to a question, asked once even if several threads want to know."""
        verdicts = current_verdicts()
        with self._lock:
            answers = self._answers if verdicts is None else self._compiled.setdefault(verdicts, {})
            known = answers.get(key)
            mine = known or answers.setdefault(key, Future())
        if known is not None:
            return known.result()
        try:
            score = self._recalled(verdicts, example, asked)
        except BaseException as error:  # the next one asks again
            with self._lock:
                del answers[key]
            mine.set_exception(error)
            raise
        mine.set_result(score)
        return score

    def _recalled(self, verdicts: Verdicts | None, example: Example, asked: dict[str, Any]) -> Score:
        """The answer that the ledger has, or a new one that it keeps."""
        if verdicts is None:
            return self._ask(example, asked)
        key = digest([self.name, self._question.described(), model_digest(self._lm), asked])
        if (known := verdicts.find(self.name, key)) is not None:
            return known
        with metered() as meter:
            score = self._ask(example, asked)
        verdicts.keep(self.name, key, score, meter.log)
        return score

    def _ask(self, example: Example, asked: dict[str, Any]) -> Score:
        # A predictor of its own, for threads; not in the trace or the usage of the program that is judged.
        predictor: Any = Predict(self._question.signature(asked))
        try:
            with context(lm=self._lm, adapter=PlanAdapter(), trace=None, usage_tracker=UsageCounter()):
                answer = predictor(**asked, config=self._config)
            return Score(self._scale.share(answer.score), str(getattr(answer, "reason", None) or ""))
        except Exception as error:
            raise MetricError(
                f"metric {self.name} failed on example {short(example)}: {type(error).__name__}: {error}"
            ) from error


def _lm(lm: Any) -> Any:
    found = settings.lm if lm is None else LM(lm) if isinstance(lm, str) else lm
    if not isinstance(found, BaseLM):
        raise MetricError(
            f"judge: lm={found!r:.80}: give a still.LM, a dspy.LM or the name of a local model, or configure one"
        )
    return found
