"""Rows of a pandas data frame as plain Python values. pandas itself is never imported: the frame brings it along."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any

import numpy as np

from ..backends.readers import Table, check_columns
from ..errors import DatasetError


def read_frame(frame: Any) -> Table:
    """Columns and rows of `frame`; its index is left out.

    A missing value (None, NaN, NaT, NA) is None, a numpy scalar or array the Python value, a Timestamp a datetime, a
    Timedelta a timedelta, a Period its text, a category the value it stands for. A number that stands in a column of
    floats only since the column has holes stays a float.

    Raises:
        DatasetError: not a data frame, no rows, a column whose name is no text, or is empty, or is there twice.
    """
    if not (hasattr(frame, "columns") and hasattr(frame, "iloc")):
        raise DatasetError(
            f"frame is a {type(frame).__name__}: give a pandas DataFrame (of another library's frame, its to_pandas())"
        )
    names = list(frame.columns)
    for name in names:
        if not isinstance(name, str):
            raise DatasetError(f"frame: the column name {name!r} is no text; rename it, as with frame.rename(columns=str)")
    check_columns(names, "frame")
    if not len(frame):
        raise DatasetError(f"frame: has columns {', '.join(names)} but no rows; add rows to it")
    columns = [[plain_value(value) for value in frame.iloc[:, i].tolist()] for i in range(len(names))]
    return Table(names, [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)])


def plain_value(value: Any) -> Any:
    """A cell as Python has it, also inside lists and dicts."""
    if value is None or _is_missing(value):
        return None
    if isinstance(value, dict):
        return {key: plain_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain_value, value)) if type(value) in (list, tuple) else value
    if isinstance(value, np.ndarray):
        return [plain_value(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return plain_value(value.item())
    if isinstance(value, dt.datetime) and hasattr(value, "to_pydatetime"):
        return value.to_pydatetime(warn=False)  # nanoseconds are cut off: Python has none
    if isinstance(value, dt.timedelta) and hasattr(value, "to_pytimedelta"):
        return value.to_pytimedelta()
    return str(value) if type(value).__module__.split(".")[0] == "pandas" else value


def _is_missing(value: Any) -> bool:
    """NaN of any float type; NaT is the one datetime unequal to itself, and NA says so when it is asked."""
    if type(value).__name__ in ("NaTType", "NAType"):
        return True
    return isinstance(value, float | Decimal | np.floating | np.datetime64 | np.timedelta64) and bool(value != value)
