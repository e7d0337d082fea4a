"""Child process of `exporters.onnx.ort_engine`: keeps one graph open with onnxruntime."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compact.base.errors import CompactEdgeError, UnsafePathError
from exporters.native.child_main import Answer, Channel, RefusedError
from exporters.native.pipe_messages import Array
from exporters.native.prefix_groups import Group, Scored, unpack
from exporters.onnx.folder import INSTALL_HINT

# Rows of logits in memory at a time. 128 x 262,144 floats (Gemma) take 134 MB.
_CHUNK = 128
_LAST_ONLY = "the graph outputs logits only for the last position"
_PAST, _PRESENT = "past_key_values.", "present."
_TYPES: Mapping[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


class Model:
    """A session and its key-value cache. Names and types of inputs and outputs come from the session."""

    def __init__(self, runtime: Any, path: str, request: Mapping[str, Any]) -> None:
        self._runtime = runtime
        self._heads, self._head_size = request["cache"]
        options = runtime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = request["n_threads"], 1
        options.log_severity_level = 3  # errors
        # Spinning threads slow each other down considerably on a busy machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        try:
            self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has one class per status code and no common base class
            raise load_refusal(error) from error
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        outputs = {node.name: node for node in self._session.get_outputs()}
        self._past = [name for name in self._inputs if name.startswith(_PAST)]
        self._outputs = ["logits", *(_PRESENT + name.removeprefix(_PAST) for name in self._past)]
        self._refuse_other_graph(outputs)
        self._dtypes = {name: _TYPES[node.type] for name, node in self._inputs.items()}
        width = outputs["logits"].shape[-1]
        self.n_vocab = width if isinstance(width, int) else int(request["vocab_size"])
        self._cache: dict[str, Any] = {}
        self._length = 0
        self._held: list[int] = []  # ids in the cache; `generate` may reuse them

    def _refuse_other_graph(self, outputs: Mapping[str, Any]) -> None:
        known = {"input_ids", "attention_mask", "position_ids", *self._past}
        odd = sorted(self._inputs.keys() - known) + sorted({"input_ids"} - self._inputs.keys())
        odd += sorted(set(self._outputs) - outputs.keys())
        if odd or not self._past:
            what = f"unexpected or missing input or output {odd[0]}" if odd else "it has no key-value cache"
            raise RefusedError("damaged", f"the graph is not a decoder that onnxruntime-genai can run: {what}")
        for node in (*self._inputs.values(), outputs["logits"]):
            if node.type not in _TYPES:
                raise RefusedError(
                    "unavailable", f"{node.name} has type {node.type}, which is not supported on the CPU"
                )
        for name in self._past:
            shape = self._inputs[name].shape  # a name marks a length that the graph does not fix
            expected = ("batch", self._heads, "length", self._head_size)
            if len(shape) != 4 or any(isinstance(a, int) and a != b for a, b in zip(shape, expected, strict=True)):
                raise RefusedError(
                    "damaged", f"{name} has shape {shape}, but genai_config.json requires {list(expected)}"
                )

    def clear(self) -> None:
        """Empty the key-value cache."""
        self._length = 0
        self._held = []
        for name in self._past:
            empty = np.zeros((1, self._heads, 0, self._head_size), dtype=self._dtypes[name])
            self._cache[name] = self._value(empty)

    def _value(self, array: Array) -> Any:
        return self._runtime.OrtValue.ortvalue_from_numpy(array)

    def feed(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Run ids [N] after the cached positions. Return float32 logits [N, n_vocab] (some graphs: [1, n_vocab])."""
        total = self._length + len(ids)
        arrays: dict[str, Array] = {"input_ids": ids[None]}
        if "attention_mask" in self._inputs:
            arrays["attention_mask"] = np.ones((1, total), dtype=np.int64)
        if "position_ids" in self._inputs:
            arrays["position_ids"] = np.arange(self._length, total, dtype=np.int64)[None]
        feeds = {name: self._value(value.astype(self._dtypes[name])) for name, value in arrays.items()}
        try:
            values = self._session.run_with_ort_values(self._outputs, {**feeds, **self._cache})
        except Exception as error:
            raise RefusedError("damaged", f"onnxruntime cannot run the model: {one_line(error)}") from error
        self._cache = dict(zip(self._past, values[1:], strict=True))
        self._length = total
        rows: NDArray[np.float32] = values[0].numpy()[0].astype(np.float32)
        return rows

    def chunks(self, ids: NDArray[np.int64], n_decode: int = 0) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (position, logits) of each chunk, from an empty cache. The last `n_decode` ids are single-id chunks."""
        self.clear()
        together = len(ids) - n_decode
        bounds = [*range(0, together, _CHUNK), *range(together, len(ids)), len(ids)]
        for begin, end in itertools.pairwise(bounds):
            rows = self.feed(ids[begin:end])
            if len(rows) != end - begin:
                raise RefusedError("damaged", _LAST_ONLY)
            yield begin, rows

    def logits(self, ids: NDArray[np.int64], n_decode: int) -> NDArray[np.float32]:
        """Return the logits of every position, float32 [T, n_vocab]."""
        out = np.empty((len(ids), self.n_vocab), dtype=np.float32)
        for begin, rows in self.chunks(ids, n_decode):
            out[begin : begin + len(rows)] = rows
        return out

    def score(self, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the natural-log probability of ids[i+1] given ids[:i+1], float64 [T-1].

        Only one chunk of logits is in memory at a time.
        """
        out = np.empty(len(ids) - 1, dtype=np.float64)
        for begin, rows in self.chunks(ids[:-1]):
            for index in range(len(rows)):
                row = rows[index].astype(np.float64)
                top = row.max()
                out[begin + index] = row[ids[begin + index + 1]] - top - np.log(np.exp(row - top).sum())
        return out

    def branches(self, groups: Sequence[Group]) -> Sequence[Array]:
        """Score groups. All branches of a group start from the cache after its prefix."""
        scored = Scored(groups)
        for g, group in enumerate(groups):
            self.clear()
            prefix = np.array(group.prefix, dtype=np.int64)
            for begin in range(0, len(prefix), _CHUNK):
                self.feed(prefix[begin : begin + _CHUNK])
            cache, length = self._cache.copy(), self._length
            for b, branch in enumerate(group.branches):
                self._cache, self._length = cache.copy(), length
                ids = np.array(branch.ids, dtype=np.int64)
                for begin in range(0, len(ids), _CHUNK):
                    part = ids[begin : begin + _CHUNK]
                    rows = self.feed(part)
                    if len(rows) != len(part):
                        raise RefusedError("damaged", _LAST_ONLY)
                    for index in range(max(branch.first - begin, 0), len(part)):
                        scored.add(g, b, begin + index, rows[index])
        return scored.arrays()

    def generate(
        self, ids: NDArray[np.int64], max_tokens: int, stop: frozenset[int], *, reuse: bool
    ) -> tuple[list[int], list[float]]:
        """Continue greedily. With `reuse`, keep the cache if `ids` start with all of its ids.

        Returns:
            The new ids (a stop id, if reached, is last), and for each the gap between the two highest logits.
        """
        kept = len(self._held)
        if not (reuse and 0 < kept < len(ids) and self._held == ids[:kept].tolist()):
            self.clear()
            kept = 0
        made: list[int] = []
        gaps: list[float] = []
        for begin in range(kept, len(ids), _CHUNK):
            row = self.feed(ids[begin : begin + _CHUNK])[-1]
        self._held = ids.tolist()
        while True:
            best, gap = first_choice(row)
            made.append(best)
            gaps.append(gap)
            if best in stop or len(made) == max_tokens:
                return made, gaps
            row = self.feed(np.array([best], dtype=np.int64))[-1]
            self._held.append(best)


