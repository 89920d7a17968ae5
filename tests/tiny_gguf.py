"""A language model of 100 kB with random weights, in the format of llama.cpp, with a chat template and control tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from headrace.importing.language import language_contract

TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOOLS = (
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>\n' }}"
    "{% endif %}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['content'] %}{{ message['content'] }}{% endif %}"
    "{% for call in message['tool_calls'] or [] %}{{ '<tool_call>\n{\"name\": \"' + call['function']['name'] }}"
    "{{ '\", \"arguments\": ' }}{{ call['function']['arguments'] | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A template with tools."""
CONTEXT = 256
CONTROL = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
WIDTH, HEADS, HIDDEN, LAYERS = 32, 2, 48, 1


def write_tiny_gguf(path: Path, seed: int = 0, template: str | None = TEMPLATE) -> Path:
    """Writes the model to `path`; each `seed` gives other weights, and so other answers."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_license("apache-2.0")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    size = _add_vocabulary(writer)
    if template is not None:
        writer.add_chat_template(template)
    for name, tensor in _weights(size, np.random.default_rng(seed)).items():
        writer.add_tensor(name, tensor.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_vocabulary(writer: gguf.GGUFWriter) -> int:
    """Adds a vocabulary of control tokens, all bytes and some letters; returns its size."""
    letters = ["\u2581", *map(chr, range(97, 123))]
    tokens = [*CONTROL, *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    types = gguf.TokenType
    kinds = [types.UNKNOWN, *[types.CONTROL] * 4, *[types.BYTE] * 256, *[types.NORMAL] * len(letters)]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(4)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    return len(tokens)


def _weights(size: int, random: np.random.Generator) -> dict[str, NDArray[np.float64]]:
    def matrix(*shape: int) -> NDArray[np.float64]:
        return random.normal(0, 0.5, shape)

    ones = np.ones(WIDTH)
    weights = {"token_embd.weight": matrix(size, WIDTH), "output_norm.weight": ones, "output.weight": matrix(size, WIDTH)}
    weights["output.weight"][: len(CONTROL)] = 0  # so that a text hardly ever ends early
    for layer in range(LAYERS):
        weights |= {f"blk.{layer}.attn_{part}.weight": matrix(WIDTH, WIDTH) for part in ("q", "k", "v", "output")}
        weights |= {f"blk.{layer}.{part}_norm.weight": ones for part in ("attn", "ffn")}
        weights |= {f"blk.{layer}.ffn_{part}.weight": matrix(HIDDEN, WIDTH) for part in ("gate", "up")}
        weights[f"blk.{layer}.ffn_down.weight"] = matrix(WIDTH, HIDDEN)
    return weights


def write_export(folder: Path, name: str = "tiny", template: str | None = TEMPLATE, **fields: Any) -> Path:
    """Writes what a registered version of the model has; `fields` are those of its contract."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tiny_gguf(folder / "model.gguf", template=template)
    language_contract(name, CONTEXT).model_copy(update=fields).write(folder / "contract.json")
    return folder
