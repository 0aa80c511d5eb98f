"""The model that learns: a transformers model made from the weights that the engine runs, with a LoRA adapter by PEFT."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from ...errors import TrainingError
from .adapted import adapt
from .lanes import LANES, in_lanes
from .layout import Layout, attention
from .lora import Lora
from .row import Row

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["auto", "bf16", "fp32", "nf4"]
"""Of the frozen base: bfloat16; float32; NF4 with double quantization (QLoRA, Dettmers et al., 2023), computed in
bfloat16; auto: bfloat16 on a GPU and on processors that have fast products of it (AVX-512, or Arm's BF16), elsewhere
float32, which on AVX2 is six times as fast. The adapter itself and its optimizer are float32 always."""


class Student:
    """Weights are the source's, dequantized where they are blocks, not those that the engine quantized: an adapter that was
    trained beside them is used beside any quantization."""

    def __init__(self, network: Any, precision: Precision) -> None:
        import torch

        self.network, self.precision = network, precision
        self._device = next(network.parameters()).device
        self._adapted = adapt(network)
        # Dropout draws from a generator that lanes would share; a GPU splits its work by itself.
        dropout = network.peft_config["default"].lora_dropout > 0
        self._has_lanes = self._device.type == "cpu" and torch.get_num_threads() > 1 and not dropout

    @classmethod
    def open(cls, model: str, lora: Lora | None = None, seed: int = 0, *, precision: Precision = "auto") -> Self:
        """The model (a short name, hub id, folder or GGUF file) with a fresh adapter, on CUDA where there is one.

        Raises `TrainingError` where a package is missing or the precision is not known, `ModelError` for a model that cannot
        be read or has no class in transformers.
        """
        if precision not in get_args(Precision):
            raise TrainingError(f"precision={precision!r}: use one of {', '.join(get_args(Precision))}")
        try:
            import torch
            from peft import get_peft_model
        except ImportError as error:
            raise TrainingError(f"training needs {error.name}: pip install peft") from error
        precision = fastest_precision() if precision == "auto" else precision
        base = _base(model, precision)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = get_peft_model(base, (lora or Lora()).config())
        network.train()
        return cls(network, precision)

    def parameters(self) -> list[Tensor]:
        """What is trained, always in the same order, float32."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def token_logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        """For each row the natural log-probabilities of its loss tokens, float32 [loss tokens], differentiable."""
        import torch

        if any(row.loss[0] for row in rows):
            raise TrainingError("a row has loss on its first token, which nothing precedes: begin it with a prompt")
        # Rows that begin alike side by side: what they share is computed once in a lane.
        order = sorted(range(len(rows)), key=lambda i: rows[i].tokens)
        ordered = [rows[i] for i in order]
        lanes = self._has_lanes and len(rows) >= LANES
        joined = in_lanes(self._logprobs, ordered, self.parameters()) if lanes else self._logprobs(ordered)
        parts = dict(zip(order, torch.split(joined, [row.decided for row in ordered]), strict=True))
        return [parts[i] for i in range(len(rows))]

    def _logprobs(self, rows: Sequence[Row]) -> Tensor:
        """Of all loss tokens, row after row, float32 [loss tokens]."""
        import torch

        layout = Layout.of(rows, self._device)
        with self._autocast():
            inner = self.network.base_model.model
            hidden = inner.model(
                input_ids=layout.ids[None], position_ids=layout.depths[None], use_cache=False, layout=layout
            ).last_hidden_state
            logits = inner.lm_head(hidden[0, layout.parents])  # the head only where there is loss
        return torch.log_softmax(logits.float(), dim=-1)[layout.asked, layout.targets]

    def reference(self, rows: Sequence[Row]) -> list[Tensor]:
        """The same of the student as it is now, without gradients."""
        import torch

        # Dropout alone: in `eval` mode bitsandbytes repacks a layer of four bits for good, into a form without gradients.
        drops = [module for module in self.network.modules() if isinstance(module, torch.nn.Dropout)]
        try:
            for drop in drops:
                drop.eval()
            with torch.no_grad():
                return self.token_logprobs(rows)
        finally:
            for drop in drops:
                drop.train()

    def save(self, folder: Path) -> Path:
        """Write the adapter as a PEFT folder, which the engine and PEFT read."""
        folder.mkdir(parents=True, exist_ok=True)
        # The base is part of no path: the folder is the same wherever it was trained.
        self.network.peft_config["default"].base_model_name_or_path = None
        self.network.save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        return folder

    def load(self, folder: Path) -> None:
        """Take the adapter's weights from a PEFT folder of the same shape."""
        from peft import set_peft_model_state_dict
        from safetensors.torch import load_file

        try:
            found: Any = set_peft_model_state_dict(self.network, load_file(folder / "adapter_model.safetensors"))
        except (OSError, RuntimeError) as error:
            raise TrainingError(f"{folder}: its adapter does not fit this student ({error}): train anew") from error
        if found.unexpected_keys:
            raise TrainingError(f"{folder}: its adapter has {found.unexpected_keys[0]}, which this student has not")

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        import torch

        low = self.precision != "fp32" and not self._adapted
        with torch.autocast(self._device.type, torch.bfloat16) if low else nullcontext():
            yield


def fastest_precision() -> Literal["bf16", "fp32"]:
    """What `"auto"` stands for on this machine."""
    import torch

    # oneDNN says it of the processor; without it torch multiplies bfloat16 by a plain loop.
    return "bf16" if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported() else "fp32"


def _base(model: str, precision: Precision) -> Any:
    """The frozen base. It goes through a folder of its own, which is what transformers reads whatever the source is."""
    import torch
    import transformers

    from ...backends.export import export_model

    transformers.AttentionInterface.register("still_rows", attention)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {"dtype": torch.float32 if precision == "fp32" else torch.bfloat16}
    if precision == "nf4":
        options["quantization_config"] = _nf4()
    with tempfile.TemporaryDirectory(prefix="still-base-") as place:
        folder = Path(place) / "model"
        export_model(model, folder, "hf", precision="f32" if precision == "fp32" else "bf16")
        transformers.utils.logging.disable_progress_bar()
        base = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="still_rows", **options)
    for parameter in base.parameters():
        parameter.requires_grad_(False)
    return base.to(device) if precision != "nf4" else base


def _nf4() -> Any:
    import torch
    import transformers

    try:
        import bitsandbytes  # noqa: F401  # transformers' own message names versions we do not support
    except ImportError as error:
        raise TrainingError("precision='nf4' needs bitsandbytes: pip install bitsandbytes") from error
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16
    )
