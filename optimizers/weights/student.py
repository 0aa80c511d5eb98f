"""The model that learns: a transformers model made from the weights that the engine runs, with a LoRA adapter by PEFT."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

from ...errors import ArtifactError, TrainingError
from .adapted import adapt
from .lanes import LANES, in_lanes
from .layout import Layout, attention, parts_of
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
    trained beside them is used beside any quantization.

    drawn: how often dropout has drawn. What it draws next follows from that and the seed, so a checkpoint keeps it.
    """

    def __init__(self, network: Any, precision: Precision, seed: int = 0) -> None:
        import torch

        self.network, self.precision = network, precision
        self._seed, self.drawn = seed, 0
        self._device = next(network.parameters()).device
        self._adapted = adapt(network)
        self._drops = network.peft_config["default"].lora_dropout > 0
        # Dropout draws from a generator that lanes would share; a GPU splits its work by itself.
        self._has_lanes = self._device.type == "cpu" and torch.get_num_threads() > 1 and not self._drops

    @classmethod
    def open(cls, model: str, lora: Lora | None = None, seed: int = 0, *, precision: Precision = "auto") -> Self:
        """The model (a short name, hub id, folder or GGUF file) with a fresh adapter, on CUDA where there is one.

        Raises `TrainingError` where a package is missing, the precision is not known or the disk is full, `ModelError` for a
        model that cannot be read or has no class in transformers.
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
        return cls(network, precision, seed)

    def parameters(self) -> list[Tensor]:
        """What is trained, always in the same order, float32."""
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def token_logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        """For each row the natural log-probabilities of its loss tokens, float32 [loss tokens], differentiable.

        Rows too many for one graph are computed in parts, and each part once more in `backward`, which holds the graph of
        that part only (activation recomputation, Chen et al., 2016). `torch.autograd.grad` refuses such a result.
        """
        import torch

        if any(row.loss[0] for row in rows):
            raise TrainingError("a row has loss on its first token, which nothing precedes: begin it with a prompt")
        parts = parts_of(rows)
        compute = self._joined if len(parts) == 1 else self._recomputed
        found: dict[int, Tensor] = {}
        with self._drawing():
            for part in parts:
                # Rows that begin alike side by side: what they share is computed once in a lane.
                order = sorted(part, key=lambda i: rows[i].tokens)
                joined = compute([rows[i] for i in order])
                found.update(zip(order, torch.split(joined, [rows[i].decided for i in order]), strict=True))
        return [found[i] for i in range(len(rows))]

    def _joined(self, rows: Sequence[Row]) -> Tensor:
        """Of all loss tokens, row after row, float32 [loss tokens]; halves of the rows side by side."""
        lanes = self._has_lanes and len(rows) >= LANES
        return in_lanes(self._logprobs, rows, self.parameters()) if lanes else self._logprobs(rows)

    def _recomputed(self, rows: Sequence[Row]) -> Tensor:
        """The same without its graph, which is built when the gradient is asked for, with the same dropout."""
        from torch.utils.checkpoint import checkpoint

        # Torch wants to see a parameter, and then finds the others. Reentrant: the other kind holds what lanes compute.
        found: Tensor = checkpoint(lambda _: self._joined(rows), self.parameters()[0], use_reentrant=True)
        return found

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
        """Write the adapter as a PEFT folder, which the engine and PEFT read: equal adapters as equal bytes.

        Raises `TrainingError` where it cannot be written.
        """
        with disk_errors(f"adapter {folder}"):
            folder.mkdir(parents=True, exist_ok=True)
            # No embedding is adapted; to find that out PEFT would look for the base.
            self.network.save_pretrained(folder, save_embedding_layers=False)
            (folder / "README.md").unlink(missing_ok=True)
            _settle(folder / "adapter_config.json", self.network.peft_config["default"])
        return folder

    def load(self, folder: Path) -> None:
        """Take the adapter's weights from a PEFT folder of the same shape. Raises `TrainingError` for any other."""
        from peft import set_peft_model_state_dict
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        file = folder / "adapter_model.safetensors"
        try:
            found: Any = set_peft_model_state_dict(self.network, load_file(file))
        except (OSError, SafetensorError) as error:
            raise TrainingError(f"{file}: cannot be read ({error}): remove its folder and train anew") from error
        except RuntimeError as error:
            raise TrainingError(f"{folder}: its adapter does not fit this student ({error}): train anew") from error
        if found.unexpected_keys:
            raise TrainingError(f"{folder}: its adapter has {found.unexpected_keys[0]}, which this student has not")

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        import torch

        low = self.precision != "fp32" and not self._adapted
        with torch.autocast(self._device.type, torch.bfloat16) if low else nullcontext():
            yield

    @contextmanager
    def _drawing(self) -> Iterator[None]:
        """Within the block dropout draws what follows from the seed and `drawn`, whatever else draws in this process."""
        import torch

        if not self._drops:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(random.Random(f"{self._seed} {self.drawn}").getrandbits(48))
            self.drawn += 1
            yield


@contextmanager
def disk_errors(what: str) -> Iterator[None]:
    """Turn what is raised where a file cannot be written, on a full disk most of all, into a `TrainingError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError) as error:  # the first is what safetensors makes of the second
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise TrainingError(f"{what}: cannot be written ({why}): free some space") from error


def _settle(file: Path, config: Any) -> None:
    """Take out of a configuration that PEFT wrote what differs from process to process: sets in the order of their hashes,
    and the temporary folder that the base was read from."""
    found = json.loads(file.read_text("utf-8"))
    ordered = {name: sorted(value) for name, value in config.to_dict().items() if isinstance(value, set)}
    settled = {**found, **ordered, "base_model_name_or_path": None}
    file.write_bytes(json.dumps(settled, indent=2, sort_keys=True).encode())


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
        try:
            export_model(model, folder, "hf", precision="f32" if precision == "fp32" else "bf16")
        except ArtifactError as error:
            raise TrainingError(f"base of the student: {error}; TMPDIR says where it is written to") from error
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
