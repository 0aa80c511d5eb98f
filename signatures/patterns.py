"""Regular expressions of dates, numbers and other formatted texts, and of ranges of them."""

from __future__ import annotations

import datetime
import re
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

# 29 February exists in years divisible by 4, except by 100, unless by 400. Years run from 0001, as in Python.
_FOURTH = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP_DAY = f"(?:[0-9]{{2}}{_FOURTH}|{_FOURTH}00)-02-29"
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LONG_MONTH = "(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
_SHORT_MONTH = "(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
_DAY = f"(?:{_LONG_MONTH}|{_SHORT_MONTH}|02-(?:0[1-9]|1[0-9]|2[0-8]))"
DATE = f"(?:{_YEAR}-{_DAY}|{_LEAP_DAY})"
TIME = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
ZONE = "(?:Z|[+-](?:0[0-9]|1[0-3]):[0-5][0-9])"
_CLOCK = "(?:[0-9]{1,2}H(?:[0-9]{1,2}M)?(?:[0-9]{1,2}S)?|[0-9]{1,2}M(?:[0-9]{1,2}S)?|[0-9]{1,2}S)"
DURATION = f"P(?:[0-9]{{1,6}}D(?:T{_CLOCK})?|T{_CLOCK})"
INTEGER = "(?:0|-?[1-9][0-9]{0,14})"
_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4 = rf"(?:{_BYTE}\.){{3}}{_BYTE}"
IPV6 = "(?:[0-9a-f]{1,4}:){7}[0-9a-f]{1,4}"
FRACTION = "-?(?:0|[1-9][0-9]{0,14})(?:/[1-9][0-9]{0,14})?"
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,20}[a-z0-9])?"
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}\.[a-z]{{2,8}}"
_PATH = r"(?:/[A-Za-z0-9._~%&=?#+-]{0,40}){0,6}"


def uuid_pattern(version: int | None) -> str:
    """A UUID of a version, or of any."""
    third, fourth = (f"{version}[0-9a-f]{{3}}", "[89ab][0-9a-f]{3}") if version else ("[0-9a-f]{4}", "[0-9a-f]{4}")
    return f"[0-9a-f]{{8}}-[0-9a-f]{{4}}-{third}-{fourth}-[0-9a-f]{{12}}"


def url_pattern(schemes: list[str]) -> str:
    """A URL of a host name, with or without a path."""
    return f"(?:{'|'.join(re.escape(scheme) for scheme in schemes)})://{_HOST}{_PATH}"


def between(low: str, high: str) -> str:
    """Texts of the shape of `low` and `high` that do not sort before the one or after the other. Digits may differ;
    everything else stands in both at the same places."""
    zeros, nines = re.sub("[0-9]", "0", low), re.sub("[0-9]", "9", low)
    if (low, high) == (zeros, nines):
        return "".join("[0-9]" if char.isdigit() else re.escape(char) for char in low)
    if low[0] == high[0]:
        return re.escape(low[0]) + between(low[1:], high[1:])
    zeros, nines = zeros[1:], nines[1:]
    branches = [low[0] + between(low[1:], nines), high[0] + between(zeros, high[1:])]
    if int(high[0]) - int(low[0]) > 1:
        branches.append(_digits(int(low[0]) + 1, int(high[0]) - 1) + between(zeros, nines))
    return f"(?:{'|'.join(branches)})"


def date_range(low: datetime.date | None, high: datetime.date | None) -> str:
    """Dates from `low` to `high`, among others that the calendar does not have."""
    return between((low or datetime.date.min).isoformat(), (high or datetime.date.max).isoformat())


def decimal_pattern(low: Decimal, high: Decimal, places: int) -> str | None:
    """Decimal numbers from `low` to `high` with at most this many digits after the point; None if there are none."""
    step = Decimal(1).scaleb(-places)
    least = int((low / step).to_integral_value(ROUND_CEILING))
    most = int((high / step).to_integral_value(ROUND_FLOOR))
    branches = []
    if least < 0:
        branches += [f"-{text}" for text in _scaled(max(1, -most), -least, places)]
    if most >= 0:
        branches += _scaled(max(0, least), most, places)
    return f"(?:{'|'.join(branches)})" if branches else None


def _scaled(least: int, most: int, places: int) -> list[str]:
    """Patterns of the numbers n / 10**places for n from least to most, one for each length of the integer part."""
    found = []
    for length in range(places + 1, max(len(str(most)), places + 1) + 1):
        smallest = max(least, 10 ** (length - 1) if length > places + 1 else 0)
        largest = min(most, 10**length - 1)
        if smallest <= largest:
            found.append(_walk(str(smallest).zfill(length), str(largest).zfill(length), length, places))
    return found


def _walk(low: str | None, high: str | None, left: int, places: int) -> str:
    """Digits between two strings of `left` digits; None is no bound. The last `places` stand behind a point, and zeros
    at the end may be left off."""
    low = None if low is None or not low.strip("0") else low
    high = None if high is None or not high.strip("9") else high
    if left == 0:
        return ""
    if low is None and high is None:
        if left > places:
            return f"[0-9]{{{left - places}}}" + _walk(None, None, places, places)
        body = f"[0-9]{{1,{left}}}"
    else:
        first, last = int((low or "0")[0]), int((high or "9")[0])
        branches = []
        if low is not None and high is not None and first == last:
            branches.append(str(first) + _walk(low[1:], high[1:], left - 1, places))
        else:
            if low is not None:
                branches.append(str(first) + _walk(low[1:], None, left - 1, places))
                first += 1
            if high is not None:
                branches.append(str(last) + _walk(None, high[1:], left - 1, places))
                last -= 1
            if first <= last:
                branches.append(_digits(first, last) + _walk(None, None, left - 1, places))
        body = f"(?:{'|'.join(branches)})"
    if left > places:
        return body
    point = r"\." if left == places else ""
    return f"(?:{point}{body})" + ("?" if low is None else "")


def _digits(first: int, last: int) -> str:
    return str(first) if first == last else f"[{first}-{last}]"
