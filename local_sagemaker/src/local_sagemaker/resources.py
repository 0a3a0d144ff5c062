"""What every kind of resource has: a name, an ARN, its tags, and a place in a list."""

import base64
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from local_sagemaker import account
from local_sagemaker.protocol import ApiError, ResourceInUse, ValidationException
from local_sagemaker.store import Record, Store

TAGS = "tags"
MAX_TAGS = 50
PAGE = 10


@dataclass(frozen=True)
class Kind:
    """A kind of resource: its part of the ARN, its name in messages, and what its fields begin with."""

    path: str
    label: str
    stem: str
    # Only a training job's duplicate is ResourceInUse; AWS answers ValidationException for all other kinds.
    duplicate: Callable[[str], ApiError] = ValidationException
    # What AWS says of one that is not there; by default it names it.
    missing: str = 'Could not find {label} "{arn}".'

    def arn(self, name: str) -> str:
        return account.arn(f"{self.path}/{name}")

    def not_found(self, name: str) -> ValidationException:
        return ValidationException(self.missing.format(label=self.label, arn=self.arn(name)))

    def name(self, name_or_arn: str) -> str:
        """The name within an ARN of this kind, or what was given."""
        return name_or_arn.split(f":{self.path}/", 1)[-1]


# As quoted in aws/amazon-sagemaker-examples, issue 2360.
TRAINING_JOB = Kind(
    "training-job", "training job", "TrainingJob", duplicate=ResourceInUse, missing="Requested resource not found."
)
MODEL = Kind("model", "model", "Model")
ENDPOINT_CONFIG = Kind("endpoint-config", "endpoint configuration", "EndpointConfig")
ENDPOINT = Kind("endpoint", "endpoint", "Endpoint")
MODEL_PACKAGE_GROUP = Kind("model-package-group", "model package group", "ModelPackageGroup")
MODEL_PACKAGE = Kind("model-package", "model package", "ModelPackage")
KINDS = (TRAINING_JOB, MODEL, ENDPOINT_CONFIG, ENDPOINT, MODEL_PACKAGE_GROUP, MODEL_PACKAGE)


class Resources:
    """Creates, finds, lists and deletes resources of any kind. Records hold the fields that Describe answers."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def create(self, kind: Kind, name: str, request: Record, **fields: Any) -> Record:
        """Stores a new resource with the request's fields and tags; raises the kind's error if the name is taken."""
        tags = _tags(request.get("Tags", []), {})
        now = time.time()
        record = {
            **{field: value for field, value in request.items() if field != "Tags"},
            f"{kind.stem}Arn": kind.arn(name),
            "CreationTime": now,
            "LastModifiedTime": now,
            **fields,
        }
        if not self.store.create(kind.path, name, record):
            raise kind.duplicate(f'Cannot create already existing {kind.label} "{kind.arn(name)}".')
        self.store.put(TAGS, kind.arn(name), tags)
        return record

    def get(self, kind: Kind, name_or_arn: str) -> Record:
        """Raises ValidationException if there is none, as SageMaker does."""
        name = kind.name(name_or_arn)
        record = self.store.get(kind.path, name)
        if record is None:
            raise kind.not_found(name)
        return record

    def update(self, kind: Kind, name: str, **changes: Any) -> Record | None:
        return self.store.update(kind.path, name, LastModifiedTime=time.time(), **changes)

    def delete(self, kind: Kind, name_or_arn: str) -> None:
        name = kind.name(name_or_arn)
        if not self.store.delete(kind.path, name):
            raise kind.not_found(name)
        self.store.delete(TAGS, kind.arn(name))

    def page(
        self,
        kind: Kind,
        request: Record,
        answer_field: str,
        newest_first: bool,
        wanted: Callable[[Record], bool] = lambda record: True,
    ) -> Record:
        """The page of a List call that the request asks for, filtered and sorted.

        A token holds the sort key of the last record of its page, so that a page neither repeats nor skips what was
        there before, whatever is created meanwhile. `newest_first` is the order if the request names none.
        """
        records = [record for record in self.store.all(kind.path) if wanted(record) and _passes(kind, request, record)]
        field = {"Name": None, "Status": f"{kind.stem}Status"}.get(request.get("SortBy", ""), "CreationTime")

        def key(record: Record) -> list[Any]:
            arn = record[f"{kind.stem}Arn"]
            return [record[field] if field else arn, arn]

        order = request.get("SortOrder")
        descending = order == "Descending" if order else newest_first
        records.sort(key=key, reverse=descending)
        if request.get("NextToken"):
            last = _last_key(request["NextToken"])
            try:
                records = [record for record in records if (key(record) < last if descending else key(record) > last)]
            except TypeError as error:
                raise ValidationException("The NextToken belongs to a list in another order.") from error
        size = request.get("MaxResults", PAGE)
        answer: Record = {answer_field: records[:size]}
        if len(records) > size:
            answer["NextToken"] = base64.urlsafe_b64encode(json.dumps(key(records[size - 1])).encode()).decode()
        return answer

    # Tags

    def add_tags(self, request: Record) -> Record:
        """AddTags."""
        with self.store.lock:
            tags = _tags(request["Tags"], self._existing_tags(request["ResourceArn"]))
            self.store.put(TAGS, request["ResourceArn"], tags)
        return _tag_list(tags)

    def list_tags(self, request: Record) -> Record:
        """ListTags; all of them, as a page has room for more than a resource can carry."""
        return _tag_list(self._existing_tags(request["ResourceArn"]))

    def delete_tags(self, request: Record) -> None:
        """DeleteTags."""
        with self.store.lock:
            tags = self._existing_tags(request["ResourceArn"])
            left = {key: value for key, value in tags.items() if key not in request["TagKeys"]}
            self.store.put(TAGS, request["ResourceArn"], left)

    def tags_of(self, arn: str) -> Record:
        """The tags of a resource; none if it does not exist."""
        return self.store.get(TAGS, arn) or {}

    def _existing_tags(self, arn: str) -> Record:
        tags = self.store.get(TAGS, arn)
        if tags is None:
            raise ValidationException(f'Could not find a resource "{arn}".')
        return tags


def refuse(request: Record, *fields: str) -> None:
    """Raises ValidationException for a field that this server would otherwise ignore to the caller's surprise."""
    for field in fields:
        if request.get(field):
            raise ValidationException(f"{field} is not supported by this server.")


