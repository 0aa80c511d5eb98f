"""An audit as notes of one line, as text and as HTML."""

from __future__ import annotations

import html
import json

from .audit import EXAMPLES, LONG, Audit, Conflict, Repeats
from .balance import Balance

MOST_NOTES = 6
LOPSIDED = 0.6
"""A share of the most frequent value that a note is due."""
_SHOWN_VALUES = 10
_SHOWN_CHARACTERS = 100


def notes(audit: Audit) -> tuple[str, ...]:
    """What may make scores wrong, the worst first, at most `MOST_NOTES` lines."""
    across = [_across(audit, found) for found in audit.repeats if found.split != found.within]
    inside = [_inside(audit)]
    conflicts = [_conflict_note(audit)] if audit.conflicts else []
    balances = [line for found in audit.balances for line in _balance_notes(audit, found)]
    sizes = [
        *(f"rows of {name} that lack an input: {len(rows)}" for name, rows in audit.empty.items() if rows),
        *(
            f"rows of {name} with over {LONG:,} characters of input: {len(rows)}"
            for name, rows in audit.long.items()
            if rows
        ),
    ]
    lines = [line for line in (*across, *conflicts, *balances, *inside, *sizes) if line]
    return tuple(lines[:MOST_NOTES])


def text(audit: Audit) -> str:
    """The whole audit, a paragraph per matter; a matter in which nothing was found takes one line."""
    parts = [" ".join(f"{name} {len(part)} rows;" for name, part in audit.splits.items()).rstrip(";")]
    parts += [_repeats_text(audit, found) for found in audit.repeats]
    parts.append(_conflicts_text(audit))
    parts += [_balance_text(audit, found) for found in audit.balances]
    parts.append(_sizes_text("rows that lack an input", audit.empty))
    parts.append(_sizes_text(f"inputs of over {LONG:,} characters", audit.long))
    return "\n".join(parts)


def page(audit: Audit) -> str:
    """Notes as a list, balances as tables, and the whole text to unfold."""
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in notes(audit)) or "<li>nothing found</li>"
    tables = "".join(_balance_table(audit, found) for found in audit.balances)
    return f"<ul>{lines}</ul>{tables}<details><summary>Audit</summary><pre>{html.escape(text(audit))}</pre></details>"


def _across(audit: Audit, found: Repeats) -> str:
    rows = len(found.exact) + len(found.near)
    if not rows:
        return ""
    kinds = [f"{len(found.exact)} exactly"] * bool(found.exact) + [f"{len(found.near)} nearly"] * bool(found.near)
    return (
        f"{rows} of {len(audit.splits[found.split])} {found.split} examples have the inputs of a {found.within} example "
        f"({', '.join(kinds)}): scores may flatter"
    )


def _inside(audit: Audit) -> str:
    counts = [
        f"{len(found.exact)} + {len(found.near)} in {found.split}"
        for found in audit.repeats
        if found.split == found.within and found.exact + found.near
    ]
    return f"rows that repeat an earlier row of their split, exactly + nearly: {', '.join(counts)}" if counts else ""


def _conflict_note(audit: Audit) -> str:
    rows = {row for conflict in audit.conflicts for row in conflict.rows}
    fields = dict.fromkeys(conflict.field for conflict in audit.conflicts)
    first = audit.conflicts[0]
    return (
        f"{len(rows)} rows share their inputs but not their {' or '.join(fields)}: "
        f"{_shown(audit, *first.rows[0])} is {' and '.join(_cut(value, 30) for value in first.values[:3])}"
    )


def _balance_notes(audit: Audit, found: Balance) -> list[str]:
    """Judged on dev, since candidates are; on train where there is none."""
    names = list(audit.splits)
    judge = names.index("dev") if "dev" in names else 0
    share, name = found.baseline[judge], names[judge]
    lines = []
    if found.unseen:
        lines.append(f"{found.field}: train has no row with {', '.join(_cut(v, 30) for v in found.unseen[:5])}")
    if share >= LOPSIDED:
        lines.append(f"{found.field}: always answering {_cut(found.majority, 30)} is right for {share:.0%} of {name}")
    return lines


def _repeats_text(audit: Audit, found: Repeats) -> str:
    place = f"inside {found.split}" if found.split == found.within else f"{found.split} in {found.within}"
    lines = [
        f"{place}: {len(found.exact)} exact and {len(found.near)} near duplicates (similarity {audit.threshold:g} or more)"
    ]
    for row, other in found.exact[:EXAMPLES]:
        lines.append(f"  exact: {found.split}[{row}] = {found.within}[{other}]: {_shown(audit, found.split, row)}")
    for near in sorted(found.near, key=lambda pair: -pair.similarity)[:EXAMPLES]:
        lines.append(f"  {near.similarity:.2f}: {found.split}[{near.first}]: {_shown(audit, found.split, near.first)}")
        lines.append(f"        {found.within}[{near.second}]: {_shown(audit, found.within, near.second)}")
    return "\n".join(lines)


def _conflicts_text(audit: Audit) -> str:
    lines = [f"equal inputs with different labels: {len(audit.conflicts)}"]
    lines += [_conflict_line(audit, conflict) for conflict in audit.conflicts[:EXAMPLES]]
    return "\n".join(lines)


def _conflict_line(audit: Audit, conflict: Conflict) -> str:
    rows = ", ".join(f"{split}[{row}]" for split, row in conflict.rows[:5])
    values = ", ".join(_cut(value, 30) for value in conflict.values[:5])
    return f"  {conflict.field}: {rows}: {_shown(audit, *conflict.rows[0])}: {values}"


def _balance_text(audit: Audit, found: Balance) -> str:
    names = list(audit.splits)
    scores = ", ".join(f"{name} {share:.3f}" for name, share in zip(names, found.baseline, strict=True))
    lines = [f"{found.field}: {len(found.counts)} values; always answering {_cut(found.majority, 30)} scores {scores}"]
    for value, counts in list(found.counts.items())[:_SHOWN_VALUES]:
        cells = zip(names, counts, found.shares(value), strict=True)
        lines.append(f"  {_cut(value, 30)}: " + ", ".join(f"{name} {n} ({share:.1%})" for name, n, share in cells))
    if len(found.counts) > _SHOWN_VALUES:
        lines.append(f"  and {len(found.counts) - _SHOWN_VALUES} more")
    return "\n".join(lines)


def _balance_table(audit: Audit, found: Balance) -> str:
    heads = "".join(f"<th>{html.escape(name)}</th>" for name in (found.field, *audit.splits))
    body = ""
    for value, counts in list(found.counts.items())[:_SHOWN_VALUES]:
        cells = [_cut(value, 30), *(f"{n} ({s:.1%})" for n, s in zip(counts, found.shares(value), strict=True))]
        body += "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _sizes_text(what: str, rows: dict[str, tuple[int, ...]]) -> str:
    places = [f"{name}[{row}]" for name, found in rows.items() for row in found]
    return f"{what}: {len(places)}" + (f" ({', '.join(places[:5])})" if places else "")


def _shown(audit: Audit, split: str, row: int) -> str:
    part = audit.splits[split]
    values = [part[row][name] for name in part.inputs]
    return " | ".join(_cut(value if isinstance(value, str) else json.dumps(value, default=str)) for value in values)


def _cut(value: str, most: int = _SHOWN_CHARACTERS) -> str:
    line = " ".join(value.split())
    return repr(line if len(line) <= most else line[: most - 1] + "…")
