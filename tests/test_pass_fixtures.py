"""What each pass makes of a program, to be read: tests/fixtures/passes has the program before and after it.

`python tests/test_pass_fixtures.py` writes the files anew; what changed is then seen in review.
"""

import difflib
import tempfile
from pathlib import Path
from typing import Literal

import pytest
import still
from scripted import ScriptedLM, demonstrations
from still.compiler.evidence import prompt_text
from still.compiler.task import PASSES
from still.optimizers.decisions import Decisions
from still.optimizers.demonstrations import Demonstrations
from still.optimizers.instructions import Instructions
from still.optimizers.lean import Lean
from still.optimizers.search import Search
from still.signatures.executor import Completion, Usage
from still.signatures.knob import knob_values

FOLDER = Path(__file__).parent / "fixtures" / "passes"
BINS = ("glass", "paper", "metal")


class Sort(still.Signature):
    """Sort the item into its bin."""

    item: str = still.Input()
    bin: Literal["glass", "paper", "metal"] = still.Output(desc="where it goes")


class Chain(still.Module):
    """Two steps: no label for the first."""

    def __init__(self):
        super().__init__()
        self.look = still.Predict("item -> material: str")
        self.sort = still.Predict("material: str -> bin: Literal['glass', 'paper', 'metal']")

    def forward(self, item):
        return self.sort(material=self.look(item=item).material)


class Tuned(still.Module):
    """A program with a knob."""

    shelf = still.Knob(choices=("top", "middle", "bottom"))

    def __init__(self):
        super().__init__()
        self.sort = still.Predict(Sort)

    def forward(self, item):
        return self.sort(item=f"{item}, from the {self.shelf} shelf")


def data(start, count):
    rows = [
        {"item": f"{('jar', 'book', 'tin')[i % 3]} {i} of {BINS[i % 3]}", "bin": BINS[i % 3]}
        for i in range(start, start + count)
    ]
    return still.Dataset(rows, inputs=["item"])


def truth(inputs):
    text = " ".join(map(str, inputs.values()))
    return next((b for b in BINS if b in text), "glass")


def system(plan):
    return "".join(part.text for part in plan.turns[0].parts)


def few_shot(plan, inputs):
    """Right with four demonstrations."""
    return {"bin": truth(inputs) if demonstrations(plan) >= 4 else "glass"}


def nearest_only(plan, inputs):
    """Right where the last demonstration has the answer."""
    shown = "".join(str(part) for turn in plan.turns[-4:-2] for part in turn.parts)
    return {"bin": truth(inputs) if demonstrations(plan) and truth(inputs) in shown else "glass"}


def steps(plan, inputs):
    fields = {step.field for step in plan.decodes}
    if "material" in fields:
        return {"material": truth(inputs) if demonstrations(plan) else "hard to say"}
    return {"bin": truth(inputs)}


def plain(plan, inputs):
    """Right where it is told in one sentence."""
    return {"bin": truth(inputs) if "Read the item" in system(plan) else "glass"}


def taught(plan, inputs):
    if "better_instructions" in {step.field for step in plan.decodes}:
        return {"better_instructions": "Look at the material the item is made of."}
    return {"bin": truth(inputs) if "material" in system(plan) else "glass"}


def on_the_bottom(plan, inputs):
    return {"bin": truth(inputs) if "bottom shelf" in inputs["item"] else "glass"}


class Scoring(ScriptedLM):
    """Decodes always the same; its scores would be right but for a bias to glass."""

    def execute(self, plan, inputs, sampling=None, n=1):
        (step,) = plan.decodes
        if step.scoring is None:
            return super().execute(plan, inputs, sampling, n)
        right = truth(inputs)
        scores = {b: (-0.5 if b == right else -3.0) + (2.6 if b == "glass" else 0.0) for b in BINS}
        bias = dict(zip(BINS, step.scoring.bias or (0.0,) * 3, strict=True))
        chosen = max(BINS, key=lambda b: scores[b] + bias[b])
        return [Completion({"bin": chosen}, {}, Usage(), scores={"bin": scores})] * n


