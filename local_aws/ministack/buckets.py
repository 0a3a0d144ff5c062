"""Has CloudFormation delete a bucket as DeleteBucket does.

ministack's own handler forgets the bucket but leaves its objects on disk, from where they come back at the next start,
and it deletes buckets that are not empty, which AWS refuses (DELETE_FAILED).
"""

from ministack.services import s3
from ministack.services.cloudformation import provisioners


def install() -> None:
    provisioners._RESOURCE_HANDLERS["AWS::S3::Bucket"]["delete"] = _delete


def _delete(name: str, properties: dict[str, object]) -> None:
    status, _, body = s3._delete_bucket(name)
    if status not in (204, 404):
        raise ValueError(f"{body.decode(errors='replace')} (status {status})")
