"""Plans for reading: as text and as HTML."""

from __future__ import annotations

from html import escape

from .plan import Decode, Part, Plan, Slot, Text

_STYLES = {
    "static": "",
    "value": "color:#57606a",
    "slot": "background:#ddf4ff;color:#0550ae;border-radius:3px;padding:0 3px",
    "decode": "background:#dafbe1;color:#116329;border-radius:3px;padding:0 3px",
}


def plan_text(plan: Plan) -> str:
    """One block per turn, text indented; ‹input›, «output: constraint, how it ends»."""
    static = sum(len(part.text) for turn in plan.turns for part in turn.parts if isinstance(part, Text))
    lines = [
        f"Plan {plan.digest[:12]}: {static} static characters, inputs {', '.join(plan.slots) or 'none'}, "
        f"outputs {', '.join(dict.fromkeys(step.field for step in plan.decodes))}"
    ]
    for turn in plan.turns:
        lines.append(turn.role)
        content = "".join(_marked(part) for part in turn.parts)
        lines += [f"  {line}".rstrip() for line in content.rstrip("\n").split("\n")]
    return "\n".join(lines)


def plan_html(plan: Plan) -> str:
    """The same, with inputs and outputs in colour."""
    rows = "".join(
        f'<div style="font-weight:600;margin-top:6px">{turn.role}</div>'
        f'<div style="white-space:pre-wrap;font-family:monospace">{"".join(_span(part) for part in turn.parts)}</div>'
        for turn in plan.turns
    )
    return f'<div><div style="color:#57606a">Plan {plan.digest[:12]}</div>{rows}</div>'


def _marked(part: Part) -> str:
    if isinstance(part, Text):
        return part.text
    if isinstance(part, Slot):
        return f"‹{part.field}›"
    return " «" + _decode(part) + "»" + part.closing


def _decode(step: Decode) -> str:
    if step.scoring is not None:
        below = step.scoring.abstain_below
        unsure = f", none if all are below {below:g}" if below is not None else ""
        near = step.scoring.nearness
        fitted = step.scoring.bias or step.scoring.temperature != 1.0 or near
        calibrated = f"calibrated{' by examples' if near else ''}, " if fitted else ""
        return f"{step.name}: {step.constraint.describe()}; {calibrated}all scored{unsure}"
    return f"{step.name}: {step.constraint.describe()}; to {step.terminator.strip()}, {step.max_tokens} tokens at most"


def _span(part: Part) -> str:
    kind = "slot" if isinstance(part, Slot) else "decode" if isinstance(part, Decode) else "value"
    if isinstance(part, Text) and part.trusted:
        kind = "static"
    return f'<span style="{_STYLES[kind]}">{escape(_marked(part))}</span>'
