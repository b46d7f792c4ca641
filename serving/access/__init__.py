"""Who calls, and what may they do: TLS certificates, tokens, scopes, rate limits, the audit log. Knows no gRPC."""

from serving.access.access import Access, check_exposure, request_id_of, scrape_guard
from serving.access.audit import write_audit
from serving.access.caller import ANYBODY, Caller
from serving.access.certificates import Certificates, Pem, open_certificates
from serving.access.scopes import ADMIN, PREDICT, PUBLISH, READ

__all__ = [
    "ADMIN",
    "ANYBODY",
    "PREDICT",
    "PUBLISH",
    "READ",
    "Access",
    "Caller",
    "Certificates",
    "Pem",
    "check_exposure",
    "open_certificates",
    "request_id_of",
    "scrape_guard",
    "write_audit",
]
