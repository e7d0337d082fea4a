"""Child process of `exporters.onnx.genai_engine`: keeps the tokenizer and model of one folder open."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.native.child_main import Answer, Channel, RefusedError
from exporters.native.pipe_messages import Array
from exporters.onnx.folder import INSTALL_HINT
from exporters.onnx.ort_engine_child import first_choice, load_refusal, one_line, refuse_other_files


class Model:
    """A tokenizer and, unless `vocab_only`, a model."""

    def __init__(self, runtime: Any, folder: str, request: Mapping[str, Any]) -> None:
        self._runtime = runtime
        self._model: Any = None
        if request["model"] is not None:
            refuse_other_files(Path(os.fsdecode(bytes.fromhex(request["model"]))))
        try:
            config = runtime.Config(folder)
            config.clear_providers()  # use the CPU, whatever device the folder is for
            config.overlay(json.dumps({"model": {"decoder": {"session_options": _session_options(request)}}}))
            if request["model"] is not None:
                self._model = runtime.Model(config)
        except Exception as error:  # genai raises bare RuntimeError
            raise load_refusal(error, "onnxruntime-genai") from error
        try:
            self._tokenizer = runtime.Tokenizer(config)
        except Exception as error:
            message = f"onnxruntime-genai cannot load the tokenizer: {one_line(error)}"
            raise RefusedError("damaged", message, "export the model again") from error

    def tokenize(self, text: bytes) -> NDArray[np.int32]:
        """Return the token ids of one UTF-8 text, int32 [N]."""
        try:
            ids: NDArray[np.int32] = np.asarray(self._tokenizer.encode(text.decode("utf-8", "replace")), dtype=np.int32)
        except RuntimeError as error:
            raise RefusedError("data", f"onnxruntime-genai cannot tokenize a text: {one_line(error)}") from error
        return ids

    def detokenize(self, ids: NDArray[np.int64]) -> str:
        """Return the text of ids [N]."""
        if not len(ids):
            return ""
        try:
            text: str = self._tokenizer.decode(ids.astype(np.int32))
        except (RuntimeError, UnicodeDecodeError) as error:
            raise RefusedError("data", f"onnxruntime-genai cannot detokenize: {one_line(error)}") from error
        return text

    def chat_prompt(self, messages: list[dict[str, str]]) -> str:
        """Render a conversation with the folder's chat template."""
        try:
            text: str = self._tokenizer.apply_chat_template(
                json.dumps(messages, ensure_ascii=False), add_generation_prompt=True
            )
        except (RuntimeError, UnicodeDecodeError) as error:
            raise RefusedError(
                "data", f"onnxruntime-genai cannot apply the chat template: {one_line(error)}"
            ) from error
        return text

    def _generator(self, max_length: int, **options: Any) -> Any:
        params = self._runtime.GeneratorParams(self._model)
        # Replace the configured search by greedy search. genai allocates the key-value cache for `max_length`.
        params.set_search_options(
            max_length=max_length,
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
            **{"min_length": 0, **options},
        )
        return self._runtime.Generator(self._model, params)

    def generate(
        self, ids: NDArray[np.int64], max_length: int, max_tokens: int, stop: frozenset[int]
    ) -> tuple[list[int], list[float]]:
        """Continue greedily with genai's own loop.

        Returns:
            The new ids (a stop id or EOS, if reached, is last), and for each the gap between the two highest logits.
        """
        made: list[int] = []
        gaps: list[float] = []
        generator = self._generator(max_length)
        generator.append_tokens(ids.astype(np.int32))
        while len(made) < max_tokens:
            _, gap = first_choice(generator.get_logits()[0, -1])
            generator.generate_next_token()
            made.append(int(generator.get_next_tokens()[0]))
            gaps.append(gap)
            if made[-1] in stop or generator.is_done():
                break
        return made, gaps

    def speed(self, ids: NDArray[np.int64], max_length: int, n_decode: int) -> dict[str, float]:
        """Time the prompt with its first new token, and `n_decode` single tokens after it, in seconds."""
        prompt = ids.astype(np.int32)
        # The first pass reads the weights from disk, so it is not timed.
        self._generator(max_length).append_tokens(prompt)
        # A minimum length prevents EOS from ending the run early.
        generator = self._generator(max_length, min_length=len(prompt) + n_decode + 1)
        begin = time.perf_counter()
        generator.append_tokens(prompt)
        generator.generate_next_token()
        middle = time.perf_counter()
        for _ in range(n_decode):
            generator.generate_next_token()
        return {"prefill_seconds": middle - begin, "decode_seconds": time.perf_counter() - middle}


def _session_options(request: Mapping[str, Any]) -> dict[str, Any]:
    # Spinning threads slow each other down considerably on a busy machine.
    return {
        "intra_op_num_threads": request["n_threads"],
        "inter_op_num_threads": 1,
        "log_severity_level": 3,
        "session.intra_op.allow_spinning": "0",
    }


class _Server:
    """Maps requests to calls on the model."""

    def __init__(self) -> None:
        self._model: Model | None = None

    def __call__(self, request: dict[str, Any], arrays: list[Array]) -> Answer:
        if request["op"] == "open":
            self._model = self._open(request)
            return {}, ()
        assert self._model is not None
        model = self._model
        match request["op"]:
            case "tokenize":
                texts, parts, begin = arrays[0].tobytes(), [np.empty(0, dtype=np.int32)], 0
                for length in arrays[1].tolist():
                    parts.append(model.tokenize(texts[begin : begin + length]))
                    begin += length
                counts = np.array([len(part) for part in parts[1:]], dtype=np.int64)
                return {}, (np.concatenate(parts), counts)
            case "detokenize":
                return {"text": model.detokenize(arrays[0])}, ()
            case "chat":
                return {"text": model.chat_prompt(request["messages"])}, ()
        try:
            return self._run(model, request, arrays[0])
        except RuntimeError as error:
            raise RefusedError("damaged", f"onnxruntime-genai cannot run the model: {one_line(error)}") from error

    def _run(self, model: Model, request: dict[str, Any], ids: Array) -> Answer:
        if request["op"] == "speed":
            return model.speed(ids, request["max_length"], request["n_decode"]), ()
        if request["op"] == "generate":
            stop = frozenset(request["stop"])
            made, gaps = model.generate(ids, request["max_length"], request["max_tokens"], stop)
            return {"ids": made, "gaps": gaps}, ()
        raise ValueError(f"unknown request {request['op']!r}")

    def _open(self, request: dict[str, Any]) -> Model:
        try:
            import onnx  # noqa: F401  (exporters.onnx.graph reads the graph with it)
            import onnxruntime_genai
        except (ImportError, RuntimeError, OSError) as error:  # not installed, or its shared library cannot be loaded
            raise RefusedError("unavailable", f"onnxruntime-genai cannot be used: {error}", INSTALL_HINT) from error
        return Model(onnxruntime_genai, os.fsdecode(bytes.fromhex(request["folder"])), request)


if __name__ == "__main__":
    Channel().serve(_Server())
