"""Who calls: a name, a tenant and scopes, as a token says."""

from dataclasses import dataclass, field

from serving.access.scopes import ADMIN, Scope, Scopes


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls. Made once for a token, and the same object for each of its calls."""

    name: str
    """For logs and limits; not secret."""
    tenant: str = ""
    """Callers of different tenants share no cached activations."""
    scopes: Scopes = field(default_factory=lambda: Scopes(()), repr=False, compare=False)


ANYBODY = Caller("anybody", "", Scopes((Scope(ADMIN),)))
"""Every caller of a server that asks for no tokens."""
