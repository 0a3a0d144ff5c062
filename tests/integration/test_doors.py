"""Real browsers try the doors: a page of another origin, and one by a name that its owner points to this machine."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from local_aws.config import LocalConfig, free_port
from local_aws.credentials import credentials
from testing.browser import Page, browser, executable
from tests.integration.test_review import NO_BROWSER, page_over

pytestmark = pytest.mark.skipif(executable() is None, reason=NO_BROWSER)
REBOUND = "rebound.test"
# What a page may try at each service: path, body and headers. None of the headers asks for a preflight but the JSON's.
SIMPLE, JSON = {"Content-Type": "text/plain"}, {"Content-Type": "application/json"}
ATTEMPTS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "prefect": [
        ("/api/deployments/filter", "{}", SIMPLE),
        ("/api/deployments/filter", "{}", JSON),
        ("/api/deployments/filter", "{}", {**JSON, "Authorization": "Basic c2NvbmVzOnNjb25lcw=="}),
        ("/api/flow_runs/filter", "{}", SIMPLE),
        ("/api/work_pools/", '{"name": "evil", "type": "process"}', JSON),
    ],
    "ministack": [
        ("/_ministack/reset", "", SIMPLE),
        ("/_ministack/config", "{}", JSON),
        ("/", "Action=ListRoles&Version=2010-05-08", {"Content-Type": "application/x-www-form-urlencoded"}),
        ("/_scones/authorize", '{"accessKeyId": "test", "requests": []}', SIMPLE),
    ],
    "sagemaker": [
        ("/", "{}", SIMPLE),
        ("/", "{}", {**JSON, "X-Amz-Target": "SageMaker.ListTrainingJobs"}),
        ("/endpoints/scones-unlimited-classifier/invocations", "x", SIMPLE),
    ],
    "review": [
        ("/api/next", '{"reviewer": "anna"}', SIMPLE),
        ("/api/next", '{"reviewer": "anna"}', JSON),
    ],
}
ASK = """
(async () => {
  const [url, body, headers, mode] = %s;
  try {
    const answer = await fetch(url, {method: "POST", body, headers, mode, credentials: "include"});
    return answer.type === "opaque" ? "opaque" : answer.status + " " + (await answer.text()).slice(0, 200);
  } catch (error) { return "blocked: " + error; }
})()
"""


@contextmanager
def evil_page() -> Iterator[str]:
    """A page of another origin; returns its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>kittens</title>")

        def log_message(self, *details: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{server.server_address[1]}/"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def urls(stack: LocalConfig, installed: Any) -> Iterator[dict[str, str]]:
    """Where each service listens."""
    port = free_port()
    with page_over(installed.bucket, port):
        yield {
            "prefect": stack.prefect_url,
            "ministack": stack.aws_url,
            "sagemaker": stack.sagemaker_url,
            "review": f"http://127.0.0.1:{port}",
        }


def ask(page: Page, url: str, body: str, headers: dict[str, str], mode: str) -> str:
    return str(page.evaluate(ASK % json.dumps([url, body, headers, mode])))


def test_no_web_page_gets_an_answer_or_an_effect(urls: dict[str, str], stack: LocalConfig) -> None:
    rules = f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1"
    with browser(rules, "--ignore-certificate-errors") as opened, evil_page() as elsewhere:
        page = opened.page()
        page.open(elsewhere)
        for service, attempts in ATTEMPTS.items():
            for path, body, headers in attempts:
                # Without a preflight a browser sends the request, and hides what comes of it.
                for mode in ("cors", "no-cors"):
                    told = ask(page, urls[service] + path, body, headers, mode)
                    assert told.startswith("blocked") or told == "opaque", (service, path, mode, told)
        for service, attempts in ATTEMPTS.items():
            rebound = urls[service].replace("127.0.0.1", REBOUND)
            page = opened.page()
            page.open(f"{rebound}/")
            assert "127.0.0.1 and localhost only" in page.text(), service
            for path, body, headers in attempts:  # the page's own origin now, so that nothing hides the answer
                told = ask(page, rebound + path, body, headers, "cors")
                assert told.startswith(("403 ", "421 ")), (service, path, told)
    # What the same requests would have come to is still there, and nothing was made.
    login = credentials(stack).prefect_login
    pools = httpx.post(f"{stack.prefect_url}/api/work_pools/filter", json={}, auth=login, trust_env=False).json()
    assert [pool["name"] for pool in pools] == ["local"]


def test_a_program_without_the_password_gets_nothing_from_prefect(stack: LocalConfig) -> None:
    """Another account of this machine, which can connect and has no file of the installation."""
    url = f"{stack.prefect_url}/api/deployments/filter"
    assert httpx.post(url, json={}, trust_env=False).status_code == 401
    assert httpx.post(url, json={}, auth=("scones", "guessed"), trust_env=False).status_code == 401
    assert httpx.post(url, json={}, auth=credentials(stack).prefect_login, trust_env=False).status_code == 200


def test_a_person_is_signed_in_by_the_link_that_make_up_prints(stack: LocalConfig) -> None:
    with browser() as opened:
        page = opened.page()
        page.open(f"{stack.prefect_url}/")
        page.wait_for("/password|login/i.test(document.body.innerText)")
        page.open(credentials(stack).sign_in(stack.prefect_url))
        page.wait_for("document.body.innerText.includes('Work Pools')", 60)
        assert credentials(stack).prefect_password not in str(page.evaluate("location.href"))
        # Links to runs, as messages have them, open from then on.
        page.open(f"{stack.prefect_url}/deployments")
        page.wait_for("document.body.innerText.includes('nightly-evaluation')", 60)
