"""HTTP: the API's routes and shapes, answered by gRPC's servicers. Only this wing knows Starlette and uvicorn.

Its face needs neither; `app` and `listener` do, and are imported where the extra `http` is installed.
"""

from serving.http.port import wanted_port

__all__ = ["wanted_port"]
