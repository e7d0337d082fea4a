"""The errors that a user can meet.

An error has a `message` (what is wrong), a `hint` (the next step, optional) and the exit code of its class. A message
is one line in lower case and names the place: a file, a key or an option. Library code raises errors and never
prints. The command line prints them as `error: MESSAGE` and `hint: HINT`.

Exit codes:
    2: usage error
    3: a gate or budget failed
    65: bad or damaged data
    69: a device or tool is unavailable
    74: I/O error
    130, 143: interrupted
    1: a bug in compact-edge
"""

from __future__ import annotations

EXIT_USAGE = 2
EXIT_GATE = 3
EXIT_DATA = 65
EXIT_UNAVAILABLE = 69
EXIT_IO = 74


class CompactEdgeError(Exception):
    """Base class of all errors with a cause outside this code: the command line, the data or the machine."""

    exit_code: int = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CompactEdgeError):
    """Raised when the command line is wrong: an unknown name, a value out of range, or two conflicting options."""

    exit_code = EXIT_USAGE


class HubNameError(UsageError):
    """Raised when a name or revision is not valid on the Hub."""


class BudgetError(UsageError):
    """Raised when the model cannot reach a requested size or ratio, or when the quantization does not allow it."""


class OutputExistsError(UsageError):
    """Raised when the output directory already exists and `--force` was not given."""


class GateError(CompactEdgeError):
    """Raised when an artifact fails a parity check or exceeds a budget."""

    exit_code = EXIT_GATE


class DataError(CompactEdgeError):
    """Raised when the input is bad or damaged: a checkpoint, tokenizer, text, plan or manifest."""

    exit_code = EXIT_DATA


class ModelNotFoundError(DataError):
    """Raised when no directory, file or built-in model has the given name."""


class PickleRefusedError(DataError):
    """Raised when the weights are pickled. Loading them could run code."""


class RemoteCodeRefusedError(DataError):
    """Raised when the checkpoint needs code from its own repository (`auto_map`)."""


class UnsafePathError(DataError):
    """Raised when a file name in the data is unsafe, for example because it points outside its directory."""


class QuantizedCheckpointError(DataError):
    """Raised when the checkpoint is already quantized (GPTQ, AWQ, FP8, bitsandbytes, ...)."""


class MixtureOfExpertsError(DataError):
    """Raised when the checkpoint is a mixture-of-experts model."""


class UnsupportedArchitectureError(DataError):
    """Raised when no row of the family table matches the checkpoint."""


class UnsupportedTokenizerError(DataError):
    """Raised when the tokenizer's type, pre-tokenizer or merges are not supported."""


class DamagedFileError(DataError):
    """Raised when a file is truncated, has the wrong hash or violates its format."""


class CalibrationError(DataError):
    """Raised when the calibration text is missing, empty or too short."""


class PlanMismatchError(DataError):
    """Raised when a plan does not match the checkpoint, its tokenizer or the plan's own updates file."""


class HubNotFoundError(DataError):
    """Raised when the Hub has no such repository, or when the user's token may not see it."""


class HubRevisionNotFoundError(HubNotFoundError):
    """Raised when the repository exists but the branch, tag or commit does not."""


class ToolUnavailableError(CompactEdgeError):
    """Raised when a required program, package or device is not available."""

    exit_code = EXIT_UNAVAILABLE


class OperatorMissingError(ToolUnavailableError):
    """Raised when the runtime does not implement one of the graph's operators on this device."""


class HubUnavailableError(ToolUnavailableError):
    """Raised when the Hub cannot be reached, or does not serve a request."""


class HubAccessError(HubUnavailableError):
    """Raised when the user may not read the repository: it is gated or disabled, or the Hub refused the token."""


class HubOfflineError(HubUnavailableError):
    """Raised when offline mode is on and the cache does not have the requested files."""


class EngineCrashedError(ToolUnavailableError):
    """Raised when a native engine (llama.cpp, onnxruntime) fails, or when the values of a model overflow."""


class StorageError(CompactEdgeError):
    """Raised when the file system fails: no space, no permission, or a failed read or write."""

    exit_code = EXIT_IO


class DiskFullError(StorageError):
    """Raised when the disk is full, or has too little free space for the files about to be written."""
