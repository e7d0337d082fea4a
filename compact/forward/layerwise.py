"""Run a checkpoint one decoder layer at a time. Only the embeddings, two layers and the activations are in memory.

1. Transformers builds the model without its weights.
2. The model's own forward pass runs with recorders in place of the decoder layers. The recorders store the arguments of
   every layer. Masks, rotary tables and scaled embeddings therefore come from the code of the model's family, including
   sliding windows and layers without rotary positions.
3. For each layer: read its weights, run all batches through it, and release the weights.

Hidden states, inputs from a per-layer embedding, and keys and values that later layers use again are stored between
layers. They are on the device, in memory or in a mapped file, depending on their size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compact.base.devices import resolve_device, resolve_dtype
from compact.base.errors import DamagedFileError
from compact.base.progress import SILENT, Progress
from compact.checkpoints.shards import open_tensors, read_index
from compact.forward.layer_states import SharedKeysValues, StateRoom, States

if TYPE_CHECKING:
    import torch

# Hidden states go to a mapped file if they are larger than this.
STATE_BYTES = 1 << 30
# Modules whose weights the recording pass does not need: the layers are replaced by recorders, and the pass ends before
# the last norm.
_NOT_IN_FRONT = frozenset({"layers", "norm"})


# Name and shape of a tensor -> the tensor.
Weights = Callable[[str, tuple[int, ...]], "torch.Tensor"]


class Visitor(Protocol):
    """Receives the activations. For every layer in turn, `begin`, `inputs` (once per batch) and `end` are called."""

    def begin(self, layer: int) -> None:
        """Called when the layer's weights are loaded, before the first batch."""

    def inputs(self, layer: int, batch: int, activations: torch.Tensor) -> None:
        """Called with the inputs of the layer's `down_proj`: act(x W_gate) * (x W_up).

        Args:
            layer: index of the layer.
            batch: index of the batch in `LayerStream.batches`.
            activations: [positions, channels of the layer], in the compute type, on the device. The positions are those
                of the batch's ids, flattened. They must not be changed, or used after the call.
        """

    def end(self, layer: int) -> None:
        """Called when all batches have gone through the layer."""


def make_batches(sequences: Sequence[Sequence[int]], size: int) -> list[list[Sequence[int]]]:
    """Group neighbouring sequences of equal length into batches of at most `size`. The order stays the same."""
    batches: list[list[Sequence[int]]] = []
    for sequence in sequences:
        if batches and len(batches[-1]) < size and len(batches[-1][0]) == len(sequence):
            batches[-1].append(sequence)
        else:
            batches.append([sequence])
    return batches


