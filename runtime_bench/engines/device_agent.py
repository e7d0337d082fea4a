"""The agent: one file that runs an engine on the device.

It uses the standard library and the engine's package only, nothing of compact-edge. Requests and answers are lines of
JSON on stdin and stdout. It ends when stdin ends. All times are seconds of this process's `time.perf_counter`. An
answer is `{"ok": {...}}` or `{"error": KIND, "message": TEXT}`, with KIND `unavailable`, `refused` or `bug`.

Requests: `open` (engine, path, threads, context, gpu_layers, provider), `count` (texts), `generate` (text or ids,
n_tokens).
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_PROMPT_CHUNK = 2048  # tokens of a prompt per call: the default n_batch of llama.cpp
# A run of one prompt: seconds of the prompt, seconds to each token, ids, text (None if the caller decodes).
Run = tuple[float, list[float], list[int], Any]


LIMIT_SECONDS = 4 * 3600.0


class RefusedError(Exception):
    """Raised for a request that gets an error as its answer."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class LlamaCpp:
    """llama-cpp-python's library through its C interface, with llama-server's settings."""

    def __init__(self, request: dict[str, Any]) -> None:
        try:
            import llama_cpp
        except Exception as error:  # it is missing, or its shared library does not load
            raise RefusedError("unavailable", f"llama-cpp-python cannot be used: {error}") from error
        self._lib = llama_cpp
        self.rss_before = resident_bytes()
        self.log: list[str] = []
        # Kept alive, because llama.cpp keeps a bare pointer to it.
        self._callback = llama_cpp.llama_log_callback(self._write_log)
        llama_cpp.llama_log_set(self._callback, None)
        llama_cpp.llama_backend_init()
        begin = time.perf_counter()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = request["gpu_layers"] if request["gpu_layers"] >= 0 else 999
        self._model = llama_cpp.llama_model_load_from_file(os.fsencode(request["path"]), params)
        if not self._model:
            raise RefusedError("refused", f"llama.cpp cannot load the model: {self._errors()}")
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)
        context = llama_cpp.llama_context_default_params()
        context.n_ctx, context.n_seq_max = request["context"], 1
        context.n_threads = context.n_threads_batch = request["threads"]
        self._context = llama_cpp.llama_init_from_model(self._model, context)
        if not self._context:
            raise RefusedError("refused", f"llama.cpp cannot create a context: {self._errors()}")
        self._sampler = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
        llama_cpp.llama_sampler_chain_add(self._sampler, llama_cpp.llama_sampler_init_greedy())
        self.load_s = time.perf_counter() - begin
        self.facts = {
            "version": llama_cpp.__version__,
            "system_info": llama_cpp.llama_print_system_info().decode("utf-8", "replace"),
        }

    def _write_log(self, _level: int, text: bytes, _data: Any) -> None:
        self.log.append(text.decode("utf-8", "replace"))

    def _errors(self) -> str:
        lines = [line.strip() for line in "".join(self.log).splitlines() if "error" in line or "failed" in line]
        return "; ".join(lines[-2:]) or "no reason given"

    def tokenize(self, text: str) -> list[int]:
        """Return the ids as llama-server does: with BOS if the model needs it, and with special tokens parsed."""
        data = text.encode("utf-8")
        room = len(data) + 16
        tokens = (self._lib.llama_token * room)()
        count = self._lib.llama_tokenize(self._vocab, data, len(data), tokens, room, True, True)
        if count < 0:
            raise RefusedError("refused", "llama.cpp cannot tokenize the text")
        return list(tokens[:count])

    def run(self, ids: Sequence[int], n_tokens: int) -> Run:
        """Generate from an empty key-value cache, greedily, also after the end of a text."""
        lib, made, times = self._lib, [], []
        lib.llama_memory_clear(lib.llama_get_memory(self._context), True)
        begin = time.perf_counter()
        for start in range(0, len(ids), _PROMPT_CHUNK):
            self._decode(ids[start : start + _PROMPT_CHUNK])
        while True:
            token = lib.llama_sampler_sample(self._sampler, self._context, -1)
            made.append(token)
            times.append(time.perf_counter() - begin)
            if len(made) == n_tokens:
                break
            self._decode([token])
        return times[0], times, made, self._text(made)

    def _decode(self, ids: Sequence[int]) -> None:
        tokens = (self._lib.llama_token * len(ids))(*ids)
        code = self._lib.llama_decode(self._context, self._lib.llama_batch_get_one(tokens, len(ids)))
        if code != 0:
            raise RefusedError("refused", f"llama_decode returned {code}: {self._errors()}")

    def _text(self, ids: Sequence[int]) -> str:
        import ctypes

        out = bytearray()
        for token in ids:
            buffer = ctypes.create_string_buffer(1024)
            count = self._lib.llama_token_to_piece(self._vocab, token, buffer, 1024, 0, False)
            out += buffer.raw[: max(count, 0)]
        return out.decode("utf-8", "replace")


