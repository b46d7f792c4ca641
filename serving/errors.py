"""What a request, or the load of a version, can fail with on this server.

No gRPC here: `serving.api.status` turns these into status codes. Each class carries its fields, so that it pickles,
and a stable `reason`. Unknown tasks, versions and aliases are the registry's errors (`side_registry.errors`).

    ServingError
      RequestError        the caller's doing
        InvalidInput, TooManyRows
      NotServed           the server cannot answer now
        NotLoaded (VersionRefused), Overloaded, OutOfMemory, Draining
      DeadlineExpired
      SideFailed          one side network raised or answered NaN
      LoadError           a version that this server refuses to load
        IncompatibleSide, CorruptSide, SideTooLarge, GoldenMismatch, LoadFailed
"""


class ServingError(Exception):
    """Root of this package's errors."""

    reason = "SERVING"

    @property
    def fields(self) -> dict[str, str]:
        """The error's fields by name, as text: the metadata of a structured error."""
        return {name: str(value) for name, value in vars(self).items() if not name.startswith("_")}


class RequestError(ServingError):
    """Something about the request itself; the same request fails again."""

    reason = "BAD_REQUEST"


class InvalidInput(RequestError):
    """`field` names the place, such as `rows[3].sentence`."""

    reason = "INVALID_INPUT"

    def __init__(self, field: str, why: str) -> None:
        super().__init__(field, why)
        self.field, self.why = field, why

    def __str__(self) -> str:
        return f"{self.field}: {self.why}"


class TooManyRows(RequestError):
    reason = "TOO_MANY_ROWS"

    def __init__(self, rows: int, limit: int) -> None:
        super().__init__(rows, limit)
        self.rows, self.limit = rows, limit

    def __str__(self) -> str:
        return f"{self.rows} rows in one request, the limit is {self.limit}; split it"


class NotServed(ServingError):
    """The server cannot answer this now; another replica, or a later try, may."""

    reason = "NOT_SERVED"


class NotLoaded(NotServed):
    """The version is in the registry but not on this server."""

    reason = "NOT_LOADED"

    def __init__(self, task: str, version: int, why: str) -> None:
        super().__init__(task, version, why)
        self.task, self.version, self.why = task, version, why

    def __str__(self) -> str:
        return f"{self.task}:{self.version} is not loaded on this server: {self.why}"


class VersionRefused(NotLoaded):
    """This server looked at the version and does not serve it: trying again does not help."""

    reason = "VERSION_REFUSED"


class Overloaded(NotServed):
    """Too much waits already. `retry_after_s` is the retry hint of each kind of it."""

    reason = "OVERLOADED"

    def __init__(self, queued: int, limit: int, retry_after_s: float, what: str = "rows") -> None:
        super().__init__(queued, limit, retry_after_s, what)
        self.queued, self.limit, self.retry_after_s, self.what = queued, limit, retry_after_s, what

    def __str__(self) -> str:
        waiting = f"{self.queued} {self.what} are waiting, the limit is {self.limit}"
        return f"{waiting}; try again in {self.retry_after_s:.2f} s"


class TooSlow(Overloaded):
    """What waits already takes longer than the request has time."""

    reason = "TOO_SLOW"

    def __init__(self, wait_s: float, left_s: float, retry_after_s: float) -> None:
        Exception.__init__(self, wait_s, left_s, retry_after_s)
        self.wait_s, self.left_s, self.retry_after_s = wait_s, left_s, retry_after_s

    def __str__(self) -> str:
        late = f"the answer would take about {self.wait_s:.2f} s, the deadline is in {self.left_s:.2f} s"
        return f"{late}; try again in {self.retry_after_s:.2f} s or allow more time"


class TaskOverloaded(Overloaded):
    """One task is at a limit of its own, whatever else the server could take."""

    reason = "TASK_OVERLOADED"

    def __init__(self, task: str, what: str, used: int, limit: int, retry_after_s: float) -> None:
        Exception.__init__(self, task, what, used, limit, retry_after_s)
        self.task, self.what, self.used, self.limit = task, what, used, limit
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        there = f"{self.task} has {self.used} {self.what}, the task's limit is {self.limit}"
        return f"{there}; try again in {self.retry_after_s:.2f} s"


class Draining(NotServed):
    reason = "DRAINING"

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the server is shutting down; try another one"


