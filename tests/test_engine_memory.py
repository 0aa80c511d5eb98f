"""What an int8 engine costs beyond torch itself: its weights, the pages that were used, and a bounded rest; and how many
pages it takes by default."""

import json
import subprocess
import sys

import psutil
import pytest
from still.backends.engine import Engine, cache_size
from still.backends.engine.cache_size import MOST, bytes_per_token, default_cache_tokens
from still.backends.engine.decoder import TorchDecoder
from still.backends.engine.kernels import native_level
from still.backends.engine.native import NativeDecoder
from still.backends.engine.pages import PAGE_SIZE

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


def test_a_token_takes_what_is_reckoned_for_it(tiny_int8, tiny_model):
    for model, decoders in ((tiny_int8, (TorchDecoder, NativeDecoder)), (tiny_model, (TorchDecoder,))):
        for decoder in decoders if native_level() else decoders[:1]:
            made = decoder(model, 4, 64)
            assert made._keys.nbytes + made._values.nbytes == 64 * bytes_per_token(model), decoder


def test_by_default_the_cache_may_take_a_quarter_of_the_memory(tiny_int8, monkeypatch):
    token = bytes_per_token(tiny_int8)
    for tokens, expected in ((1600, 1600), (1, PAGE_SIZE), (10**9, MOST)):
        monkeypatch.setattr(cache_size, "memory", lambda tokens=tokens: 4 * tokens * token)
        assert default_cache_tokens(tiny_int8) == expected
    monkeypatch.setattr(cache_size, "memory", lambda: 4 * 1600 * token)
    with Engine(tiny_int8) as engine:
        assert engine.stats.pages_total == 100


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_size, "_LIMITS", (tmp_path / "no such file", tmp_path / "limit"))
    assert cache_size.memory() == psutil.virtual_memory().total
    for text, expected in (("max\n", psutil.virtual_memory().total), ("536870912\n", 2**29)):
        (tmp_path / "limit").write_text(text, "ascii")
        assert cache_size.memory() == expected
