"""Write a tiny GGUF whose replies are fixed: "scripted weights".

usage: python -m tests.real.scripted_gguf OUT.gguf [--pooling mean|last|none] [--modelfiles DIR]
needs: pip install gguf numpy      size: 2.4 MB, 512 entries, context 4096

--modelfiles writes Modelfile.scripted (plain), .scripted-tools, .scripted-think and .scripted-embed (with a GGUF that
has a pooling type: Ollama from 0.30 on embeds with no other) for `ollama create NAME -f …`. They set num_thread 1:
ggml's threads spin at a barrier, and on a shared machine two of them make this tiny model 50 times slower than one.

How it works. The model is a one-block `llama`. The embedding is one-hot (hidden size = vocabulary size), attention
and feed-forward matrices are zero, so the residual stream stays the one-hot of the last token i, and `output.weight`
puts a large logit on next(i). The reply therefore depends on the LAST PROMPT TOKEN only, and greedy or not, it is the
same text on every engine and every machine. Each script below is a chain of vocabulary entries that starts at a
control token `<|name|>` and ends in EOS (or cycles); an entry may occur once in the whole vocabulary, because next()
is a function.

The chat template ends in `<|assistant|>`, or `<|tools|>` when the request has tools and no tool result yet, or
`<|answer|>` after a tool result. A system message `script:NAME` picks the script NAME instead, e.g. `script:loop`.

A token outside every chain (a plain character) prefers EOS, then `}`, `]`, `"`, `true`, `:`, `{`: so a grammar (JSON
mode, schema) that forbids the scripted entry still closes its object after a few tokens instead of running on in
blanks.

It does not know FLM, nor which engine will load the file.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

SIZE = 512
"""Vocabulary = hidden size."""
HEADS, HEAD = 8, 64
FF = 64
CONTEXT = 4096
EOS = "</s>"
POOLING = {"none": 0, "mean": 1, "last": 3}
"""llama.cpp's numbers for `llama.pooling_type`."""

CALL = '<tool_call>{"name": "get_weather", "arguments": {"city": "%s"}}</tool_call>'
SPLIT_CALL = ["<tool_call>", '{"name": "get_', 'weather", "arg', 'uments": {"city": "Li', 'ma"}}', "</tool_call>"]
COUNTING = ["one ", "two ", "three ", "four ", "five ", "six ", "seven ", "eight ", "nine ", "ten "]
KANJI_AND_EMOJI = ["<0xE6>", "<0x97>", "<0xA5>", " ", "<0xF0>", "<0x9F>", "<0x98>", "<0x80>"]
SCRIPTS = {
    "assistant": ["Hello", " from", " the", " scripted", " model", ".", EOS],
    "tools": [CALL % "Paris", EOS],
    "twotools": [CALL % "Tokyo", CALL % "Oslo", EOS],
    "texttool": ["Let me look.", CALL % "Rome", EOS],
    "splittool": [*SPLIT_CALL, EOS],
    "answer": ["It", " is", " sunny", " there", ".\n", EOS],
    "think": ["<think>", "First", " I", " ponder", "</think>", "Then", " we", " speak", EOS],
    "json": ['{"', "ok", '": ', "true", "}", EOS],
    "utf8": [*KANJI_AND_EMOJI, EOS],  # byte by byte
    "escape": ["<b>", " & ", '"quoted"', "\\back", "\n\n", "\u2028", "\t", EOS],
    "empty": [EOS],
    "loop": [*COUNTING, "@loop"],  # never ends by itself
    "repeat": ["na ", "@self"],  # the same token for ever
}
MARKERS = ["<|system|>", "<|user|>", "<|tool|>", "<|tool_list|>"]
FALLBACK = [EOS, "}", "]", '"', "true", ":", "{"]

