"""Traffic as users would make it: test images at a rate, and from half way on other ones than the model knows."""

import hashlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from prefect import task
from prefect.logging import get_run_logger

from settings import ADHOC_PREFIX, TEST_PREFIX
from tasks.aws import storage
from tasks.aws.clients import client, retry_transient
from tasks.aws.errors import AwsError
from tasks.data.dataset import png
from tasks.data.generated import FAR, draw
from tasks.data.pictures import read_rgb
from tasks.errors import SconesError
from tasks.evaluation import executions
from tasks.installation import Installation
from tasks.run import utc_now

Rhythm = Literal["steady", "day"]
Drift = Literal["none", "blur", "darkness", "another-class"]
Through = Literal["endpoint", "workflow"]

# As lambdas/classify_image.py asks, so that capture records have the outlier score too.
ACCEPT = "application/json; verbose=true"
MOST = 100_000
AT_ONCE = 8
# Images that are sent again and again, in an order of their own.
IMAGES = 200
PROGRESS_SECONDS = 10.0
# How much more or less is asked at a day's peak and low than on average.
SWING = 0.8
# Of the width of an image, and of its brightness.
BLUR, BRIGHTNESS = 1 / 12, 0.3


class TrafficError(SconesError):
    """Traffic that can't be made; the message says why."""


class TrafficFailed(SconesError):
    """Some of the images were not answered; the message says how many, and the log why."""


@dataclass(frozen=True)
class Plan:
    """What is sent. per_minute: on average. rhythm: a day's has its peak in the first half and its low in the second.

    drift: what images are made to from half of the time on. Raises TrafficError if it is nothing or too much.
    """

    per_minute: float
    minutes: float
    rhythm: Rhythm = "steady"
    drift: Drift = "none"
    through: Through = "endpoint"

    def __post_init__(self) -> None:
        for name in ("per_minute", "minutes"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise TrafficError(f"{name} is {value}; it is more than 0")
        if not 1 <= self.count <= MOST:
            raise TrafficError(
                f"{self.per_minute} images a minute for {self.minutes} minutes are {self.count}, not 1 to {MOST}"
            )

    @property
    def count(self) -> int:
        return round(self.per_minute * self.minutes)

    def moments(self) -> np.ndarray:
        """Seconds (count,) from the start at which images are sent."""
        seconds, even = self.minutes * 60, (np.arange(self.count) + 0.5) / self.count
        if self.rhythm == "steady":
            return even * seconds
        # The share of a day's images that is sent until each share of the day, inverted.
        times = np.linspace(0, 1, 2001)
        sent = times + SWING * (1 - np.cos(2 * np.pi * times)) / (2 * np.pi)
        return np.interp(even, sent, times) * seconds


@dataclass(frozen=True)
class Sent:
    """How many images were sent and answered, how many failed by their error, and how late the last was sent.

    since and until: ISO 8601 in UTC; a report of this window is about this traffic.
    """

    sent: int
    failed: dict[str, int]
    late_seconds: float
    since: str
    until: str


@task(task_run_name="send {plan.count} images")
def send(installation: Installation, plan: Plan, run: str) -> Sent:
    """Sends them at their time, at most AT_ONCE side by side; when all are busy the rest is late, never left out."""
    logger = get_run_logger()
    images = _images(installation.bucket)
    began, started = utc_now(), time.monotonic()
    failed: Counter[str] = Counter()
    late = reported = 0.0
    under_way: set[Future[None]] = set()

    def collect(done: set[Future[None]]) -> None:
        failed.update(_name_of(error) for each in done if (error := each.exception()))

    with ThreadPoolExecutor(AT_ONCE) as threads:
        for number, moment in enumerate(plan.moments().tolist()):
            time.sleep(max(started + moment - time.monotonic(), 0))
            if len(under_way) >= AT_ONCE:
                done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
                collect(done)
            late = max(time.monotonic() - started - moment, 0.0)
            drifted = plan.drift != "none" and moment >= plan.minutes * 30
            image = (
                changed(images[number % len(images)], plan.drift, number) if drifted else images[number % len(images)]
            )
            name = f"traffic-{run}-{number:06}"
            send_one = _invoke if plan.through == "endpoint" else _execute
            under_way.add(threads.submit(send_one, installation, image, name, began))
            if time.monotonic() - reported > PROGRESS_SECONDS:
                reported = time.monotonic()
                logger.info("%d of %d images are sent%s", number + 1, plan.count, ", changed" if drifted else "")
        done, _ = wait(under_way)
        collect(done)
    until = utc_now()
    return Sent(plan.count, dict(failed), round(late, 1), _minute(began, 0), _minute(until, 60))


def changed(image: bytes, drift: Drift, seed: int) -> bytes:
    """The image as it is under a drift: blurred, dark, or another one, of something that is none of the classes."""
    if drift == "none":
        return image
    picture = read_rgb(image)
    assert picture is not None, "only such are sent"
    if drift == "blur":
        picture = picture.filter(ImageFilter.GaussianBlur(picture.width * BLUR))
    elif drift == "darkness":
        picture = ImageEnhance.Brightness(picture).enhance(BRIGHTNESS)
    else:
        names = sorted(FAR)
        picture = Image.fromarray(draw(names[seed % len(names)], seed, picture.width))
    return png(np.asarray(picture))


def _images(bucket: str) -> Sequence[bytes]:
    """Test images, in an order that has nothing to do with their classes."""
    keys = sorted(storage.list_etags(bucket, TEST_PREFIX), key=lambda key: hashlib.sha256(key.encode()).digest())
    read = (storage.get_image(bucket, key) for key in keys[:IMAGES])
    found = [content for content in read if content and read_rgb(content)]
    if not found:
        raise TrafficError("there are no test images", "run the prepare-data deployment first")
    return found


def _invoke(installation: Installation, image: bytes, name: str, began: datetime) -> None:
    retry_transient(
        f"ask endpoint {installation.endpoint}",
        lambda: client("sagemaker-runtime").invoke_endpoint(
            EndpointName=installation.endpoint,
            ContentType="application/x-image",
            Accept=ACCEPT,
            InferenceId=name,
            Body=image,
        ),
    )


def _execute(installation: Installation, image: bytes, name: str, began: datetime) -> None:
    key = f"{ADHOC_PREFIX}{began:%Y-%m-%d}/{name}.png"
    storage.put(installation.bucket, key, image)
    executions.start(installation.state_machine_arn, name, {"bucket": installation.bucket, "key": key})


def _name_of(error: BaseException) -> str:
    return (error.message if isinstance(error, AwsError) else f"{type(error).__name__}: {error}")[:200]


def _minute(moment: datetime, later: float) -> str:
    """To the minute, as a parameter of confidence-report."""
    return datetime.fromtimestamp((moment.timestamp() + later) // 60 * 60, moment.tzinfo).strftime("%Y-%m-%dT%H:%M:%SZ")
