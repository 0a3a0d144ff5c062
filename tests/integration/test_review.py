"""The review of unsure images: the desk over a real bucket, the page in a real browser, and the whole loop."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from botocore.exceptions import ClientError
from msgspec.structs import replace
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.events.filters import EventFilter, EventNameFilter

from flows.classify_images import classify_images
from flows.confidence_report import confidence_report
from flows.deploy_endpoint import deploy_endpoint
from flows.prepare_data import prepare_data
from flows.queue_review import queue_review
from flows.teardown import teardown
from flows.train_model import train_model
from local_aws.config import LocalConfig, free_port
from local_aws.credentials import credentials
from settings import BACKLOG_EVENT, ROOT, Settings, settings
from tasks.aws import storage
from tasks.aws.clients import client
from tasks.aws.stacks import installation
from tasks.data.dataset import png
from tasks.data.generated import FAR, draw
from tasks.data.images import dataset_note
from tasks.installation import Installation
from tasks.model.registry import APPROVED
from tasks.review import training_set
from tasks.review.announcement import announce
from tasks.review.desk import Desk, ReviewRefused
from tasks.review.labels import Label, Review, counted
from tasks.review.page import COOKIE, address
from tasks.review.queue import Waiting
from tasks.review.training_set import Use
from tasks.run import utc_now
from testing.browser import Page, browser, executable
from testing.waiting import eventually
from tests.integration.conftest import reports_folder
from tests.unit.test_labels import name_of, waiting

STACK = "reviews"
CLASSES = ("bicycle", "motorcycle")
TOKEN = credentials(LocalConfig()).review_token
SCRIPT = "<img src=x onerror=alert(1)>.png"
NO_BROWSER = "needs chromium or google-chrome"


# The desk, over a bucket of its own.


@pytest.fixture
def bucket(stack: LocalConfig) -> Iterator[str]:
    name = f"desk-{uuid.uuid4().hex[:12]}"
    client("s3").create_bucket(Bucket=name)
    yield name
    storage.empty(name)
    storage.delete_bucket(name)


def fill(bucket: str, images: int = 4, **changed: Any) -> list[Waiting]:
    """Queues generated images, the least certain first."""
    queued = []
    for number in range(images):
        content = png(draw(CLASSES[number % 2], 80_000 + number))
        one = waiting(
            number,
            **(
                {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "confidence": 0.5 + number / 100,
                    "queued": utc_now().isoformat(timespec="milliseconds"),
                    "predicted_class": CLASSES[number % 2],
                }
                | changed
            ),
        )
        storage.put(bucket, one.key, content)
        storage.put_json(bucket, f"review/queue/{one.inference_id}.json", one.to_json())
        queued.append(one)
    return queued


def desk_of(bucket: str, **changed: Any) -> Desk:
    """As one process of the page has it."""
    chosen: Settings = settings().model_copy(update={"review_double_share": 0.0, **changed})
    return Desk(bucket, chosen, CLASSES)


def test_an_image_is_shown_to_one_person_and_the_next_one_to_another_also_by_another_process(bucket: str) -> None:
    fill(bucket)
    first, second = desk_of(bucket), desk_of(bucket)
    shown = [first.take("anna"), second.take("ben"), first.take("cleo"), second.take("dora"), first.take("eve")]
    assert [each.inference_id if each else None for each in shown] == [*(name_of(number) for number in range(4)), None]
    again = first.take("anna")
    assert again is not None and again.inference_id == name_of(0)


def test_many_people_at_once_are_never_shown_the_same_image(bucket: str) -> None:
    fill(bucket, 12)
    desks = [desk_of(bucket) for _ in range(3)]
    with ThreadPoolExecutor(12) as threads:
        shown = list(threads.map(lambda number: desks[number % 3].take(f"person{number}"), range(12)))
    names = [each.inference_id for each in shown if each]
    assert len(names) == len(set(names)) >= 10


def test_a_lease_ends_and_what_its_holder_says_after_that_counts_all_the_same(bucket: str) -> None:
    fill(bucket, 1)
    desk = desk_of(bucket)
    assert desk.take("anna") is not None and desk.take("ben") is None
    lease = f"review/leases/{name_of(0)}.json"
    held = storage.get_json(bucket, lease)
    storage.put_json(bucket, lease, {**held, "until": (utc_now() - timedelta(seconds=1)).isoformat()})
    assert desk.take("ben") is not None
    desk.answer(name_of(0), "anna", "class", "bicycle", 3.0)
    assert storage.get_json(bucket, lease)["reviewer"] == "ben"
    desk.answer(name_of(0), "ben", "class", "motorcycle", 3.0)
    # Two who disagree are as good as two who were asked: a third decides.
    assert desk.outcome(name_of(0)).state == "open" and desk.take("cleo") is not None
    assert storage.get(bucket, lease) is not None
    desk.answer(name_of(0), "cleo", "class", "motorcycle", None)
    decided = desk.outcome(name_of(0))
    assert decided.answer is not None and decided.answer.label == "motorcycle" and storage.get(bucket, lease) is None


def test_a_damaged_lease_holds_nothing(bucket: str) -> None:
    fill(bucket, 1)
    storage.put(bucket, f"review/leases/{name_of(0)}.json", b"\x00not json")
    assert desk_of(bucket).take("anna") is not None


def test_two_answers_at_once_are_both_kept_and_the_last_one_counts(bucket: str) -> None:
    fill(bucket, 1)
    desks = [desk_of(bucket), desk_of(bucket)]
    with ThreadPoolExecutor(8) as threads:
        said = list(
            threads.map(
                lambda number: desks[number % 2].answer(name_of(0), "anna", "class", CLASSES[number % 2], 1.0), range(8)
            )
        )
    # The same answer a second time in a row is taken for one that was sent again.
    assert len(storage.list_etags(bucket, f"review/labels/{name_of(0)}/")) == len({each.key for each in said}) >= 2
    assert {each.label for each in said} == set(CLASSES)
    fresh = desk_of(bucket)
    fresh.refresh()
    decided = fresh.outcome(name_of(0))
    assert len(decided.answers) == 1 and decided.answer == max(said, key=lambda each: each.time)


def test_undo_takes_back_the_last_answer_also_of_an_earlier_process(bucket: str) -> None:
    fill(bucket, 3)
    desk = desk_of(bucket)
    desk.answer(name_of(0), "anna", "class", "bicycle", 1.0)
    desk.answer(name_of(1), "anna", "skipped", None, 1.0)
    desk.answer(name_of(2), "ben", "unreadable", None, 1.0)
    later = desk_of(bucket)
    back = [later.undo("anna"), later.undo("anna"), later.undo("anna")]
    assert [each.inference_id if each else None for each in back] == [name_of(1), name_of(0), None]
    assert {name: later.outcome(name_of(name)).state for name in range(3)} == {0: "open", 1: "open", 2: "answered"}
    assert len(storage.list_etags(bucket, "review/labels/")) == 5


def test_an_answer_that_is_sent_again_is_stored_once_and_a_lease_of_another_clock_holds_nothing(bucket: str) -> None:
    fill(bucket, 1)
    desk = desk_of(bucket)
    said = [desk.answer(name_of(0), "anna", "class", "bicycle", 1.0) for _ in range(3)]
    assert len(storage.list_etags(bucket, "review/labels/")) == 1 and said[0] == said[2]
    other = fill(bucket, 2)[1]
    held = {"schema_version": 1, "reviewer": "ben", "until": "9999-01-01T00:00:00.000+00:00"}
    storage.put_json(bucket, f"review/leases/{other.inference_id}.json", held)
    fresh = desk_of(bucket)
    shown = fresh.take("anna")
    assert shown is not None and shown.inference_id == other.inference_id


def test_an_image_that_is_gone_or_another_one_is_not_shown_and_expires(bucket: str) -> None:
    fill(bucket, 3)
    desk = desk_of(bucket)
    storage.delete(bucket, "incoming/0.png")
    storage.put(bucket, "incoming/1.png", png(draw("bicycle", 1)))
    for number in (0, 1):
        with pytest.raises(ReviewRefused, match="not there any more") as refused:
            desk.picture(name_of(number))
        assert refused.value.status == 410
    counts = desk.progress("anna").states
    assert counts == {"answered": 0, "open": 1, "skipped": 0, "expired": 2} and desk.progress("anna").left == 1


@pytest.mark.parametrize("content", [b"", b"<svg onload=alert(1)>", b"\x89PNG\r\n\x1a\n" + b"0" * 100])
def test_an_object_that_is_no_picture_is_not_sent_and_can_be_answered(bucket: str, content: bytes) -> None:
    storage.put(bucket, "incoming/0.png", content)
    one = waiting(0, sha256=hashlib.sha256(content).hexdigest())
    storage.put_json(bucket, f"review/queue/{one.inference_id}.json", one.to_json())
    desk = desk_of(bucket)
    assert desk.picture(name_of(0)) is None
    desk.answer(name_of(0), "anna", "unreadable", None, 2.0)


def test_nothing_but_what_is_in_the_queue_is_ever_read(bucket: str) -> None:
    (one,) = fill(bucket, 1)
    storage.put(bucket, "manifests/other.json", b"{}")
    test_image = replace(one, inference_id=name_of(7), key="test/bicycle_50000.png")
    elsewhere = replace(one, inference_id="../../manifests/x")
    storage.put_json(bucket, f"review/queue/{name_of(7)}.json", test_image.to_json())
    storage.put_json(bucket, "review/queue/../../manifests/x.json", elsewhere.to_json())
    storage.put(bucket, f"review/queue/{name_of(8)}.json", b"not json")
    desk = desk_of(bucket)
    for name in (name_of(7), name_of(8), "../../manifests/x", "manifests/other.json", "", "x" * 100):
        with pytest.raises(ReviewRefused) as refused:
            desk.picture(name)
        assert refused.value.status == 404
    assert set(desk.review.queue) == {name_of(0)} and len(desk.review.strange) == 3
    assert desk.progress("anna").strange == 3


# The page, in a process of its own.


@contextmanager
def page_over(bucket: str, port: int, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The application over any bucket, as review.py serves it."""
    code = (
        "import sys; from settings import settings; from tasks.review.desk import Desk; "
        "from tasks.review.page import application, serve; "
        "desk = Desk(sys.argv[1], settings(), ('bicycle', 'motorcycle')); "
        "serve(application(desk, int(sys.argv[2]), 'anna', lambda *new: None, sys.argv[3]), int(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, bucket, str(port), TOKEN],
        cwd=ROOT,
        env={**os.environ, "SCONES_REVIEW_DOUBLE_SHARE": "0", **environment},
        text=True,
    )
    try:
        eventually(lambda: _answers(port), 60)
        yield process
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(address(port, TOKEN), follow_redirects=True).status_code == 200
    except httpx.HTTPError:
        return False


