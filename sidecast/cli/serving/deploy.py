"""`sidecast deploy`: the server on a Ray cluster, replicated; started here where there is no cluster."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.output import plain, say
from sidecast.cli.serving.cluster import (
    DASHBOARD_PORT,
    LOOPBACK,
    dashboard,
    failures,
    folder_of,
    is_here,
    local_cluster,
    which_cluster,
)
from sidecast.cli.serving.server_settings import settings
from sidecast.cli.settings import GroupedCommand

if TYPE_CHECKING:
    from serving.cluster.deploy import Cluster
    from serving.cluster.local_cluster import ProxyTls
    from serving.cluster.proxy_tls import TlsPorts
    from serving.cluster.serve_config import Wanted
    from serving.cluster.status import Deployed

EVERYWHERE = "0.0.0.0"
OPEN_DOORS = "Note: --host is the proxy's; replicas' own ports are on all addresses of the machine, without TLS, and "
LET_IN = {True: "let everybody in (--insecure)", False: "refuse other machines"}
IN_THE_START = "Note: {options} is no part of the configuration; it is in how a cluster is started"
REMOVE_S = 60.0
"""Longest time for a removal after which the cluster is stopped, in seconds, whatever --wait says."""
SCALING = {
    "min_replicas": click.IntRange(0),
    "max_replicas": click.IntRange(1),
    "initial_replicas": click.IntRange(0),
    "target_requests": click.FloatRange(0, min_open=True),
    "target_busy": click.FloatRange(0, 1, min_open=True),
    "upscale_delay_s": click.FloatRange(0),
    "downscale_delay_s": click.FloatRange(0),
}
HELP = {
    "min_replicas": "Fewest replicas, by load; 0: none while there are no calls.",
    "max_replicas": "Most replicas, by load.",
    "initial_replicas": "Replicas at the start.",
    "target_requests": "Calls in flight at a replica.",
    "target_busy": "Share of what a replica's device could do in full batches: its load.",
    "upscale_delay_s": "Seconds of more load before replicas are added.",
    "downscale_delay_s": "Seconds of less load before replicas are removed.",
}


def _scaling(command: options.Command) -> options.Command:
    for name, kind in reversed(SCALING.items()):
        command = options.option(f"--{name.replace('_', '-')}", name, type=kind, help=HELP[name])(command)
    return command


@click.command(cls=GroupedCommand, short_help="Serve on a Ray cluster, with any number of replicas.")
@click.option("--config", metavar="FILE", envvar="SIDECAST_CONFIG", help="A TOML file with any of the settings.")
@options.option("--replicas", type=click.IntRange(1), help="A fixed number of them.  [default: 1]")
@_scaling
@options.option("--cpus", type=click.FloatRange(0), default=1.0, show_default=True, help="Cores of a replica.")
@options.option("--gpus", type=click.FloatRange(0), default=0.0, show_default=True, help="GPUs of a replica.")
@options.option(
    "--max-ongoing-requests",
    type=click.IntRange(1),
    help="Calls in flight at a replica; more wait in Ray, which sheds none.",
)
@click.option(
    "--surge",
    type=click.IntRange(0, 100),
    default=100,
    show_default=True,
    metavar="PERCENT",
    help="New replicas that run next to the old ones in an update; 0 stops old ones first.",
)
@click.option(
    "--affinity",
    is_flag=True,
    help="Send equal inputs to the same replica, whose cache has them. Only where this command starts the cluster.",
)
@options.option(
    "--http-port", type=click.IntRange(1, 65535), default=8000, show_default=True, help="Port of the HTTP API."
)
@click.option("--wait", type=click.FloatRange(0), default=600.0, show_default=True, metavar="S", help="0: do not wait.")
@click.option("--check/--no-check", default=True, help="Refuse what the cluster has no room for.  [default: check]")
@click.option("--dry-run", is_flag=True, help="Print the Serve config (YAML) that would be sent.")
@click.option("--down", is_flag=True, help="Remove the application, and the cluster that this command had started.")
@which_cluster
@partial(settings, without=("http_port",))
def deploy(name: str, as_json: bool, wait: float, dry_run: bool, down: bool, **settings: Any) -> None:
    """Serve every task of a registry on a Ray cluster; deploying again updates what runs.

    A replica is the same server as 'sidecast serve', with the same settings. Without --address, and if no cluster runs
    on this machine, one is started in the background. If an update fails, the old replicas keep running.

    TLS (--tls-cert) is for a cluster that this command starts. Ray gives each replica ports of its own on all addresses
    of its machine, regardless of --host, without TLS. They answer this machine's proxy alone, or with --insecure
    everybody: then keep them behind a firewall.
    """
    where = {option: settings.pop(option) for option in ("address", "dashboard_port", "cluster_folder")}
    url = dashboard(where["address"], where["dashboard_port"])
    ours = local_cluster(where["cluster_folder"], where["dashboard_port"], url)
    with failures(as_json):
        if down:
            _take_down(name, url, ours, bool(where["address"]), wait, as_json)
            return
        check = settings.pop("check")
        affinity = settings.pop("affinity")
        wanted = _wanted(name, url, **settings)
        tell = _teller(as_json)
        if dry_run:
            for option in (*(("--affinity",) if affinity else ()), *(("--tls-cert",) if wanted.tls else ())):
                tell(IN_THE_START.format(options=option))
            _print_config(wanted)
            return
        if affinity and not (ours and ours.affinity):
            _check_started(url, "with --affinity")
        tls = ours.tls_ports if ours else None
        if not _fits(wanted.tls, tls):
            what = "with this --tls-client-ca, --host and ports, and TLS" if wanted.tls else "without --tls-cert"
            _check_started(url, what)
        cluster, started, warning = _deploy(wanted, url, where, check, affinity, tls, tell)
        with _left_running(_down_words(name, where) if started else "", tell):
            deployed = _await(cluster, name, wait, as_json) if wait else None
            _tell_done(wanted, cluster, deployed, started, warning, as_json)


def _wanted(name: str, url: str, config: str | None, **settings: Any) -> "Wanted":
    """
    Raises:
        UserError, ConfigError: before anything is touched.
    """
    from serving.access import check_exposure, open_certificates
    from serving.cluster.deploy import check_args
    from serving.cluster.serve_config import Wanted, app_args
    from serving.config import read_config

    scaling = {option: settings.pop(option) for option in SCALING}
    scaling = {option: value for option, value in scaling.items() if value is not None}
    names = ("replicas", "cpus", "gpus", "max_ongoing_requests", "surge", "http_port")
    replicas, cpus, gpus, ongoing, surge, http_port = (settings.pop(option) for option in names)
    if replicas and scaling:
        first = next(iter(scaling)).replace("_", "-")
        raise UserError(f"give either --replicas, a fixed number, or --{first} and its like, by load")
    chosen = read_config(settings, file=config)
    if not chosen.port:
        raise UserError("--port 0 is for one process: callers of a cluster must know its port")
    host = chosen.host if is_here(url) or chosen.host not in LOOPBACK else EVERYWHERE
    check_exposure(host, chosen.access)
    wanted = Wanted(
        name=name,
        args=app_args(chosen, cpus=cpus, gpus=gpus, max_ongoing_requests=ongoing, autoscaling=scaling or None),
        replicas=None if scaling else replicas or 1,
        surge=surge,
        host=host,
        port=chosen.port,
        http_port=http_port,
        certificates=open_certificates(chosen.access),
    )
    check_args(wanted)
    return wanted


def _print_config(wanted: "Wanted") -> None:
    import yaml

    from serving.cluster.serve_config import serve_config

    click.echo(yaml.safe_dump(serve_config(wanted), sort_keys=False, allow_unicode=True), nl=False)


def _fits(wanted: "TlsPorts | None", has: "TlsPorts | None") -> bool:
    """Whether callers of a cluster find the TLS that is wanted."""
    return wanted is has or (wanted is not None and has is not None and wanted.fits(has))


def _check_started(url: str, how: str) -> None:
    """
    Args:
        how: a running cluster was not started so.

    Raises:
        UserError: a cluster runs there.
    """
    from serving.cluster.deploy import answers

    if answers(url):
        raise UserError(
            f"this command did not start the cluster at {url} {how}: end it and deploy again, or deploy as it "
            "was started (docs/operation/scaling.md and docs/operation/security.md tell about clusters that you start "
            "yourself)"
        )


def _deploy(
    wanted: "Wanted",
    url: str,
    where: dict[str, Any],
    check: bool,
    affinity: bool,
    tls: "TlsPorts | None",
    tell: Callable[[str], None],
) -> tuple["Cluster", bool, str]:
    """Return the cluster that took the application, whether it was started for it, and a warning or an empty text.

    Args:
        tls: where the proxy of the running cluster ends TLS.
    """
    from serving.cluster.deploy import Cluster, answers, start_here
    from serving.cluster.local_cluster import stop

    if where["address"] or answers(url):
        cluster = Cluster(url)
        return cluster, False, cluster.deploy(wanted.behind(tls), check=check)
    folder = folder_of(where["cluster_folder"], where["dashboard_port"])
    tell(f"no Ray cluster runs at {url}: starting one on this machine, its files in {folder}")
    ours = start_here(folder, where["dashboard_port"], affinity=affinity, tls=_proxy_tls(wanted))
    try:
        cluster = Cluster(url)
        return cluster, True, cluster.deploy(wanted.behind(ours.tls_ports), check=check)
    except BaseException:  # nothing runs there
        stop(ours)
        raise


def _proxy_tls(wanted: "Wanted") -> "ProxyTls | None":
    from serving.cluster.local_cluster import ProxyTls

    if wanted.tls is None or wanted.certificates is None:
        return None
    return ProxyTls(ports=wanted.tls, certificates=wanted.certificates)


def _down_words(name: str, where: dict[str, Any]) -> str:
    """The command line that stops what this command started."""
    words = ["sidecast deploy --down"]
    if name != "sidecast":
        words.append(f"--name {name}")
    if where["dashboard_port"] != DASHBOARD_PORT:
        words.append(f"--dashboard-port {where['dashboard_port']}")
    if where["cluster_folder"]:
        words.append(f"--cluster-folder {where['cluster_folder']}")
    return " ".join(words)


@contextlib.contextmanager
def _left_running(down: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Where it ends badly, say that the cluster goes on.

    Args:
        down: what ends it; empty where it is not this command's.
    """
    from serving.cluster.deploy import DeployFailed

    left = f"the cluster that was started for it goes on; end it with '{down}'"
    try:
        yield
    except DeployFailed as error:
        raise (DeployFailed(error.name, f"{error.why}; {left}") if down else error) from None
    except BaseException:
        if down:
            tell(left)
        raise


