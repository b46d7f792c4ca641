"""`sidecast status`: an application on a Ray cluster and its replicas, as they are now."""

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from sidecast.cli.output import plain, say, show_table
from sidecast.cli.percent import percent
from sidecast.cli.serving.cluster import dashboard, fail, failures, local_cluster, which_cluster

if TYPE_CHECKING:
    from serving.cluster.deploy import Cluster, Driver
    from serving.cluster.status import Deployed, Replica

EVERY_S = 1.0
HEADINGS = ("replica", "node", "pid", "state", "generation", "in flight", "queued", "busy", "load", "since")


@click.command(short_help="Show the replicas of an application on a Ray cluster.")
@which_cluster
@click.option("--watch", is_flag=True, help="Again every second, until Ctrl-C.")
def status(name: str, as_json: bool, watch: bool, **where: Any) -> None:
    """Show what 'sidecast deploy' deployed: its state, and for each replica which generation of the registry it serves,
    how many calls are in flight, how many rows wait, what share of the last seconds its device computed (busy) and what
    share it was of what the device could have done in full batches (load), by which replicas are added and removed.
    """
    from serving.cluster.deploy import Cluster

    url = dashboard(where["address"], where["dashboard_port"])
    ours = local_cluster(where["cluster_folder"], where["dashboard_port"], url)
    with failures(as_json), ExitStack() as stack:
        cluster = Cluster(url)
        driver, note = _driver(cluster, ours, stack) if _is_there(cluster, name) else (None, "")
        while True:
            found = _look(cluster, driver, name)
            if found is None:
                return fail(f"no application {name!r} at {url}; 'sidecast deploy' deploys it", "NOT_DEPLOYED", as_json)
            if watch and not as_json:
                click.clear()
            _show(found, note, as_json)
            if not watch:
                return None
            time.sleep(EVERY_S)


def _is_there(cluster: "Cluster", name: str) -> bool:
    return name in cluster.details()["applications"]


def _driver(cluster: "Cluster", ours: Any, stack: ExitStack) -> tuple["Driver | None", str]:
    """Return a driver that asks the replicas themselves, or a note that says why there is none."""
    from serving.cluster.deploy import Driver, NoCluster

    gcs = ours.gcs if ours else cluster.gcs()
    try:
        if gcs:
            return stack.enter_context(Driver(gcs)), ""
    except NoCluster as error:
        return None, f"the replicas cannot be asked from here: {error.why or f'{error.address} does not answer'}"
    return None, "the replicas cannot be asked from here: the cluster does not tell its address"


def _look(cluster: "Cluster", driver: "Driver | None", name: str) -> "Deployed | None":
    from serving.cluster.status import read

    found = read(cluster.details(), name)
    if found and driver and found.running:
        return read(cluster.details(), name, driver.statuses(name))
    return found


def _show(found: "Deployed", note: str, as_json: bool) -> None:
    if as_json:
        return say(True, found.document | ({"note": note} if note else {}), "")
    title = f"{found.name}: {found.status.lower()}, {found.running} of {found.wanted} replicas run"
    click.echo(title)
    if found.message:
        click.echo(plain(found.message))
    show_table(HEADINGS, [_row(each) for each in found.replicas])
    click.echo(f"proxies: {', '.join(f'{each.node} {each.status.lower()}' for each in found.proxies) or 'none'}")
    if note:
        click.echo(note)
    return None


def _row(each: "Replica") -> tuple[object, ...]:
    own = each.own
    asked = () if own else ("", "", "", "", "")
    pid = each.pid or ""
    told = asked or (_generation(own), own["in_flight"], own["queued_rows"], percent(own["busy"]), percent(own["load"]))
    return (each.id, each.node, pid, each.state.lower(), *told, each.since)


def _generation(own: Any) -> str:
    served, wanted = own["generation"], own.get("wanted", own["generation"])
    return str(served) if served == wanted else f"{served} of {wanted}"