def first_choice(row: NDArray[np.float32]) -> tuple[int, float]:
    """Return the index of the highest of the logits [V], and its distance to the second highest."""
    top = np.partition(row, -2)[-2:] if len(row) > 1 else np.repeat(row, 2)
    return int(row.argmax()), float(top[1]) - float(top[0])


def refuse_other_files(path: Path) -> None:
    """Raise RefusedError if the graph has tensors outside its folder. Call this before a runtime opens them."""
    from exporters.onnx.graph import check_locations, load_graph

    try:
        check_locations(load_graph(path), path)
    except CompactEdgeError as error:
        kind = "unsafe" if isinstance(error, UnsafePathError) else "damaged"
        raise RefusedError(kind, error.message, error.hint) from error


def one_line(error: Exception) -> str:
    """Return the message of a runtime's exception as one line."""
    return " ".join(str(error).split())[:400] or type(error).__name__


def load_refusal(error: Exception, library: str = "onnxruntime") -> RefusedError:
    """Convert an exception that a runtime raised while loading a graph."""
    reason = one_line(error)
    if type(error).__name__ == "NotImplemented" or "Could not find an implementation" in reason:
        return RefusedError("operator", f"{library}'s CPU provider cannot run this model: {reason}")
    if isinstance(error, MemoryError) or "bad_alloc" in reason or "Failed to allocate" in reason:
        return RefusedError("unavailable", f"{library} could not get memory: {reason}", "free some memory")
    return RefusedError("damaged", f"{library} cannot load the model: {reason}", "export the model again")


class _Server:
    """Maps requests to calls on the model."""

    def __init__(self) -> None:
        self._model: Model | None = None

    def __call__(self, request: dict[str, Any], arrays: list[Array]) -> Answer:
        if request["op"] == "open":
            return self._open(request), ()
        if request["op"] == "graph":
            return self._graph(request), ()
        assert self._model is not None
        match request["op"]:
            case "logits":
                return {}, (self._model.logits(arrays[0], request["n_decode"]),)
            case "score":
                return {}, (self._model.score(arrays[0]),)
            case "branches":
                return {}, self._model.branches(unpack(request["lengths"], arrays[0]))
            case "generate":
                stop, reuse = frozenset(request["stop"]), request["reuse"]
                made, gaps = self._model.generate(arrays[0], request["max_tokens"], stop, reuse=reuse)
                return {"ids": made, "gaps": gaps}, ()
        raise ValueError(f"unknown request {request['op']!r}")

    def _graph(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            from exporters.onnx.graph import inspect_graph

            return inspect_graph(Path(os.fsdecode(bytes.fromhex(request["path"]))))
        except ImportError as error:
            raise RefusedError("unavailable", f"onnx cannot be used: {error}", INSTALL_HINT) from error
        except CompactEdgeError as error:
            raise RefusedError("damaged", error.message, error.hint) from error

    def _open(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            import onnx  # noqa: F401  (exporters.onnx.graph reads the graph with it)
            import onnxruntime
        except (ImportError, RuntimeError, OSError) as error:  # not installed, or its shared library cannot be loaded
            raise RefusedError("unavailable", f"onnxruntime cannot be used: {error}", INSTALL_HINT) from error
        path = os.fsdecode(bytes.fromhex(request["path"]))
        refuse_other_files(Path(path))
        self._model = Model(onnxruntime, path, request)
        return {"n_vocab": self._model.n_vocab}


if __name__ == "__main__":
    Channel().serve(_Server())
