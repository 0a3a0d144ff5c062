"""What an installation consists of, and which model serves in it; plain values that every folder may import."""

from dataclasses import dataclass

from settings import CAPTURE_PREFIX, VARIANT
from tasks.records import Record


@dataclass(frozen=True)
class Installation:
    """What the rest reads from the stacks' outputs."""

    bucket: str
    state_machine_arn: str
    batch_state_machine_arn: str
    endpoint: str
    classes: tuple[str, ...]
    threshold: float
    training_role_arn: str
    hosting_role_arn: str


@dataclass(frozen=True)
class ServingEndpoint:
    """An endpoint in service and the model version it serves."""

    name: str
    model_version: str


class DatasetNote(Record, frozen=True, kw_only=True):
    """manifests/dataset.json: which images are in the bucket.

    given: what prepare-data was given: cifar100, generated, or the path of an archive or folder. since: when the images
    became these, ISO 8601 in UTC. source: what the images are of, for people. train, test: numbers of images.
    manifests_sha256: of both manifests and of all images.
    include_reviewed: whether images that people have looked at are to be among the training images, of which `reviewed`
    are such; None if nobody has said so yet. originals_sha256: as manifests_sha256, without these. left_out: files of
    one's own images that could not be used. test_sha256: of the test images and their manifest alone; None in notes of
    earlier releases.
    """

    given: str | None = None
    since: str | None = None
    source: str
    synthetic: bool
    classes: tuple[str, ...] = ()
    train: int = 0
    test: int = 0
    manifests_sha256: str | None = None
    include_reviewed: bool | None = None
    reviewed: int = 0
    originals_sha256: str | None = None
    left_out: int = 0
    test_sha256: str | None = None

    def has_same_test_images(self, other: "DatasetNote") -> bool:
        """Whether both notes are of the same test images, whatever the training images are.

        Notes of earlier releases are told apart by the digest of all original images, which leaves out reviewed ones.
        """
        if self.test_sha256 and other.test_sha256:
            return self.test_sha256 == other.test_sha256
        mine, its = (note.originals_sha256 or note.manifests_sha256 for note in (self, other))
        return mine == its if mine or its else self == other


def capture_destination(version: str) -> str:
    """Key prefix that a version's endpoint config names; AWS appends ENDPOINT/VARIANT/ and the hours to it."""
    return f"{CAPTURE_PREFIX}{version}/"


def capture_prefix(endpoint: str, version: str) -> str:
    """Where the capture records of an endpoint's model version are in the bucket."""
    return f"{capture_destination(version)}{endpoint}/{VARIANT}/"


def legacy_capture_prefix(endpoint: str, version: str) -> str:
    """Where they were until November 2026, when the variant was named after the version."""
    return f"{CAPTURE_PREFIX}{endpoint}/{version}/"
