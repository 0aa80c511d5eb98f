"""What a quantized base does to an adapter that was trained on the base in fp32.

    python benchmarks/adapters.py [--quick] [--json]
    python benchmarks/adapters.py --adapter FOLDER [--model NAME]

A LoRA adapter is trained on labelled texts (a plain loop in `adapters_training.py`, once; or any other is given) and put on
the base in fp32, bf16, int8 and int4. On held-out rows: `nll`, nats per token of the right completion, and `nll_added` over
fp32; `accuracy`, right greedy answers; `agreement`, the share of rows whose greedy answer is fp32's; `token_agreement`, of
fp32's tokens those that the quantized model chooses too after the same tokens. For comparison `base_token_agreement`: the
same without the adapter, on general prompts and longer answers.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from cells import command_line, measure

MODEL = "smollm2-135m"
CASES = ("trec", "sst2")
SYSTEMS = ("fp32", "bf16", "int8", "int4")
TEST_ROWS, ANSWER, CACHE_TOKENS = 200, 24, 32768
Tokens = tuple[int, ...]


class Answers(NamedTuple):
    """What one base says on the rows, with or without the adapter."""

    nll: float
    """Nats per token of the right completions."""
    greedy: list[Tokens]
    """Of each row, without what ends it."""


def answers(engine: Any, rows: Sequence[tuple[Tokens, Tokens]], adapter: str | None) -> Answers:
    """Score and answer rows of (prompt, right completion)."""
    from still.backends.engine import Decode, Forced, Request

    scored = [engine.submit(Request(p, (Forced(c, score=True),), adapter=adapter)) for p, c in rows]
    longest = max(len(c) for _, c in rows)
    decoded = [engine.submit(Request(p, (Decode(longest),), adapter=adapter)) for p, _ in rows]
    logprobs = [value for future in scored for value in future.result().steps[0].logprobs]
    greedy = [_bare(engine, future.result().steps[0].tokens) for future in decoded]
    return Answers(-sum(logprobs) / len(logprobs), greedy)


def _bare(engine: Any, tokens: Sequence[int]) -> Tokens:
    return tuple(token for token in tokens if token not in engine.model.tokenizer.eos_ids)


def written(engine: Any) -> list[tuple[Tokens, Tokens]]:
    """General prompts and what the base, without an adapter, writes to them: `ANSWER` tokens each."""
    from still.backends.engine import Decode, Request

    tokenizer = engine.model.tokenizer
    subjects = ("rivers", "bread", "the moon", "trains", "a library", "winter")
    starts = ("Write about {} in two sentences.", "What should one know of {}?")
    prompts = []
    for text in (start.format(subject) for subject in subjects for start in starts):
        talk = [{"role": "user", "content": text}]
        prompts.append(tuple(tokenizer.encode(tokenizer.render(talk, True), special=True)))
    futures = [engine.submit(Request(prompt, (Decode(ANSWER, ignore_eos=True),))) for prompt in prompts]
    return [(prompt, tuple(future.result().steps[0].tokens)) for prompt, future in zip(prompts, futures, strict=True)]


def token_agreement(engine: Any, reference: Sequence[tuple[Tokens, Tokens]], adapter: str | None) -> float:
    """Of the reference's answers' tokens, the share that is the greedy choice after the same tokens before it."""
    from still.backends.engine import Decode, Request

    futures, wanted = [], []
    for prompt, answer in reference:
        for i, token in enumerate(answer):
            futures.append(engine.submit(Request(prompt + answer[:i], (Decode(1, ignore_eos=True),), adapter=adapter)))
            wanted.append(token)
    same = [future.result().steps[0].tokens[0] == token for future, token in zip(futures, wanted, strict=True)]
    return sum(same) / len(same)


def compare(model: str, adapter: Path, texts: Sequence[tuple[str, str]], quantization: str) -> dict[str, float]:
    """The metrics of an adapter on one base; texts: (question, right answer)."""
    from adapters_training import pairs
    from still.backends.engine import Engine
    from still.backends.models import load_model

    with Engine(load_model(model, "fp32"), cache_tokens=CACHE_TOKENS) as engine:
        engine.load_adapter("trained", adapter)
        rows = pairs(engine.model.tokenizer, texts)
        exact, base = answers(engine, rows, "trained"), written(engine)
    reference = [(prompt, answer) for (prompt, _), answer in zip(rows, exact.greedy, strict=True)]
    with Engine(load_model(model, quantization), cache_tokens=CACHE_TOKENS) as engine:
        engine.load_adapter("trained", adapter)
        ours = answers(engine, rows, "trained")
        agreements = token_agreement(engine, reference, "trained"), token_agreement(engine, base, None)
        right = [_bare(engine, completion) for _, completion in rows]
    return {
        "nll": ours.nll,
        "nll_added": ours.nll - exact.nll,
        "accuracy": sum(a == b for a, b in zip(ours.greedy, right, strict=True)) / len(right),
        "agreement": sum(a == b for a, b in zip(ours.greedy, exact.greedy, strict=True)) / len(right),
        "token_agreement": agreements[0],
        "base_token_agreement": agreements[1],
    }


def main() -> None:
    parser = command_line(__doc__, "only the first case")
    parser.add_argument("--adapter", type=Path, help="a PEFT folder, instead of one trained here")
    parser.add_argument("--model", default=MODEL, help="its base")
    options = parser.parse_args()
    from adapters_training import labelled, trained

    if options.cell:
        case, system = options.cell
        metrics = compare(MODEL, trained(MODEL, case), labelled(case, "test", TEST_ROWS), system)
        print(json.dumps(metrics), flush=True)
        return
    rows = []
    for case in CASES[:1] if options.quick else CASES:
        if not labelled(case, "test", 1):
            sys.exit(f"{case} is not there: set STILL_DATA to the folder of the data sets")
        for system in SYSTEMS:
            if options.adapter:
                texts = labelled(case, "test", TEST_ROWS)
                rows.append(
                    {"case": case, "system": system, "metrics": compare(options.model, options.adapter, texts, system)}
                )
            else:
                rows.append(measure(Path(__file__), case, system, version("still"), options.fresh))
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in rows[-1]["metrics"].items()}
            print(case, system, shown, flush=True)
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
