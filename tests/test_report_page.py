"""The report as a page: self-contained, escaped, made of the artifact alone, and true to the outcomes."""

import dataclasses
import json
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
import still
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedLM, demonstrations
from still.cli import app
from still.compiler.artifact import read_artifact
from still.compiler.evidence import Comparison, Evidence, Prompt
from still.compiler.report import Report
from still.optimizers.calibration import calibration_error, reliability
from test_compiler_compile import BINS, Sort, data, right_with_demonstrations, truth
from test_pass_fixtures import Scoring
from typer.testing import CliRunner

DEV = 24
VOID = {"meta", "br", "use"}


class Reader(HTMLParser):
    """Tags, attributes and texts of a page; fails where tags do not close."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.links, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href", "xlink:href", "action", "data")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.append(text)


def compiled(folder, answer=right_with_demonstrations, **options):
    return still.compile(
        still.Predict(Sort), data(15), data(DEV, 100), lm=ScriptedLM(answer), progress=False, ledger=folder / "l.duckdb",
        **options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("page"))


def test_the_page_needs_nothing_else(result):
    page = result.report.page()
    read = Reader(page)
    assert page.startswith("<!doctype html>")
    assert "script" not in read.tags and "link" not in read.tags and "img" not in read.tags
    assert all(link.startswith("#") for link in read.links)
    assert "default-src 'none'" in page
    assert "@import" not in page and "url(http" not in page


def test_a_notebook_shows_the_same_and_no_document(result):
    fragment = result._repr_html_()
    assert fragment in result.report.page()
    assert not {"html", "head", "body", "meta"} & set(Reader(fragment).tags)


def test_it_is_made_of_the_artifact_alone(result, tmp_path):
    result.save(tmp_path / "a.still")
    assert read_artifact(tmp_path / "a.still").report == result.report
    done = CliRunner().invoke(app, ["report", str(tmp_path / "a.still"), "-o", str(tmp_path / "a.html")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "a.html").read_text("utf-8") == result.report.page()
    shown = CliRunner().invoke(app, ["report", str(tmp_path / "a.still"), "--json"])
    assert json.loads(shown.output) == json.loads(json.dumps(result.report.to_json()))


def test_every_candidate_is_in_the_table_with_what_was_raced_away(result):
    texts = Reader(result.report.page()).texts
    away = sum(DEV - row.examples for row in result.report.rows)
    assert f"{away} evaluations of {DEV * len(result.report.rows)} were raced away." in texts
    assert {row.name for row in result.report.rows} <= set(texts)


def test_wins_losses_and_ties_are_those_of_the_outcomes(tmp_path):
    """The baseline is right on glass only; with demonstrations on all but two examples that the baseline has right."""

    def answer(plan, inputs):
        lost = any(f"number {i} " in inputs["item"] for i in (102, 105))
        if demonstrations(plan) < 4:
            return {"bin": "glass"}
        return {"bin": "paper" if lost else truth(inputs)}

    evidence = compiled(tmp_path, answer).report.evidence
    glass = [i for i in range(100, 100 + DEV) if BINS[i % 3] == "glass"]
    assert (evidence.wins, evidence.losses, evidence.ties) == (16, 2, 6)
    lost = [one for one in evidence.comparisons if one.winner_score < one.baseline_score]
    assert [one.example for one in lost] == [glass.index(i) * 3 + glass[0] - 100 for i in (102, 105)]
    assert lost[0].inputs == {"item": "thing number 102 of glass"}
    assert (lost[0].expected, lost[0].baseline, lost[0].winner) == ({"bin": "glass"}, {"bin": "glass"}, {"bin": "paper"})
    assert "paper" in lost[0].said


def test_the_prompts_are_those_before_and_after(result):
    (prompt,) = result.report.evidence.prompts
    assert prompt.before.count("\nassistant\n") == 1
    assert prompt.after.count("\nassistant\n") == 1 + result.winner.demonstration_count
    page = result.report.page()
    assert page.count('class="add"') >= 4 * result.winner.demonstration_count


def test_the_course_ends_at_what_was_spent_and_never_falls(result):
    points = result.report.evidence.points
    assert points[0].candidate == "baseline" and points[0].calls == DEV
    assert [p.best for p in points] == np.maximum.accumulate([p.score for p in points]).tolist()
    assert all(a.calls <= b.calls and a.tokens <= b.tokens for a, b in pairwise(points))
    full = {row.name: row.score for row in result.report.rows if row.examples == DEV}
    assert {p.candidate: p.score for p in points} == pytest.approx(full)


def test_each_pass_says_what_it_decided_and_what_it_cost(result):
    steps = result.report.evidence.steps
    assert [step.name for step in steps] == ["demonstrations", "decisions"]
    assert steps[0].start == "baseline" and steps[0].end == result.winner.name
    assert result.winner.name in steps[0].decision
    assert steps[0].score_before == pytest.approx(1 / 3) and steps[0].score_after == 1.0
    first = [row for row in result.report.rows if row.origin != "decisions" or row.name == "scored"]
    spent = sum(row.calls for row in first) + 15
    assert DEV + steps[0].calls == spent, "the baseline before the passes, rollouts on train in the first"


def test_calibration_is_drawn_and_adds_up_to_its_error(tmp_path):
    lm = Scoring(lambda plan, inputs: {"bin": "glass"})
    report = still.compile(
        still.Predict(Sort), data(15), data(DEV, 100), lm=lm, progress=False, ledger=tmp_path / "l.duckdb"
    ).report
    (fit,) = report.calibrations
    for bins, error in ((fit.reliability_before, fit.error_before), (fit.reliability_after, fit.error_after)):
        assert sum(b.count for b in bins) == fit.examples
        assert sum(abs(b.confidence - b.accuracy) * b.count for b in bins) / fit.examples == pytest.approx(error)
    assert "share of right answers" in report.page()


@given(st.lists(st.tuples(st.floats(0.34, 1), st.booleans()), min_size=1, max_size=40))
def test_bins_hold_every_example_once_and_their_means(answers):
    likely = np.array([[p, 1 - p] if p >= 0.5 else [p, (1 - p) / 2] for p, _ in answers])
    correct = [int(likely[i].argmax()) if right else 1 - int(likely[i].argmax()) for i, (_, right) in enumerate(answers)]
    bins = reliability(likely, correct)
    assert sum(b.count for b in bins) == len(answers)
    assert sum(b.accuracy * b.count for b in bins) == pytest.approx(sum(right for _, right in answers))
    assert sum(b.confidence * b.count for b in bins) == pytest.approx(likely.max(axis=1).sum())
    assert 0 <= calibration_error(likely, correct) <= 1


NASTY = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & $x^2$ </pre></div>"


@settings(max_examples=25, deadline=None)
@given(text=st.text(max_size=60).map(lambda t: NASTY + t) | st.text(max_size=80))
def test_no_text_becomes_markup(text):
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").replace("\r", "").replace("\x00", "")
    one = Comparison(3, {text: text}, {"bin": text}, {"bin": text}, {"bin": text}, 0.0, 1.0, text)
    evidence = Evidence(prompts=(Prompt(text, text, f"{text}\nmore"),), comparisons=(one,), wins=1, audit=(text,))
    plain = Report("O1", "m", "lm", 0, 1, 1, 0.0, 0, 0, "w", ())
    nasty = dataclasses.replace(plain, metric=text, model=text, notes=(text,), evidence=evidence)
    tame = dataclasses.replace(one, **{name: {"a": "b"} for name in ("inputs", "expected", "baseline", "winner")}, said="c")
    same = dataclasses.replace(evidence, prompts=(Prompt("p", "a", "a\nmore"),), comparisons=(tame,), audit=("b",))
    read = Reader(nasty.page())
    harmless = Reader(dataclasses.replace(plain, notes=("a",), evidence=same).page())
    # A prompt of several lines has a span for each; apart from those a text changes no tag.
    assert [t for t in read.tags if t != "span"] == [t for t in harmless.tags if t != "span"]
    assert any(text in part for part in read.texts) or not text.strip()


def test_what_looks_like_markup_is_printed_as_it_is(result):
    text = "[/INST] [urgent] :key:"
    row = dataclasses.replace(result.report.rows[0], name=text, verdict=text)
    report = dataclasses.replace(result.report, metric=text, winner=text, rows=(row,), notes=(text,))
    printed = " ".join(str(report).split())
    assert printed.count(text) == 5, "the title, two cells, two lines below"


def test_a_page_that_cannot_be_written_is_an_error_of_one_line(result, tmp_path):
    result.save(tmp_path / "a.still")
    done = CliRunner().invoke(app, ["report", str(tmp_path / "a.still"), "-o", str(tmp_path / "no" / "a.html")])
    assert isinstance(done.exception, still.errors.ArtifactError)


def test_reports_of_the_time_before_pages_are_still_read(result):
    data = json.loads(json.dumps(result.report.to_json()))
    del data["evidence"]
    for row in data["rows"]:
        del row["latency"], row["on_front"]
    old = Report.from_json(data)
    assert old.rows == result.report.rows
    assert result.report.winner in old.page()
