"""Where a text may be cut: each match ends where the next part begins."""

from __future__ import annotations

import re

HEADING = re.compile(r"^(?=#{1,6}[ \t])", re.MULTILINE)
PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
LINE = re.compile(r"\n\s*")
SENTENCE = re.compile(r"(?:(?<=[.!?…])|(?<=[.!?…][\"')\]”’]))\s+|(?<=[。！？])")
SENTENCES = re.compile(rf"{PARAGRAPH.pattern}|{SENTENCE.pattern}")
WORD = re.compile(r"\s+")