CHAT_TEMPLATE = """{%- set ns = namespace(script='assistant') -%}
{%- if tools -%}{%- set ns.script = 'tools' -%}<|tool_list|>{{ tools | tojson }}{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'system' or m.role == 'developer' -%}<|system|>{{ m.content }}
{%- elif m.role == 'assistant' -%}<|assistant|>
{%- if m.reasoning_content -%}{{ '<think>' + m.reasoning_content + '</think>' }}{%- endif -%}
{%- if m.content -%}{{ m.content }}{%- endif -%}
{%- if m.tool_calls -%}{%- for c in m.tool_calls -%}
{{ '<tool_call>{"name": "' + c.function.name + '", "arguments": ' + (c.function.arguments | tojson) + '}</tool_call>' }}
{%- endfor -%}{%- endif -%}
{%- elif m.role == 'tool' -%}<|tool|>{{ m.content }}{%- set ns.script = 'answer' -%}
{%- else -%}<|user|>{{ m.content }}{%- endif -%}
{%- endfor -%}
{%- for m in messages -%}
{%- if m.role == 'system' and m.content[:7] == 'script:' -%}{%- set ns.script = m.content[7:] -%}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|' + ns.script + '|>' }}{%- endif -%}"""

# The same template in Ollama's Go dialect. Without .Tools / .Thinking a model has neither capability. Ollama's parsers
# read the tags off the template text: the tool tag is the first text inside an `if .ToolCalls`, the thinking tags
# surround `.Thinking`.
GO_SCRIPTS = "".join(
    f'{{{{- if eq .System "script:{name}" }}}}{{{{ $s = "{name}" }}}}{{{{ end }}}}\n' for name in SCRIPTS
)
GO_HEAD = '{{- $s := "assistant" }}\n'
GO_TAIL = GO_SCRIPTS + "<|{{ $s }}|>"
GO_PLAIN = (
    GO_HEAD
    + """{{- if .System }}<|system|>{{ .System }}{{ end }}
{{- range .Messages }}
{{- if eq .Role "user" }}<|user|>{{ .Content }}
{{- else if eq .Role "assistant" }}<|assistant|>{{ .Content }}
{{- end }}
{{- end }}
"""
    + GO_TAIL
)
GO_CALL = '<tool_call>{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}</tool_call>'
GO_TOOLS = (
    GO_HEAD
    + """{{- if .Tools }}{{ $s = "tools" }}<|tool_list|>{{ .Tools }}{{ end }}
{{- if .System }}<|system|>{{ .System }}{{ end }}
{{- range .Messages }}
{{- if eq .Role "user" }}<|user|>{{ .Content }}
{{- else if eq .Role "assistant" }}<|assistant|>{{ .Content }}
{{- if .ToolCalls }}{{ range .ToolCalls }}"""
    + GO_CALL
    + """{{ end }}{{ end }}
{{- else if eq .Role "tool" }}<|tool|>{{ .Content }}{{ $s = "answer" }}
{{- end }}
{{- end }}
"""
    + GO_TAIL
)
GO_THINK = (
    GO_HEAD
    + """{{- $s = "think" }}
{{- if .System }}<|system|>{{ .System }}{{ end }}
{{- range .Messages }}
{{- if eq .Role "user" }}<|user|>{{ .Content }}
{{- else if eq .Role "assistant" }}<|assistant|>"""
    + """{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Content }}
{{- end }}
{{- end }}
"""
    + GO_TAIL
)