def _teller(as_json: bool) -> Callable[[str], None]:
    return (lambda text: None) if as_json else (lambda text: click.echo(text, err=True))


def _await(cluster: "Cluster", name: str, seconds: float, as_json: bool) -> "Deployed":
    from serving.cluster.status import state_in_words

    console = Console(stderr=True, quiet=as_json)
    with console.status(f"{name}: deploying") as line:
        return cluster.await_running(
            name, seconds, lambda state: line.update(f"{name}: {_plain(state_in_words(state))}")
        )


def _plain(text: str) -> str:
    return plain(text).replace("[", "\\[")


def _tell_done(
    wanted: "Wanted", cluster: "Cluster", deployed: "Deployed | None", started: bool, warning: str, as_json: bool
) -> None:
    from serving.cluster.deploy import SLOW_PROXY

    hosts = sorted({proxy.node for proxy in deployed.proxies}) if deployed else []
    here = "" if wanted.host == EVERYWHERE else wanted.host
    document = {
        "name": wanted.name,
        "status": deployed.status if deployed else "DEPLOYING",
        "addresses": [f"{here or host}:{wanted.port}" for host in hosts],
        "replicas": deployed.running if deployed else None,
        "dashboard": cluster.address,
        "started_cluster": started,
    }
    line = f"{wanted.name} is being deployed; 'sidecast status' tells how it goes"
    if deployed:
        replicas = f"{deployed.running} replica{'s' if deployed.running != 1 else ''}"
        line = f"{wanted.name} runs: {replicas}, gRPC on {', '.join(document['addresses'])}"
        if not cluster.has_fast_proxies():
            warning = f"{warning}; {SLOW_PROXY}" if warning else SLOW_PROXY
    if warning:
        document["warning"] = warning
        _teller(as_json)(f"Warning: {warning}")
    if wanted.host in LOOPBACK:
        _teller(as_json)(OPEN_DOORS + LET_IN[bool(wanted.args["settings"].get("insecure"))])
    say(as_json, document, line)


def _take_down(name: str, url: str, ours: Any, named: bool, wait: float, as_json: bool) -> None:
    """
    Args:
        ours: the cluster of this machine, where it is the one.
        named: the cluster was named by its address, so that it should be there.
    """
    from serving.cluster.deploy import Cluster, answers
    from serving.cluster.local_cluster import stop

    if not named and not ours and not answers(url):
        say(as_json, {"removed": False, "stopped_cluster": False}, f"nothing runs at {url}")
        return
    removed, last = False, True
    if not ours or answers(url):
        cluster = Cluster(url)
        last = not set(cluster.details()["applications"]) - {name}
        removed = cluster.remove(name, wait or (REMOVE_S if ours else 0.0))
    if ours and last:
        stop(ours)
    done = "removed" if wait or ours else "being removed"
    line = f"{name} is {done}" if removed else f"no application {name!r} was there"
    if ours:
        line += (
            "; the cluster of this machine is stopped" if last else "; the cluster stays, for its other applications"
        )
    say(as_json, {"removed": removed, "stopped_cluster": bool(ours and last)}, line)
