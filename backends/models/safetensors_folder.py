"""A Hugging Face folder as a checkpoint: `config.json`, safetensors, `tokenizer.json`, chat template."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from .checkpoint import END_MARKERS, TokenizerFiles, expect_shape
from .hf_config import read_json, read_spec, text_part
from .spec import DecoderSpec

if TYPE_CHECKING:
    import torch

# Where the decoder's names begin, and what its head is called: alone, and in a model that takes images too.
_BODIES = {
    "model.": "lm_head.weight",
    "language_model.model.": "language_model.lm_head.weight",
    "model.language_model.": "lm_head.weight",
}
LAYER_NAMES = {
    "attn_norm": "input_layernorm.weight",
    "q": "self_attn.q_proj.weight",
    "k": "self_attn.k_proj.weight",
    "v": "self_attn.v_proj.weight",
    "q.bias": "self_attn.q_proj.bias",
    "k.bias": "self_attn.k_proj.bias",
    "v.bias": "self_attn.v_proj.bias",
    "q_norm": "self_attn.q_norm.weight",
    "k_norm": "self_attn.k_norm.weight",
    "o": "self_attn.o_proj.weight",
    "mlp_norm": "post_attention_layernorm.weight",
    "gate": "mlp.gate_proj.weight",
    "up": "mlp.up_proj.weight",
    "down": "mlp.down_proj.weight",
}
# Gemma 3 norms what attention and feed-forward give too, and its names of norms are to be read in that order.
GEMMA3_NAMES = LAYER_NAMES | {
    "attn_post_norm": "post_attention_layernorm.weight",
    "mlp_norm": "pre_feedforward_layernorm.weight",
    "mlp_post_norm": "post_feedforward_layernorm.weight",
}
LAYER_PART = re.compile(r"layers\.(\d+)\.(.+)")
# A buffer that old checkpoints saved, and the parts that see images.
_IGNORED = re.compile(r".*\.rotary_emb\.inv_freq|(model\.)?(vision_tower|multi_modal_projector)\..*")
_FLOATS = ("torch.float32", "torch.float16", "torch.bfloat16")


class SafetensorsFolder:
    """A `Checkpoint` over one folder. Raises ModelError on construction when files and configuration do not fit."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "config.json").is_file():
            raise ModelError(f"{path}: has no config.json; give a Hugging Face folder, or the path of a GGUF file itself")
        self._config = text_part(path, read_json(path / "config.json"))
        self._files = _tensor_files(path)
        self._body = next((body for body in _BODIES if f"{body}embed_tokens.weight" in self._files), "model.")
        self.spec: DecoderSpec = read_spec(path, self._config, _BODIES[self._body] in self._files)
        self._gemma = self.spec.architecture == "gemma3"
        shapes = self.spec.outer_shapes()
        for layer in range(self.spec.num_layers):
            layer_shapes = self.spec.part_shapes(layer)
            self._require(layer_shapes)  # layer by layer: a damaged count must not build a huge table first
            shapes |= layer_shapes
        self._require(shapes)
        self._shapes = shapes
        known = {self._file_name(part) for part in shapes} | {_BODIES[self._body]}
        extra = [name for name in self._files if name not in known and not _IGNORED.fullmatch(name)]
        if extra:
            raise ModelError(f"{path}: tensor {min(extra)!r} is not part of a supported {self.spec.architecture} model")

    def _require(self, parts: dict[str, tuple[int, ...]]) -> None:
        for part in parts:
            if (name := self._file_name(part)) not in self._files:
                raise ModelError(f"{self.path}: tensor {name!r} is missing")

    def _file_name(self, part: str) -> str:
        match = LAYER_PART.fullmatch(part)
        if match is not None:
            return f"{self._body}layers.{match[1]}.{(GEMMA3_NAMES if self._gemma else LAYER_NAMES)[match[2]]}"
        if part == "lm_head":
            return _BODIES[self._body]
        return f"{self._body}{'embed_tokens' if part == 'embed' else part}.weight"

    def read(self, part: str) -> torch.Tensor:
        import torch
        from safetensors import SafetensorError, safe_open

        name = self._file_name(part)
        file = self._files[name]
        try:
            with safe_open(file, framework="pt") as tensors:
                tensor: torch.Tensor = tensors.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: tensor {name!r} cannot be read ({error}); download the file again") from error
        expect_shape(file, name, tuple(tensor.shape), self._shapes[part])
        if str(tensor.dtype) not in _FLOATS:
            raise ModelError(f"{file}: tensor {name!r} has dtype {tensor.dtype}; supported: {', '.join(_FLOATS)}")
        values = tensor.to(torch.float32, copy=True)
        return values.add_(1.0) if self._gemma and "norm" in part else values  # it norms by 1 + weight

    def tokenizer(self) -> TokenizerFiles:
        file = self.path / "tokenizer.json"
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(
                f"{file}: cannot be read ({error}); Still needs the fast tokenizer "
                "(AutoTokenizer.from_pretrained(...).save_pretrained(folder) writes it)"
            ) from error
        return _Control(self.path, self._config, text).files()


