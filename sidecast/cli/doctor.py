"""`sidecast doctor`: look at everything a server needs, and say in one line each what is wrong and what to do."""

import importlib.metadata
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import click

from sidecast.cli import options
from sidecast.cli import sizes as sizes_of
from sidecast.cli import speed as speed_of
from sidecast.cli.app import UserError
from sidecast.cli.missing import missing_text
from sidecast.cli.output import say, show_table

PACKAGES = ("grpcio", "protobuf", "obstore", "prometheus-client")
MODEL_PACKAGES = ("torch", "transformers", "safetensors")
"""Of the extras `serve` and `train`; all are there, or none."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    state: Literal["ok", "wrong", "skipped"]
    detail: str


@click.command(short_help="Check the installation, device, backbone, registry and server.")
@options.backbone
@options.registry
@options.server
@options.device
@options.quantize
@options.vision
@options.vision_layer
@options.vision_size
@click.option(
    "--speed", is_flag=True, help="Also measure --backbone in every precision of --device: needs memory for all."
)
@click.option("--sizes", is_flag=True, help="Instead: what side networks of usual shapes would cost on --backbone.")
@click.option("--reduction", callback=sizes_of.reductions, metavar="R,...", help="With --sizes.  [default: 4,8,16]")
@click.option(
    "--encoder-layers", callback=options.layers, metavar="I,J,...", help="With --sizes: only with these rungs, or none."
)
@click.option("--decoder-layers", callback=options.layers, metavar="I,J,...", help="As --encoder-layers.")
@click.option("--tokens", type=click.IntRange(1), help="With --sizes: of a row.  [default: 128]")
@click.option("--rows", type=click.IntRange(1), help="With --sizes: of a batch, for memory.  [default: 32]")
@options.as_json
@click.pass_context
def doctor(
    ctx: click.Context,
    backbone: str | None,
    registry: str | None,
    server: str | None,
    device: str,
    quantize: str,
    vision: str | None,
    vision_layer: int | None,
    vision_size: int | None,
    speed: bool,
    sizes: bool,
    as_json: bool,
    **shape: Any,
) -> None:
    """Check the installation and the device, and the backbone, vision encoder, registry and server that are given.

    Exits with 1 if something is wrong. With --sizes it checks nothing: it prints what side networks would cost in
    weights, arithmetic and memory. That needs only the backbone's config.json (for names such as t5-base, nothing).
    """
    sizes_of.check_options(sizes, backbone, **shape)
    if speed and not backbone:
        raise UserError("--speed measures a backbone: give --backbone")
    if sizes:
        sizes_of.show_sizes(str(backbone), as_json=as_json, **shape)
        return
    findings = [
        _check("installation", _installation),
        _check("device", lambda: _device(device)) if _version("torch") else _without_torch(),
        _check("backbone", lambda: _backbone(backbone, quantize)) if backbone else _skipped("backbone"),
        _check("speed", lambda: speed_of.compare(str(backbone), device)) if speed else _skipped("speed"),
        _check("vision", lambda: _vision(vision, vision_layer, vision_size)) if vision else _skipped("vision"),
        _check("registry", lambda: _registry(registry)) if registry else _skipped("registry"),
        _check("fit", lambda: _fit(backbone, registry, quantize)) if backbone and registry else _skipped("fit"),
        _check("server", lambda: _server(server)) if server else _skipped("server"),
    ]
    healthy = all(finding.state != "wrong" for finding in findings)
    if as_json:
        say(True, {"healthy": healthy, "checks": [asdict(finding) for finding in findings]}, "")
    else:
        show_table(("check", "state", "detail"), [(f.check, f.state, f.detail) for f in findings])
    ctx.exit(0 if healthy else 1)


class _Wrong(Exception):
    """A check found something wrong."""


def _check(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", look())
    except ModuleNotFoundError as error:
        return Finding(name, "wrong", missing_text(error.name, ["doctor"], ["doctor"]) or str(error))
    except Exception as error:  # whatever is wrong is what the doctor is asked for
        text = str(error) or type(error).__name__
        return Finding(name, "wrong", text.splitlines()[0])


def _skipped(name: str) -> Finding:
    needs = {"fit": "--backbone and --registry", "speed": "--backbone and --speed"}.get(name, f"--{name}")
    return Finding(name, "skipped", f"give {needs} to check it")


def _without_torch() -> Finding:
    return Finding("device", "skipped", "torch is not installed; serving and training need it")


def _installation() -> str:
    versions = {package: _version(package) for package in (*MODEL_PACKAGES, *PACKAGES)}
    missing = [package for package, version in versions.items() if version is None]
    if missing == list(MODEL_PACKAGES):
        note = "; client and command alone: pip install 'sidecast[serve]' or 'sidecast[train]' for more"
    elif missing:
        extra = "[serve]" if missing[0] in MODEL_PACKAGES else ""
        raise _Wrong(f"{missing[0]} is not installed; run pip install 'sidecast{extra}'")
    else:
        note = ""
    found = ", ".join(f"{package} {version}" for package, version in versions.items() if version is not None)
    return f"Python {platform.python_version()}, {found}{note}"


def _version(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _device(name: str) -> str:
    import psutil
    import torch

    device = options.pick_device(name)
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        return f"{device}: {properties.name}, {properties.total_memory / 1e9:.0f} GB, torch {torch.__version__}"
    memory = psutil.virtual_memory()
    cores = psutil.cpu_count(logical=False) or psutil.cpu_count()
    return f"{device}: {cores} cores, {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free, {_cpu_kind()}"


def _cpu_kind() -> str:
    import torch

    return f"torch uses {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def _backbone(source: str | None, quantize: str) -> str:
    from ladder.backbone import count_weights, held_bytes

    backbone, tokenizer = options.load_backbone(str(source), "cpu", "auto", quantize)
    config = backbone.config
    size = f"{count_weights(backbone) / 1e6:.0f} M weights in {held_bytes(backbone) / 1e6:.0f} MB"
    shape = f"{config.num_layers}+{config.num_decoder_layers} blocks, width {config.d_model}, {size}"
    if len(tokenizer.encode("Is everything all right?")) < 2:
        raise _Wrong("its tokenizer makes nothing of a sentence; copy the backbone's own tokenizer into the folder")
    return f"{backbone.name}: {shape}, {backbone.fingerprint[:19]}"


def _vision(folder: str | None, layer: int | None, size: int | None) -> str:
    from vision import count_weights, load_encoder

    encoder = load_encoder(str(folder), layer=layer, size=size or None)
    rows, columns = encoder.grid
    shape = f"{count_weights(str(folder)) / 1e6:.0f} M weights, {rows} x {columns} tokens, width {encoder.width}"
    return f"{encoder.name}: {shape}, {encoder.fingerprint[:19]}"


def _registry(url: str | None) -> str:
    from side_registry import Registry

    state = Registry.open(str(url)).state()
    versions = sum(len(task.live) for task in state.live.values())
    return f"generation {state.generation}, {len(state.live)} tasks, {versions} versions"


def _fit(backbone: str | None, registry: str | None, quantize: str) -> str:
    from side_registry import Registry

    fingerprint = options.load_backbone(str(backbone), "cpu", "auto", quantize)[0].fingerprint
    tasks = Registry.open(str(registry)).state().live.values()
    others = [
        f"{task.name}@{alias}"
        for task in tasks
        for alias, version in task.serving.items()
        if task.entry(version).backbone != fingerprint
    ]
    if others:
        named = ", ".join(others[:5]) + (" ..." if len(others) > 5 else "")
        raise _Wrong(f"trained on another backbone, or with another --quantize: {named}")
    return f"every alias of {len(tasks)} tasks was trained on this backbone"


def _server(address: str | None) -> str:

    with options.connect(str(address)) as client:
        tasks: list[Any] = client.tasks()
        if not client.ready():
            raise _Wrong(f"{address} answers, and is not ready")
    broken = [task.task for task in tasks if any(entry.failure for entry in task.versions)]
    if broken:
        raise _Wrong(
            f"ready, and versions of {', '.join(broken[:5])} do not load: see sidecast tasks --server {address}"
        )
    return f"ready, {len(tasks)} tasks"
