"""Who calls, and what may they do: TLS certificates, tokens, scopes, rate limits, the audit log. Knows no gRPC."""

from serving.access.access import LOOPBACK, REQUEST_ID, Access, check_exposure, request_id_of, scrape_guard
from serving.access.audit import refuse_version
from serving.access.caller import ANYBODY, Caller
from serving.access.certificates import Certificates, Pem, open_certificates
from serving.access.scopes import ADMIN, PREDICT, PUBLISH, READ
from serving.access.trust import TrustPolicy

__all__ = [
    "ADMIN",
    "ANYBODY",
    "LOOPBACK",
    "PREDICT",
    "PUBLISH",
    "READ",
    "REQUEST_ID",
    "Access",
    "Caller",
    "Certificates",
    "Pem",
    "TrustPolicy",
    "check_exposure",
    "open_certificates",
    "refuse_version",
    "request_id_of",
    "scrape_guard",
]