class _Control:
    """Which token begins a text, which end an answer, and the chat template, from the files that may say so."""

    def __init__(self, path: Path, config: dict[str, Any], text: str) -> None:
        from tokenizers import Tokenizer

        self.path, self.config, self.text = path, config, text
        try:
            self.backend = Tokenizer.from_str(text)
        except Exception as error:  # tokenizers raises bare Exception
            raise ModelError(f"{path / 'tokenizer.json'}: damaged or of an unknown version ({error})") from error
        self.settings = read_json(path / "tokenizer_config.json", missing={})
        self.generation = read_json(path / "generation_config.json", missing={})

    def files(self) -> TokenizerFiles:
        bos = self.named("bos_token")
        if bos is None:
            bos = next(iter(self.listed("bos_token_id")), None)
        return TokenizerFiles(self.text, bos, self.adds(bos), self.end_ids(), self.chat_template())

    def named(self, key: str) -> int | None:
        """Id of a token that tokenizer_config.json names by its text (or by an object with `content`)."""
        value = self.settings.get(key)
        content = value.get("content") if isinstance(value, dict) else value
        found = self.backend.token_to_id(content) if isinstance(content, str) else None
        return None if found is None else int(found)

    def listed(self, key: str) -> list[int]:
        """Ids under a key of generation_config.json, then config.json: a number or a list of them."""
        ids: list[int] = []
        for source in (self.generation, self.config):
            value = source.get(key)
            values = value if isinstance(value, list) else [value]
            ids += [value for value in values if isinstance(value, int) and self.is_token(value)]
        return ids

    def is_token(self, value: int) -> bool:
        # Some configurations say -1 for "none", which the backend does not take for an id; true and false are no ids.
        return type(value) is int and 0 <= value < 2**32 and self.backend.id_to_token(value) is not None

    def adds(self, bos: int | None) -> bool:
        if bos is None:
            return False
        declared = self.settings.get("add_bos_token")
        if isinstance(declared, bool):
            return declared
        return bool(self.backend.encode("a").ids[:1] == [bos])

    def end_ids(self) -> tuple[int, ...]:
        eos = self.named("eos_token")
        added = self.backend.get_added_tokens_decoder().items()
        marked = sorted(index for index, token in added if token.special and token.content in END_MARKERS)
        return tuple(dict.fromkeys([*([] if eos is None else [eos]), *self.listed("eos_token_id"), *marked]))

    def chat_template(self) -> str | None:
        file = self.path / "chat_template.jinja"
        if file.is_file():
            try:
                return file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise ModelError(f"{file}: cannot be read ({error})") from error
        template = self.settings.get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        return template if isinstance(template, str) else None


def _tensor_files(path: Path) -> dict[str, Path]:
    """Which file holds each tensor."""
    from safetensors import SafetensorError, safe_open

    index = path / "model.safetensors.index.json"
    if index.is_file():
        names = set(map(str, _weight_map(index).values()))
        files = sorted(path / name for name in names)
        if any(file.parent != path for file in files):
            raise ModelError(f"{index}: names files outside the folder")
    else:
        files = sorted(path.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{path}: no *.safetensors; Still reads no pickled weights (save_pretrained writes safetensors)")
    found: dict[str, Path] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as tensors:
                found |= dict.fromkeys(tensors.keys(), file)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file}: cannot be read ({error}); download the file again") from error
    return found


def _weight_map(index: Path) -> dict[str, Any]:
    weights = read_json(index).get("weight_map")
    if not isinstance(weights, dict):
        raise ModelError(f"{index}: has no weight_map; download it again")
    return weights
