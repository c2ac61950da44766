"""Send spans to AWS X-Ray, which requires signed requests (Signature Version 4): python aws_sigv4.py

Environment: AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, for temporary credentials, AWS_SESSION_TOKEN.
"""

import hashlib
import hmac
import os
import random
import sys
import time
from collections.abc import Callable, Generator, Mapping
from datetime import UTC, datetime
from urllib.parse import quote

import attrs
import httpx
import trio

from trio_spanbatch import Loss, OTLPExporter, Span, SpanBatcher, SpanContext

# Headers that a proxy may change, and the header that is added here. All others are signed, including the header of
# the location.
UNSIGNED = {"accept", "accept-encoding", "authorization", "connection", "content-length", "user-agent"}


@attrs.frozen
class Credentials:
    """The credentials for a signature."""

    access_key: str
    secret_key: str = attrs.field(repr=False)
    session_token: str | None = attrs.field(default=None, repr=False)


def from_environment(environ: Mapping[str, str] = os.environ) -> Credentials:
    """Return the credentials in the environment."""
    token = environ.get("AWS_SESSION_TOKEN") or None
    return Credentials(environ["AWS_ACCESS_KEY_ID"], environ["AWS_SECRET_ACCESS_KEY"], token)


def utc_now() -> datetime:
    """Return the time of a signature. AWS accepts it for five minutes."""
    return datetime.now(UTC)


class SigV4(httpx.Auth):
    """Signs each request, including its body, when it is sent: each attempt gets a new signature.

    Args:
        region: For instance ``"eu-central-1"``.
        service: The service's name in signatures: ``"xray"``, or ``"execute-api"`` behind an API Gateway.
        credentials: Returns the credentials; called for every request, as temporary ones are replaced.
        now: Returns the time.
    """

    # Makes httpx read the body, compressed as it is sent, before `auth_flow`.
    requires_request_body = True

    def __init__(
        self,
        region: str,
        service: str,
        credentials: Callable[[], Credentials] = from_environment,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self._region = region
        self._service = service
        self._credentials = credentials
        self._now = now

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Sign ``request``."""
        credentials = self._credentials()
        moment = f"{self._now():%Y%m%dT%H%M%SZ}"
        request.headers["x-amz-date"] = moment
        if credentials.session_token is not None:
            request.headers["x-amz-security-token"] = credentials.session_token
        if request.url.query:
            # httpx encodes a space as +, which AWS reads as a plus sign.
            request.url = request.url.copy_with(query=request.url.query.replace(b"+", b"%20"))
        names = sorted({name.lower() for name in request.headers} - UNSIGNED)
        canonical = canonical_request(request, names)
        scope = f"{moment[:8]}/{self._region}/{self._service}/aws4_request"
        text = "\n".join(("AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(canonical.encode()).hexdigest()))
        key = f"AWS4{credentials.secret_key}".encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        request.headers["authorization"] = (
            f"AWS4-HMAC-SHA256 Credential={credentials.access_key}/{scope}, SignedHeaders={';'.join(names)}, "
            f"Signature={hmac.new(key, text.encode(), 'sha256').hexdigest()}"
        )
        yield request


def canonical_request(request: httpx.Request, names: list[str]) -> str:
    """Return the text to sign: the method, the path, the query, the headers ``names`` and a hash of the body."""
    path, _, query = request.url.raw_path.decode("ascii").partition("?")
    headers = [f"{name}:{' '.join(request.headers[name].split())}\n" for name in names]
    return "\n".join(
        (
            request.method,
            # All services except S3 require the path to be encoded once more.
            quote(path, safe="/-_.~"),
            "&".join(sorted(query.split("&"))),
            "".join(headers),
            ";".join(names),
            hashlib.sha256(request.content).hexdigest(),
        )
    )


def tell(loss: Loss) -> None:
    """Report spans that were not stored."""
    print(f"{loss.location}: {loss.count} {loss.outcome}: {loss.reason}", file=sys.stderr)


async def main(environ: Mapping[str, str]) -> None:
    """Trace a nap."""
    region = environ["AWS_REGION"]
    endpoint = environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or f"https://xray.{region}.amazonaws.com/v1/traces"
    # The exporter's timeout covers a whole attempt, and the batcher limits the number of concurrent attempts.
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(auth=SigV4(region, "xray"), timeout=None, limits=limits) as client:
        exporter = OTLPExporter(endpoint, client=client, compression="gzip")
        async with SpanBatcher(exporter, on_loss=tell) as batcher:
            started = time.time_ns()
            await trio.sleep(0.01)
            context = SpanContext(random.getrandbits(128), random.getrandbits(64))
            await batcher.add_span("default", Span("nap", context, start_time=started, end_time=time.time_ns()))
        print(f"delivered: {batcher.statistics().delivered}")


if __name__ == "__main__":
    trio.run(main, os.environ)
