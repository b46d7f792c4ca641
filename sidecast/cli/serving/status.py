"""`sidecast status`: an application on a Ray cluster and its replicas, as they are now."""

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import click

from sidecast.cli.output import say, show_table, show_text
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
            deployed = _look(cluster, driver, name)
            if deployed is None:
                return fail(f"no application {name!r} at {url}; 'sidecast deploy' deploys it", "NOT_DEPLOYED", as_json)
            if watch and not as_json:
                click.clear()
            _show(deployed, note, as_json)
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

    deployed = read(cluster.details(), name)
    if deployed and driver and deployed.running:
        return read(cluster.details(), name, driver.statuses(name))
    return deployed


def _show(deployed: "Deployed", note: str, as_json: bool) -> None:
    if as_json:
        return say(True, deployed.document | ({"note": note} if note else {}), "")
    title = f"{deployed.name}: {deployed.status.lower()}, {deployed.running} of {deployed.wanted} replicas run"
    show_text(title)
    if deployed.message:
        show_text(deployed.message)
    show_table(HEADINGS, [_row(replica) for replica in deployed.replicas], below=("node", "pid", "since"))
    show_text(f"proxies: {', '.join(f'{proxy.node} {proxy.status.lower()}' for proxy in deployed.proxies) or 'none'}")
    if note:
        show_text(note)
    return None


def _row(replica: "Replica") -> tuple[object, ...]:
    answer = replica.own
    figures: tuple[object, ...] = ("", "", "", "", "")
    if answer:
        busy = percent(answer["busy"])
        load = percent(answer["load"])
        figures = (_generation(answer), answer["in_flight"], answer["queued_rows"], busy, load)
    return (replica.id, replica.node, replica.pid or "", replica.state.lower(), *figures, replica.since)


def _generation(answer: Any) -> str:
    served = answer["generation"]
    wanted = answer.get("wanted", served)
    return str(served) if served == wanted else f"{served} of {wanted}"
