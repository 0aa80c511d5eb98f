"""The help desk: route a customer message, judge its urgency, find the order number.

    python programs/helpdesk.py        (or: still demo)

compiles the program on messages written for it, compares it on held-out ones, saves the artifact, and answers new
messages with it in a second process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import still
from pydantic import StringConstraints

DATA = Path(__file__).parent / "data" / "helpdesk.csv"

NEW_MESSAGES = (
    "hi, parcel LV-731902 was supposed to be here last friday, tracking hasnt moved in 5 days??",
    "You charged my card TWICE for the same kettle. I want the second payment back today or I call my bank.",
    "Do you sell gift cards? No rush, my sister's birthday is in spring.",
)


class Ticket(still.Signature):
    """Read a message sent to an online shop for home goods. Decide which team handles it and how urgent it is, and copy
    the order number if the message has one."""

    message: str = still.Input()
    team: Literal["orders", "shipping", "returns", "billing", "technical", "account", "other"] = still.Output()
    urgency: Literal["low", "normal", "high"] = still.Output()
    order_id: Annotated[str, StringConstraints(pattern=r"^LV-\d{6}$")] | None = still.Output(desc="like LV-204518")


def helpdesk() -> Any:
    """The program: one typed predictor."""
    return still.Predict(Ticket)


def run_demo(folder: Path = Path(".still"), seed: int = 0) -> dict[str, Any]:
    """Compile at O1, compare on held-out messages, answer new ones. Returns the summary that `still demo --json` prints."""
    started = time.perf_counter()
    data = still.Dataset.read(DATA, inputs=["message"])
    train, dev, test = data.split(train=0.5, dev=0.2, test=0.3, seed=seed, stratify="team")
    program, lm, ledger = helpdesk(), still.LM(), folder / "ledger.duckdb"
    print(f"compiling on {len(train)} messages to learn from and {len(dev)} to choose by …", flush=True)
    result = still.compile(program, train, dev, level="O1", lm=lm, ledger=ledger, seed=seed)
    print(f"\n{result.report}\n")
    baseline = still.evaluate(program, test, lm=lm, ledger=ledger)
    compiled = still.evaluate(result.program, test, lm=lm, ledger=ledger)
    print(f"accuracy on {len(test)} held-out messages")
    for field in baseline.fields:
        print(f"  {field:10} baseline {baseline.fields[field]:.3f}   compiled {compiled.fields[field]:.3f}")
    artifact = result.save(folder / "helpdesk.still")
    print(f"\nsaved {artifact}; a new process loads it and answers:")
    _answer_in_new_process(artifact)
    return {
        "baseline": baseline.fields,
        "compiled": compiled.fields,
        "test_size": len(test),
        "seconds": round(time.perf_counter() - started, 1),
        "artifact": str(artifact),
    }


def _answer_in_new_process(artifact: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        messages = Path(folder) / "messages.jsonl"
        messages.write_text("".join(json.dumps({"message": m}) + "\n" for m in NEW_MESSAGES), "utf-8")
        command = [sys.executable, "-m", "still.cli", "run", str(artifact), str(messages)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        raise still.errors.ArtifactError(f"the artifact {artifact} does not run in a new process:\n{answer.stderr}")
    for message, line in zip(NEW_MESSAGES, answer.stdout.splitlines(), strict=True):
        print(f"  {message}\n    -> {line}")


if __name__ == "__main__":
    run_demo()
