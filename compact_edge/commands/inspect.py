"""`compact-edge inspect`: where a model's parameters are."""

from __future__ import annotations

import click


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Write JSON to stdout.")
def inspect(model: str, as_json: bool) -> None:
    """Parameters of MODEL by part: vocabulary, attention, FFN, norms; and its sizes.

    MODEL is a checkpoint directory, a .gguf file, a model on the Hugging Face Hub (org/name or org/name@revision) or a
    built-in model (tiny, smollm2-135m).
    """
    from compact.budget import count_parts
    from compact.cache import open_cache
    from compact.source import open_source
    from compact_edge.console import Console, format_table, print_json
    from compact_edge.quiet import quiet_libraries

    quiet_libraries(model)
    with open_cache() as cache:
        source = open_source(model, cache, Console())
        parts = count_parts(source.tensors, source.config)
    sizes = {
        "architecture": source.family.architecture,
        "hidden_size": source.hidden_size,
        "intermediate_size": source.intermediate_size,
        "num_hidden_layers": source.num_hidden_layers,
        "vocab_size": source.vocab_size,
        "tie_word_embeddings": source.tied,
        "max_position_embeddings": source.max_positions,
    }
    if as_json:
        print_json(
            {
                "model": source.name,
                "source_id": source.id,
                **sizes,
                "parameters": parts.as_dict(),
                "parameters_per_token": parts.per_row,
                "parameters_per_channel": parts.per_channel,
            }
        )
        return
    rows = [(name, f"{count:,}", f"{count / parts.total:.1%}") for name, count in parts.as_dict().items() if count]
    click.echo(f"{source.name}: " + ", ".join(f"{name} {value}" for name, value in sizes.items()))
    click.echo(format_table(("PART", "PARAMETERS", "SHARE"), rows))
    click.echo(f"a token costs {parts.per_row:,} parameters, an FFN channel {parts.per_channel:,} (over all layers)")
