"""Any value of a setting that only some families have: a typed error, or a model that is pruned and exported."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compact.base.errors import EXIT_DATA, CompactEdgeError
from exporters.gguf_writer.write import write_gguf
from tests.attacks.hostile import change, junk, run
from tests.checkpoints import write_checkpoint

# Beside `junk`: numbers that Python, float32 or a division cannot take, and rope objects of every shape.
numbers = st.sampled_from([0, 0.0, -1, 1e300, 10**400, -(10**400), 3.5e38, 1e-300, float(2**70), 5e-324])
ropes = st.dictionaries(
    st.sampled_from(
        ["rope_type", "type", "factor", "rope_theta", "low_freq_factor", "high_freq_factor", "beta_fast", "truncate",
         "original_max_position_embeddings", "attention_factor", "mscale", "full_attention", "sliding_attention"]
    ),
    numbers | junk | st.sampled_from(["yarn", "linear", "llama3", "default", "longrope", 8.0, 4.0, 1.0, 8192]),
    max_size=6,
)  # fmt: skip
KEYS = {
    "gemma2": ["query_pre_attn_scalar", "sliding_window", "attn_logit_softcapping", "final_logit_softcapping",
               "layer_types", "hidden_activation", "head_dim", "rope_parameters", "use_bidirectional_attention"],
    "gemma3_text": ["sliding_window_pattern", "_sliding_window_pattern", "rope_local_base_freq", "rope_parameters",
                    "rope_scaling", "layer_types", "sliding_window", "final_logit_softcapping"],
    "granite": ["attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling", "head_dim"],
    "smollm3": ["no_rope_layers", "no_rope_layer_interval", "layer_types", "use_sliding_window"],
    "qwen3": ["head_dim", "attention_bias", "max_window_layers", "use_sliding_window"],
    "mistral": ["sliding_window", "head_dim"],
    "llama": ["rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "num_key_value_heads"],
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Family -> a checkpoint with nothing wrong in it."""
    root = tmp_path_factory.mktemp("families")
    return {family: write_checkpoint(root / family, family) for family in KEYS}


def linked(model: Path, out: Path) -> Path:
    """The checkpoint with a configuration of its own; the other files are shared."""
    out.mkdir()
    for file in model.iterdir():
        (out / file.name).hardlink_to(file)
    content = (out / "config.json").read_bytes()
    (out / "config.json").unlink()
    (out / "config.json").write_bytes(content)
    return out


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    choice=st.sampled_from([(family, key) for family, keys in KEYS.items() for key in keys]),
    value=junk | numbers | ropes,
)
def test_any_value_of_a_familys_setting_is_typed(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, choice: tuple[str, str], value: object
) -> None:
    family, key = choice
    place = tmp_path_factory.mktemp("fuzz")
    model = linked(models[family], place / "m")
    change(model / "config.json", **{key: value})
    for step in (lambda: write_gguf(model, place / "model.gguf", "F32"), lambda: run(model, place)):
        try:
            step()
        except CompactEdgeError as error:
            assert error.exit_code in {2, EXIT_DATA}
