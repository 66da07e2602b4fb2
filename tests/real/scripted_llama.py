"""Write the scripted model as a Hugging Face folder: the same replies as scripted_gguf.py's, for engines that load one.

usage: python -m tests.real.scripted_llama FOLDER
size: 3.4 MB

The vocabulary, the chains and the chat template are scripted_gguf.py's; only the paper is another: `config.json`,
`tokenizer.json`, `tokenizer_config.json`, `model.safetensors`. The tokenizer has no merges, so a prompt is read letter
by letter, and control tokens are known as such. The residual stream is the one-hot of the last token, so an embedding
with last-token pooling is exactly that one-hot.

It does not know FLM, nor which engine will load the folder; it needs no library beyond numpy.
"""

from __future__ import annotations

import argparse
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

from tests.real.scripted_gguf import CHAT_TEMPLATE, CONTEXT, EOS, FALLBACK, FF, HEAD, HEADS, SIZE, Vocabulary

CONTROL = 3
"""scripted_gguf.py's number for a control token."""


def _config(vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": SIZE,
        "intermediate_size": FF,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 1,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "vocab_size": SIZE,
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "bos_token_id": vocabulary.index["<s>"],
        "eos_token_id": vocabulary.index[EOS],
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind == CONTROL
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary.index,
            "merges": [],
        },
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": EOS,
        "unk_token": "<unk>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }


def _weights(vocabulary: Vocabulary) -> dict[str, np.ndarray[Any, Any]]:
    logits = np.zeros((SIZE, SIZE), np.float32)  # logits[j, i]: of j when the last token is i
    for i in range(SIZE):
        for rank, text in enumerate(FALLBACK):
            logits[vocabulary.index[text], i] = 20 - 2 * rank
    for i, j in vocabulary.next.items():
        logits[j, i] = 60
    layer = "model.layers.0."
    shapes = {
        "self_attn.q_proj": (SIZE, SIZE),
        "self_attn.k_proj": (HEAD, SIZE),
        "self_attn.v_proj": (HEAD, SIZE),
        "self_attn.o_proj": (SIZE, SIZE),
        "mlp.gate_proj": (FF, SIZE),
        "mlp.up_proj": (FF, SIZE),
        "mlp.down_proj": (SIZE, FF),
    }
    weights = {
        "model.embed_tokens.weight": np.eye(SIZE, dtype=np.float32),
        "model.norm.weight": np.ones(SIZE, np.float32),
        "lm_head.weight": logits,
    }
    for name in ("input_layernorm", "post_attention_layernorm"):
        weights[f"{layer}{name}.weight"] = np.ones(SIZE, np.float32)
    for name, shape in shapes.items():
        weights[f"{layer}{name}.weight"] = np.zeros(shape, np.float32)
    return weights


def _safetensors(weights: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """The file format: the length of a JSON head in eight bytes, the head (name -> type, shape, place), the numbers."""
    head: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = bytearray()
    for name, array in weights.items():
        data = array.astype("<f4").tobytes()
        head[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of their size
    return struct.pack("<Q", len(text)) + text + bytes(body)


def write(folder: Path) -> None:
    """Write the model into `folder`, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = Vocabulary()
    for name, content in {
        "config.json": _config(vocabulary),
        "tokenizer.json": _tokenizer(vocabulary),
        "tokenizer_config.json": _tokenizer_config(),
    }.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(_safetensors(_weights(vocabulary)))


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description="Write the scripted model as a Hugging Face folder.")
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)


if __name__ == "__main__":
    main()
