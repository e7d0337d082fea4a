"""A target that has room for next to nothing."""

POCKET = """
schema = 1
name = "pocket"
description = "A device with next to no room."
runtime = "llama.cpp"
quantization = "Q8_0"
quantization_block32 = "Q8_0"
embedding_quant = "Q8_0"
why = "A test."

[storage_budget_mib]
value = 1
source = "chosen by this project: a test"

[context_length]
value = 256
source = "chosen by this project: a test"

[block_alignment]
value = 32
source = "chosen by this project: a test"
"""
