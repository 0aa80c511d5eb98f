"""The plots of a report as SVG, to be put into HTML as they are."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..optimizers.context import CalibrationFit
from .evidence import Point

if TYPE_CHECKING:
    from .report_table import Row

INK, WEAK, STRONG = "#1c2733", "#9aa7b3", "#1f6fb2"


def course_svg(points: Sequence[Point]) -> str:
    """Score of every candidate that has seen all of dev over the tokens spent by then, and the best so far as a line."""

    def draw(axes: Any) -> None:
        tokens = [point.tokens for point in points]
        axes.plot(tokens, [point.score for point in points], "o", color=WEAK, markersize=4, label="candidate")
        axes.step(tokens, [point.best for point in points], where="post", color=STRONG, label="best so far")
        axes.set(xlabel="tokens spent (prompt, cached or not, and decoded)", ylabel="score on dev", ylim=(-0.02, 1.02))
        axes.legend(frameon=False, loc="lower right")

    return _svg("course", (7.2, 2.8), draw)


def front_svg(rows: Sequence[Row]) -> str:
    """Score over latency of every candidate whose latency was measured; those of the front in colour."""

    def draw(axes: Any) -> None:
        timed = [row for row in rows if row.latency is not None]
        front = sorted((row for row in timed if row.on_front), key=lambda row: row.latency or 0.0)
        axes.plot([_ms(row) for row in timed], [row.score for row in timed], "o", color=WEAK, markersize=4)
        axes.plot([_ms(row) for row in front], [row.score for row in front], "o-", color=STRONG)
        axes.set(xlabel="median latency of one call of the program, ms", ylabel="score on dev", ylim=(-0.02, 1.02))
        axes.set_xlim(left=0)

    return _svg("front", (7.2, 2.8), draw)


def reliability_svg(fit: CalibrationFit) -> str:
    """Accuracy over confidence, before and after calibration; on the diagonal probabilities mean what they say."""

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=WEAK, linewidth=1)
        for bins, color, label in ((fit.reliability_before, WEAK, "before"), (fit.reliability_after, STRONG, "after")):
            confidence, accuracy = [b.confidence for b in bins], [b.accuracy for b in bins]
            axes.plot(confidence, accuracy, color=color, linewidth=1)
            axes.scatter(confidence, accuracy, s=[10 + 90 * b.count / fit.examples for b in bins], color=color, label=label)
        axes.set(xlabel="confidence", ylabel="share of right answers", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axes.legend(frameon=False, loc="upper left")

    return _svg(f"reliability {fit.predictor} {fit.field}", (3.6, 3.2), draw)


def _ms(row: Row) -> float:
    return 1000 * (row.latency or 0.0)


def _svg(name: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """An `svg` element. The same data give the same text: ids come from `name`, and no date is in it."""
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")  # not pyplot: no window system, no shared state
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", buffer.getvalue(), flags=re.DOTALL)
    return text[text.index("<svg") :]  # inside HTML there is no XML head
