"""A checkpoint run one decoder layer at a time, in the memory of its embeddings, two layers and the activations.

The model is built by Transformers without its weights. Its own forward pass, with recorders in the place of the decoder
layers, gives what every layer is called with: masks, rotary tables and the scaled embeddings are therefore those of the
family's code, sliding windows and layers without rotary positions included. Then each layer's weights are read, all
batches go through it, and the weights are let go. Hidden states between layers lie on the device, in memory or in a
mapped file, by their size.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compact.checkpoint import open_tensors, read_index
from compact.errors import DamagedFileError
from compact.progress import SILENT, Progress
from compact.store import as_storage_error, check_free_space

if TYPE_CHECKING:
    import torch

# Hidden states above this go to a file. On an accelerator they stay there while they fill a quarter of what is free.
STATE_BYTES = 1 << 30
_DEVICE_SHARE = 4


# Name and shape of a tensor -> the tensor.
Weights = Callable[[str, tuple[int, ...]], "torch.Tensor"]


class Visitor(Protocol):
    """What sees the activations. For every layer in turn: `begin`, `inputs` once a batch, `end`."""

    def begin(self, layer: int) -> None:
        """The layer's weights are there; nothing ran yet."""

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        """Take the inputs of the layer's `down_proj`: act(x W_gate) * (x W_up).

        Args:
            layer: number of the layer.
            batch: number of the batch, as in `LayerStream.batches`; positions in the order of its ids, flattened.
            activations: [positions, intermediate_size], in the compute type, on the device. Not to be changed, and
                not to be kept beyond the call.
        """

    def end(self, layer: int) -> None:
        """All batches went through the layer."""


def make_batches(sequences: Sequence[Sequence[int]], size: int) -> list[list[Sequence[int]]]:
    """Neighbours of equal length together, at most `size` in a batch; the order stays."""
    batches: list[list[Sequence[int]]] = []
    for sequence in sequences:
        if batches and len(batches[-1]) < size and len(batches[-1][0]) == len(sequence):
            batches[-1].append(sequence)
        else:
            batches.append([sequence])
    return batches


