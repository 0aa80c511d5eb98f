"""Who is asked, who pays and who is to blame: LMs of predictors' own, teachers and judges, traces; and equal digests."""

import subprocess
import sys
import textwrap
from pathlib import Path

import dspy
import pytest
import still
from chat_server import serving
from scripted import ScriptedLM, demonstrations
from still.compiler.artifact import read_artifact
from still.errors import ArtifactError
from still.optimizers.context import Outcome, PredictorTrace
from still.optimizers.credit import blame, called, draw_predictor
from still.optimizers.instructions import Instructions
from test_compiler_compile import BINS, Sort, data, right_with_demonstrations, truth

TRAIN, DEV = 15, 18


class Pair(still.Module):
    """Names the material, then sorts by it."""

    def __init__(self):
        super().__init__()
        self.name = still.Predict("item -> material: str")
        self.sort = still.Predict("material: str -> bin: Literal['glass', 'paper', 'metal']")
        self.never = still.Predict("item -> bin: Literal['glass', 'paper', 'metal']")

    def forward(self, item):
        return self.sort(material=self.name(item=item).material)


def naming(plan, inputs):
    return {"material": next(b for b in BINS if b in str(inputs))}


def sorting(plan, inputs):
    return {"bin": truth({"item": inputs.get("material", inputs.get("item"))}) if demonstrations(plan) >= 3 else "glass"}


def either(plan, inputs):
    return naming(plan, inputs) if "material" in {s.field for s in plan.decodes} else sorting(plan, inputs)


def run(folder, program, **options):
    return still.compile(program, data(TRAIN), data(DEV, 100), progress=False, ledger=folder / "l.duckdb", **options)


def test_an_lm_set_on_the_program_is_the_one_it_is_compiled_for(tmp_path):
    program, lm = still.Predict(Sort), ScriptedLM(right_with_demonstrations, "its own")
    program.set_lm(lm)
    result = run(tmp_path, program)
    assert result.report.model == lm.local.model
    assert result.model["digest"] == "its own"
    assert program.lm is lm and result.program.lm is lm
    assert result.winner.demonstration_count == 4


def test_the_argument_replaces_it_and_a_teacher_takes_its_place(tmp_path):
    program, old = still.Predict(Sort), ScriptedLM(right_with_demonstrations, "old")
    program.set_lm(old)
    new = ScriptedLM(right_with_demonstrations, "new")
    teacher = ScriptedLM(lambda plan, inputs: {"bin": truth(inputs)}, "teacher")
    result = run(tmp_path, program, lm=new, teacher=teacher)
    assert old.calls == 0 and new.calls > 0 and teacher.calls == TRAIN
    assert result.program.lm is new and program.lm is old


def test_a_predictor_with_an_lm_of_its_own_keeps_it(tmp_path):
    program, own, lm = Pair(), ScriptedLM(naming, "own"), ScriptedLM(either, "shared")
    program.name.lm = own
    result = run(
        tmp_path, program, lm=lm, teacher=ScriptedLM(lambda p, i: {"bin": truth({"item": i["material"]})}, "teacher")
    )
    assert result.program.name.lm is own and result.program.sort.lm is lm and result.program.never.lm is lm
    assert program.sort.lm is None, "the program that was given stays as it was"
    assert result.winner.origin == "bootstrapped"
    assert own.calls == lm.calls + TRAIN, "every run asks both once, and the teacher's runs ask it for the first step"


def test_other_lms_of_predictors_are_other_evaluations(tmp_path):
    first, second = Pair(), Pair()
    first.name.lm, second.name.lm = ScriptedLM(naming, "a"), ScriptedLM(naming, "b")
    lm = ScriptedLM(either, "shared")
    run(tmp_path, first, lm=lm, level="O0")
    run(tmp_path, second, lm=lm, level="O0")
    assert second.name.lm.calls == DEV, "what another LM said is not taken from the ledger"
    assert run(tmp_path, second, lm=lm, level="O0").report.resumed == DEV


