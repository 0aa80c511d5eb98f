"""Texts of a grammar, drawn byte by byte: what a model without any sense would write."""

import random

from llguidance import LLMatcher


def walk(machine: LLMatcher, seed: int, closing: str, often: float, stop: float) -> str:
    """A text drawn from what the grammar allows.

    closing: characters that are likelier than chance, or strings and lists would fill their limits; often: how likely one
    of them is, where it may come. stop: the chance to end where the text may.
    """
    chance, text = random.Random(seed), bytearray()
    while not (machine.is_accepting() and chance.random() < stop):
        mask = machine.compute_bitmask()
        allowed = [byte for byte in range(256) if mask[byte // 8] >> (byte % 8) & 1]
        if not allowed:
            break
        likelier = [byte for byte in allowed if chr(byte) in closing]
        byte = chance.choice(likelier) if likelier and chance.random() < often else chance.choice(allowed)
        machine.consume_token(byte)
        text.append(byte)
    assert machine.is_accepting()
    return text.decode()
