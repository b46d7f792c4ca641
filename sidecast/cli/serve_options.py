"""The settings of a serving process as options: each field of `serving.config.ServeConfig` but a task's own limits."""

from typing import Any

import click

from sidecast.cli import options

MAIN = (
    ("backbone", str, "A backbone: a Hugging Face folder, or a hub id."),
    ("registry", str, "The registry's folder or URL; made where it is not there yet."),
    ("host", str, "Address to listen on.  [default: 127.0.0.1]"),
    ("port", int, "gRPC; 0 takes a free one.  [default: 8001]"),
    ("metrics_port", int, "Prometheus over HTTP; 0 takes a free one.  [default: 8002]"),
    ("device", str, "auto, cpu, cuda, cuda:1 ...  [default: auto]"),
    ("dtype", str, "auto, float32 or bfloat16.  [default: auto]"),
    ("quantize", str, "Bits of the backbone's matrices: none, int8, int4 or w8a8.  [default: none]"),
    ("threads", int, "Torch's threads on a CPU; 0 leaves torch's choice.  [default: 0]"),
    ("compile", bool, "Compile the encoder at start; minutes.  [default: no]"),
    ("cache_bytes", int, "Activations kept for other tasks on the same input.  [default: 268435456]"),
    ("tenant_header", str, "gRPC metadata that names a caller's tenant.  [default: none]"),
    ("grace_s", float, "Seconds for requests in flight after SIGTERM.  [default: 30]"),
    ("log_level", str, "DEBUG, INFO, WARNING or ERROR.  [default: INFO]"),
)
BATCHES = (
    ("max_batch_tokens", int, "Tokens of one backbone pass, padding counted.  [default: 8192]"),
    ("max_batch_rows", int, "Rows of one batch.  [default: 64]"),
    ("batch_cost_tokens", int, "What a batch costs besides its tokens, in tokens.  [default: 96]"),
    ("padding_cost", float, "What a token of padding costs beside a real one, at most.  [default: 1]"),
    ("max_wait_s", float, "Longest wait of a row for company, in seconds.  [default: 0.002]"),
    ("max_running_rows", int, "Texts made at a time, each beam counted.  [default: 64]"),
    ("max_tokens_beside_texts", int, "New rows' tokens in a turn while texts are made.  [default: 1024]"),
)
PRESSURE = (
    ("max_queued_rows", int, "Rows that may wait; more are shed.  [default: 8192]"),
    ("max_queued_tokens", int, "Tokens that may wait; more are shed.  [default: 1048576]"),
    ("default_priority", int, "Of requests that name none: 1 goes first, 4 last.  [default: 2]"),
    ("max_task_rows", int, "Rows of one task that may wait; 0: any number.  [default: 0]"),
    ("max_task_tokens", int, "Tokens of one task that may wait; 0: any number.  [default: 0]"),
    ("max_task_requests", int, "Requests of one task in flight; 0: any number.  [default: 0]"),
    ("side_timeout_s", float, "Longest that a side network may take in a batch.  [default: 5]"),
    ("side_bench_s", float, "How long the rows of one that was slower fail at once.  [default: 30]"),
    ("max_request_rows", int, "Rows of one request over all of its tasks.  [default: 8192]"),
    ("max_request_tasks", int, "Tasks of one PredictTasks.  [default: 256]"),
    ("max_message_bytes", int, "Largest gRPC message.  [default: 67108864]"),
)
VERSIONS = (
    ("max_side_bytes", int, "Largest side network that is loaded.  [default: 536870912]"),
    ("replay_examples", bool, "Answer golden examples before a version serves.  [default: yes]"),
    ("replay_bytes", int, "Activations of golden examples kept for the next versions.  [default: 33554432]"),
    ("poll_s", float, "How often the registry is asked whether it changed.  [default: 0.2]"),
    ("retry_s", float, "First pause before a failed load is tried again.  [default: 1]"),
    ("max_retry_s", float, "Longest such pause.  [default: 60]"),
    ("warmup_s", float, "Longest that the device is warmed up at start.  [default: 10]"),
    ("tokenizer_threads", int, "Threads that validate and tokenize.  [default: 2]"),
)
SHADOWS = (
    ("max_shadow_rows", int, "Rows in shadow that may wait; 0: none are asked.  [default: 1024]"),
    ("shadow_turn_s", float, "What a turn of rows in shadow should take.  [default: 0.01]"),
    ("shadow_wait_s", float, "Longest a row in shadow waits for company.  [default: 0.1]"),
    ("shadow_timeout_s", float, "Longest a version may take for a turn in shadow.  [default: 1]"),
    ("max_running_shadows", int, "Texts made in shadow at a time.  [default: 8]"),
    ("keep_inputs", bool, "Keep the inputs on which versions disagree.  [default: no]"),
    ("kept_disagreements", int, "How many of them for each alias.  [default: 200]"),
)

SETTINGS = (*MAIN, *BATCHES, *PRESSURE, *VERSIONS, *SHADOWS)


def settings(command: options.Command) -> options.Command:
    """Add an option for each; one that is not given is None."""
    for name, kind, text in reversed(SETTINGS):
        command = _option(name, kind, text)(command)
    return command


def _option(name: str, kind: type, text: str) -> Any:
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    return options.option(flag, name, type=kind, help=text)