class Genai:
    """onnxruntime-genai: its own tokenizer and loop."""

    def __init__(self, request: dict[str, Any]) -> None:
        try:
            import onnxruntime_genai
        except Exception as error:
            raise RefusedError("unavailable", f"onnxruntime-genai cannot be used: {error}") from error
        self._lib = onnxruntime_genai
        self.rss_before = resident_bytes()
        self._max_length = request["context"]
        self.log: list[str] = []
        begin = time.perf_counter()
        try:
            config = onnxruntime_genai.Config(request["path"])
            config.clear_providers()
            if request["provider"] != "cpu":
                config.append_provider(request["provider"])
            options = {"intra_op_num_threads": request["threads"], "inter_op_num_threads": 1, "log_severity_level": 3}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
            self._model = onnxruntime_genai.Model(config)
            self._tokenizer = onnxruntime_genai.Tokenizer(self._model)
        except Exception as error:  # genai raises bare RuntimeError
            # On an accelerator the usual reason is a package without the provider.
            kind = "refused" if request["provider"] == "cpu" else "unavailable"
            raise RefusedError(kind, f"onnxruntime-genai cannot load the model: {error}") from error
        self.load_s = time.perf_counter() - begin
        self.facts = {"version": onnxruntime_genai.__version__}

    def tokenize(self, text: str) -> list[int]:
        """Return the ids of genai's own tokenizer."""
        return [int(token) for token in self._tokenizer.encode(text)]

    def run(self, ids: Sequence[int], n_tokens: int) -> Run:
        """Generate from an empty key-value cache, which genai allocates for the whole context at once."""
        import numpy

        params = self._lib.GeneratorParams(self._model)
        params.set_search_options(
            max_length=self._max_length,
            min_length=min(len(ids) + n_tokens + 1, self._max_length),  # EOS would end the run early
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,
            no_repeat_ngram_size=0,
        )
        generator = self._lib.Generator(self._model, params)
        prompt = numpy.array(ids, dtype=numpy.int32)
        made: list[int] = []
        times: list[float] = []
        begin = time.perf_counter()
        generator.append_tokens(prompt)
        prompt_s = time.perf_counter() - begin
        while len(made) < n_tokens:
            generator.generate_next_token()
            times.append(time.perf_counter() - begin)
            made.append(int(generator.get_next_tokens()[0]))
        text = self._tokenizer.decode(numpy.array(made, dtype=numpy.int32))
        return prompt_s, times, made, text