class OutOfMemory(NotServed):
    """The device had no room for the row, even in a smaller batch."""

    reason = "OUT_OF_MEMORY"

    def __init__(self, rows: int, retry_after_s: float = 1.0) -> None:
        super().__init__(rows, retry_after_s)
        self.rows, self.retry_after_s = rows, retry_after_s

    @property
    def _count(self) -> str:
        return "this row" if self.rows == 1 else f"{self.rows} rows"

    def __str__(self) -> str:
        return (
            f"the device ran out of memory with {self._count}; send shorter ones, or try again in "
            f"{self.retry_after_s:.2f} s"
        )


class DeadlineExpired(ServingError):
    reason = "DEADLINE_EXPIRED"

    def __init__(self) -> None:
        super().__init__()

    def __str__(self) -> str:
        return "the deadline passed before the answer was ready"


class SideFailed(ServingError):
    """A side network raised, or answered something that is not a finite number. Its neighbours are not affected."""

    reason = "SIDE_FAILED"

    def __init__(self, task: str, version: int, why: str) -> None:
        super().__init__(task, version, why)
        self.task, self.version, self.why = task, version, why

    def __str__(self) -> str:
        return f"the side network of {self.task}:{self.version} failed: {self.why}; roll it back"


class LoadError(ServingError):
    """A version that this server refuses to load. The version served before stays."""

    reason = "LOAD"
    transient = False
    """A later try may succeed although nothing changes in the registry's log."""


class IncompatibleSide(LoadError):
    """Trained on another backbone, or with another tokenizer."""

    reason = "INCOMPATIBLE_SIDE"

    def __init__(self, task: str, wants: str, has: str, remedy: str = "") -> None:
        super().__init__(task, wants, has, remedy)
        self.task, self.wants, self.has, self.remedy = task, wants, has, remedy or "retrain it on this backbone"

    def __str__(self) -> str:
        return f"{self.task}: trained on {self.wants}, this server runs {self.has}; {self.remedy}"


class CorruptSide(LoadError):
    """Damaged bytes, a checkpoint that does not fit its manifest, or weights that are not finite."""

    reason = "CORRUPT_SIDE"

    def __init__(self, task: str, version: int, why: str, transient: bool = False) -> None:
        super().__init__(task, version, why, transient)
        self.task, self.version, self.why, self.transient = task, version, why, transient

    def __str__(self) -> str:
        return f"{self.task}:{self.version} cannot be used: {self.why}; publish it again"


class SideTooLarge(LoadError):
    reason = "SIDE_TOO_LARGE"

    def __init__(self, task: str, version: int, size: int, limit: int) -> None:
        super().__init__(task, version, size, limit)
        self.task, self.version, self.size, self.limit = task, version, size, limit

    def __str__(self) -> str:
        return f"{self.task}:{self.version} is {self.size:,} bytes, the limit is {self.limit:,} (max_side_bytes)"


class GoldenMismatch(LoadError):
    """A golden example of the manifest is answered differently here than where it was trained."""

    reason = "GOLDEN_MISMATCH"

    def __init__(self, task: str, version: int, example: int, why: str) -> None:
        super().__init__(task, version, example, why)
        self.task, self.version, self.example, self.why = task, version, example, why

    def __str__(self) -> str:
        return f"{self.task}:{self.version} does not reproduce its golden example {self.example}: {self.why}"


class LoadFailed(LoadError):
    """Anything else that ended a load, such as a store that is away."""

    reason = "LOAD_FAILED"

    def __init__(self, task: str, version: int, why: str, transient: bool = False) -> None:
        super().__init__(task, version, why, transient)
        self.task, self.version, self.why, self.transient = task, version, why, transient

    def __str__(self) -> str:
        return f"{self.task}:{self.version} could not be loaded: {self.why}"


class StartError(ServingError):
    """The server cannot start like this. Never seen by a caller."""

    reason = "START"


class PortInUse(StartError):
    """`setting` is the one that names the port."""

    reason = "PORT_IN_USE"

    def __init__(self, port: int, setting: str = "port") -> None:
        super().__init__(port, setting)
        self.port, self.setting = port, setting

    def __str__(self) -> str:
        return f"port {self.port} is in use; stop what listens there, or choose another {self.setting} (0: a free one)"


class CannotListen(StartError):
    reason = "CANNOT_LISTEN"

    def __init__(self, host: str, port: int, why: str) -> None:
        super().__init__(host, port, why)
        self.host, self.port, self.why = host, port, why

    def __str__(self) -> str:
        return f"cannot listen on {self.host} port {self.port}: {self.why}; choose another host or port"