def asked(port: int, path: str, body: Any, **headers: str) -> httpx.Response:
    own = {"Origin": f"http://127.0.0.1:{port}", "Content-Type": "application/json", "Cookie": f"{COOKIE}={TOKEN}"}
    content = body if isinstance(body, str) else json.dumps(body)
    return httpx.post(f"http://127.0.0.1:{port}/api/{path}", content=content, headers={**own, **headers})


def test_the_pages_edges(bucket: str) -> None:
    fill(bucket, 2)
    port = free_port()
    ours = {"reviewer": "anna"}
    answer = {**ours, "inference_id": name_of(0), "answer": "class", "label": "bicycle", "seconds": 1.5}
    with page_over(bucket, port):
        for headers in (
            {"Origin": "https://evil.example"},
            {"Origin": "null"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "evil.example"},
            {"Content-Type": "text/plain"},
            {"Cookie": ""},
            {"Cookie": f"{COOKIE}=guessed"},
        ):
            refused = asked(port, "answers", answer, **headers)
            assert refused.status_code in (401, 403, 415, 421) and "error" in refused.json(), headers
        image = f"http://127.0.0.1:{port}/api/images/{name_of(0)}"
        assert httpx.get(image, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
        for path in ("", "?token=guessed", "static/review.js", f"api/images/{name_of(0)}"):
            assert httpx.get(f"http://127.0.0.1:{port}/{path}").status_code == 401, path
        for body, status in (
            ("{", 422),
            ("[]", 422),
            (json.dumps({**ours, "padding": "x" * 20_000}), 413),
            ({"reviewer": "<script>alert(1)</script>"}, 422),
            ({"reviewer": ""}, 422),
            ({"reviewer": "page"}, 422),
            ({"reviewer": 7}, 422),
            ({**ours, "more": 1}, 422),
        ):
            refused = asked(port, "next", body)
            assert refused.status_code == status and refused.json()["error"], body
        for changed, status in (
            ({"answer": "gone", "label": None}, 422),
            ({"answer": "class", "label": None}, 422),
            ({"answer": "unreadable"}, 422),
            ({"label": "tractor"}, 422),
            ({"inference_id": name_of(9)}, 404),
            ({"inference_id": "../../labels/x"}, 404),
            ({"seconds": "long"}, 422),
        ):
            refused = asked(port, "answers", {**answer, **changed})
            assert refused.status_code == status and refused.json()["error"], changed
        assert storage.list_etags(bucket, "review/labels/") == {}
        shown = asked(port, "next", ours)
        # Nothing of what the model said before the answer.
        assert shown.json()["item"] == {"inference_id": name_of(0)}
        got = httpx.get(image, cookies={COOKIE: TOKEN})
        assert got.content == storage.get(bucket, "incoming/0.png") and got.headers["content-type"] == "image/png"
        for header in ("content-security-policy", "x-content-type-options", "cross-origin-resource-policy"):
            assert got.headers[header]
        given = asked(port, "answers", {**answer, "seconds": 1e300}).json()
        assert (given["predicted_class"], given["agrees"]) == ("bicycle", True)
        stored = storage.get_record(bucket, given["stored"], Label)
        assert stored is not None and stored.seconds is None and stored.label == "bicycle"
        assert (
            httpx.get(f"http://127.0.0.1:{port}/static/..%2f..%2fdesk.py", cookies={COOKIE: TOKEN}).status_code == 404
        )
        with pytest.raises(httpx.ConnectError):  # on this machine's loopback interface only
            httpx.get(f"http://{own_address()}:{port}/", timeout=3)


def own_address() -> str:
    """An address of this machine that is not of the loopback interface, or one that nobody has."""
    import psutil

    found = [
        each.address for all_of in psutil.net_if_addrs().values() for each in all_of if each.family.name == "AF_INET"
    ]
    return next((address for address in found if not address.startswith("127.")), "127.0.0.2")


needs_browser = pytest.mark.skipif(executable() is None, reason=NO_BROWSER)


def entered(page: Page, port: int, name: str) -> None:
    """Opens the page as that person."""
    page.open(address(port, TOKEN))
    page.wait_for("document.getElementById('who').open")
    page.evaluate(f"document.getElementById('name').value = {name!r}")
    page.evaluate("document.querySelector('#who form button').click()")
    page.wait_for("!document.getElementById('who').open")


SHOWN = "(document.getElementById('image').hidden ? '' : document.getElementById('image').src.split('/').pop())"


def shown_image(page: Page, other_than: str = "") -> str:
    """The inference id of the image that the person sees, once it is another one."""
    return str(page.wait_for(f"{SHOWN} !== {other_than!r} && {SHOWN}"))


@needs_browser
def test_a_person_answers_by_keyboard_takes_back_and_skips(bucket: str) -> None:
    fill(bucket, 4)
    port = free_port()
    with page_over(bucket, port), browser() as opened:
        page = opened.page()
        entered(page, port, "anna")
        first = shown_image(page)
        assert first == name_of(0) and "model" not in page.text()
        page.press("2")
        second = shown_image(page, first)
        assert "you said motorcycle, the model bicycle" in page.text()
        page.press("z")
        assert shown_image(page, second) == first
        page.press("1")
        assert shown_image(page, first) == second and "you and the model said bicycle" in page.text()
        page.press("s")
        third = shown_image(page, second)
        page.press("x")
        fourth = shown_image(page, third)
        page.press("n")
        assert shown_image(page, fourth) == second  # what was skipped comes last
        page.press("2")
        page.wait_for("document.body.innerText.includes('Nothing is left for you')")
    review = Review()
    review.refresh(bucket)
    told = {name: each.answer and (each.answer.answer, each.answer.label)
            for name, each in review.outcomes(settings(), utc_now()).items()}  # fmt: skip
    assert told == {
        first: ("class", "bicycle"),
        second: ("class", "motorcycle"),
        third: ("unreadable", None),
        fourth: ("none_of_these", None),
    }
    assert all(label.seconds is not None for label in review.labels[third])


@needs_browser
def test_an_answer_outlives_a_dead_server_and_a_closed_page(bucket: str) -> None:
    fill(bucket, 3)
    port = free_port()
    with browser() as opened:
        page = opened.page()
        with page_over(bucket, port) as process:
            entered(page, port, "anna")
            first = shown_image(page)
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.press("1")
            page.wait_for("document.getElementById('problem').innerText.includes('Nothing is lost')")
        with page_over(bucket, port) as process:
            second = shown_image(page, first)
            assert len(storage.list_etags(bucket, f"review/labels/{first}/")) == 1
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.press("2")
            page.wait_for("document.getElementById('problem').innerText.includes('Nothing is lost')")
            page.send("Page.navigate", url="about:blank")
        with page_over(bucket, port):
            assert storage.list_etags(bucket, f"review/labels/{second}/") == {}
            page.open(f"http://127.0.0.1:{port}/")
            shown_image(page, second)
            assert len(storage.list_etags(bucket, f"review/labels/{second}/")) == 1


@needs_browser
def test_two_people_look_at_some_images_and_names_and_file_names_are_text(bucket: str) -> None:
    content = png(draw("bicycle", 80_001))
    storage.put(bucket, f"incoming/{SCRIPT}", content)
    one = waiting(0, key=f"incoming/{SCRIPT}", sha256=hashlib.sha256(content).hexdigest(), predicted_class=SCRIPT)
    storage.put_json(bucket, f"review/queue/{one.inference_id}.json", one.to_json())
    port = free_port()
    with page_over(bucket, port, SCONES_REVIEW_DOUBLE_SHARE="1"), browser() as opened:
        anna, ben = opened.page(), opened.page()
        entered(anna, port, "anna")
        assert shown_image(anna) == name_of(0)
        entered(ben, port, "ben")
        ben.wait_for("document.body.innerText.includes('Nothing is left for you')")
        anna.press("1")
        anna.wait_for("document.body.innerText.includes('Nothing is left for you')")
        assert SCRIPT in anna.text() and anna.evaluate("document.querySelectorAll('#said img').length") == 0
        ben.evaluate("begin()")
        assert shown_image(ben) == name_of(0)
        ben.press("1")
        ben.wait_for("document.body.innerText.includes('Nothing is left for you')")
    review = Review()
    review.refresh(bucket)
    chosen = settings().model_copy(update={"review_double_share": 1.0})
    assert len(review.outcomes(chosen, utc_now())[name_of(0)].answers) == 2


# The whole loop.


@pytest.fixture(scope="module")
def own(stack: LocalConfig) -> Iterator[Installation]:
    """An installation of its own, trained for a moment, with v1 in service."""
    before = dict(os.environ)
    os.environ.update(
        {
            "SCONES_STACK": STACK,
            "SCONES_SMOKE_CAPTURE_SECONDS": "0",
            "SCONES_EPOCHS": "20",
            "SCONES_GATE_MIN_ACCURACY": "0",
            "SCONES_AUDIT_SHARE": "1",
            "SCONES_REVIEW_DOUBLE_SHARE": "0.3",
            "SCONES_REVIEW_RETRAIN_LABELS": "10",
            "SCONES_REVIEW_BACKLOG": "5",
            "SCONES_THRESHOLD": "0.7",
            "SCONES_EVALUATION_MIN_COVERAGE": "0",
        }
    )
    settings.cache_clear()
    try:
        prepare_data("generated")
        assert train_model().status == APPROVED
        assert deploy_endpoint().model_version == "v1"
        yield installation()
        teardown(everything=True, confirm=STACK)
    finally:
        os.environ.clear()
        os.environ.update(before)
        settings.cache_clear()


@pytest.fixture
def trainings(stack: LocalConfig) -> Iterator[Callable[[], list[Any]]]:
    """Runs of train-model that the trigger of prefect.yaml started. No worker begins them: they would train another
    installation than this file's.
    """
    with get_client(sync_client=True) as prefect:
        deployment = prefect.read_deployment_by_name("train-model/local")

        def runs() -> list[Any]:
            return [run for run in prefect.read_flow_runs() if run.deployment_id == deployment.id]

        before = {run.id for run in runs()}
        prefect.update_work_pool("local", WorkPoolUpdate(is_paused=True))
        try:
            yield lambda: [run for run in runs() if run.id not in before]
        finally:
            for run in runs():
                if run.id not in before:
                    prefect.delete_flow_run(run.id)
            prefect.update_work_pool("local", WorkPoolUpdate(is_paused=False))


def unlabelled(own: Installation, first: int, images: int) -> tuple[str, dict[str, str]]:
    """A prefix with generated images, things of no class and a copy of a test image; and what is in each."""
    prefix = f"incoming/{uuid.uuid4().hex[:8]}/"
    shown = {f"{prefix}{number:03}.png": (CLASSES[number % 2], first + number) for number in range(images)}
    shown |= {f"{prefix}{thing}.png": (thing, first) for thing in FAR}
    contents = {key: png(draw(what, seed)) for key, (what, seed) in shown.items()}
    truth = {key: what for key, (what, _) in shown.items()}
    test_image = sorted(storage.list_etags(own.bucket, "test/"))[0]
    copy = storage.get(own.bucket, test_image)
    assert copy is not None
    contents[f"{prefix}copy.png"], truth[f"{prefix}copy.png"] = copy, test_image.split("/")[1].split("_")[0]
    storage.upload_changed(own.bucket, prefix, contents)
    return prefix, truth


def classified(prefix: str) -> Any:
    """A bulk run over a prefix, and its images in the queue; returns the summary."""
    result: Any = classify_images(prefix=prefix, return_state=True).result(raise_on_failure=False)
    summary = getattr(result, "summary", result)
    queue_review(summary.date, summary.run)
    return summary


@contextmanager
def make_review(port: int) -> Iterator[None]:
    """What `make review` starts."""
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [sys.executable, "review.py", "page", "--reviewer", "anna"],
            cwd=ROOT,
            env={**os.environ, "SCONES_REVIEW_PORT": str(port)},
            stdout=output,
            stderr=subprocess.STDOUT,
        )

        def told() -> str:
            output.seek(0)
            return output.read()

        try:
            eventually(lambda: _answers(port) or process.poll() is not None, 60)
            assert process.poll() is None, told()
            yield
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, 130, -signal.SIGINT), told()
        finally:
            process.kill()
            process.wait()


