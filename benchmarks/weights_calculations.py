"""Word problems, answered by a calculation: MAWPS has them written, of SVAMP only the results are used."""

# Without postponed annotations: the signature below is made in a function.
import ast
import operator
import re
from typing import Annotated, Any

from compile_sets import _rows
from pydantic import StringConstraints

SPELLING = r"[0-9(][0-9.+*/() -]{0,60}"
OPERATIONS: dict[type, Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}  # fmt: skip
CHOOSE, ASKED, TEST = 150, 450, 400


def calculations() -> tuple[Any, tuple[Any, Any], tuple[Any, Any], Any, Any]:
    """Signature, (train, dev) with calculations, (train, dev) without, test, metric."""
    from still import Dataset, Input, Output, Signature

    class Problem(Signature):
        """Write the calculation that solves the word problem."""

        question: str = Input()
        calculation: Annotated[str, StringConstraints(pattern=f"^{SPELLING}$")] = Output()

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        found = result_of(prediction.calculation)
        return float(found is not None and abs(found - example.final) < 1e-3)

    known = _written()
    written = Dataset(known[:-CHOOSE], inputs=["question"]), Dataset(known[-CHOOSE:], inputs=["question"])
    rows = [{"question": row["question"], "final": float(row["final"])} for row in _rows("math_word", "svamp.jsonl")]
    train, dev, test = Dataset(rows, inputs=["question"]).split(ASKED, CHOOSE, TEST, seed=0, near=0.6)
    return Problem, written, (train, dev), test, metric


def _written() -> list[dict[str, Any]]:
    """MAWPS' training problems whose equation is `x = ...` and gives the result, each question once."""
    found: dict[str, dict[str, Any]] = {}
    for row in _rows("math_word", "mawps_train.jsonl"):
        text, final = _spelled(row["equation"]), float(row["final"])
        result = None if text is None else result_of(text)
        if result is not None and abs(result - final) < 1e-3:
            found.setdefault(row["question"], {"question": row["question"], "calculation": text, "final": final})
    return list(found.values())


def _spelled(equation: str) -> str | None:
    """One spelling for all: "X=((22.0-14.0)/4.0)" is "(22 - 14) / 4"."""
    side = re.fullmatch(r"[xX]=([0-9.+\-*/() ]+)", equation)
    try:
        text = "" if side is None else ast.unparse(ast.parse(side[1].strip(), mode="eval"))
    except SyntaxError:
        return None
    text = re.sub(r"(\d+)\.0\b", r"\1", text)
    return text if re.fullmatch(SPELLING, text) else None


def result_of(calculation: str) -> float | None:
    """What the four operations come to; None for anything else. Nothing is evaluated as code."""
    try:
        return _result(ast.parse(calculation.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, OverflowError, RecursionError):
        return None


def _result(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return float(OPERATIONS[type(node.op)](_result(node.left), _result(node.right)))
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return float(node.value)
    raise ValueError(ast.dump(node))
