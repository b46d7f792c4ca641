"""What a store's failure means, in a few words for people. Knows the texts of obstore's errors alone."""

import re

from obstore.exceptions import PermissionDeniedError, UnauthenticatedError

NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
CODE = re.compile(r"<Code>(\w+)</Code>")
DENIED = re.compile(r"Server returned non-2xx status code: (401|403)\b")
METADATA = re.compile(r"169\.254\.169\.254|/latest/api/token|metadata\.google|computeMetadata|/metadata/identity")
ADDRESS = re.compile(r"Error performing \w+ (?P<scheme>https?)://(?P<host>[^/\s]+)")
UNREACHABLE = ("error sending request", "timed out", "TimedOut", "kind: Connect", "kind: Timeout")


def why(error: BaseException) -> str:
    """One clause: what is wrong, and what to do where that is known."""
    text = str(error)
    address = ADDRESS.search(text)
    if METADATA.search(text):
        return "no credentials were found; set them in the environment, docs/registry.md says which"
    if "Account must be specified" in text:
        return "its account is not known; set AZURE_STORAGE_ACCOUNT_NAME"
    if any(code in text for code in NO_BUCKET):
        return "there is no such bucket or container; make it first"
    if denied := DENIED.search(text):
        code = CODE.search(text)
        return f"access is denied ({code[1] if code else denied[1]})"
    if isinstance(error, PermissionDeniedError | UnauthenticatedError):
        return f"access is denied ({first_line(error)})"
    if address and address["scheme"] == "http" and "builder error" in text:
        return f"{address['host']} is asked over plain http; set AWS_ALLOW_HTTP=true where that is meant"
    if address and any(sign in text for sign in UNREACHABLE):
        return f"{address['host']} cannot be reached"
    return first_line(error)


def first_line(error: BaseException) -> str:
    """First line of the error's text: obstore adds a dump of the source after it."""
    return (str(error) or type(error).__name__).splitlines()[0]
