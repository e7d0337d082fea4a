"""Every error that a user can meet, one class a broken rule.

An error carries what is wrong (`message`), the next step (`hint`) and the exit code of its class. Messages are one
line, lower case, and name the place (file, key, option). The command prints `error: MESSAGE` and `hint: HINT`;
library code raises and never prints.

Exit codes: 2 usage, 3 a gate or budget failed, 65 bad or damaged data, 69 device or tool unavailable, 74 I/O,
130/143 interrupted, 1 a bug of ours.
"""

from __future__ import annotations

EXIT_USAGE = 2
EXIT_GATE = 3
EXIT_DATA = 65
EXIT_UNAVAILABLE = 69
EXIT_IO = 74


class CompactEdgeError(Exception):
    """Base of all errors that are the user's or the data's, not a bug of ours."""

    exit_code: int = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CompactEdgeError):
    """The command's words do not fit: an unknown name, a value out of range, two options that exclude each other."""

    exit_code = EXIT_USAGE


class HubNameError(UsageError):
    """A name that cannot be a repository of the Hub."""


class BudgetError(UsageError):
    """A size or ratio that the model cannot reach, or that the quantization's grid does not allow."""


class OutputExistsError(UsageError):
    """The output directory is there already and `--force` was not given."""


class GateError(CompactEdgeError):
    """A parity gate or a budget failed: the artifact is not what it claims to be."""

    exit_code = EXIT_GATE


class DataError(CompactEdgeError):
    """Bad or damaged input: a checkpoint, tokenizer, text, plan or manifest."""

    exit_code = EXIT_DATA


class ModelNotFoundError(DataError):
    """No directory, file or built-in of that name."""


class PickleRefusedError(DataError):
    """The weights are pickled; loading them could run code."""


class RemoteCodeRefusedError(DataError):
    """The checkpoint asks for code of its own (`auto_map`)."""


class UnsafePathError(DataError):
    """A file name inside the data points outside its directory."""


class QuantizedCheckpointError(DataError):
    """The checkpoint is already quantised (GPTQ, AWQ, FP8, bitsandbytes, ...)."""


class MixtureOfExpertsError(DataError):
    """The checkpoint is a mixture of experts."""


class UnsupportedArchitectureError(DataError):
    """No row of the family table fits."""


class UnsupportedTokenizerError(DataError):
    """The tokenizer's kind or pre-tokenizer is not known."""


class DamagedFileError(DataError):
    """A file is truncated, has the wrong hash or breaks its format."""


class CalibrationError(DataError):
    """The calibration text is empty or too short."""


class PlanMismatchError(DataError):
    """A plan was made for other weights or another tokenizer."""


class HubNotFoundError(DataError):
    """The Hub has no repository of that name, or none that this token may see."""


class HubRevisionNotFoundError(HubNotFoundError):
    """The repository is there; the branch, tag or commit is not."""


class ToolUnavailableError(CompactEdgeError):
    """A program, package or device that is needed is not there."""

    exit_code = EXIT_UNAVAILABLE


class OperatorMissingError(ToolUnavailableError):
    """The runtime has no implementation of an operator of the graph on this device."""


class HubUnavailableError(ToolUnavailableError):
    """The Hub cannot be reached, or answers with an error of its own."""


class HubAccessError(HubUnavailableError):
    """The repository is there and this user may not read it: gated, disabled, or a token that is refused."""


class HubOfflineError(HubUnavailableError):
    """Offline mode is on, and the cache does not hold what is needed."""


class EngineCrashedError(ToolUnavailableError):
    """A native engine (llama.cpp, onnxruntime) aborted in its child process."""


class StorageError(CompactEdgeError):
    """The file system refused: no space, no permission, a failed read or write."""

    exit_code = EXIT_IO


class DiskFullError(StorageError):
    """Not enough free space for what is about to be written."""