def test_an_artifact_remembers_lms_of_predictors(tmp_path, monkeypatch):
    program, own, lm = Pair(), ScriptedLM(naming, "own"), ScriptedLM(either, "shared")
    program.name.lm = own
    run(tmp_path, program, lm=lm, level="O0").save(tmp_path / "a.still")
    again = Pair()
    again.name.lm = own
    loaded = still.load(tmp_path / "a.still", again, lm=lm)
    assert loaded.name.lm is own and loaded.sort.lm is lm
    assert loaded(item="a jar of glass").bin == "glass"
    stranger = Pair()
    stranger.name.lm = ScriptedLM(naming, "other")
    with pytest.raises(ArtifactError, match=r"'name'.*own.*other"):
        still.load(tmp_path / "a.still", stranger, lm=lm)


def test_a_judge_is_paid_from_the_budget_but_is_no_cost_of_the_program(tmp_path):
    judge = ScriptedLM(lambda plan, inputs: {"reason": "so", "score": 3}, "judge")
    lm = ScriptedLM(lambda plan, inputs: {"bin": truth(inputs)})
    free = run(tmp_path / "free", still.Predict(Sort), lm=lm, metric=still.judge("Is it right?", lm=judge), level="O0")
    assert judge.calls == DEV and free.report.rows[0].calls == DEV
    assert free.report.evidence.points[0].calls == 2 * DEV
    judge.calls = lm.calls = 0
    metric = still.judge("Is it right?", lm=judge)
    short = run(tmp_path / "short", still.Predict(Sort), lm=lm, metric=metric, budget=still.Budget(calls=50))
    assert any("50 calls" in note for note in short.report.notes)
    assert lm.calls + judge.calls < 50 + 2 * 64


def test_what_a_teacher_proposes_is_paid_from_the_budget(tmp_path):
    def propose(plan, inputs):
        asked = "better_instructions" in {s.field for s in plan.decodes}
        return {"better_instructions": f"Try {teacher.calls}."} if asked else {"bin": truth(inputs)}

    teacher, lm = ScriptedLM(propose, "teacher"), ScriptedLM(lambda plan, inputs: {"bin": "glass"})
    result = run(tmp_path, still.Predict(Sort), lm=lm, teacher=teacher, passes=[Instructions()])
    (step,) = result.report.evidence.steps
    assert teacher.calls >= 4
    assert DEV + step.calls == lm.calls + teacher.calls
    capped = run(
        tmp_path / "capped", still.Predict(Sort), lm=ScriptedLM(lm.answer), teacher=ScriptedLM(propose, "teacher"),
        passes=[Instructions()], budget=still.Budget(calls=DEV + 2),
    )  # fmt: skip
    assert any(f"{DEV + 2} calls" in note for note in capped.report.notes), "four of the teacher"


def test_lms_of_other_kinds_are_counted(tmp_path):
    """A server's answers, by what it says they cost (30 + 2 tokens in this test's server)."""
    arguments = {"level": "O0", "progress": False, "ledger": tmp_path / "l.duckdb"}
    with serving(lambda body: '{"bin": "glass"}') as server:
        result = still.compile(dspy.Predict(Sort), data(4), data(6, 100), lm=server.lm(), **arguments)
        row = result.report.rows[0]
        assert row.failures == 0
        assert (row.calls, row.tokens) == (len(server.requests), 32 * len(server.requests))


def outcome(score, *steps):
    return Outcome(score, trace=tuple(PredictorTrace(name, {}, outputs) for name, outputs in steps))


def test_blame_by_hand():
    labelled = still.Example(item="x", bin="glass", material="glass").with_inputs("item")
    lost = blame(
        [labelled] * 4,
        [
            outcome(1.0, ("name", {"material": "glass"}), ("sort", {"bin": "glass"})),
            outcome(0.0, ("name", {"material": "glass"}), ("sort", {"bin": "paper"})),  # only sort was wrong
            outcome(0.5, ("name", {"material": "tin"}), ("sort", {"bin": "metal"})),  # both were
            outcome(0.0, ("name", {"material": "glass"}), ("sort", {"bin": "glass"})),  # neither, by the labels
        ],
    )
    assert lost == pytest.approx({"name": 0.25 + 0.5, "sort": 1.0 + 0.25 + 0.5})


