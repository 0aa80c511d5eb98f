"""Word problems (MAWPS), answered by a calculation: of a few the calculation is known, of most only the result is used."""

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
WRITTEN, ASKED, CHOOSE, TEST = 300, 1150, 150, 500


def calculations() -> tuple[Any, tuple[Any, Any], tuple[Any, Any], Any, Any]:
    """Signature, (train, dev) with calculations, (train, dev) with results alone, test, metric."""
    from still import Dataset, Input, Output, Signature

    class Problem(Signature):
        """Write the calculation that solves the word problem."""

        question: str = Input()
        calculation: Annotated[str, StringConstraints(pattern=f"^{SPELLING}$")] = Output()

    def metric(example: Any, prediction: Any, trace: Any = None) -> float:
        found = result_of(prediction.calculation)
        return float(found is not None and abs(found - example.final) < 1e-3)

    train, dev, test = Dataset(_problems(), inputs=["question"]).split(WRITTEN + ASKED, CHOOSE, TEST, seed=0, near=0.6)
    results = [Dataset([{key: row[key] for key in ("question", "final")} for row in rows], inputs=["question"])
               for rows in (list(train)[WRITTEN:], dev)]  # fmt: skip
    written = Dataset(list(train)[:WRITTEN], inputs=["question"])
    return Problem, (written, dev), (results[0], results[1]), test, metric


def _problems() -> list[dict[str, Any]]:
    """Those whose equation is `x = ...` and gives the result, each question once."""
    found: dict[str, dict[str, Any]] = {}
    for file in ("mawps_train.jsonl", "mawps_dev.jsonl", "mawps_test.jsonl"):
        for row in _rows("math_word", file):
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
