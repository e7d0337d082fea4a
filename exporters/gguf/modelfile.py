"""An Ollama Modelfile for an artifact: the file name, the format of turns, and the stop texts.

Without a TEMPLATE, Ollama uses its built-in template with the smallest edit distance to the GGUF's
`tokenizer.chat_template`. If none is near, it sends the bare prompt (`Named` in ollama's template/template.go). Either
silently loses the model's own turns. So this module writes the turns in Ollama's template language, Go's
text/template, but only if they match the chat template exactly (`chat_turns`). Ollama sets the variables `.System`
and `.Messages`. It takes values in triple quotes literally (parser/parser.go).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compact.base.files import read_json_object
from compact.checkpoints.gguf_file import read_gguf
from compact.checkpoints.names import GENERATION_CONFIG
from compact.vocabulary.chat_rendering import renderer_of
from compact.vocabulary.end_tokens import end_ids
from compact.vocabulary.tokenizer import load_tokenizer
from exporters.gguf.chat_turns import Messages, Turns, find_turns

NAME = "Modelfile"
# The key-value cache of a long context takes more memory than a small model. Users can raise the limit.
_MAX_CONTEXT = 4096
# Llama 3.1's template uses this date by default. A fixed date keeps the Modelfile reproducible.
_DATE = "26 Jul 2024"
# generation_config.json -> Ollama's parameter.
_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


def modelfile(artifact: Path, checkpoint: Path, parts: Sequence[str] = ()) -> str:
    """Return the text of the Modelfile.

    Args:
        artifact: the whole GGUF.
        checkpoint: checkpoint of the artifact, with the chat template and generation settings.
        parts: names of the parts, if the GGUF is published in parts. Ollama cannot read parts.

    Raises:
        DamagedFileError: the artifact or generation_config.json cannot be read.
    """
    values = read_gguf(artifact).values
    tokens = values.get("tokenizer.ggml.tokens", [])
    bos = tokens[values["tokenizer.ggml.bos_token_id"]] if values.get("tokenizer.ggml.add_bos_token") else ""
    turns = chat_turns(checkpoint, bos)
    template = None if turns is None else go_template(turns)
    path = checkpoint / GENERATION_CONFIG
    generation = read_json_object(path) if path.is_file() else {}
    lines = ["# Use: ollama create NAME -f Modelfile"]
    if parts:
        lines += ["# Ollama reads one file. Join the parts first:", *(f"#   {name}" for name in parts)]
        lines += [f"#   llama-gguf-split --merge {parts[0]} {artifact.name}"]
    lines += [f"FROM ./{artifact.name}", ""]
    if turns is None or template is None:
        lines += [
            "# The chat template is absent, or is more than turns: without a TEMPLATE, Ollama looks for one itself."
        ]
    else:
        lines += [f"# Turns: {turns.family or 'of its own kind'}, equal to the model's chat template."]
        if turns.system is None and turns.system_in_last is None:
            lines += ["# It has no place for a system message: SYSTEM is not used."]
        lines += [f'TEMPLATE """{template}"""']
    architecture = values.get("general.architecture")
    context = values.get(f"{architecture}.context_length", _MAX_CONTEXT)
    lines += ["", f"PARAMETER num_ctx {min(int(context), _MAX_CONTEXT)}"]
    lines += [f"PARAMETER stop {_quoted(text)}" for text in _stops(values, end_ids(checkpoint), turns)]
    return "\n".join([*lines, *_sampling(generation)]) + "\n"


def chat_turns(checkpoint: Path, bos: str = "") -> Turns | None:
    """Find the turns of a checkpoint's chat template, without the `bos` that the runtime adds itself."""
    with renderer_of(load_tokenizer(checkpoint)) as renderer:
        if renderer is None:
            return None

        def render(messages: Messages) -> str:
            (chat,) = renderer.render([messages], add_generation_prompt=True, date_string=_DATE)
            if chat.text is None:
                raise ValueError(chat.error)
            return chat.text.removeprefix(bos)

        return find_turns(render)


def go_template(turns: Turns) -> str | None:
    """Return the turns in Go's text/template; None if a Modelfile cannot hold their text."""
    texts = (turns.head, turns.after_user, turns.after_answer, turns.prompt, turns.system_in_last or "")
    every = "".join((*texts, *(turns.system or ())))
    # Ollama's parser drops characters that Go does not consider printable.
    if '"""' in every or not all(c.isprintable() or c in "\n\t" for c in every):
        return None
    head, after_user, after_answer, prompt, in_last = map(_literal, texts)
    if turns.system is not None:
        before, after = map(_literal, turns.system)
        head = f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{{{{ else }}}}{head}{{{{ end }}}}"
    user_end = prompt
    if prompt != after_user:
        user_end = f"{{{{ if $last }}}}{prompt}{{{{ else }}}}{after_user}{{{{ end }}}}"
    late = ""
    if turns.system_in_last is not None:
        late = f"{{{{ if and $last $.System }}}}{{{{ $.System }}}}{in_last}{{{{ end }}}}"
    # `{{-` removes the white space before it, so it must never follow the model's text.
    return (
        f"{head}{{{{ range $i, $m := .Messages }}}}\n"
        "{{- $last := eq (len (slice $.Messages $i)) 1 }}\n"
        f'{{{{- if eq .Role "user" }}}}{late}{{{{ .Content }}}}{user_end}'
        '{{ else if eq .Role "assistant" }}{{ .Content }}'
        f"{{{{ if not $last }}}}{after_answer}{{{{ end }}}}\n"
        "{{- end }}\n"
        "{{- end }}"
    )


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')


def _stops(values: Mapping[str, Any], ends: Sequence[int], turns: Turns | None) -> list[str]:
    """Return the stop texts: the end tokens that the model's files name, and the token that ends an answer's turn."""
    tokens = values.get("tokenizer.ggml.tokens", [])
    kinds = values.get("tokenizer.ggml.token_type", [])
    named = [*ends, *(values.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom"))]
    stops = [tokens[i] for i in named if isinstance(i, int) and 0 <= i < len(tokens)]
    if turns is not None:
        end = turns.after_answer.strip()
        special = [token for token, kind in zip(tokens, kinds, strict=False) if kind != 1 and end.startswith(token)]
        stops += sorted(special, key=len)[-1:]
    return list(dict.fromkeys(text for text in stops if text and text.isprintable()))


def _sampling(generation: Mapping[str, Any]) -> list[str]:
    if generation.get("do_sample") is False:
        return ["PARAMETER temperature 0"]
    found = ((parameter, generation.get(key)) for key, parameter in _SAMPLING.items())
    return [
        f"PARAMETER {parameter} {value:g}"
        for parameter, value in found
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ]


def _quoted(text: str) -> str:
    return f'"""{text}"""' if '"' in text else f'"{text}"'