def require(request: Record, *fields: str) -> None:
    """Raises ValidationException for a field that the API's description makes optional, but nothing works without."""
    for field in fields:
        if request.get(field) is None:
            where = field[:1].lower() + field[1:]
            raise ValidationException(f"Value null at '{where}' failed to satisfy constraint: Member must not be null")


def check_s3_uri(field: str, uri: str) -> None:
    """Raises ValidationException for what is no s3:// URI, or would not stay in its folder as a file."""
    try:
        _, key = account.split_uri(uri)
    except ValueError as error:
        raise ValidationException(f"{field}: {error}") from error
    if {".", ".."} & set(key.split("/")):
        raise ValidationException(f"{field}: {uri!r} has a part . or ..")


def _passes(kind: Kind, request: Record, record: Record) -> bool:
    name = kind.name(record[f"{kind.stem}Arn"])
    if request.get("NameContains", "").lower() not in name.lower():
        return False
    if request.get("StatusEquals", record.get(f"{kind.stem}Status")) != record.get(f"{kind.stem}Status"):
        return False
    return all(
        record[field] > request.get(f"{field}After", float("-inf"))
        and record[field] < request.get(f"{field}Before", float("inf"))
        for field in ("CreationTime", "LastModifiedTime")
    )


def _last_key(token: str) -> list[Any]:
    try:
        value, arn = json.loads(base64.urlsafe_b64decode(token))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValidationException("Invalid NextToken.") from error
    return [value, arn]


def _tags(added: list[dict[str, str]], present: Record) -> Record:
    keys = [tag["Key"] for tag in added]
    if len(set(keys)) < len(keys):
        raise ValidationException("A tag key is given more than once.")
    for key in keys:
        if key.lower().startswith("aws:"):
            raise ValidationException(f"The tag key {key!r} is reserved: it begins with aws:.")
    tags = {**present, **{tag["Key"]: tag["Value"] for tag in added}}
    if len(tags) > MAX_TAGS:
        raise ValidationException(f"A resource has at most {MAX_TAGS} tags.")
    return tags


def _tag_list(tags: Record) -> Record:
    return {"Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
