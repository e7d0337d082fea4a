"""Save and load the state of a training run: what an interrupted run needs to resume, and the best model so far."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from compact.base.errors import DamagedFileError
from compact.base.files import publish, read_json_object, write_json
from compact.distill.state import State

if TYPE_CHECKING:
    from compact.distill.train import Trainer

STATE = "state.json"
WEIGHTS = "weights.safetensors"
BEST = "best.safetensors"
_SETTINGS = "optimizer.json"
# Delete runs that were not used for 30 days.
_UNUSED_SECONDS = 30 * 24 * 3600
# safetensors dtype name -> torch dtype.
TORCH_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def save(directory: Path, trainer: Trainer, state: State) -> None:
    """Write the run's state, and its best weights so far.

    The directory is replaced as a whole. If the process is interrupted here, the earlier state remains valid.

    Args:
        directory: directory of this run.
        trainer: its float32 weights and both moments of AdamW are written.
        state: the progress of the run.
    """
    from safetensors.torch import save_file

    weights = trainer.parameters
    tensors = {f"weight.{name}": parameter.detach().cpu().contiguous() for name, parameter in weights.items()}
    steps = {}
    for name, parameter in weights.items():
        moments = trainer.optimizer.state.get(parameter, {})
        for key in ("exp_avg", "exp_avg_sq"):
            if key in moments:
                tensors[f"{key}.{name}"] = moments[key].cpu().contiguous()
        if "step" in moments:
            steps[name] = float(moments["step"])
    with publish(directory, force=True) as work:
        save_file(tensors, str(work / WEIGHTS))
        write_json(work / _SETTINGS, steps)
        write_json(work / STATE, state.as_dict())
        _write_best(work / BEST, trainer)


def save_best(directory: Path, trainer: Trainer) -> None:
    """Write only the weights, as the best so far. This is enough for a run that cannot be resumed."""
    with publish(directory, force=True) as work:
        _write_best(work / BEST, trainer)


def _write_best(path: Path, trainer: Trainer) -> None:
    from safetensors.torch import save_file

    best = {name: weight.cpu().contiguous() for name, weight in trainer.best.items()}
    save_file(best, str(path), metadata={"format": "pt"})


def write_updates(directory: Path, earlier: Path | None, target: Path) -> None:
    """Write the best model of a run as a plan's updates.

    Args:
        directory: directory of the run.
        earlier: existing updates of the plan, or None. Tensors that were not trained are copied from them.
        target: path of the file to write.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(str(earlier)) if earlier is not None else {}
    tensors.update(load_file(str(directory / BEST)))
    save_file(tensors, str(target), metadata={"format": "pt"})


def load(directory: Path, trainer: Trainer) -> State:
    """Restore a trainer from the saved state of an interrupted run, and return the state.

    If there is no saved state, return a new one and leave the trainer unchanged.

    Raises:
        DamagedFileError: the files are damaged or do not belong to this run.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (directory / STATE).is_file():
        return State()
    try:
        state = State(**read_json_object(directory / STATE))
        steps = read_json_object(directory / _SETTINGS)
        tensors = load_file(str(directory / WEIGHTS))
        best = load_file(str(directory / BEST))
        for name, parameter in trainer.parameters.items():
            with torch.no_grad():
                parameter.copy_(tensors[f"weight.{name}"])
            trainer.best[name] = best[name].to(parameter.device)
            if name in steps:
                trainer.optimizer.state[parameter] = _moments(tensors, name, steps[name], parameter)
    except (SafetensorError, OSError, KeyError, TypeError, RuntimeError) as error:
        raise DamagedFileError(
            f"{directory}: not a valid training state ({' '.join(str(error).split())[:120]})", "remove the folder"
        ) from error
    return state


def _moments(tensors: Mapping[str, torch.Tensor], name: str, step: float, parameter: torch.Tensor) -> dict[str, Any]:
    moments: dict[str, Any] = {key: tensors[f"{key}.{name}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")}
    moments["step"] = torch.tensor(step, device=parameter.device)  # as fused AdamW expects
    return moments


def delete_unused(entries: Path) -> None:
    """Delete entries that were not used for 30 days.

    Entries are the states of unfinished runs, each several times as large as its model, or the teacher's answers.

    Args:
        entries: a directory with one subdirectory per entry. The modification time of a subdirectory is its last use.
    """
    for path in entries.iterdir() if entries.is_dir() else ():
        try:
            is_old = time.time() - path.stat().st_mtime > _UNUSED_SECONDS
        except OSError:  # another process has just replaced or deleted it
            continue
        if is_old:
            shutil.rmtree(path, ignore_errors=True)
