"""How modules show in a notebook."""

from __future__ import annotations

from html import escape
from typing import Any


class Page:
    """Mixin: a table of the module's predictors."""

    def _repr_html_(self) -> str:
        module: Any = self
        rows = "".join(_row(name, predictor) for name, predictor in module.named_predictors())
        head = "<tr><th>predictor</th><th>signature</th><th>instructions</th><th>demonstrations</th></tr>"
        return f"<div><b>{escape(type(self).__name__)}</b><table>{head}{rows}</table></div>"


def _row(name: str, predictor: Any) -> str:
    cells = (name, predictor.signature.signature, predictor.signature.instructions, str(len(predictor.demos)))
    return "<tr>" + "".join(f'<td style="text-align:left">{escape(cell)}</td>' for cell in cells) + "</tr>"
