"""What quantization costs: negative log-likelihood, top-1 agreement and memory of each weight format on a fixed text.

    python benchmarks/formats.py [--json]

The text is the project's own README. Agreement counts the positions at which the most likely next token equals fp32's.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from still.backends.engine import Decode, Engine, Request
from still.backends.models import load_model

MODEL = "smollm2-135m"
FORMATS = ("fp32", "bf16", "int8", "int4")
POSITIONS = 400
TEXT = Path(__file__).parents[1] / "README.md"


def measure(quantization: str) -> tuple[float, list[int], int]:
    """Mean negative log-likelihood per token (nats), the most likely tokens, and bytes of weights."""
    model = load_model(MODEL, quantization)
    tokens = model.tokenizer.encode(TEXT.read_text("utf-8"))[: POSITIONS + 1]
    with Engine(model, cache_tokens=8192) as engine:
        (scores,) = engine.score(tokens[:1], [tokens[1:]])
        step = (Decode(1, ignore_eos=True),)
        futures = [engine.submit(Request(tuple(tokens[: i + 1]), step)) for i in range(POSITIONS)]
        best = [future.result().steps[0].tokens[0] for future in futures]
    size = sum(tensor.nbytes for tensor in model.weights.values())
    return -sum(scores) / len(scores), best, size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print the rows as the last line")
    options = parser.parse_args()
    rows = []
    reference: list[int] = []
    for name in FORMATS:
        nll, best, size = measure(name)
        reference = reference or best
        agreement = sum(a == b for a, b in zip(best, reference, strict=True)) / len(best)
        metrics = {"nll": nll, "agreement": agreement, "weight_megabytes": size / 1e6}
        rows.append({"case": "readme", "system": f"still_{name}", "metrics": metrics})
        print(f"{name:5} NLL {nll:.4f}   top-1 agreement {agreement:.3f}   weights {size / 1e6:.0f} MB")
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
