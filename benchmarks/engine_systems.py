"""The engines that are compared, behind one function: run these prompts, each for exactly so many tokens.

Each system is measured at every one of its `settings`, and the best one counts (where a case takes over a minute at the
first setting, that is the only one): llama.cpp, one slot per request, with two weight formats and with a KV cache per slot
or one for all (Q4_1, the format of the model's file, was never faster than Q4_0 and is left out). OpenVINO runs its
continuous-batching backend with prefix caching; transformers in bf16.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import ClassVar, Protocol

MODEL = "smollm2-135m"
CACHE_TOKENS = 65536


class System(Protocol):
    """An engine with the model loaded."""

    def run(self, prompts: Sequence[str], new_tokens: int) -> None:
        """Continue all prompts, given at once, by exactly `new_tokens` greedy tokens each."""


def gguf_path() -> str:
    """The model file that every system reads."""
    from still.backends.models import resolve

    path: Path = resolve(MODEL).path
    return str(path)


class Still:
    package = "still"
    settings: ClassVar = ("int8",)

    def __init__(self, quantization: str) -> None:
        from still.backends.engine import Engine
        from still.backends.models import load_model

        self.engine = Engine(load_model(MODEL, quantization), cache_tokens=CACHE_TOKENS)

    def run(self, prompts: Sequence[str], new_tokens: int) -> None:
        from still.backends.engine import Decode, Request

        encode = self.engine.model.tokenizer.encode
        decode = Decode(new_tokens, ignore_eos=True)
        futures = [self.engine.submit(Request(tuple(encode(p)), (decode,))) for p in prompts]
        for future in futures:
            future.result()


class OpenVINO:
    package = "openvino-genai"
    settings: ClassVar = ("prefix caching",)

    def __init__(self, _: str) -> None:
        import openvino_genai

        scheduler = openvino_genai.SchedulerConfig()
        scheduler.cache_size = 3
        scheduler.enable_prefix_caching = True
        scheduler.max_num_seqs = 256
        self._pipeline = openvino_genai.LLMPipeline(gguf_path(), "CPU", scheduler_config=scheduler)
        self._config = openvino_genai.GenerationConfig()
        self._config.ignore_eos = True
        self._config.do_sample = False
        self._config.apply_chat_template = False

    def run(self, prompts: Sequence[str], new_tokens: int) -> None:
        self._config.max_new_tokens = new_tokens
        self._pipeline.generate(list(prompts), self._config)


class LlamaCpp:
    package = "xllamacpp"
    settings: ClassVar = ("Q4_0 separate", "Q4_0 unified", "Q8_0 unified")

    def __init__(self, setting: str) -> None:
        import xllamacpp
        from engine_weights import requantized

        weights, cache = setting.split()
        threads = os.cpu_count() or 1
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(requantized(Path(gguf_path()), weights))
        # With separate caches each slot has its share of the context, which must hold the longest prompt.
        parameters.n_ctx = CACHE_TOKENS if cache == "unified" else 64 * 2048
        parameters.n_parallel = 64
        parameters.kv_unified = cache == "unified"
        parameters.n_batch = 2048
        parameters.cpuparams.n_threads = threads
        parameters.cpuparams_batch.n_threads = threads
        self._server = xllamacpp.Server(parameters)

    def run(self, prompts: Sequence[str], new_tokens: int) -> None:
        def one(prompt: str) -> None:
            answer = self._server.handle_completions(
                {"prompt": prompt, "n_predict": new_tokens, "temperature": 0, "ignore_eos": True, "cache_prompt": True}
            )
            if answer.get("usage", {}).get("completion_tokens") != new_tokens:
                raise RuntimeError(f"llama.cpp did not write {new_tokens} tokens: {answer}")

        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(one, prompts))


class Transformers:
    package = "transformers"
    settings: ClassVar = ("bf16",)

    def __init__(self, _: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        path = Path(gguf_path())
        self._tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, padding_side="left")
        self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.bfloat16)

    def run(self, prompts: Sequence[str], new_tokens: int) -> None:
        import torch

        batch = self._tokenizer(list(prompts), return_tensors="pt", padding=True)
        with torch.inference_mode():
            self._model.generate(
                **batch, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False,
                pad_token_id=self._tokenizer.pad_token_id,
            )  # fmt: skip


SYSTEMS = {"still": Still, "openvino": OpenVINO, "llamacpp": LlamaCpp, "transformers": Transformers}


def version_of(system: str) -> str | None:
    """Installed version of a system's package, None if it is not there."""
    try:
        return version(SYSTEMS[system].package)
    except PackageNotFoundError:
        return None
