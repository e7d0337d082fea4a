"""Child process of `exporters.llamacpp.engine`: keeps one GGUF open with llama.cpp.

Run as `python -m exporters.llamacpp.engine_child`.

It uses the C interface of llama.h through the ctypes declarations of llama-cpp-python (`llama_batch`,
`llama_context_params`, `llama_model_params`), not that package's Python classes.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.native.child_main import Answer, Channel, NativeLog, RefusedError
from exporters.native.pipe_messages import Array
from exporters.native.prefix_groups import Group, Scored, unpack

_GGML_TYPE_F32 = 0
_FLASH_ATTN_DISABLED = 0  # llama_flash_attn_type
_INT32_MIN = -(2**31)


class Model:
    """A llama.cpp model and, unless `vocab_only`, a context. Several sequences share the cells of the context."""

    def __init__(self, library: Any, log: NativeLog, request: Mapping[str, Any]) -> None:
        self._lib = library
        self._log = log
        self._n_ctx = int(request["n_ctx"])
        self._n_batch = int(request["n_batch"])
        self._n_seq = int(request["n_seq"])
        self._cached_ids: list[int] = []  # ids in the cache; `generate` may reuse them
        params = library.llama_model_default_params()
        params.n_gpu_layers = 0
        params.vocab_only = bool(request["vocab_only"])
        self._model = library.llama_model_load_from_file(bytes.fromhex(request["path"]), params)
        if not self._model:
            raise _load_refusal(log.reason())
        self._vocab = library.llama_model_get_vocab(self._model)
        self.n_vocab = int(library.llama_vocab_n_tokens(self._vocab))
        self._context: Any = None if request["vocab_only"] else self._new_context(int(request["n_threads"]))

    def _new_context(self, n_threads: int) -> Any:
        params = self._lib.llama_context_default_params()
        params.n_ctx = self._n_ctx
        params.n_batch = params.n_ubatch = self._n_batch
        params.n_seq_max = self._n_seq
        # Sequences share the cells, so a common prefix is stored once.
        params.kv_unified = self._n_seq > 1
        params.n_threads = params.n_threads_batch = n_threads
        # Float32 keys and values and plain attention match Transformers in float32.
        params.type_k = params.type_v = _GGML_TYPE_F32
        params.flash_attn_type = _FLASH_ATTN_DISABLED
        params.offload_kqv = params.op_offload = False
        context = self._lib.llama_init_from_model(self._model, params)
        if not context:
            hint = "try a smaller context"
            raise RefusedError(
                "unavailable", f"llama.cpp could not create a context: {self._log.reason() or 'no reason given'}", hint
            )
        return context

    def describe(self) -> dict[str, Any]:
        """Return vocabulary size, metadata (without array values), special ids, and whether llama.cpp adds BOS."""
        lib, metadata = self._lib, {}
        for index in range(lib.llama_model_meta_count(self._model)):
            key = self._string(lib.llama_model_meta_key_by_index, index)
            metadata[key] = self._string(lib.llama_model_meta_val_str_by_index, index)
        eog = [token for token in range(self.n_vocab) if lib.llama_vocab_is_eog(self._vocab, token)]
        return {
            "n_vocab": self.n_vocab,
            "metadata": metadata,
            "add_bos": bool(lib.llama_vocab_get_add_bos(self._vocab)),
            "bos": int(lib.llama_vocab_bos(self._vocab)),
            "eog": eog,
        }

    def _string(self, function: Any, index: int) -> str:
        size = 4096
        while True:
            buffer = ctypes.create_string_buffer(size)
            needed = function(self._model, index, buffer, size)
            if needed < size:
                return buffer.raw[: max(needed, 0)].decode("utf-8", "replace")
            size = needed + 1

    def tokenize(self, text: bytes, parse_special: bool) -> NDArray[np.int32]:
        """Return the token ids of one UTF-8 text, int32 [N], without BOS and EOS."""
        room = len(text) + 16
        while True:
            tokens = np.empty(room, dtype=np.int32)
            pointer = tokens.ctypes.data_as(self._lib.llama_token_p)
            count = self._lib.llama_tokenize(self._vocab, text, len(text), pointer, room, False, parse_special)
            if count >= 0:
                return tokens[:count]
            if count == _INT32_MIN:
                raise RefusedError("data", "the text has more tokens than llama.cpp can count")
            room = -count

    def detokenize(self, ids: NDArray[np.int32], special: bool) -> bytes:
        """Return the concatenated bytes of the tokens. With `special`, special tokens are included as text."""
        out = bytearray()
        size = 256
        for token in ids.tolist():
            while True:
                buffer = ctypes.create_string_buffer(size)
                count = self._lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, special)
                if count >= 0:
                    out += buffer.raw[:count]
                    break
                size = -count
        return bytes(out)

    def clear(self) -> None:
        """Empty the key-value cache."""
        self._cached_ids = []
        self._lib.llama_memory_clear(self._lib.llama_get_memory(self._context), True)

    def decode(self, ids: NDArray[np.int32], start: int, every_position: bool) -> NDArray[np.float32]:
        """Run at most one batch that begins at position `start`.

        Returns:
            Logits, float32 [len(ids), n_vocab], or [1, n_vocab] of the last position. The next call overwrites this
            view.
        """
        last = len(ids) - 1
        tokens = ((token, start + i, (0,), every_position or i == last) for i, token in enumerate(ids.tolist()))
        return self._decode(list(tokens))

    def _decode(self, tokens: Sequence[tuple[int, int, Sequence[int], bool]]) -> NDArray[np.float32]:
        """Run at most one batch of (id, position, sequences, whether to return logits). Return the requested logits."""
        lib = self._lib
        batch = lib.llama_batch_init(len(tokens), 0, self._n_seq)
        try:
            batch.n_tokens = len(tokens)
            for index, (token, position, sequences, wanted) in enumerate(tokens):
                batch.token[index] = token
                batch.pos[index] = position
                batch.n_seq_id[index] = len(sequences)
                for place, sequence in enumerate(sequences):
                    batch.seq_id[index][place] = sequence
                batch.logits[index] = wanted
            code = lib.llama_decode(self._context, batch)
        finally:
            lib.llama_batch_free(batch)
        if code != 0:
            raise RefusedError(
                "unavailable", f"llama_decode returned {code}: {self._log.reason() or 'no reason given'}"
            )
        rows = sum(wanted for *_, wanted in tokens)
        if not rows:
            return np.empty((0, self.n_vocab), dtype=np.float32)
        # llama_get_logits waits for the computation. Its rows are the requested positions, in order.
        return np.ctypeslib.as_array(lib.llama_get_logits(self._context), shape=(rows, self.n_vocab))

    def batches(self, ids: NDArray[np.int32]) -> Sequence[tuple[int, NDArray[np.int32]]]:
        """Split `ids` into batches of (position, ids)."""
        return [(start, ids[start : start + self._n_batch]) for start in range(0, len(ids), self._n_batch)]

    def logits(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the logits of every position, float32 [T, n_vocab]."""
        self.clear()
        out = np.empty((len(ids), self.n_vocab), dtype=np.float32)
        for start, part in self.batches(ids):
            out[start : start + len(part)] = self.decode(part, start, every_position=True)
        return out

    def score(self, ids: NDArray[np.int32]) -> NDArray[np.float64]:
        """Return the natural-log probability of ids[i+1] given ids[:i+1], float64 [T-1].

        Only one batch of logits is in memory at a time.
        """
        self.clear()
        out = np.empty(len(ids) - 1, dtype=np.float64)
        for start, part in self.batches(ids[:-1]):
            rows = self.decode(part, start, every_position=True)
            for index in range(len(part)):
                row = rows[index].astype(np.float64)
                top = row.max()
                total = top + np.log(np.exp(row - top).sum())
                out[start + index] = row[ids[start + index + 1]] - total
        return out

    def branches(self, groups: Sequence[Group]) -> Sequence[Array]:
        """Score groups that together fit the context. A prefix token belongs to all sequences of its group."""
        self.clear()
        scored = Scored(groups)
        tokens: list[tuple[int, int, Sequence[int], bool]] = []
        wanted: list[tuple[int, int, int] | None] = []
        sequence = 0
        for g, group in enumerate(groups):
            every = range(sequence, sequence + len(group.branches))
            tokens += [(token, position, every, False) for position, token in enumerate(group.prefix)]
            wanted += [None] * len(group.prefix)
            for b, branch in enumerate(group.branches):
                for index, token in enumerate(branch.ids):
                    needed = index >= branch.first
                    tokens.append((token, len(group.prefix) + index, (sequence,), needed))
                    wanted.append((g, b, index) if needed else None)
                sequence += 1
        for begin in range(0, len(tokens), self._n_batch):
            rows = self._decode(tokens[begin : begin + self._n_batch])
            places = [place for place in wanted[begin : begin + self._n_batch] if place is not None]
            for place, row in zip(places, rows, strict=True):
                scored.add(*place, row)
        return scored.arrays()

    def _keep(self, ids: list[int]) -> int:
        """Cut the cache to the prefix that it has in common with `ids`. Return its length, at most len(ids) - 1."""
        pairs = enumerate(zip(self._cached_ids, ids, strict=False))
        kept = next((index for index, (a, b) in pairs if a != b), min(len(self._cached_ids), len(ids)))
        kept = min(kept, len(ids) - 1)
        memory = self._lib.llama_get_memory(self._context)
        # Some caches cannot remove part of a sequence.
        if not kept or not self._lib.llama_memory_seq_rm(memory, 0, kept, -1):
            self.clear()
            return 0
        self._cached_ids = self._cached_ids[:kept]
        return kept

    def generate(
        self, ids: NDArray[np.int32], max_tokens: int, stop: frozenset[int], *, reuse: bool
    ) -> tuple[list[int], list[float]]:
        """Continue greedily. With `reuse`, start from the prefix that the cache already holds.

        Returns:
            The new ids (a stop id, if reached, is last), and for each the gap between the two highest logits.
        """
        if not reuse:
            self.clear()
        generated: list[int] = []
        gaps: list[float] = []
        kept = self._keep(ids.tolist())
        for start, part in self.batches(ids[kept:]):
            row = self.decode(part, kept + start, every_position=False)[0]
        self._cached_ids = ids.tolist()
        for position in range(len(ids), len(ids) + max_tokens):
            best = int(row.argmax())
            top = np.partition(row, -2)[-2:]
            generated.append(best)
            gaps.append(float(top[1]) - float(top[0]))
            if best in stop or len(generated) == max_tokens:
                break
            row = self.decode(np.array([best], dtype=np.int32), position, every_position=False)[0]
            self._cached_ids.append(best)
        return generated, gaps

    def speed(self, ids: NDArray[np.int32], n_decode: int) -> dict[str, float]:
        """Return the seconds for the prompt and for `n_decode` single tokens after it."""
        # The first pass reads the weights from disk, so it is not timed.
        self.clear()
        self.decode(ids[: self._n_batch], 0, every_position=False)
        self.clear()
        begin = time.perf_counter()
        for start, part in self.batches(ids):
            row = self.decode(part, start, every_position=False)[0]
        middle = time.perf_counter()
        for position in range(len(ids), len(ids) + n_decode):
            row = self.decode(np.array([row.argmax()], dtype=np.int32), position, every_position=False)[0]
        return {"prefill_seconds": middle - begin, "decode_seconds": time.perf_counter() - middle}