KEYS = {"bicycle": "1", "motorcycle": "2"}


def answer_all(port: int, truth: dict[str, str], queue: dict[str, Waiting], *people: str) -> int:
    """Everybody answers what they are shown, truly, in a browser if there is one; returns how many answers."""

    def right(name: str) -> str:
        return truth[queue[name].key]

    given = 0
    if executable() is None:
        for person in people:
            while item := asked(port, "next", {"reviewer": person}).json()["item"]:
                what = right(item["inference_id"])
                said = {"answer": "class", "label": what} if what in CLASSES else {"answer": "none_of_these"}
                asked(port, "answers", {"reviewer": person, **item, **said}).raise_for_status()
                given += 1
        return given
    with browser() as opened:
        for person in people:
            page = opened.page()
            entered(page, port, person)
            name = ""
            while True:
                name = str(
                    page.wait_for(
                        f"({SHOWN} !== {name!r} && {SHOWN}) || "
                        "(document.body.innerText.includes('Nothing is left for you') && 'nothing')"
                    )
                )
                if name == "nothing":
                    break
                page.press(KEYS.get(right(name), "n"))
                given += 1
    return given


def test_the_whole_loop(own: Installation, trainings: Callable[[], list[Any]]) -> None:
    announce(new=9, needed=10)
    prefix, truth = unlabelled(own, 90_000, 30)
    summary = classified(prefix)
    review = Review()
    review.refresh(own.bucket)
    assert set(review.queue) and {each.key for each in review.queue.values()} <= set(truth)
    # All of them: what was not accepted, and, as the share is 1, what was.
    assert len(review.queue) == summary.accepted + summary.below_threshold + summary.not_a_class == len(truth)
    wanted = EventFilter(event=EventNameFilter(name=[BACKLOG_EVENT]))
    with get_client(sync_client=True) as prefect:
        (told,) = eventually(lambda: prefect.read_events(wanted, limit=50).events, 30)
    assert (told.payload["open"], told.payload["limit"]) == (len(review.queue), 5)
    port = free_port()
    with make_review(port):
        given = answer_all(port, truth, review.queue, "anna", "ben")
    review.refresh(own.bucket)
    outcomes = review.outcomes(settings(), utc_now())
    counts = counted(outcomes)
    assert sum(counts.values()) == len(review.queue) and counts["answered"] == len(review.queue)
    assert given == sum(len(each.answers) for each in outcomes.values()) > len(review.queue)
    assert training_set.count_new_labels(own.bucket, settings(), CLASSES) >= 10
    (started,) = eventually(trainings, 60)
    assert started.parameters == {"include_reviewed": True, "reuse": True}
    time.sleep(3)
    assert len(trainings()) == 1

    report = confidence_report(summary.date, summary.run)
    assert report.review is not None and report.review.certificate is not None
    assert (report.review.certificate.model_version, report.review.kappa) == ("v1", 1.0)
    assert report.review.certificate.labels > 0

    before = dataset_note(own.bucket)
    version = train_model(include_reviewed=True)
    note = dataset_note(own.bucket)
    assert note.include_reviewed and note.reviewed > 0 and note.train == before.train + note.reviewed
    assert note.test_sha256 == before.test_sha256 and note.has_same_test_images(before)
    assert note.originals_sha256 == before.originals_sha256 and note.manifests_sha256 != before.manifests_sha256
    assert f"{before.train} of generated and {note.reviewed} reviewed" in version.metadata["data"]
    uses = storage.get_records(own.bucket, training_set.USES_KEY, Use)
    # Each queued image that has an answer is in one place, or left out for a reason.
    assert {use.inference_id for use in uses} == {name for name in review.queue if review.labels[name]}
    assert all((use.use == "left_out") == bool(use.why) for use in uses)
    by_key = {use.key: use for use in uses}
    copy = by_key[f"{prefix}copy.png"]
    assert copy.use == "certification" or copy.why == "it is a test image, or nearly one"
    assert not any(use.use == "training" and truth[use.key] not in CLASSES for use in uses)
    manifest = (storage.get(own.bucket, "manifests/train.lst") or b"").decode().splitlines()
    named = {line.split("\t")[2]: CLASSES[int(line.split("\t")[1])] for line in manifest}
    trained = {use.name: use for use in uses if use.use == "training"}
    assert {name for name in named if name.startswith("reviewed/")} == set(trained) and len(named) == note.train
    assert all(named[str(name)] == truth[use.key] for name, use in trained.items())
    assert {f"train/{name}" for name in named} == set(storage.list_etags(own.bucket, "train/"))
    provenance = storage.get_json_lines(own.bucket, training_set.PROVENANCE_KEY) or []
    assert [line["name"] for line in provenance] == list(named)
    assert {line["source"] for line in provenance} >= {"original"} and sum(
        bool(line["reviewers"]) for line in provenance
    ) == len(trained)
    assert training_set.count_new_labels(own.bucket, settings(), CLASSES) == 0

    assert version.status == APPROVED and deploy_endpoint().model_version == version.name == "v2"
    prefix, truth = unlabelled(own, 95_000, 12)
    summary = classified(prefix)
    assert summary.model_version == "v2"
    review.refresh(own.bucket)
    with make_review(port):
        answer_all(port, truth, review.queue, "anna", "ben")
    report = confidence_report(summary.date, summary.run)
    assert report.review is not None and report.review.certificate is not None
    certificate = report.review.certificate
    assert certificate.model_version == "v2" and 0 < certificate.labels <= summary.accepted
    page = (reports_folder() / summary.date / summary.run / "report.html").read_text()
    assert f"Of what v2 at 0.7 accepted since {utc_now():%-d %B %Y} at least" in page and "Cohen&#39;s kappa" in page

    # A run of prepare-data brings in what was answered since, and takes all of it out when it is asked to.
    assert prepare_data("generated").reviewed > note.reviewed
    assert prepare_data("generated", include_reviewed=False).manifests_sha256 == before.manifests_sha256
    assert prepare_data("generated").reviewed == 0 == training_set.labels_needed(own.bucket, settings())
    assert training_set.count_new_labels(own.bucket, settings(), CLASSES) == 0
    assert not [key for key in storage.list_etags(own.bucket, "train/") if "reviewed" in key]
    assert len((storage.get(own.bucket, "manifests/train.lst") or b"").splitlines()) == before.train