def distracted(plan, inputs):
    """Right with few demonstrations only."""
    return {"bin": truth(inputs) if demonstrations(plan) <= 2 else "glass"}


def full():
    """More demonstrations than are good."""
    program = still.Predict(Sort)
    program.demos = [dict(example) for example in data(0, 8)]
    return program


CASES = {
    "demonstrations-labelled": (Demonstrations(), lambda: still.Predict(Sort), ScriptedLM(few_shot), {}),
    "demonstrations-nearest": (Demonstrations(), lambda: still.Predict(Sort), ScriptedLM(nearest_only), {}),
    "demonstrations-bootstrapped": (
        Demonstrations(), Chain, ScriptedLM(steps),
        {"teacher": ScriptedLM(lambda p, i: {s.field: truth(i) for s in p.decodes}, "teacher")},
    ),
    "decisions": (Decisions(), lambda: still.Predict(Sort), Scoring(lambda plan, inputs: {"bin": "glass"}), {}),
    "instructions-rewritten": (Instructions(), lambda: still.Predict(Sort), ScriptedLM(plain), {}),
    "instructions-proposed": (
        Instructions(), lambda: still.Predict(Sort), ScriptedLM(taught), {"teacher": ScriptedLM(taught, "teacher")},
    ),
    "lean": (Lean(), full, ScriptedLM(distracted), {}),
    "search": (Search(), Tuned, ScriptedLM(on_the_bottom), {}),
}  # fmt: skip


def shown(program):
    """A program in words: knobs, and of each predictor the prompt and what is set of its outputs."""
    lines = [f"knob {path} = {value!r}" for path, value in sorted(knob_values(program).items())]
    for name, predictor in program.named_predictors():
        lines.append(f"== {name}")
        lines += prompt_text(predictor).splitlines()[1:]  # the first line counts and digests the rest
        if "adapter" in predictor.config:
            lines.append("(answers with trained weights)")
        for field, info in predictor.signature.output_fields.items():
            given = {k: v for k, v in (info.json_schema_extra or {}).items() if k in ("decide", "calibration")}
            lines += [f"{field}: {key} = {_short(value)}" for key, value in sorted(given.items())]
    return "\n".join(lines)


def _short(value):
    """Fitted numbers to two digits: further ones may differ between machines."""
    if isinstance(value, dict):
        return {key: _short(item) for key, item in value.items()}
    return round(value, 2) if isinstance(value, float) else value


def render(name, folder):
    step, make, lm, options = CASES[name]
    program = make()
    before = shown(program)
    result = still.compile(
        program, data(0, 15), data(100, 18), lm=lm, passes=[step], progress=False, ledger=Path(folder) / f"{name}.duckdb",
        **options,
    )  # fmt: skip
    assert shown(program) == before, "the program that was given stays as it was"
    return page(before, shown(result.program))


def page(before, after):
    return f"--- before ---\n{before}\n--- after ---\n{after}\n"


def compare(name, made):
    kept = (FOLDER / f"{name}.txt").read_text("utf-8")
    assert made == kept, "\n".join(
        difflib.unified_diff(kept.splitlines(), made.splitlines(), "fixture", "made", lineterm="")
    )


def test_every_pass_has_a_fixture():
    """Those of passes that train are compared in test_weights_passes.py."""
    passes = {file.stem.partition("-")[0] for file in FOLDER.glob("*.txt")}
    assert {step.name for steps in PASSES.values() for step in steps} <= passes


@pytest.mark.parametrize("name", CASES)
def test_a_pass_makes_of_a_program_what_the_fixture_shows(name, tmp_path):
    compare(name, render(name, tmp_path))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        for case in CASES:
            (FOLDER / f"{case}.txt").write_text(render(case, temporary), "utf-8")