def test_blame_adds_up_to_what_was_lost_and_spares_who_was_not_called():
    plain = still.Example(item="x", bin="glass").with_inputs("item")
    outcomes = [outcome(0.25, ("a", {"y": 1}), ("b", {"z": 1}), ("a", {"y": 2})), outcome(0.0, ("c", {})), outcome(0.0)]
    lost = blame([plain] * 3, outcomes)
    assert sum(lost.values()) == pytest.approx(0.75 + 1.0), "a run without a trace blames nobody"
    assert set(lost) == called(outcomes) == {"a", "b", "c"}


def test_the_predictor_that_lost_most_is_drawn_most():
    drawn = [draw_predictor(["a", "b", "c"], {"a": 3.0, "b": 1.0}, f"{i}") for i in range(400)]
    assert "c" not in drawn
    assert 0.65 < drawn.count("a") / len(drawn) < 0.85
    assert {draw_predictor(["a", "b"], {}, f"{i}") for i in range(40)} == {"a", "b"}


def test_a_teacher_is_shown_what_the_predictor_itself_was_asked(tmp_path):
    """Only the second step is wrong; for the third, which no run calls, no instructions are tried. Also from the ledger."""
    shown = []

    def teach(plan, inputs):
        if "better_instructions" in {s.field for s in plan.decodes}:
            shown.append(inputs["mistakes"])
            return {"better_instructions": f"Another way, {plan.digest} {inputs['tip']}."}
        return either(plan, inputs)

    options = {"teacher": ScriptedLM(teach, "teacher"), "passes": [Instructions()]}
    result = run(tmp_path, Pair(), lm=ScriptedLM(either), **options)
    assert any('asked {"material":"paper"}, answered {"bin":"glass"}' in mistakes for mistakes in shown)
    assert not any(row.name.startswith("never") for row in result.report.rows)
    lm = ScriptedLM(either)
    shown.clear()
    again = run(tmp_path, Pair(), lm=lm, **options)
    assert lm.calls == 0
    assert shown == [], "the same would be asked: traces come back from the ledger as they were"
    assert [row.name for row in again.report.rows] == [row.name for row in result.report.rows]


SCRIPT = """
    import sys
    sys.path.insert(0, {tests!r})
    from test_compiler_credit import seeded

    print(seeded({ledger!r}, 0).digest, flush=True)
"""


def seeded(ledger, seed):
    lm = ScriptedLM(right_with_demonstrations)
    return still.compile(
        still.Predict(Sort), data(TRAIN), data(DEV, 100), lm=lm, level="O2", progress=False, ledger=ledger, seed=seed
    )


def test_the_same_seed_gives_the_same_digest_also_in_another_process_and_from_the_ledger(tmp_path):
    first = seeded(tmp_path / "a.duckdb", 0)
    script = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parent), ledger=str(tmp_path / "b.duckdb"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == first.digest, "computed anew"
    assert seeded(tmp_path / "a.duckdb", 0).digest == first.digest, "taken from the ledger"
    assert seeded(tmp_path / "a.duckdb", 1).digest != first.digest, "another seed draws other demonstrations"


def test_the_digest_is_that_of_the_artifact_and_of_what_it_answers(tmp_path):
    lm = ScriptedLM(right_with_demonstrations)
    result = run(tmp_path, still.Predict(Sort), lm=lm)
    result.save(tmp_path / "a.still")
    result.save(tmp_path / "b.still")
    artifact = read_artifact(tmp_path / "a.still")
    assert artifact.digest == read_artifact(tmp_path / "b.still").digest == result.digest
    other = run(tmp_path, still.Predict(Sort), lm=lm, level="O0")
    assert other.digest != result.digest
    renamed = run(tmp_path, still.Predict(Sort), lm=ScriptedLM(right_with_demonstrations, "another model"))
    assert renamed.digest != result.digest