class Vocabulary:
    """The entries, their kinds (1 normal, 2 unknown, 3 control, 5 unused, 6 byte), and which entry follows which."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.kinds: list[int] = []
        self.index: dict[str, int] = {}
        self.next: dict[int, int] = {}
        self._entries()
        for name, chain in SCRIPTS.items():
            self._chain(self.index[f"<|{name}|>"], chain)
        while len(self.tokens) < SIZE:
            self._add(f"<|spare{len(self.tokens)}|>", 5)
        if len(self.tokens) != SIZE:
            raise ValueError(f"{len(self.tokens)} entries do not fit into {SIZE}")

    def _add(self, text: str, kind: int) -> int:
        if text not in self.index:
            self.index[text] = len(self.tokens)
            self.tokens.append(text)
            self.kinds.append(kind)
        return self.index[text]

    def _entries(self) -> None:
        for text, kind in (("<unk>", 2), ("<s>", 3), (EOS, 3)):
            self._add(text, kind)
        for byte in range(256):
            self._add(f"<0x{byte:02X}>", 6)
        for marker in [*MARKERS, *(f"<|{name}|>" for name in SCRIPTS)]:
            self._add(marker, 3)
        for code in range(32, 127):
            self._add(chr(code), 1)
        for text in FALLBACK:
            self._add(text, 1)

    def _chain(self, current: int, chain: list[str]) -> None:
        first = None
        for text in chain:
            if text == "@loop" and first is not None:
                to = first
            elif text == "@self":
                to = current
            else:
                to = self._add(text, 1)
                if to in self.next and to != self.index[EOS]:
                    raise ValueError(f"{text!r} occurs in two scripts")
            first = to if first is None else first
            self.next[current] = to
            current = to


def _half(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(np.float16)


def _add_keys(writer: GGUFWriter, vocabulary: Vocabulary, pooling: str | None) -> None:
    writer.add_name("scripted")
    writer.add_file_type(1)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(SIZE)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FF)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HEAD)
    writer.add_vocab_size(SIZE)
    if pooling:
        writer.add_uint32("llama.pooling_type", POOLING[pooling])
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    entries = list(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
    writer.add_token_list(
        [t if k != 1 else t.replace(" ", "\u2581") for t, k in entries]
    )  # SPM spells a blank as U+2581
    writer.add_token_scores([0.0 if k != 1 else -float(i) for i, (_, k) in enumerate(entries)])
    writer.add_token_types(vocabulary.kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_tensors(writer: GGUFWriter, vocabulary: Vocabulary) -> None:
    logits = np.zeros((SIZE, SIZE), np.float32)  # logits[j, i]: of j when the last token is i
    for i in range(SIZE):
        for rank, text in enumerate(FALLBACK):
            logits[vocabulary.index[text], i] = 20 - 2 * rank
    for i, j in vocabulary.next.items():
        logits[j, i] = 60
    writer.add_tensor("token_embd.weight", _half(np.eye(SIZE)))
    writer.add_tensor("output_norm.weight", np.ones(SIZE, np.float32))
    writer.add_tensor("output.weight", _half(logits))
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(SIZE, np.float32))
    for name, rows, columns in (
        ("attn_q", SIZE, SIZE),
        ("attn_output", SIZE, SIZE),
        ("attn_k", HEAD, SIZE),
        ("attn_v", HEAD, SIZE),
        ("ffn_gate", FF, SIZE),
        ("ffn_up", FF, SIZE),
        ("ffn_down", SIZE, FF),
    ):
        writer.add_tensor(f"blk.0.{name}.weight", _half(np.zeros((rows, columns))))


def write(path: str | Path, pooling: str | None = None) -> None:
    """Write the model to `path`; `pooling` (a key of POOLING) marks it as an embedding model."""
    vocabulary = Vocabulary()
    writer = GGUFWriter(str(path), "llama")
    _add_keys(writer, vocabulary, pooling)
    _add_tensors(writer, vocabulary)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_modelfiles(model: Path, folder: Path) -> None:
    """Write the Modelfiles, and `scripted-embed.gguf`, into `folder`.

    They name the models by a path relative to themselves (as `ollama create` reads it), so both may be moved together.
    """
    folder.mkdir(parents=True, exist_ok=True)
    source = os.path.relpath(model, folder)
    for name, template in {"scripted": GO_PLAIN, "scripted-tools": GO_TOOLS, "scripted-think": GO_THINK}.items():
        text = f'FROM ./{source}\nPARAMETER num_thread 1\nTEMPLATE """{template}"""\n'
        (folder / f"Modelfile.{name}").write_text(text)
    write(folder / "scripted-embed.gguf", "mean")
    (folder / "Modelfile.scripted-embed").write_text("FROM ./scripted-embed.gguf\nPARAMETER num_thread 1\n")


def main() -> None:
    """Write what the command line asks for."""
    parser = argparse.ArgumentParser(description="Write a tiny GGUF whose replies are fixed.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--pooling", choices=sorted(POOLING), help="mark it as an embedding model")
    parser.add_argument(
        "--modelfiles", type=Path, metavar="DIR", help="also write Modelfiles and scripted-embed.gguf here"
    )
    arguments = parser.parse_args()
    write(arguments.out, arguments.pooling)
    if arguments.modelfiles:
        write_modelfiles(arguments.out, arguments.modelfiles)


if __name__ == "__main__":
    main()
