"""What a predictor returns: dspy's `Prediction`, and how sure the model is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from .bridge import DspyPrediction
from .executor import Completion


class Answer(dict[str, Any]):
    """The values of one completion by field, as dspy's adapters return them, with the completion they are from."""

    def __init__(self, completion: Completion) -> None:
        super().__init__(completion.values)
        self.completion = completion


class Prediction(DspyPrediction):  # type: ignore[misc]  # dspy ships no types
    """The outputs as attributes. `completions` has all samples; the rest is about the first."""

    _completion: Completion = Completion({})

    @property
    def probabilities(self) -> Mapping[str, Mapping[Any, float]]:
        """For each output that was scored, the probability of every option, as its type declares it."""
        return cast(Mapping[str, Mapping[Any, float]], self._own("probabilities"))

    @property
    def truncated(self) -> tuple[str, ...]:
        """The outputs whose text was cut off and brought to the shortest end their type allows."""
        return cast(tuple[str, ...], self._own("truncated"))

    @property
    def completion(self) -> Completion:
        """Texts, scores and costs behind the values."""
        return cast(Completion, self._own("completion"))

    def _own(self, name: str) -> Any:
        # A field of the same name comes first: it is what the program declares.
        if name in self._store:
            return self._store[name]
        return self._completion if name == "completion" else getattr(self._completion, name)


def from_values(values: Mapping[str, Any]) -> Prediction:
    """A `Prediction` of these values. Not made with them as arguments: an output may be called as one of dspy's own."""
    made = Prediction()
    for name, value in values.items():
        made[name] = value
    return made


def prediction(answers: list[dict[str, Any]], signature: Any) -> Prediction:
    """A `Prediction` of what an adapter returned."""
    made: Prediction = Prediction.from_completions(answers, signature=signature)
    if answers and isinstance(answers[0], Answer):
        made._completion = answers[0].completion
    return made
