"""Who is let into ministack and Prefect on this machine, by the headers and signatures of requests."""

import asyncio
import json
import stat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.auth import S3SigV4QueryAuth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials as Keys

from local_aws import prefect_server, services
from local_aws.config import AUTHORIZER_PATH, LocalConfig
from local_aws.credentials import Credentials, credentials
from local_aws.environment import REGION, prepare
from local_aws.ministack.doors import HEALTH, with_doors

ROOT = Credentials("AKIAOWN", "secret", "password", "token")
URL = "https://127.0.0.1:4567/"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Stands for ministack, and answers with the body that it gets."""
    message = await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def ask(
    url: str,
    headers: dict[str, str],
    body: bytes = b"",
    method: str = "POST",
    twice: list[tuple[str, str]] | None = None,
) -> tuple[int, bytes]:
    split, twice = urlsplit(url), twice or []
    scope = {
        "type": "http",
        "method": method,
        "path": split.path,
        "raw_path": split.path.encode(),
        "query_string": split.query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in [*headers.items(), *twice]],
    }
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(with_doors(application, ROOT, lambda key: key == "ASIASESSION")(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def signed(key: str, secret: str, body: bytes = b"{}", **more: str) -> dict[str, str]:
    headers = {"Content-Type": "application/x-amz-json-1.0", "Host": "127.0.0.1:4567", **more}
    request = AWSRequest("POST", URL, headers, body)
    SigV4Auth(Keys(key, secret), "states", REGION).add_auth(request)
    return {name: str(value) for name, value in request.headers.items()}


def test_the_accounts_own_key_opens_and_another_secret_does_not() -> None:
    assert ask(URL, signed("AKIAOWN", "secret"), b"{}") == (200, b"{}")
    for headers, body in (
        (signed("AKIAOWN", "guessed"), b"{}"),
        (signed("AKIAOWN", "secret"), b'{"another": "body"}'),
        (signed("test", "test"), b"{}"),
        (signed("000000000000", "test"), b"{}"),
        ({"Host": "127.0.0.1:4567"}, b"{}"),
        ({**signed("AKIAOWN", "secret"), "X-Amz-Date": "20200101T000000Z"}, b"{}"),
    ):
        status, answer = ask(URL, headers, body)
        assert status in (400, 403), answer
    # A key that IAM or STS gave out is ministack's to know.
    assert ask(URL, signed("ASIASESSION", "any"), b"{}")[0] == 200


@pytest.mark.parametrize(
    "key", ["test", "", "123456789012", "１２３４５６７８９０１２", "١٢٣٤٥٦٧٨٩٠١٢", "AKIANOBODY", "akiaown", "AKIAOWN "]
)
def test_a_key_that_nobody_gave_out_is_refused_unread(key: str) -> None:
    """ministack takes twelve digits, of any script, for the root of an account of that number."""
    made = signed("KEY", "x")
    made["Authorization"] = made["Authorization"].replace("Credential=KEY", f"Credential={key}")
    assert ask(URL, made, b"{}")[0] in (400, 403)
    link = f"{URL}?Action=ListRoles&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={key}/20261129/x/iam/aws4_request"
    assert ask(f"{link}&X-Amz-Signature=0", {"Host": "127.0.0.1:4567"}, method="GET")[0] in (400, 403)


@pytest.mark.parametrize("name", ["Authorization", "X-Amz-Date", "X-Amz-Security-Token", "Host", "Content-Type"])
def test_what_is_there_twice_is_refused(name: str) -> None:
    """Of two Authorization headers ministack believes the first key, whoever signed the second."""
    made = signed("AKIAOWN", "secret")
    assert ask(URL, made, b"{}", twice=[(name, made.get(name, "x")), (name, "x")])[0] == 400
    both = made["Authorization"].replace("Credential=", "Credential=test/x, Credential=")
    assert ask(URL, {**made, "Authorization": both}, b"{}")[0] in (400, 403)


def test_a_link_that_is_signed_opens_and_a_changed_one_does_not() -> None:
    request = AWSRequest("GET", f"{URL}bucket/key.png")
    S3SigV4QueryAuth(Keys("AKIAOWN", "secret"), "s3", REGION, expires=60).add_auth(request)
    host = {"Host": "127.0.0.1:4567"}
    link = {**host, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert ask(str(request.url), link, method="GET")[0] == 200  # a person clicks it in a report
    assert ask(str(request.url), {**link, "Sec-Fetch-Dest": "iframe"}, method="GET")[0] == 403
    other = AWSRequest("GET", f"{URL}?Action=GetCallerIdentity&Version=2011-06-15")
    S3SigV4QueryAuth(Keys("AKIAOWN", "secret"), "sts", REGION, expires=60).add_auth(other)
    assert ask(str(other.url), host, method="GET")[0] == 403
    assert ask(str(request.url).replace("key.png", "other.png"), host, method="GET")[0] == 403
    assert ask(f"{request.url}&X-Amz-Credential=test/x", host, method="GET")[0] == 400
    assert ask(str(request.url), {**host, **signed("ASIASESSION", "any")}, method="GET")[0] == 403


@pytest.mark.parametrize(
    "changed",
    [
        {"Host": "rebound.example:4567"},
        {"Host": ""},
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"},
    ],
)
def test_web_pages_are_refused_whatever_they_have(changed: dict[str, str]) -> None:
    assert ask(URL, {**signed("AKIAOWN", "secret"), **changed}, b"{}")[0] in (403, 421)


@pytest.mark.parametrize(
    "path", ["/_ministack/reset", "/_ministack/config", "/_ministack/lambda-code/x", "/_localstack/health", "/health"]
)
def test_pages_for_administration_are_closed_even_to_the_owner(path: str) -> None:
    assert ask(f"https://127.0.0.1:4567{path}", signed("AKIAOWN", "secret"), b"{}")[0] == 403


def test_health_needs_nothing_and_the_authorizer_the_secret() -> None:
    host = {"Host": "127.0.0.1:4567"}
    assert ask(f"https://127.0.0.1:4567{HEALTH}", host, method="GET")[0] == 200
    url = f"https://127.0.0.1:4567{AUTHORIZER_PATH}"
    assert ask(url, {**host, "Authorization": "Bearer secret"})[0] == 200
    for given in ({}, {"Authorization": "Bearer guessed"}, {"Authorization": "Bearer "}):
        assert ask(url, {**host, **given})[0] == 403


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ({}, False),  # a program
        ({"Origin": "http://127.0.0.1:4210", "Sec-Fetch-Site": "same-origin"}, False),  # Prefect's own pages
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, False),  # a link
        ({"Origin": "https://evil.example"}, True),
        ({"Origin": "http://127.0.0.1:9999"}, True),
        ({"Origin": "null"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, True),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, True),
        ({"Host": "rebound.example:4210"}, True),
    ],
)
def test_prefect_answers_its_own_pages_and_programs_only(headers: dict[str, str], refused: bool) -> None:
    raw = [(name.lower().encode(), value.encode()) for name, value in {"Host": "127.0.0.1:4210", **headers}.items()]
    assert (prefect_server.foreign(raw) is not None) is refused


def test_secrets_are_random_kept_and_readable_by_their_owner_only(tmp_path: Path) -> None:
    config, other = LocalConfig(state=tmp_path / "a"), LocalConfig(state=tmp_path / "b")
    config.state.mkdir(mode=0o755)
    made = credentials(config)
    assert credentials(config) == made and credentials(other) != made
    assert len(set(made.__dict__.values())) == 4 and all(len(value) >= 16 for value in made.__dict__.values())
    assert stat.S_IMODE(config.state.stat().st_mode) == 0o700
    file = config.state / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600 and json.loads(file.read_text())
    assert [each.name for each in config.state.iterdir()] == ["credentials.json"]


def test_what_holds_a_password_is_the_owners_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefect's database may be PostgreSQL with a password in its URL, which env.sh and services.json name."""
    config = LocalConfig(state=tmp_path / "state", prefect_database="postgresql+asyncpg://u:geheim@127.0.0.1/p")
    prepare(config)
    (config.state / "env.sh").write_text("from before")
    monkeypatch.setattr(services, "_start", lambda *about: None)
    monkeypatch.setattr(services, "_supervisor", lambda *about, **more: None)
    monkeypatch.setattr(services, "_check_ports", lambda *about: None)
    services.up(config)
    for file in config.state.iterdir():
        if file.is_file() and ("geheim" in file.read_text() or "PASSWORD" in file.read_text().upper()):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert "geheim" in (config.state / "env.sh").read_text() + (config.state / "services.json").read_text()
