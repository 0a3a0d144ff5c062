"""Lets in only requests that are signed with a key of this account, and sent to this machine by its own name.

ministack checks the signatures of keys that IAM and STS gave out, and believes whoever names the root key. Here the
root has one key, a random one, and its signatures are checked as well. Its own pages for administration, which know
neither keys nor signatures, are closed but for the one that says whether it is up.
"""

import hmac
import json
import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import parse_qs

from ministack.core import sigv4
from ministack.core.router import extract_access_key_id

from local_aws.config import AUTHORIZER_PATH
from local_aws.credentials import Credentials

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
Refusal = tuple[int, str, str]
Query = dict[str, list[str]]

HOSTS = ("127.0.0.1", "localhost")
HEALTH = "/_ministack/health"
ADMINISTRATION = ("/_ministack", "/_localstack", "/health")
# As IAM and STS give them out. ministack takes some others for a root's: "test", and twelve digits of any script.
KEY = re.compile(r"A[KS]IA[A-Z0-9]{1,124}")
# Whoever sends one of these twice would have two readers take two of them.
ONCE = ("authorization", "host", "origin", "content-type", "content-length", "x-amz-", "sec-fetch-")
UNSIGNED = (403, "MissingAuthenticationToken", "Request is missing Authentication Token")


def with_doors(app: Application, root: Credentials, known: Callable[[str], bool]) -> Application:
    """Returns the ASGI application behind these checks. known: whether IAM or STS gave an access key out."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await app(scope, receive, send)
            return
        names = [name.decode("latin-1").lower() for name, _ in scope["headers"]]
        headers = {name.decode("latin-1").lower(): sigv4.decode_header_value(value) for name, value in scope["headers"]}
        query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        if refusal := doubled(names, query) or foreign(scope["method"], headers, query) or closed(scope, headers, root):
            await _refuse(send, refusal, headers)
            return
        if scope["path"] in (HEALTH, AUTHORIZER_PATH):
            await app(scope, receive, send)
            return
        # Whoever has no key cannot have bodies read either.
        key = _key(headers, query)
        if not isinstance(key, str):
            await _refuse(send, key, headers)
            return
        own = hmac.compare_digest(key.encode(), root.access_key_id.encode())
        if not own and not known(key):
            await _refuse(send, _unknown(headers), headers)
            return
        body = await _read(receive)
        if body is None:
            return
        if own and (refusal := _wrongly_signed(scope, headers, query, body, root)):
            await _refuse(send, refusal, headers)
            return
        await app(scope, _again(body, receive), send)

    return application


def doubled(names: list[str], query: Query) -> Refusal | None:
    """Refuses a request that says twice what is to be said once, as two readers may believe two of it."""
    once = [name for name in names if name.startswith(ONCE)]
    if len(once) > len(set(once)) or any(len(query[name]) > 1 for name in query if name.lower().startswith("x-amz")):
        return 400, "InvalidRequest", "a header or parameter of a signature is there twice"
    return None


def foreign(method: str, headers: dict[str, str], query: Query) -> Refusal | None:
    """Refuses what a web page may have sent: to a name that its owner points to this machine, or from another origin.

    A browser adds Origin to every request of a script to another site, and Sec-Fetch-Site to all. A person who follows
    a signed link is let through, as a page can't read what comes of that.
    """
    if headers.get("host", "").rsplit(":", 1)[0] not in HOSTS:
        return 421, "InvalidHost", "this server is 127.0.0.1 and localhost only"
    link = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    link = link and method == "GET" and "X-Amz-Signature" in query
    if "origin" in headers or (headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not link):
        return 403, "AccessDenied", "requests of web pages are refused"
    return None


def closed(scope: Scope, headers: dict[str, str], root: Credentials) -> Refusal | None:
    """Refuses paths of ministack that need no signature, and whoever asks the authorizer without the root's secret."""
    if scope["path"] == AUTHORIZER_PATH:
        given, wanted = headers.get("authorization", ""), f"Bearer {root.secret_access_key}"
        return None if hmac.compare_digest(given.encode(), wanted.encode()) else UNSIGNED
    if scope["path"] == HEALTH and scope["method"] == "GET":
        return None
    if scope["path"].startswith(ADMINISTRATION):
        return 403, "AccessDenied", f"{scope['path']} is closed"
    return None


def _key(headers: dict[str, str], query: Query) -> str | Refusal:
    """Returns the access key that a request names by a signature of version 4, or why it is refused."""
    by_header = "authorization" in headers
    by_query = any(name.lower() in ("x-amz-credential", "awsaccesskeyid") for name in query)
    if by_header and by_query:
        return 403, "AccessDenied", "a request is signed once, and in one place"
    if by_header:
        credential = re.fullmatch(r"AWS4-HMAC-SHA256 .*?Credential=([^/,]+)/[^,]+,.*", headers["authorization"])
    elif by_query:
        # Links are to objects. Other services of ministack would not look when a link has expired.
        credential = re.fullmatch(r"([^/]+)/[^/]+/[^/]+/s3/aws4_request", query.get("X-Amz-Credential", [""])[0])
    else:
        return UNSIGNED
    if credential is None or headers.get("authorization", "").count("Credential=") > 1:
        return 403, "IncompleteSignature", "a signature of version 4 is needed; a link has to be one to S3"
    key = credential[1]
    return key if KEY.fullmatch(key) and key == extract_access_key_id(headers, query) else _unknown(headers)


def _unknown(headers: dict[str, str]) -> Refusal:
    """What AWS answers to an access key that there is not, by the protocol of the request."""
    kind = headers.get("content-type", "")
    if "json" in kind:
        return 400, "UnrecognizedClientException", "The security token included in the request is invalid."
    if "form-urlencoded" in kind:
        return 403, "InvalidClientTokenId", "The security token included in the request is invalid."
    return 403, "InvalidAccessKeyId", "The AWS Access Key Id you provided does not exist in our records."


def _wrongly_signed(
    scope: Scope, headers: dict[str, str], query: Query, body: bytes, root: Credentials
) -> Refusal | None:
    """Refuses a request that names the root's key and is not signed with it."""
    by_query = "authorization" not in headers
    signature = sigv4.parse_query_signature(query) if by_query else sigv4.parse_header_signature(headers)
    if isinstance(signature, tuple):
        return 403, *signature
    if not by_query and (late := sigv4.request_time_failure(signature)):
        return 403, *late
    path = (scope.get("raw_path") or scope["path"].encode()).decode("latin-1")
    failure = sigv4.header_signature_failure(
        signature, root.secret_access_key, scope["method"], path, query, headers, body, presigned=by_query
    )
    return (403, *failure) if failure else None


async def _read(receive: Receive) -> bytes | None:
    """Returns the whole body; None if the client has gone."""
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """Returns what gives the body that was read already, and then what comes after it."""
    given = False

    async def repeat() -> dict[str, Any]:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return repeat


async def _refuse(send: Send, refusal: Refusal, headers: dict[str, str]) -> None:
    """Answers in the form that the caller's protocol has for errors."""
    status, code, message = refusal
    if "json" in headers.get("content-type", ""):
        kind, content = "application/x-amz-json-1.1", json.dumps({"__type": code, "message": message})
    else:
        kind, content = "application/xml", f"<Error><Code>{code}</Code><Message>{_escaped(message)}</Message></Error>"
        if "form-urlencoded" in headers.get("content-type", ""):
            content = f"<ErrorResponse>{content}</ErrorResponse>"
    fields = [(b"content-type", kind.encode()), (b"x-amzn-errortype", code.encode())]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": content.encode()})


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
