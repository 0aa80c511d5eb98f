"""Numbers as people and models write them, compared within a tolerance."""

from __future__ import annotations

import decimal
import re
from decimal import Decimal
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

from ..errors import DatasetError
from .comparisons import plain_value

_PRECISION = decimal.Context(prec=1000, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN, traps=[])
"""Wide enough for the difference of any two floats, and bounded: 1e999999 in an answer must not be written out."""

_NUMBER = re.compile(
    r"(?:(?P<sign>[-+])?\s*[$€£¥₹₩]?|[$€£¥₹₩]\s*(?P<inner>[-+]))\s*"
    r"(?P<digits>(?:[1-9][0-9]{0,2}(?:,[0-9]{3})+|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+)(?P<exponent>[eE][-+]?[0-9]+)?"
    r"\s*(?P<unit>[$€£¥₹₩%]?)"
)


def read_quantity(value: Any) -> Decimal | None:
    """A number, or None for None. Floats count as they are written: 0.1 is a tenth.

    Raises DatasetError for what is no number: a bool, NaN, text that says more than one number.
    """
    if value is None:
        return None
    number = _of_number(value) if isinstance(value, Real | Decimal) else _of_plain(plain_value(value))
    if number is None or number.is_nan():
        raise DatasetError('is not a number (as 3.5, "1,200", "$3.50" or "50%")')
    return number


def is_close(expected: Decimal | None, given: Decimal | None, rel: Decimal, abs: Decimal) -> float:
    """1 if they differ by at most `abs`, or by `rel` of the larger of the two (PEP 485, `math.isclose`)."""
    if expected is None or given is None or expected.is_infinite() or given.is_infinite():
        return float(expected == given)
    with decimal.localcontext(_PRECISION):
        allowed = max(rel * max(expected.copy_abs(), given.copy_abs()), abs)
        return float((expected - given).copy_abs() <= allowed)


def _of_number(value: Real | Decimal) -> Decimal | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, Decimal):
        return value
    with decimal.localcontext(_PRECISION):
        if isinstance(value, Integral):
            return Decimal(int(value))
        if isinstance(value, Fraction):
            return Decimal(value.numerator) / Decimal(value.denominator)
        return Decimal(repr(float(value)))


def _of_plain(plain: Any) -> Decimal | None:
    """Of text, or of what stood for a number: an enum member, a numpy scalar."""
    if isinstance(plain, Real | Decimal):
        return _of_number(plain)
    found = _NUMBER.fullmatch(plain.strip().replace("\N{MINUS SIGN}", "-")) if isinstance(plain, str) else None
    if found is None:
        return None
    digits = found["digits"].replace(",", "") + (found["exponent"] or "")
    with decimal.localcontext(_PRECISION) as context:
        number = context.create_decimal(f"{found['sign'] or found['inner'] or ''}{digits}")
        if not number.is_finite():
            return None
        return number.scaleb(-2) if found["unit"] == "%" else number