class LayerStream:
    """Runs the decoder layers of a checkpoint over sequences, one layer at a time.

    Attributes:
        batches: token ids of every batch, int64 [sequences, positions], on the CPU.
        n_layers, intermediate_size, hidden_size: sizes of the model.
        channels: number of FFN channels of every layer.
        device: torch device, as a string.
        dtype: torch dtype of weights and activations.
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
            model_dir: directory of a checkpoint that `compact.sources.model_source.open_source` accepted.
            sequences: token ids of the source's tokenizer. Neighbours of equal length are batched.
            device, dtype: values for `compact.base.devices.resolve_device` and `resolve_dtype`.
            batch_size: largest number of sequences per batch.
            state_bytes: hidden states that are larger than this are in a mapped file, not in memory.
            scratch: directory for that file. None uses the system's temporary directory.
            weights: returns a tensor, given its name and shape. None reads the checkpoint's tensors.

        Raises:
            UsageError: the device is not available.
            DamagedFileError: Transformers does not accept the configuration.
        """
        import torch

        self.device = resolve_device(device)
        self.dtype = resolve_dtype(dtype, self.device)
        self.batches = [torch.tensor(batch, dtype=torch.int64) for batch in make_batches(sequences, batch_size)]
        self._weights = weights or _weights_of(model_dir)
        self._model = _model_without_weights(model_dir, self.dtype)
        self._room = StateRoom(self.device, self.dtype, state_bytes, scratch)
        config = self._model.config
        self._index = 0
        self.n_layers = int(config.num_hidden_layers)
        self.intermediate_size = int(config.intermediate_size)
        self.hidden_size = int(config.hidden_size)
        self.channels = [int(layer.mlp.down_proj.in_features) for layer in self._model.layers]

    def run(self, visitor: Visitor, *, progress: Progress = SILENT, description: str = "calibrating") -> None:
        """Run all batches through all layers. This can be called several times.

        Args:
            visitor: receives the inputs of every layer's `down_proj`.
            progress: receives the number of tokens done. Each layer contributes its fraction of a token.
            description: label of the progress.

        Raises:
            DamagedFileError: a tensor is missing, or its shape does not match the configuration.
            DiskFullError, StorageError: the hidden states do not fit on the disk.
        """
        import torch

        n_tokens = sum(ids.numel() for ids in self.batches)
        layers = self._model.layers
        shapes = [tuple(ids.shape) for ids in self.batches]
        per_layer = int(getattr(self._model, "hidden_size_per_layer_input", 0) or 0)
        with (
            torch.no_grad(),
            progress.task(description, n_tokens, "tokens") as task,
            self._room.states([(*shape, self.hidden_size) for shape in shapes]) as states,
            self._room.states([(self.n_layers, *shape, per_layer) for shape in shapes]) as inputs,
            ExitStack() as stack,
            self._loader(layers) as load,
        ):
            shared = SharedKeysValues(self._room, stack, shapes)
            calls = self._embed(states, inputs if per_layer else None)
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
                        if per_layer:
                            arguments = (inputs.get(index, number),)
                        with suppress(_StopForward), _sharing(layer, index, shared, named) as given:
                            states.put(index, _first(layer(states.get(index), *arguments, **given)))
                        before, done = done, done + ids.numel()
                        # A token is done when all layers have seen it. Report only whole tokens.
                        task.advance(done // self.n_layers - before // self.n_layers)
                finally:
                    handle.remove()
                visitor.end(number)
                _drop_weights(layer)

    def _visit(self, visitor: Visitor, layer: int, activations: torch.Tensor, last: bool) -> None:
        visitor.inputs(layer, self._index, activations.reshape(-1, activations.shape[-1]))
        if last:
            raise _StopForward

    def _embed(self, states: States, inputs: States | None) -> dict[tuple[int, ...], list[_Call]]:
        """Compute the embeddings of all batches and record the arguments of each layer.

        Args:
            states: receives the embeddings.
            inputs: receives each layer's input from the per-layer embedding, which is the only argument that depends on
                the batch. None if the model has no such embedding.

        Returns:
            For each shape of a batch, the arguments of each layer.
        """
        import torch

        calls: dict[tuple[int, ...], list[_Call]] = {}
        if not self.batches:
            return calls
        model, layers = self._model, self._model.layers
        model.rotary_emb.to(self.device)
        record = _recorders(self.n_layers)
        model.layers = torch.nn.ModuleList(record)
        stack = ExitStack()
        try:
            self._load_front(stack)
            for index, ids in enumerate(self.batches):
                with suppress(_StopForward):
                    model(input_ids=ids.to(self.device), use_cache=False)
                states.put(index, record[0].hidden)
                if inputs is not None:
                    for number, each in enumerate(record):
                        inputs.put(index, each.call[0][0], number)
                # The arguments depend only on the shape, because no position is masked out or cached.
                calls.setdefault(tuple(ids.shape), [each.call for each in record])
        finally:
            model.layers = layers
            for each in record:
                each.hidden = each.call = None
            stack.close()
        return calls

    def _load_front(self, stack: ExitStack) -> None:
        """Load the weights that the model needs before its first layer. The stack releases them.

        For an embedding, only the rows that occur in the batches are loaded.
        """
        import torch

        used = torch.unique(torch.cat([ids.reshape(-1) for ids in self.batches]))
        for name, child in self._model.named_children():
            if name in _NOT_IN_FRONT or not any(True for _ in child.parameters()):
                continue
            weights = self._read(child, f"model.{name}.")
            if isinstance(child, torch.nn.Embedding):
                weights["weight"] = weights["weight"].index_select(0, used)
                _look_up_rows(child, used.to(self.device), stack)
            stack.callback(_drop_weights, child)
            weights = {key: tensor.to(self.device, self.dtype) for key, tensor in weights.items()}
            child.load_state_dict(weights, assign=True)
            for buffer in child.buffers():
                buffer.data = buffer.data.to(self.device)

    def _read(self, module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
        """Return the stored weights and buffers of one module, by name."""
        named = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        return {name: self._weights(prefix + name, shape) for name, shape in named.items()}

    @contextmanager
    def _loader(self, layers: Any) -> Iterator[Callable[[int], dict[str, torch.Tensor]]]:
        """Yield a function that loads a layer's weights, for layers in order. A thread reads ahead for accelerators."""
        import torch

        def read(number: int) -> dict[str, torch.Tensor]:
            stored = self._read(layers[number], f"model.layers.{number}.")
            weights = {name: weight.to(self.dtype) for name, weight in stored.items()}
            if not self.device.startswith("cuda"):
                return weights
            return {name: weight if weight.is_cuda else weight.pin_memory() for name, weight in weights.items()}

        if self.device == "cpu":
            yield read
            return
        # A new thread starts on the first GPU, so select the GPU of this process.
        cuda = self.device.startswith("cuda")
        begin = partial(torch.cuda.set_device, torch.cuda.current_device()) if cuda else None
        with ThreadPoolExecutor(1, initializer=begin) as pool:
            ahead: dict[int, Future[dict[str, torch.Tensor]]] = {}

            def load(number: int) -> dict[str, torch.Tensor]:
                here = ahead.pop(number) if number in ahead else pool.submit(read, number)
                weights = here.result()
                if number + 1 < self.n_layers:
                    ahead[number + 1] = pool.submit(read, number + 1)
                # A non-blocking copy needs pinned memory. Otherwise the source may be freed before it is copied.
                return {name: weight.to(self.device, non_blocking=cuda) for name, weight in weights.items()}

            yield load


_Call = tuple[tuple[Any, ...], dict[str, Any]]


class _StopForward(Exception):  # noqa: N818 (ends a forward pass early; not an error)
    pass


@contextmanager
def _sharing(layer: Any, index: int, shared: SharedKeysValues, named: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the arguments of a layer, with the batch's keys and values of earlier layers if the layer uses them.

    Afterwards, store the layer's own keys and values if later layers use them. Transformers passes one dictionary from
    layer to layer, `shared_kv_states`. It maps the kind of attention to a pair of tensors.
    """
    attention: Any = getattr(layer, "self_attn", layer)  # linear attention has another name
    uses, keeps = (getattr(attention, key, False) for key in ("is_kv_shared_layer", "store_full_length_kv"))
    if not uses and not keeps:
        yield named
        return
    given = type(named["shared_kv_states"])()
    if uses:
        given[attention.layer_type] = shared.get(index, attention.layer_type)
    try:
        yield {**named, "shared_kv_states": given}
    finally:
        if keeps and attention.layer_type in given:
            shared.put(index, attention.layer_type, given[attention.layer_type])


def _look_up_rows(embedding: torch.nn.Embedding, used: torch.Tensor, stack: ExitStack) -> None:
    """Make an embedding accept a table with only the rows `used` (ascending ids). The stack undoes this."""
    import torch

    whole = torch.empty(embedding.num_embeddings, embedding.embedding_dim, device="meta")
    stack.callback(setattr, embedding, "weight", torch.nn.Parameter(whole, requires_grad=False))
    handle = embedding.register_forward_pre_hook(lambda _module, inputs: (torch.searchsorted(used, inputs[0]),))
    stack.callback(handle.remove)
    embedding.padding_idx = None  # a forward pass does not need it
    rows = torch.empty(len(used), embedding.embedding_dim, device="meta")
    embedding.weight = torch.nn.Parameter(rows, requires_grad=False)


def _recorders(count: int) -> list[Any]:
    import torch

    class Recorder(torch.nn.Module):
        """Replaces a decoder layer: stores its arguments and returns the hidden states unchanged."""

        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last = last
            self.hidden: torch.Tensor | None = None
            self.call: _Call | None = None

        def forward(self, hidden: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
            self.hidden, self.call = hidden, (arguments, named)
            if self.last:
                raise _StopForward
            return hidden

    return [Recorder(number == count - 1) for number in range(count)]


def _drop_weights(module: torch.nn.Module) -> None:
    """Replace a module's weights with tensors on the meta device, to free memory. Non-persistent buffers stay."""
    import torch

    empty = {name: torch.empty_like(weight, device="meta") for name, weight in module.state_dict().items()}
    module.load_state_dict(empty, assign=True)


def _first(output: Any) -> torch.Tensor:
    """Return the hidden states from the output of a decoder layer, which is a tensor or a tuple that starts with it."""
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _model_without_weights(model_dir: Path, dtype: torch.dtype) -> Any:
    """Build the backbone with Transformers. Matrices take no memory. Computed tables and scales are real tensors.

    Raises:
        DamagedFileError: Transformers does not accept the configuration.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from torch.overrides import TorchFunctionMode
    from transformers import AutoConfig, AutoModelForCausalLM

    class MatricesOnMeta(TorchFunctionMode):
        """Puts the result of `torch.empty` on the meta device. Only linear and embedding layers use `torch.empty`."""

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
        raise DamagedFileError(
            f"{model_dir}: Transformers cannot load the checkpoint ({why})",
            "check that the checkpoint is complete, and that this version of transformers supports it",
        ) from error
    return model.model.eval()


def _weights_of(model_dir: Path) -> Weights:
    """Return a function that reads a checkpoint's tensors. It opens the file for each one, to keep no mapping."""
    tensors = read_index(model_dir)

    def read(name: str, shape: tuple[int, ...]) -> torch.Tensor:
        ref = tensors.get(name)
        if ref is None or ref.shape != shape:
            found = "missing" if ref is None else f"of shape {list(ref.shape)}"
            raise DamagedFileError(
                f"{model_dir}: tensor {name!r} is {found}, expected {list(shape)}",
                "download the checkpoint again, the weights together with config.json",
            )
        with open_tensors(tensors) as tensor:
            return tensor(name)

    return read
