"""What an int8 engine costs beyond torch itself: its weights, the pages that were used, and a bounded rest."""

import json
import subprocess
import sys

import pytest
from still.backends.engine.kernels import native_level

SCRIPT = """
import json, psutil, torch
process = psutil.Process()
before = process.memory_info().rss
from still.backends.engine import Decode, Engine, Request
from still.backends.models import load_model
model = load_model("smollm2-135m", "int8")
engine = Engine(model, cache_tokens=8192)
steps = (Decode(8, ignore_eos=True),)
futures = [engine.submit(Request(tuple(range(100 + i, 600 + i)), steps)) for i in range(12)]
for future in futures:
    future.result()
spec, stats = model.spec, engine.stats
page = 2 * 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * 16
print(json.dumps({
    "grown": process.memory_info().rss - before,
    "weights": sum(tensor.nbytes for tensor in model.weights.values()),
    "pages": page * stats.pages_cached,
}))
"""


@pytest.mark.model
@pytest.mark.skipif(native_level() == 0, reason="the torch decoder computes int4 and int8 with temporary copies")
def test_memory_beyond_weights_and_pages_is_bounded(model_int8):
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=300)
    used = json.loads(done.stdout.splitlines()[-1])
    assert used["pages"] > 100e6, "the cache was really filled"
    rest = used["grown"] - used["weights"] - used["pages"]
    assert rest < 300e6, used
