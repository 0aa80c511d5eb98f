"""A report as HTML: a fragment for notebooks, or one document that needs nothing else and loads nothing.

Every text comes from data, models or users, and goes through `html.escape`; there is no script in the page.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from ..optimizers.context import CalibrationFit
from .evidence import Comparison, Evidence, Prompt
from .report_plots import course_svg, front_svg, reliability_svg
from .report_table import LATENCY, cells, columns

if TYPE_CHECKING:
    from .report import Report

STYLE = """
.still-report{font:14px/1.45 system-ui,sans-serif;max-width:76rem;margin:auto;color:#1c2733;background:#fff;padding:1rem}
.still-report h1{font-size:1.3rem}.still-report h2{font-size:1.05rem;margin:1.6rem 0 .4rem}
.still-report table{border-collapse:collapse;margin:.3rem 0}
.still-report th,.still-report td{padding:.2rem .6rem;text-align:left;vertical-align:top;border-bottom:1px solid #dde3e8}
.still-report td.n{text-align:right;font-variant-numeric:tabular-nums}.still-report tr.winner td{font-weight:600}
.still-report pre{background:#f6f8fa;padding:.5rem;overflow-x:auto;white-space:pre-wrap;font-size:12px}
.still-report .add{background:#d9f2dd}.still-report .del{background:#fbdcdc}.still-report .same{color:#5b6773}
.still-report .q{color:#5b6773}.still-report svg{max-width:100%;height:auto}
"""


def document(report: Report) -> str:
    """A whole page. The policy in its head has browsers refuse whatever is not in it."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{escape(report.title())}</title></head><body>{fragment(report)}</body></html>\n"
    )


def fragment(report: Report) -> str:
    """The report as one `div`, for notebooks."""
    evidence = report.evidence
    parts = [
        f"<h1>{escape(report.title())}</h1>",
        _lines(report.footer()),
        _section("Best score over cost", course_svg(evidence.points) if evidence.points else ""),
        _section("Candidates", _candidates(report)),
        _section("Quality and latency", front_svg(report.rows) if any(r.on_front for r in report.rows) else ""),
        _section("Passes", _passes(evidence)),
        _section("Prompts", "".join(_prompt(prompt) for prompt in evidence.prompts)),
        _section("Examples won and lost on dev", _examples(evidence)),
        _section("Calibration", "".join(_calibration(fit) for fit in report.calibrations)),
        _section("Data", _lines(evidence.audit)),
    ]
    return f'<div class="still-report"><style>{STYLE}</style>{"".join(parts)}</div>'


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _lines(lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<ul>{items}</ul>" if items else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], marked: str = "") -> str:
    """Texts as a table; those that begin with a digit are set to the right. marked: the row that begins with it is bold."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = ""
    for row in rows:
        kind = ' class="winner"' if marked and row[0] == marked else ""
        body += f"<tr{kind}>" + "".join(_cell(text) for text in row) + "</tr>"
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _cell(text: str) -> str:
    return f'<td class="n">{escape(text)}</td>' if text[:1].isdigit() else f"<td>{escape(text)}</td>"


def _candidates(report: Report) -> str:
    away = sum(report.dev_size - row.examples for row in report.rows)
    note = f"<p>{away} evaluations of {report.dev_size * len(report.rows)} were raced away.</p>"
    names = columns(report.rows)
    head, rows = (*names[:4], "raced away", *names[4:]), []
    for row in report.rows:
        name, score, interval, seen, *rest = cells(row, LATENCY in names)
        rows.append((name, score, interval, seen, str(report.dev_size - row.examples), *rest))
    return note + _table(head, rows, report.winner)


def _passes(evidence: Evidence) -> str:
    rows = [
        (
            step.name, f"{step.score_before:.3f} → {step.score_after:.3f}", str(step.candidates), str(step.raced_away),
            str(step.calls), f"{step.tokens:,}", f"{step.seconds:.1f}", "; ".join((step.decision, *step.notes)),
        )
        for step in evidence.steps
    ]  # fmt: skip
    head = ("pass", "score", "candidates", "raced away", "calls", "tokens", "seconds", "decision")
    return _table(head, rows) if rows else ""


def _prompt(prompt: Prompt) -> str:
    title = f"<h3>{escape(prompt.predictor)}</h3>"
    if prompt.before == prompt.after:
        return f"{title}<p>unchanged</p><details><summary>prompt</summary><pre>{escape(prompt.after)}</pre></details>"
    lines = difflib.unified_diff(
        prompt.before.splitlines(), prompt.after.splitlines(), "baseline", "winner", lineterm="", n=3
    )
    body = "\n".join(f'<span class="{_kind(line)}">{escape(line)}</span>' for line in lines)
    whole = f"<details><summary>the winner's prompt</summary><pre>{escape(prompt.after)}</pre></details>"
    return f"{title}<pre>{body}</pre>{whole}"


def _kind(line: str) -> str:
    return {"+": "add", "-": "del"}.get(line[:1], "same")


def _examples(evidence: Evidence) -> str:
    if not evidence.wins + evidence.losses + evidence.ties:
        return ""
    text = f"<p>{evidence.wins} won, {evidence.losses} lost, {evidence.ties} the same.</p>"
    kinds = {
        "Won": [c for c in evidence.comparisons if c.winner_score > c.baseline_score],
        "Lost": [c for c in evidence.comparisons if c.winner_score < c.baseline_score],
        "Wrong in both": [c for c in evidence.comparisons if c.winner_score == c.baseline_score],
    }
    for title, found in kinds.items():
        if found:
            state = " open" if title != "Wrong in both" else ""
            text += f"<details{state}><summary>{title}: {len(found)} shown</summary>{_compared(found)}</details>"
    return text


def _compared(found: Sequence[Comparison]) -> str:
    head = "".join(f"<th>{name}</th>" for name in ("#", "input", "expected", "baseline", "winner", "why"))
    body = "".join(
        f'<tr><td class="n">{one.example}</td><td>{_values(one.inputs)}</td><td>{_values(one.expected)}</td>'
        f"<td>{_answer(one.baseline, one.baseline_score)}</td><td>{_answer(one.winner, one.winner_score)}</td>"
        f"<td>{escape(one.said)}</td></tr>"
        for one in found
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _answer(values: Mapping[str, str], score: float) -> str:
    return f'<span class="q">{score:.2f}</span><br>{_values(values) or "failed"}'


def _values(values: Mapping[str, str]) -> str:
    return "<br>".join(f'<span class="q">{escape(name)}:</span> {escape(text)}' for name, text in values.items())


def _calibration(fit: CalibrationFit) -> str:
    text = (
        f"{fit.predictor}.{fit.field}: expected calibration error {fit.error_before:.3f} before, "
        f"{fit.error_after:.3f} after; "
        f"accuracy {fit.accuracy_before:.3f} before, {fit.accuracy_after:.3f} after; temperature {fit.temperature:.2f}; "
        f"{f'nearness to examples {fit.nearness:g}; ' if fit.nearness else ''}"
        f"{fit.examples} dev examples"
    )
    return f"<p>{escape(text)}</p>" + (reliability_svg(fit) if fit.reliability_before else "")
