"""Load a whole checkpoint with Transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from compact.base.errors import DamagedFileError

if TYPE_CHECKING:
    import torch


def load_model(model_dir: Path, *, device: str = "cpu", dtype: torch.dtype | None = None) -> Any:
    """Load a checkpoint with Transformers, in evaluation mode. This runs no code of the checkpoint and uses no network.

    Args:
        model_dir: directory of the checkpoint.
        device: torch device to move the model to.
        dtype: type of the weights. None means float32.

    Returns:
        The Transformers model.

    Raises:
        DamagedFileError: Transformers does not accept the configuration or the weights.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(model_dir),
            dtype=dtype or torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=True,
        )
    except (AttributeError, KeyError, TypeError, ValueError, StrictDataclassError) as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DamagedFileError(
            f"{model_dir}: Transformers cannot load the checkpoint ({why})",
            "check that the checkpoint is complete, and that this version of transformers supports it",
        ) from error
    return model.to(device).eval()


def with_fast_attention(model: Any) -> Any:
    """Return the model with the attention that is fastest for short texts.

    On a CPU, products of matrices are two to three times as fast as PyTorch's fused attention, for texts of 256 tokens
    in bfloat16. Their memory grows with the square of the length.
    """
    if model.device.type == "cpu":
        model.set_attn_implementation("eager")
    return model