def _load_refusal(reason: str) -> RefusedError:
    shown = reason or "no reason given"
    if "unknown model architecture" in reason:
        return RefusedError("architecture", f"llama.cpp does not know this model: {shown}", "update llama-cpp-python")
    if "alloc" in reason:
        return RefusedError("unavailable", f"llama.cpp could not get memory: {shown}", "free some memory")
    return RefusedError("damaged", f"llama.cpp cannot load the model: {shown}", "export the model again")


class _Server:
    """Maps requests to calls on the model."""

    def __init__(self) -> None:
        self._log = NativeLog()
        self._model: Model | None = None
        self._callback: Any = None  # llama.cpp keeps a raw pointer, so this reference must stay alive

    def __call__(self, request: dict[str, Any], arrays: list[Array]) -> Answer:
        if request["op"] == "open":
            return self._open(request), ()
        assert self._model is not None
        model = self._model
        match request["op"]:
            case "tokenize":
                texts, lengths = arrays[0].tobytes(), arrays[1].tolist()
                parts, begin = [np.empty(0, dtype=np.int32)], 0
                for length in lengths:
                    parts.append(model.tokenize(texts[begin : begin + length], request["parse_special"]))
                    begin += length
                counts = np.array([len(part) for part in parts[1:]], dtype=np.int64)
                return {}, (np.concatenate(parts), counts)
            case "detokenize":
                text = model.detokenize(arrays[0], request["special"])
                return {}, (np.frombuffer(text, dtype=np.uint8),)
            case "logits":
                return {}, (model.logits(arrays[0]),)
            case "score":
                return {}, (model.score(arrays[0]),)
            case "branches":
                return {}, model.branches(unpack(request["lengths"], arrays[0]))
            case "generate":
                stop, reuse = frozenset(request["stop"]), request["reuse"]
                generated, gaps = model.generate(arrays[0], request["max_tokens"], stop, reuse=reuse)
                return {"ids": generated, "gaps": gaps}, ()
            case "speed":
                return model.speed(arrays[0], request["n_decode"]), ()
        raise ValueError(f"unknown request {request['op']!r}")

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            import llama_cpp
        except (ImportError, RuntimeError, OSError) as error:  # not installed, or its shared library cannot be loaded
            hint = "install the extra: pip install 'compact-edge[prune]'"
            raise RefusedError("unavailable", f"llama-cpp-python cannot be used: {error}", hint) from error
        self._callback = llama_cpp.llama_log_callback(self._log)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = Model(llama_cpp, self._log, request)
        return self._model.describe()


if __name__ == "__main__":
    Channel().serve(_Server())
