"""The engine beside OpenVINO GenAI, llama.cpp and transformers: same model, same prompts, same machine.

    python benchmarks/engine.py            all cells (about half an hour the first time)
    python benchmarks/engine.py --quick    three cases, without transformers (under five minutes)
    python benchmarks/engine.py --json     rows as the last line

Every repetition has new text, so that nothing is cached that the case does not say is cached; the best repetition counts.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cells import command_line, measure, print_ratios
from engine_systems import MODEL, SYSTEMS, System, version_of

REPEATS = 3
SLOW_SECONDS = 20.0
"""A case that takes longer than this is not repeated."""
PATIENCE_SECONDS = 60.0
"""A system that takes longer than this for a case is not tried at its other settings."""


@dataclass(frozen=True)
class Case:
    """requests prompts of shared + own tokens, each continued by new tokens; warm: the shared part is in the cache."""

    requests: int
    shared: int
    own: int
    new: int
    warm: bool = False

    @property
    def tokens(self) -> int:
        """Tokens that tokens_per_second counts: what has to be read, or what is written where that is the point."""
        return self.requests * (self.own + self.shared) if self.new == 1 else self.requests * self.new


CASES = {
    "prefill_500": Case(1, 0, 500, 1),
    "prefill_1500": Case(1, 0, 1500, 1),
    "decode_1": Case(1, 0, 16, 128),
    "batch_32": Case(32, 0, 300, 64),
    "shared_cold": Case(64, 600, 40, 16),
    "shared_warm": Case(64, 600, 40, 16, warm=True),
    "batch_64": Case(64, 0, 10, 64),
}
QUICK = ("prefill_500", "decode_1", "batch_64")


def text_maker() -> Callable[[int, str], str]:
    """Return a function giving text of exactly so many tokens, different for every seed."""
    from still.backends.models import load_model

    tokenizer = load_model(MODEL).tokenizer
    words = ["river", "stone", "light", "under", "green", "seven", "house", "paper", "sound", "winter", "table", "cloud"]

    def text(tokens: int, seed: str) -> str:
        rng = random.Random(seed)
        made = " ".join(rng.choice(words) for _ in range(tokens))
        ids = tokenizer.encode(" " + made)[:tokens]
        return tokenizer.decode(ids)

    return text


def best_setting(case: Case, system: str) -> dict[str, Any]:
    """Metrics of a case at the setting that is fastest for it."""
    make = SYSTEMS[system]
    measured: list[dict[str, Any]] = []
    for setting in make.settings:
        measured.append({**run_cell(case, make(setting)), "setting": setting})
        if measured[0]["seconds"] > PATIENCE_SECONDS:
            break
    return min(measured, key=lambda metrics: float(metrics["seconds"]))


def run_cell(case: Case, system: System) -> dict[str, Any]:
    """Measure one case: warm the system up on other text, then time it."""
    text = text_maker()
    system.run([text(8, "warm-up")], 4)
    seconds: list[float] = []
    for repeat in range(REPEATS):
        prefix = text(case.shared, f"prefix {repeat}") if case.shared else ""
        if case.warm:
            system.run([prefix + text(8, f"first {repeat}")], 1)
        prompts = [prefix + text(case.own, f"{repeat}/{i}") for i in range(case.requests)]
        began = time.perf_counter()
        system.run(prompts, case.new)
        seconds.append(time.perf_counter() - began)
        if seconds[-1] > SLOW_SECONDS:
            break
    best = min(seconds)
    return {"seconds": best, "tokens_per_second": case.tokens / best}


def peak_products() -> dict[str, float]:
    """Operations per second of torch's int8 product over one layer's shapes at 512 rows: what prefill could reach."""
    import torch
    from still.backends.models import load_model

    weights = load_model(MODEL).weights
    shapes = [weights[f"layers.0.{name}.q"].shape for name in ("qkv", "o", "gate_up", "down")]
    pairs = [(torch.ones(512, i, dtype=torch.int8), torch.ones(o, i, dtype=torch.int8).t()) for o, i in shapes]
    operations = sum(2 * 512 * o * i for o, i in shapes)
    best = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for a, b in pairs:
            torch._int_mm(a, b)
        best = min(best, time.perf_counter() - began)
    return {"operations_per_second": operations / best}


def prefill_share(rows: list[dict[str, Any]]) -> str | None:
    """How close prefill_500 comes to the peak of the int8 products."""
    from still.backends.models import load_model

    cells = {(row["case"], row["system"]): row["metrics"] for row in rows}
    speed = cells.get(("prefill_500", "still"), {}).get("tokens_per_second")
    peak = cells.get(("peak", "still"), {}).get("operations_per_second")
    if speed is None or peak is None:
        return None
    weights = load_model(MODEL).weights
    per_token = sum(2 * w.numel() for name, w in weights.items() if name.endswith(".q") and name != "lm_head.q")
    return f"prefill_500 runs at {speed * per_token / 1e9:.0f} Gop/s, {speed * per_token / peak:.2f} of torch._int_mm's peak"


def main() -> None:
    parser = command_line(__doc__, "only the short cells")
    options = parser.parse_args()
    if options.cell:
        case, system = options.cell
        metrics = peak_products() if case == "peak" else best_setting(CASES[case], system)
        print(json.dumps(metrics), flush=True)
        return
    systems = [s for s in SYSTEMS if version_of(s) and not (options.quick and s == "transformers")]
    script = Path(__file__)
    rows = [measure(script, "peak", "still", version_of("still") or "", options.fresh)]
    for case in QUICK if options.quick else CASES:
        for system in systems:
            rows.append(measure(script, case, system, version_of(system) or "", options.fresh))
            print(case, system, rows[-1]["metrics"], flush=True)
    print_ratios([row for row in rows if row["case"] != "peak"], "still")
    if share := prefill_share(rows):
        print(share)
    for system in SYSTEMS:
        if version_of(system) is None:
            print(f"{system} is not installed: pip install -e '.[benchmarks]'")
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