def test_whoever_reviews_can_answer_and_do_nothing_else(own: Installation) -> None:
    outputs = client("cloudformation").describe_stacks(StackName=STACK)["Stacks"][0]["Outputs"]
    role = next(each["OutputValue"] for each in outputs if each["OutputKey"] == "ReviewerRoleArn")
    session = client("sts").assume_role(RoleArn=role, RoleSessionName="anna")["Credentials"]
    fill(own.bucket, 1)
    code = (
        "from settings import settings; from tasks.aws.stacks import installation; from tasks.review.desk import Desk; "
        "i = installation(); d = Desk(i.bucket, settings(), i.classes); "
        f"d.refresh(); d.picture({name_of(0)!r}); d._lease({name_of(0)!r}, 'anna'); "
        f"print(d.answer({name_of(0)!r}, 'anna', 'class', 'bicycle', 1.0).key); d.progress('anna'); d.undo('anna')"
    )
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": session["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": session["SecretAccessKey"],
        "AWS_SESSION_TOKEN": session["SessionToken"],
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    import boto3

    s3 = boto3.client(
        "s3",
        aws_access_key_id=session["AccessKeyId"],
        aws_secret_access_key=session["SecretAccessKey"],
        aws_session_token=session["SessionToken"],
    )
    for key in (f"review/queue/{name_of(9)}.json", "train/x.png", "manifests/train.lst", "incoming/x.png", "models/x"):
        with pytest.raises(ClientError, match="AccessDenied"):
            s3.put_object(Bucket=own.bucket, Key=key, Body=b"x")
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.delete_object(Bucket=own.bucket, Key=done.stdout.strip())
    with pytest.raises(ClientError, match="AccessDenied"):
        s3.get_object(Bucket=own.bucket, Key="test/bicycle_50000.png")