class Onnxruntime:
    """Plain onnxruntime. The caller tokenizes. The key-value cache goes from output to input without a copy."""

    def __init__(self, request: dict[str, Any]) -> None:
        try:
            import numpy
            import onnxruntime
        except Exception as error:
            raise RefusedError("unavailable", f"onnxruntime cannot be used: {error}") from error
        self._numpy, self._lib = numpy, onnxruntime
        self.rss_before = resident_bytes()
        self.log: list[str] = []
        begin = time.perf_counter()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = request["threads"], 1
        options.log_severity_level = 3
        names = {"cpu": "CPU", "cuda": "CUDA", "dml": "Dml", "webgpu": "WebGpu"}
        provider = f"{names[request['provider']]}ExecutionProvider"
        # onnxruntime only warns and runs on the processor. Its values would be reported for the accelerator.
        if provider not in onnxruntime.get_available_providers():
            raise RefusedError("unavailable", f"onnxruntime {onnxruntime.__version__} is built without {provider}")
        try:
            self._session = onnxruntime.InferenceSession(request["path"], options, providers=[provider])
            self._inputs = {node.name: node for node in self._session.get_inputs()}
            self._types = {name: self._type(node.type) for name, node in self._inputs.items()}
        except Exception as error:  # one class per status code, without a common base class
            raise RefusedError("refused", f"onnxruntime cannot load the model: {error}") from error
        self.load_s = time.perf_counter() - begin
        if provider not in self._session.get_providers():
            raise RefusedError("unavailable", f"onnxruntime cannot use {provider} here")
        self._cache_shape = request["cache_shape"]  # the graph may not define them
        self._past = [name for name in self._inputs if name.startswith("past_key_values.")]
        self._outputs = ["logits"] + ["present." + name[len("past_key_values.") :] for name in self._past]
        self.facts = {"version": onnxruntime.__version__, "providers": self._session.get_providers()}

    def _type(self, name: str) -> Any:
        kinds = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}
        return self._numpy.dtype(kinds.get(name, "int32"))

    def tokenize(self, _text: str) -> list[int]:
        """Raise an error: onnxruntime has no tokenizer."""
        raise RefusedError("bug", "onnxruntime has no tokenizer")

    def run(self, ids: Sequence[int], n_tokens: int) -> Run:
        """Generate from an empty key-value cache."""
        numpy, made, times = self._numpy, [], []
        cache = {}
        heads, width = self._cache_shape
        for name in self._past:
            empty = numpy.zeros((1, heads, 0, width), dtype=self._types[name])
            cache[name] = self._lib.OrtValue.ortvalue_from_numpy(empty)
        begin = time.perf_counter()
        row, cache, length = self._feed(ids, cache, 0)
        prompt_s = time.perf_counter() - begin
        while True:
            made.append(int(row.argmax()))
            times.append(time.perf_counter() - begin)
            if len(made) == n_tokens:
                return prompt_s, times, made, None
            row, cache, length = self._feed(made[-1:], cache, length)

    def _feed(self, ids: Sequence[int], cache: dict[str, Any], length: int) -> tuple[Any, dict[str, Any], int]:
        numpy, total = self._numpy, length + len(ids)
        arrays = {
            "input_ids": numpy.array([ids]),
            "attention_mask": numpy.ones((1, total)),
            "position_ids": numpy.arange(length, total)[None],
        }
        feeds = {
            name: self._lib.OrtValue.ortvalue_from_numpy(value.astype(self._types[name]))
            for name, value in arrays.items()
            if name in self._inputs
        }
        values = self._session.run_with_ort_values(self._outputs, {**feeds, **cache})
        return values[0].numpy()[0, -1], dict(zip(self._past, values[1:], strict=True)), total


ENGINES: dict[str, Any] = {"llama-cpp-python": LlamaCpp, "onnxruntime-genai": Genai, "onnxruntime": Onnxruntime}


def resident_bytes() -> Any:
    """Return the resident memory of this process, or None if the system does not report it."""
    try:
        with Path("/proc/self/status").open() as status:
            fields = dict(line.split(":", 1) for line in status if ":" in line)
        return int(fields["VmRSS"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def answer(state: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Serve one request."""
    if request["op"] == "open":
        engine = state["engine"] = ENGINES[request["engine"]](request)
        facts = dict(engine.facts, python=".".join(str(part) for part in sys.version_info[:3]))
        log = "".join(engine.log)
        return {
            "pid": os.getpid(),
            "load_s": engine.load_s,
            "facts": facts,
            "log": log,
            "rss_before": engine.rss_before,
        }
    engine = state["engine"]
    if request["op"] == "count":
        return {"counts": [len(engine.tokenize(text)) for text in request["texts"]]}
    ids = request["ids"] if "ids" in request else engine.tokenize(request["text"])
    prompt_s, token_s, made, text = engine.run(ids, request["n_tokens"])
    return {"prompt_tokens": len(ids), "prompt_s": prompt_s, "token_s": token_s, "ids": made, "text": text}


def main() -> None:
    """Answer requests until stdin ends. Then the process ends at once, even during a native call."""
    # A native library may write to stdout, so answers use a separate descriptor and descriptor 1 becomes stderr.
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    requests: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            requests.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    # For a link that is lost without notice, when stdin does not end.
    limit = threading.Timer(LIMIT_SECONDS, os._exit, (1,))
    limit.daemon = True
    limit.start()
    state: dict[str, Any] = {}
    while True:
        try:
            reply: dict[str, Any] = {"ok": answer(state, json.loads(requests.get()))}
        except RefusedError as error:
            reply = {"error": error.kind, "message": str(error)}
        except Exception as error:
            reply = {"error": "bug", "message": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(reply) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