class LayerStream:
    """The decoder layers of a checkpoint over some sequences.

    Attributes:
        batches: int64 ids [sequences, positions] of every batch, on the CPU.
        n_layers, intermediate_size, hidden_size: of the model.
        device: torch device string. dtype: torch dtype of weights and activations.
    """

    def __init__(
        self,
        model_dir: Path,
        sequences: Sequence[Sequence[int]],
        *,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 1,
        state_bytes: int = STATE_BYTES,
        scratch: Path | None = None,
        weights: Weights | None = None,
    ) -> None:
        """Build the model without its weights.

        Args:
            model_dir: a checkpoint that `compact.source.open_source` accepted (its `directory`).
            sequences: ids of the source's tokenizer; neighbours of equal length are batched.
            device, dtype: as `compact.importance.resolve_device` and `resolve_dtype` take them.
            batch_size: sequences of a batch.
            state_bytes: hidden states above this lie in a mapped file, not in memory.
            scratch: where that file goes; None takes the system's temporary directory.
            weights: gives a tensor by its name and shape; None reads the checkpoint's.

        Raises:
            UsageError: the device is not there. DamagedFileError: Transformers does not accept the configuration.
        """
        import torch

        from compact.importance import resolve_device, resolve_dtype

        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.batches = [torch.tensor(batch, dtype=torch.int64) for batch in make_batches(sequences, batch_size)]
        self._weights = weights or _weights_of(model_dir)
        self._model = _model_without_weights(model_dir, self.dtype)
        self._state_bytes = state_bytes
        self._scratch = scratch
        config = self._model.config
        self._index = 0
        self.n_layers = int(config.num_hidden_layers)
        self.intermediate_size = int(config.intermediate_size)
        self.hidden_size = int(config.hidden_size)

    def run(self, visitor: Visitor, *, progress: Progress = SILENT, description: str = "calibrating") -> None:
        """Go through the layers once; may be called again.

        Args:
            visitor: sees the inputs of every layer's `down_proj`.
            progress: told the tokens done; each counts when all layers have seen it, in parts.
            description: of that task.

        Raises:
            DamagedFileError: a tensor is missing or has another shape than the configuration says.
            DiskFullError, StorageError: hidden states do not fit where they should go.
        """
        import torch

        n_tokens = sum(ids.numel() for ids in self.batches)
        layers = self._model.layers
        with (
            torch.no_grad(),
            progress.task(description, n_tokens, "tokens") as task,
            self._states() as states,
            self._loader(layers) as load,
        ):
            calls = self._embed(states)
            done = 0
            for number, layer in enumerate(layers):
                if self.batches:
                    layer.load_state_dict(load(number), strict=True, assign=True)
                visitor.begin(number)
                last = number == self.n_layers - 1
                handle = layer.mlp.down_proj.register_forward_pre_hook(
                    lambda _module, inputs, last=last, number=number: self._visit(visitor, number, inputs[0], last)
                )
                try:
                    for index, ids in enumerate(self.batches):
                        self._index = index
                        arguments, named = calls[tuple(ids.shape)][number]
                        with suppress(_Enough):
                            states.put(index, _first(layer(states.get(index), *arguments, **named)))
                        before, done = done, done + ids.numel()
                        # All layers of a token are one token; what a layer leaves of a whole number waits.
                        task.advance(done // self.n_layers - before // self.n_layers)
                finally:
                    handle.remove()
                visitor.end(number)
                _let_go(layer)

    def _visit(self, visitor: Visitor, layer: int, activations: torch.Tensor, last: bool) -> None:
        visitor.inputs(layer, self._index, activations.reshape(-1, self.intermediate_size))
        if last:
            raise _Enough

    def _embed(self, states: _States) -> dict[tuple[int, ...], list[_Call]]:
        """Fill the states with embeddings; return, by shape of a batch, what each layer is called with."""
        import torch

        calls: dict[tuple[int, ...], list[_Call]] = {}
        if not self.batches:
            return calls
        model, layers = self._model, self._model.layers
        weights = self._read(model.embed_tokens, "model.embed_tokens.")
        model.embed_tokens.load_state_dict({n: w.to(self.device) for n, w in weights.items()}, assign=True)
        model.rotary_emb.to(self.device)
        for buffer in model.embed_tokens.buffers():
            buffer.data = buffer.data.to(self.device)
        record = _recorders(self.n_layers)
        model.layers = torch.nn.ModuleList(record)
        try:
            for index, ids in enumerate(self.batches):
                with suppress(_Enough):
                    model(input_ids=ids.to(self.device), use_cache=False)
                states.put(index, record[0].hidden)
                # They depend on the shape alone: no position is masked out, and none is cached.
                calls.setdefault(tuple(ids.shape), [each.call for each in record])
        finally:
            model.layers = layers
            for each in record:
                each.hidden = each.call = None
            _let_go(model.embed_tokens)
        return calls

    @contextmanager
    def _states(self) -> Iterator[_States]:
        """Hidden states of all batches, where they fit."""
        import torch

        shapes = [(*ids.shape, self.hidden_size) for ids in self.batches]
        count = sum(prod(shape) for shape in shapes)
        n_bytes = count * self.dtype.itemsize
        if self.device.startswith("cuda") and n_bytes <= torch.cuda.mem_get_info()[0] // _DEVICE_SHARE:
            yield _States(torch.empty(count, dtype=self.dtype, device=self.device), shapes, self.device)
        elif n_bytes <= self._state_bytes:
            yield _States(torch.empty(count, dtype=self.dtype), shapes, self.device)
        else:
            with tempfile.TemporaryDirectory(prefix="compact-edge-", dir=self._scratch) as directory:
                path = Path(directory) / "states"
                _allocate(path, n_bytes)
                flat = torch.from_file(str(path), shared=True, size=count, dtype=self.dtype)
                yield _States(flat, shapes, self.device)

    def _read(self, module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
        """The weights of one module in the compute type."""
        named = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
        return {name: self._weights(prefix + name, shape).to(self.dtype) for name, shape in named.items()}

    @contextmanager
    def _loader(self, layers: Any) -> Iterator[Callable[[int], dict[str, torch.Tensor]]]:
        """Yield what gives a layer's weights on the device, in order; for an accelerator, read one layer ahead."""
        import torch

        def read(number: int) -> dict[str, torch.Tensor]:
            weights = self._read(layers[number], f"model.layers.{number}.")
            if not self.device.startswith("cuda"):
                return weights
            return {name: weight if weight.is_cuda else weight.pin_memory() for name, weight in weights.items()}

        if self.device == "cpu":
            yield read
            return
        # A thread begins on the first card, whatever this process works on.
        cuda = self.device.startswith("cuda")
        begin = partial(torch.cuda.set_device, torch.cuda.current_device()) if cuda else None
        with ThreadPoolExecutor(1, initializer=begin) as pool:
            ahead: dict[int, Future[dict[str, torch.Tensor]]] = {}

            def load(number: int) -> dict[str, torch.Tensor]:
                here = ahead.pop(number) if number in ahead else pool.submit(read, number)
                weights = here.result()
                if number + 1 < self.n_layers:
                    ahead[number + 1] = pool.submit(read, number + 1)
                # From pinned memory alone: elsewhere the source may be gone before the copy has read it.
                return {name: weight.to(self.device, non_blocking=cuda) for name, weight in weights.items()}

            yield load


_Call = tuple[tuple[Any, ...], dict[str, Any]]


class _Enough(Exception):  # noqa: N818 (ends a forward pass whose rest is not needed; no failure)
    pass


class _States:
    """Hidden states of every batch, in one block."""

    def __init__(self, flat: torch.Tensor, shapes: Sequence[tuple[int, ...]], device: str) -> None:
        self._device = device
        self._parts = []
        at = 0
        for shape in shapes:
            self._parts.append(flat[at : at + prod(shape)].view(shape))
            at += prod(shape)

    def get(self, index: int) -> torch.Tensor:
        return self._parts[index].to(self._device)

    def put(self, index: int, states: torch.Tensor) -> None:
        self._parts[index].copy_(states)


def _recorders(count: int) -> list[Any]:
    import torch

    class Recorder(torch.nn.Module):
        """Stands for a decoder layer: keeps what it is called with and hands the hidden states on."""

        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last = last
            self.hidden: torch.Tensor | None = None
            self.call: _Call | None = None

        def forward(self, hidden: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            self.hidden, self.call = hidden, (arguments, named)
            if self.last:
                raise _Enough
            return hidden

    return [Recorder(number == count - 1) for number in range(count)]


def _let_go(module: torch.nn.Module) -> None:
    """Replace a module's weights by ones without memory; its buffers stay, for nothing could read them again."""
    import torch

    empty = {name: torch.empty_like(weight, device="meta") for name, weight in module.named_parameters()}
    module.load_state_dict(empty, assign=True)


def _first(output: Any) -> torch.Tensor:
    """The hidden states of what a decoder layer returns; older layouts return a tuple that begins with them."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _model_without_weights(model_dir: Path, dtype: torch.dtype) -> Any:
    """The backbone as Transformers builds it: matrices without memory, tables and scales that its code computes whole.

    Raises:
        DamagedFileError: Transformers does not accept the configuration.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from torch.overrides import TorchFunctionMode
    from transformers import AutoConfig, AutoModelForCausalLM

    class MatricesOnMeta(TorchFunctionMode):
        """Linear and embedding layers take their weights from `torch.empty`; nothing else does."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.empty:
                return func(*args, **{**(kwargs or {}), "device": "meta"})
            return func(*args, **(kwargs or {}))

    try:
        config = AutoConfig.from_pretrained(str(model_dir), trust_remote_code=False, local_files_only=True)
        with MatricesOnMeta():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedFileError(f"{model_dir}: Transformers cannot load the checkpoint ({why})") from error
    return model.model.eval()


def _weights_of(model_dir: Path) -> Weights:
    """A checkpoint's tensors. Its files are opened for each anew, so that no mapping outlives its layer."""
    tensors = read_index(model_dir)

    def read(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        ref = tensors.get(name)
        if ref is None or ref.shape != shape:
            found = "missing" if ref is None else f"of shape {list(ref.shape)}"
            raise DamagedFileError(f"{model_dir}: tensor {name!r} is {found}, {list(shape)} was expected")
        with open_tensors(tensors) as tensor:
            return tensor(name)

    return read


def _allocate(path: Path, n_bytes: int) -> None:
    """Make a file of this size whose blocks are there: a full disk must be an error here, not a crash at a write."""
    check_free_space(path.parent, n_bytes)
    try:
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, n_bytes)
            else:
                file.truncate(n_bytes)
    except OSError as error:
        raise as_storage_error(error, path) from error
