"""Errors of a request, of a version's load and of the server's start.

No gRPC here: `serving.api.status` turns these into status codes. Each class has its fields, so that it pickles, and a
stable `reason`. Errors about unknown tasks, versions and aliases are in `side_registry.errors`.

    ServingError
      RequestError        the request is wrong; the same request fails again
        InvalidInput, TooManyRows
      NotServed           the server cannot answer now
        NotLoaded (VersionRefused), OutOfMemory, PassTooLarge, Draining
        Shed              too much load
          Overloaded, TooSlow, TaskOverloaded, TooManyBytes, RateLimited
      DeadlineExpired
      SideFailed          one side network raised or answered NaN
      ImageFailed         the vision encoder raised or computed NaN
      LoadError           the server refuses to load a version
        IncompatibleSide, CorruptSide, SideTooLarge, TextsTooLong, GoldenMismatch, ReplayTooLong, LoadFailed
      AccessError         who calls is not known, or may not do this
        Unauthenticated, PermissionDenied, NotThisPort, NotThisMachine
      StartError          the server cannot start; no caller sees it
        PortInUse, CannotListen, HttpNotInstalled, TracingNotInstalled, UnusableFile, Exposed, NoProxyTls
"""

from typing import ClassVar, TypeVar

from side_registry.errors import DataclassError

Fault = TypeVar("Fault", bound=Exception)


def detached(error: Fault) -> Fault:
    """The error without its traceback and context, to be kept as a value.

    They hold the frames that it passed, and these the lists in which it is kept: a cycle, which keeps whole requests in
    memory until garbage is collected.
    """
    error.__traceback__ = None
    error.__context__ = None
    return error


class ServingError(DataclassError):
    """Root of this package's errors."""

    reason: ClassVar[str] = "SERVING"
    """Stable name of the error, for programs."""


class RequestError(ServingError):
    """Something about the request itself; the same request fails again."""

    reason = "BAD_REQUEST"


class InvalidInput(RequestError):
    """A value of the request breaks a rule. `field` is its path, such as `rows[3].sentence`."""

    reason = "INVALID_INPUT"
    message = "{field}: {why}"
    field: str
    why: str


class TooManyRows(RequestError):
    """One request has more rows than the server or the task allows."""

    reason = "TOO_MANY_ROWS"
    message = "{rows} rows in one request, the limit is {limit}; split it"
    rows: int
    limit: int


class NotServed(ServingError):
    """The server cannot answer this now; another replica, or a later try, may."""

    reason = "NOT_SERVED"


class NotLoaded(NotServed):
    """The version is in the registry but not on this server."""

    reason = "NOT_LOADED"
    message = "{task}:{version} is not loaded on this server: {why}"
    task: str
    version: int
    why: str


class VersionRefused(NotLoaded):
    """This server tried to load the version and refused it: trying again does not help."""

    reason = "VERSION_REFUSED"


class Shed(NotServed):
    """The server rejects a request because of load. Each kind has `retry_after_s`, when to try again."""

    reason = "OVERLOADED"


class Overloaded(Shed):
    """A queue is full. `what` is what the limit counts: rows, tokens or images."""

    message = "{queued} {what} are waiting, the limit is {limit}; try again in {retry_after_s:.2f} s"
    queued: int
    limit: int
    retry_after_s: float
    what: str = "rows"


class TooSlow(Shed):
    """At the measured throughput the answer would come after the request's deadline."""

    reason = "TOO_SLOW"
    message = (
        "the answer would take about {wait_s:.2f} s, the deadline is in {left_s:.2f} s; "
        "try again in {retry_after_s:.2f} s or allow more time"
    )
    wait_s: float
    left_s: float
    retry_after_s: float


class TaskOverloaded(Shed):
    """One task is at a limit of its own; other tasks may still be answered. `what` is what the limit counts."""

    reason = "TASK_OVERLOADED"
    message = "{task} has {used} {what}, the task's limit is {limit}; try again in {retry_after_s:.2f} s"
    task: str
    what: str
    used: int
    limit: int
    retry_after_s: float


class TooManyBytes(Shed):
    """The requests in flight have too many bytes, all together."""

    reason = "TOO_MANY_BYTES"
    message = (
        "requests of {used:,} bytes are in flight, the limit is {limit:,} (max_in_flight_bytes); "
        "try again in {retry_after_s:.2f} s"
    )
    used: int
    limit: int
    retry_after_s: float


