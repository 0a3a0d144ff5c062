"""Whether a request is signed with a key that this server was given: Signature Version 4.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hashlib
import hmac
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from local_sagemaker.protocol import ApiError

ALGORITHM = "AWS4-HMAC-SHA256"
AUTHORIZATION = re.compile(
    rf"{ALGORITHM} +Credential=(?P<key>[^/, ]+)/(?P<date>[0-9]{{8}})/(?P<region>[^/, ]+)/(?P<service>[^/, ]+)"
    r"/aws4_request, *SignedHeaders=(?P<headers>[^, ]+), *Signature=(?P<signature>[0-9a-f]{64})"
)
# How far a request's time may be from now.
SKEW = timedelta(minutes=5)
# Keys that are kept, of a day each.
KEPT = 1000


@dataclass(frozen=True)
class Scope:
    """What a signing key is good for. token: of a session; None for a key without one."""

    access_key: str
    token: str | None
    date: str
    region: str
    service: str


# Returns the signing key of a scope, or raises ApiError if the access key or its token is not valid.
KeyOf = Callable[[Scope], bytes]


def signing_key(secret: str, scope: Scope) -> bytes:
    """Derives the key that signs a day's requests to a service in a region."""
    key = f"AWS4{secret}".encode()
    for part in (scope.date, scope.region, scope.service, "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


class Signatures:
    """Checks requests. key_of: is asked once for each scope."""

    def __init__(self, key_of: KeyOf) -> None:
        self._key_of = key_of
        self._kept: dict[Scope, bytes] = {}
        self._lock = threading.Lock()

    def knows(self, headers: Mapping[str, str]) -> bool:
        """Returns whether the key of these headers is kept, so that checking them asks nobody."""
        found = AUTHORIZATION.fullmatch(headers.get("Authorization", ""))
        with self._lock:
            return found is not None and _scope(found, headers) in self._kept

    def check(
        self, method: str, url: str, headers: Mapping[str, str], body: bytes, service: str, refused: int = 400
    ) -> str:
        """Returns the access key that signed a request. url: with scheme, path and query as they were sent.

        Raises ApiError with the status `refused` if it is not signed, or not with that key, or too long ago.
        """
        given = headers.get("Authorization", "")
        if not given:
            raise ApiError("MissingAuthenticationTokenException", "Missing Authentication Token", refused)
        found = AUTHORIZATION.fullmatch(given)
        amz_date = headers.get("X-Amz-Date", "")
        signed = found["headers"].split(";") if found else []
        if found is None or not amz_date or not {"host", "x-amz-date"} <= set(signed):
            message = "Authorization header requires 'Credential', 'SignedHeaders' and 'Signature', and a 'X-Amz-Date'."
            raise ApiError("IncompleteSignatureException", message, refused)
        amazons = {name.lower() for name in headers if name.lower().startswith("x-amz-")}
        if not amazons <= set(signed):
            message = (
                f"There were headers present in the request which were not signed: {sorted(amazons - set(signed))}"
            )
            raise ApiError("InvalidSignatureException", message, refused)
        digest = headers.get("X-Amz-Content-SHA256")
        if digest is not None and digest != hashlib.sha256(body).hexdigest():
            message = "The provided 'x-amz-content-sha256' header does not match what was computed."
            raise ApiError("InvalidSignatureException", message, refused)
        if found["service"] != service:
            message = f"Credential should be scoped to correct service: '{service}'."
            raise ApiError("InvalidSignatureException", message, refused)
        _check_time(amz_date, found["date"], refused)
        key = self._key(_scope(found, headers), refused)
        request = AWSRequest(method, url, {name: headers.get(name, "") for name in signed}, body)
        request.context["timestamp"] = amz_date
        auth = SigV4Auth(Credentials("", ""), found["service"], found["region"])
        text = auth.string_to_sign(request, auth.canonical_request(request))
        if not hmac.compare_digest(hmac.new(key, text.encode(), hashlib.sha256).hexdigest(), found["signature"]):
            message = (
                "The request signature we calculated does not match the signature you provided. Check your AWS Secret "
                "Access Key and signing method. Consult the service documentation for details."
            )
            raise ApiError("InvalidSignatureException", message, refused)
        return found["key"]

    def _key(self, scope: Scope, refused: int) -> bytes:
        with self._lock:
            if scope in self._kept:
                return self._kept[scope]
        try:
            key = self._key_of(scope)
        except ApiError as error:
            status = error.status if error.status >= 500 else refused
            raise ApiError(error.code, error.message, status) from error
        with self._lock:
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[scope] = key
        return key


def _scope(found: re.Match[str], headers: Mapping[str, str]) -> Scope:
    token = headers.get("X-Amz-Security-Token")
    return Scope(found["key"], token, found["date"], found["region"], found["service"])


def _check_time(amz_date: str, date: str, refused: int) -> None:
    try:
        signed = datetime.strptime(amz_date, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    except ValueError as error:
        message = f"Date must be in ISO-8601 'basic format'. Got '{amz_date}'."
        raise ApiError("IncompleteSignatureException", message, refused) from error
    now = datetime.now(UTC)
    if amz_date[:8] != date or abs(now - signed) > SKEW:
        message = f"Signature expired: {amz_date} is not within {SKEW.seconds // 60} min. of {now:%Y%m%dT%H%M%SZ}"
        raise ApiError("InvalidSignatureException", message, refused)
