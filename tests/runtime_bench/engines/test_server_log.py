"""What llama.cpp's log tells, on lines as llama-server wrote them."""

from __future__ import annotations

from runtime_bench.engines.server_log import figures_of, last_lines, loaded_after, port_of

LOG = """\
0.00.002.276 I cmn  common_param: common_params_print_info: build 1 (0c1e570) with GNU 12.2.0 for Linux x86_64
0.00.002.310 I cmn  common_param: system_info: n_threads = 1 (n_threads_batch = 1) / 2 | CPU : SSE3 = 1 | AVX2 = 1 | \
REPACK = 1 |
0.00.050.633 I load_tensors: loading model tensors, this can take a while... (load_mode = mmap)
0.00.143.919 I load_tensors:   CPU_Mapped model buffer size =    65.41 MiB
0.00.143.974 I load_tensors:   CPU_REPACK model buffer size =    47.79 MiB
0.00.186.301 I llama_context: flash_attn            = auto
0.00.186.512 I llama_kv_cache:        CPU KV buffer size =    45.00 MiB
0.00.215.187 I llama_kv_cache: size =   45.00 MiB (  2048 cells,  30 layers,  1/1 seqs), K (f16):   22.50 MiB, \
V (f16):   22.50 MiB
0.00.216.437 I resolve_fused_ops: Flash Attention enabled
0.00.218.000 I sched_reserve:        CPU compute buffer size =    13.82 MiB
You are a helpful assistant
listening on http://127.0.0.1:1
"""
END = """\
1.02.236.483 I srv  llama_server: model loaded
1.02.236.499 I srv  llama_server: listening on http://127.0.0.1:34865
"""


def test_a_server_that_still_loads_has_no_port_and_no_load_time() -> None:
    # The model's chat template is in the log too, and may say anything.
    assert port_of(LOG) is None
    assert loaded_after(LOG) is None


def test_a_loaded_server_tells_port_and_load_time() -> None:
    assert port_of(LOG + END) == 34865
    assert loaded_after(LOG + END) == 62.236483


def test_sizes_and_settings() -> None:
    figures = figures_of(LOG)
    assert figures.kv_cache_bytes == 45 * 1024 * 1024
    assert figures.buffers["CPU_REPACK model"] == round(47.79 * 1024 * 1024)
    assert figures.device_memory_bytes is None
    assert figures.settings["kv_cache_type"] == "f16"
    assert figures.settings["flash_attention"] == "enabled"
    assert (figures.settings["mmap"], figures.settings["mlock"]) == (True, False)
    assert figures.engine["cpu_features"] == ["SSE3", "AVX2", "REPACK"]
    assert figures.engine["build"] == "build 1 (0c1e570) with GNU 12.2.0 for Linux x86_64"


def test_memory_on_an_accelerator_is_counted_without_the_hosts_buffers() -> None:
    log = (
        "0.01.000.000 I load_tensors:        CUDA0 model buffer size =   100.00 MiB\n"
        "0.01.000.000 I load_tensors:   CPU_Mapped model buffer size =    28.00 MiB\n"
        "0.01.000.000 I llama_context:  CUDA_Host  output buffer size =     0.50 MiB\n"
        "0.01.000.000 I llama_kv_cache:      CUDA0 KV buffer size =    20.00 MiB\n"
        "0.01.000.000 I sched_reserve:      CUDA0 compute buffer size =     5.00 MiB\n"
    )
    figures = figures_of(log)
    assert figures.device_memory_bytes == 125 * 1024 * 1024
    assert figures.kv_cache_bytes == 20 * 1024 * 1024
    assert figures.settings["weights_in"] == ["CPU_Mapped", "CUDA0"]


def test_an_empty_log_tells_nothing() -> None:
    figures = figures_of("")
    assert (figures.kv_cache_bytes, figures.buffers, figures.settings) == (None, {}, {})


def test_the_telling_lines_of_a_failure() -> None:
    log = (
        "0.00.001.000 I srv init: using 5 threads\n"
        "0.00.019.123 E llama_model_load: error loading model: tensor 'token_embd.weight' has wrong shape\n"
        "0.00.019.200 E srv load_model: failed to load model, 'm.gguf'\n"
        "0.00.019.300 I srv cleaning up\n"
    )
    assert last_lines(log) == (
        "llama_model_load: error loading model: tensor 'token_embd.weight' has wrong shape; "
        "srv load_model: failed to load model, 'm.gguf'"
    )


def test_names_and_texts_of_the_model_are_no_figures() -> None:
    # llama.cpp quotes the model's own keys, and its template over several lines.
    quoted = (
        "0.00.015.347 I llama_model_loader: - kv   2: general.name str = x CPU KV buffer size = 999.00 MiB\n"
        "0.00.050.437 I print_info: general.name          = x CUDA0 model buffer size = 5000.00 MiB\n"
        "0.00.000.001 I srv x: model loaded\n"
        "0.00.000.002 I srv x: listening on http://127.0.0.1:9\n"
    )
    figures = figures_of(quoted + LOG)
    assert figures.kv_cache_bytes == 45 * 1024 * 1024
    assert figures.device_memory_bytes is None
    assert port_of(quoted + LOG + END) == 34865
    assert loaded_after(quoted + LOG + END) == 62.236483


def test_a_log_without_an_error_gives_its_last_line() -> None:
    assert last_lines("0.00.001.000 I srv a: one\n0.00.002.000 I srv b: two\n") == "srv b: two"