class RateLimited(Shed):
    """A caller sends more requests or rows of one task in a second than it may. `what` is what the limit counts."""

    reason = "RATE_LIMITED"
    message = "{caller} may send {limit:g} {what} a second to {task}; try again in {retry_after_s:.2f} s"
    caller: str
    task: str
    what: str
    limit: float
    retry_after_s: float


class Draining(NotServed):
    """The server is shutting down and takes no new requests."""

    reason = "DRAINING"
    message = "the server is shutting down; try another one"


class OutOfMemory(NotServed):
    """The device had no room for the row or the image, even in a smaller batch."""

    reason = "OUT_OF_MEMORY"
    rows: int
    retry_after_s: float = 1.0
    what: str = "row"
    """What there was no room for: row or image."""

    def __str__(self) -> str:
        count = f"this {self.what}" if self.rows == 1 else f"{self.rows} {self.what}s"
        smaller = "shorter" if self.what == "row" else "smaller"
        remedy = f"send {smaller} ones, or try again in {self.retry_after_s:.2f} s"
        return f"the device ran out of memory with {count}; {remedy}"


class PassTooLarge(NotServed):
    """One row needs more memory than the server gives to a pass. It was not tried. Sizes in bytes."""

    reason = "PASS_TOO_LARGE"
    message = (
        "a row of {tokens:,} tokens needs about {needed:,} bytes of memory, the limit is {limit:,} (max_pass_bytes); "
        "send a shorter text"
    )
    tokens: int
    needed: int
    limit: int


class DeadlineExpired(ServingError):
    """The request's deadline passed first."""

    reason = "DEADLINE_EXPIRED"
    message = "the deadline passed before the answer was ready"


class SideFailed(ServingError):
    """A side network raised, or computed something that is not a finite number. Other tasks' rows are not affected."""

    reason = "SIDE_FAILED"
    message = "the side network of {task}:{version} failed: {why}; roll it back"
    task: str
    version: int
    why: str


class ImageFailed(ServingError):
    """The vision encoder raised, or computed something that is not a finite number. Other images are not affected."""

    reason = "IMAGE_FAILED"
    message = "the vision encoder failed with this image: {why}; send another one"
    why: str


class LoadError(ServingError):
    """This server refuses to load a version. The version served before stays."""

    reason = "LOAD"
    transient = False
    """Whether a later try may succeed although nothing changes in the registry's log."""


class IncompatibleSide(LoadError):
    """The side network was trained on another backbone, with another tokenizer, or on another encoder's images."""

    reason = "INCOMPATIBLE_SIDE"
    message = "{task}: trained on {wants}, this server runs {has}; {remedy}"
    task: str
    wants: str
    has: str
    remedy: str = ""
    """What to do; "": retrain it."""

    def __post_init__(self) -> None:
        self.remedy = self.remedy or "retrain it on this backbone"
        super().__post_init__()


class CorruptSide(LoadError):
    """Damaged bytes, a checkpoint that does not fit its manifest, or weights that are not finite."""

    reason = "CORRUPT_SIDE"
    message = "{task}:{version} cannot be used: {why}; publish it again"
    task: str
    version: int
    why: str
    transient: bool = False


class UntrustedSide(LoadError):
    """The trust policy does not let this version in: no signature, of other files, or of a key that is not trusted."""

    reason = "UNTRUSTED_SIDE"
    transient = True  # a signature comes without a commit, and the policy may change
    message = "{task}:{version} is not trusted: {why}; sign it with a trusted key (sidecast sign)"
    task: str
    version: int
    why: str


class SideTooLarge(LoadError):
    """The side network's file has more bytes than the setting `max_side_bytes` allows."""

    reason = "SIDE_TOO_LARGE"
    message = "{task}:{version} is {size:,} bytes, the limit is {limit:,} (max_side_bytes)"
    task: str
    version: int
    size: int
    limit: int


class TextsTooLong(LoadError):
    """The task reads texts of more tokens than the setting `max_row_tokens` allows."""

    reason = "TEXTS_TOO_LONG"
    message = (
        "{task}:{version} reads texts of up to {tokens:,} tokens (max_source_tokens), the server's limit is {limit:,} "
        "(max_row_tokens); raise it, or train the task with a lower max_source_tokens"
    )
    task: str
    version: int
    tokens: int
    limit: int


