"""Twenty kills at random moments: no row is lost or changed, and the compile ends as one that nobody disturbed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the compiles are forks")
def test_twenty_kills_change_nothing(tmp_path):
    script = Path(__file__).with_name("killed_compiles.py")
    seed = random.randrange(1_000_000)
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "20", str(seed)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr[-2000:]}"
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["killed"] == 20
    assert (told["lost"], told["changed"]) == (0, 0), f"seed {seed}"
    assert told["kept"] > 0, "the kills came before anything was on disk"
    whole, broken = told["whole"], told["broken"]
    assert (broken["winner"], broken["artifact"]) == (whole["winner"], whole["artifact"]), f"seed {seed}"
    assert whole["calls"] >= 500, "the budget ended it"
    assert told["ids"], "the same evaluations, each of them once"
    assert told["scores"], "which count the same"
    assert broken["calls"] == whole["calls"] - told["kept"], "what was kept is not run again"
