"""LoRA adapters from PEFT folders (Hu et al., 2021): low-rank updates of a model's fused matrices."""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import ModelError
from .cache import file_digest
from .hf_config import read_json
from .spec import DecoderSpec

if TYPE_CHECKING:
    import torch

_TENSOR = re.compile(r"base_model\.model\.(model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+)_proj)\.lora_([AB])\.weight")
_FUSED = {"qkv": ("q", "k", "v"), "o": ("o",), "gate_up": ("gate", "up"), "down": ("down",)}
# What changes the arithmetic in a way that the engine does not compute; falsy values are PEFT's "off".
_REFUSED = (
    "use_dora", "modules_to_save", "fan_in_fan_out", "lora_bias", "layer_replication", "trainable_token_indices",
    "target_parameters", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config", "kasa_config",
    "monteclora_config", "velora_config",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class LowRank:
    """An update y += B A x of one fused matrix; the scale is in B. Several projections stack their ranks.

    a: float32 [rank, in]; b: float32 [rank, out], zero outside the channels begin[i] … end[i] - 1 of rank i's projection.
    """

    a: torch.Tensor
    b: torch.Tensor
    begin: tuple[int, ...]
    end: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter: for each layer the updates by matrix name (`qkv`, `o`, `gate_up`, `down`), where there are any."""

    name: str
    digest: str
    """sha256, hex, of configuration and weights: part of the key of every page computed with it."""
    layers: tuple[dict[str, LowRank], ...]


def load_adapter(name: str, path: Path | str, spec: DecoderSpec) -> Adapter:
    """Read a PEFT folder (`adapter_config.json`, `adapter_model.safetensors`) for a model of this spec.

    Raises ModelError naming the file and what is wrong: not LoRA, a kind of LoRA that is not supported (DoRA, biases,
    adapted embeddings), tensors of another model's shapes, values that are not finite.
    """
    folder = Path(path).expanduser()
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise ModelError(f"{folder}: has no adapter_model.safetensors; give a folder that PEFT's save_pretrained wrote")
    config = read_json(folder / "adapter_config.json")
    _check(folder, config)
    pairs = _pairs(weights, spec)
    layers: list[dict[str, LowRank]] = []
    for layer in range(spec.num_layers):
        shapes = {part.split(".")[-1]: shape for part, shape in spec.part_shapes(layer).items()}
        fused = {name: _fuse(weights, config, pairs, layer, parts, shapes) for name, parts in _FUSED.items()}
        layers.append({matrix: update for matrix, update in fused.items() if update is not None})
    return Adapter(name, adapter_digest(folder), tuple(layers))


def adapter_digest(path: Path | str) -> str:
    """sha256, hex, of a PEFT folder's configuration and weights. Raises ModelError where one of them is missing."""
    folder = Path(path).expanduser()
    files = [folder / "adapter_config.json", folder / "adapter_model.safetensors"]
    for file in files:
        if not file.is_file():
            raise ModelError(f"{folder}: has no {file.name}; give a folder that PEFT's save_pretrained wrote")
    return hashlib.sha256("\n".join(map(file_digest, files)).encode()).hexdigest()


def _check(folder: Path, config: dict[str, Any]) -> None:
    file = folder / "adapter_config.json"
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{file}: peft_type {config.get('peft_type')!r} is not supported; only 'LORA' is")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{file}: bias = {config['bias']!r} is not supported; train with bias='none'")
    for key in _REFUSED:
        if config.get(key):
            raise ModelError(f"{file}: {key} = {config[key]!r} is not supported; merge the adapter into the model")


def _pairs(file: Path, spec: DecoderSpec) -> dict[tuple[int, str], dict[str, tuple[str, torch.Tensor]]]:
    """(layer, projection) → "A" and "B" → (module name, fp32 tensor)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(file)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise ModelError(f"{file}: cannot be read ({error}); save the adapter again") from error
    pairs: dict[tuple[int, str], dict[str, tuple[str, torch.Tensor]]] = {}
    for key, tensor in tensors.items():
        match = _TENSOR.fullmatch(key)
        if match is None or match[3] not in ("q", "k", "v", "o", "gate", "up", "down"):
            raise ModelError(f"{file}: tensor {key!r} adapts something other than a layer's projections: not supported")
        if int(match[2]) >= spec.num_layers:
            raise ModelError(f"{file}: tensor {key!r} is for a layer that the model of {spec.num_layers} lacks")
        if not tensor.is_floating_point() or not tensor.isfinite().all():
            raise ModelError(f"{file}: tensor {key!r} holds NaN or infinity, or no numbers: the training went wrong")
        pairs.setdefault((int(match[2]), match[3]), {})[match[4]] = (match[1], tensor.float())
    return pairs


def _fuse(
    file: Path, config: dict[str, Any], pairs: dict[tuple[int, str], dict[str, tuple[str, torch.Tensor]]],
    layer: int, parts: tuple[str, ...], shapes: dict[str, tuple[int, ...]],
) -> LowRank | None:  # fmt: skip
    import torch

    widths = [shapes[part][0] for part in parts]
    stacked: list[tuple[torch.Tensor, torch.Tensor, int, int]] = []
    for index, part in enumerate(parts):
        pair = pairs.get((layer, part))
        if pair is None:
            continue
        if set(pair) != {"A", "B"}:
            raise ModelError(f"{file}: {next(iter(pair.values()))[0]} has lora_{next(iter(pair))} without its partner")
        (module, a), (_, b) = pair["A"], pair["B"]
        out, width = shapes[part]
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != width or b.shape != (out, a.shape[0]):
            raise ModelError(
                f"{file}: {module} has A {list(a.shape)} and B {list(b.shape)}, but the model's matrix is [{out}, {width}]: "
                "the adapter belongs to another model"
            )
        begin = sum(widths[:index])
        full = torch.zeros(a.shape[0], sum(widths))
        full[:, begin : begin + out] = b.t() * _scale(file, config, module, a.shape[0])
        stacked.append((a, full, begin, begin + out))
    if not stacked:
        return None
    a, b = torch.cat([a for a, *_ in stacked]).contiguous(), torch.cat([b for _, b, *_ in stacked]).contiguous()
    ranges = [(begin, end) for rank, _, begin, end in stacked for _ in range(len(rank))]
    return LowRank(a, b, tuple(begin for begin, _ in ranges), tuple(end for _, end in ranges))


def _scale(file: Path, config: dict[str, Any], module: str, rank: int) -> float:
    """alpha / rank, or alpha / sqrt(rank) (rsLoRA, Kalajdzievski, 2023), with PEFT's per-module alphas."""
    alpha = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        try:
            matched = re.match(rf"(.*\.)?({pattern})$", module)
        except re.error as error:
            raise ModelError(f"{file.parent}: alpha_pattern {pattern!r} is not a pattern ({error})") from error
        if matched:
            alpha = value
            break
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool):
        raise ModelError(f"{file.parent}: lora_alpha = {alpha!r} must be a number")
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