class GoldenMismatch(LoadError):
    """A golden example of the manifest has another answer here than where the version was trained."""

    reason = "GOLDEN_MISMATCH"
    message = "{task}:{version} does not reproduce its golden example {example}: {why}"
    task: str
    version: int
    example: int
    why: str


class ReplayTooLong(LoadError):
    """The golden examples of the manifest are more work than this server's settings allow."""

    reason = "REPLAY_TOO_LONG"
    message = "the golden examples of {task}:{version} cannot be replayed: {why}; publish it with fewer or shorter ones"
    task: str
    version: int
    why: str
    transient: bool = False


class LoadFailed(LoadError):
    """Anything else that ended a load, such as a store that cannot be reached."""

    reason = "LOAD_FAILED"
    message = "{task}:{version} could not be loaded: {why}"
    task: str
    version: int
    why: str
    transient: bool = False


class AccessError(ServingError):
    """The server does not let this caller do this. Nothing was done."""

    reason = "ACCESS"


class Unauthenticated(AccessError):
    """The call has no credentials, or none that are valid. The message repeats nothing of them."""

    reason = "UNAUTHENTICATED"
    message = "the server does not know who calls: {why}"
    why: str


class PermissionDenied(AccessError):
    """The caller is known, and its scopes do not allow this."""

    reason = "PERMISSION_DENIED"
    message = "{caller} may not {verb}; ask for a token with a scope such as {scope}"
    caller: str
    verb: str
    scope: str


class NotThisPort(AccessError):
    """The registry is changed by another port of this server."""

    reason = "NOT_THIS_PORT"
    message = "{method} comes by the server's admin port alone; ask its operator for the address"
    method: str


class NotThisMachine(AccessError):
    """Another machine called a replica on Ray past its proxy, or a proxy that is for its own machine alone."""

    reason = "NOT_THIS_MACHINE"
    message = "this address answers its own machine alone; ask its operator for the server's"


class StartError(ServingError):
    """The server cannot start with these settings. No caller sees it."""

    reason = "START"


class PortInUse(StartError):
    """Another program listens on the port. `setting` is the setting that names the port."""

    reason = "PORT_IN_USE"
    message = "port {port} is in use; stop what listens there, or choose another {setting} ({otherwise})"
    port: int
    setting: str = "port"
    otherwise: str = "0: a free one"
    """What another choice means."""


class HttpNotInstalled(StartError):
    """The settings ask for the HTTP API, and its packages are not installed."""

    reason = "HTTP_NOT_INSTALLED"
    message = (
        "http_port is {port}, but the packages of the HTTP API are not installed; "
        "run: pip install 'sidecast[http]', or choose --http-port 0 for gRPC alone"
    )
    port: int


class TracingNotInstalled(StartError):
    """The settings ask for traces, and the packages of OpenTelemetry are not installed."""

    reason = "TRACING_NOT_INSTALLED"
    message = (
        "otlp_endpoint is {endpoint}, but OpenTelemetry is not installed; "
        "run: pip install 'sidecast[otel]', or leave the setting out for no traces"
    )
    endpoint: str


class CannotListen(StartError):
    """The operating system refuses to listen on the address."""

    reason = "CANNOT_LISTEN"
    message = "cannot listen on {host} port {port}: {why}; choose another host or port"
    host: str
    port: int
    why: str


class UnusableFile(StartError):
    """A file of the access settings cannot be read, or what it says cannot be used."""

    reason = "UNUSABLE_FILE"
    message = "{what} {path} cannot be used: {why}"
    what: str
    path: str
    why: str


class Exposed(StartError):
    """Other machines could reach a server without TLS or without callers' tokens."""

    reason = "EXPOSED"
    message = (
        "other machines reach host {host}, and the server has no {missing}; give --tls-cert, --tls-key and --tokens "
        "(or --jwt-keys), listen on 127.0.0.1, or give --insecure to let everybody in"
    )
    host: str
    missing: str


class NoProxyTls(StartError):
    """A replica on Ray has a certificate, and the proxy before it does not show one."""

    reason = "NO_PROXY_TLS"
    message = (
        "this cluster's proxy ends no TLS {how}: start the cluster with 'sidecast deploy --tls-cert ...' and the same "
        "settings; where something before Ray ends TLS, leave tls_cert out"
    )
    how: str
