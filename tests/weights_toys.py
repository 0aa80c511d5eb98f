"""A tiny random model over bytes in transformers' format, and rows of text for it."""

import torch
import transformers
from byte_model import END, byte_tokenizer
from still.optimizers.weights.lora import Lora
from still.optimizers.weights.row import Row
from still.optimizers.weights.student import Student
from tokenizers import Tokenizer

SIZES = {
    "vocab_size": END + 1, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": END, "eos_token_id": END,
    "tie_word_embeddings": False,
}  # fmt: skip


def write_base(folder, **sizes):
    torch.manual_seed(0)
    # Large embeddings: the small random ones of an untrained model make every prompt look the same.
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**SIZES, **sizes}, initializer_range=0.2))
    model.save_pretrained(folder)
    backend = Tokenizer.from_str(byte_tokenizer().json)
    transformers.PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(folder)
    return folder


def open_student(folder, seed=0):
    return Student.open(str(folder), Lora(r=8, alpha=16), seed, precision="fp32")


def row(prompt, answer, key=""):
    """Text of ASCII as tokens; loss on the answer."""
    tokens = (*prompt.encode(), *answer.encode())
    return Row(tokens, tuple(i >= len(prompt) for i in range(len(tokens))), key=key)


class Unmoved:
    """Takes no step: gradients stay where they are."""

    def add(self, loss):
        loss.backward()
        return float(loss.detach())

    def take(self):
        pass
