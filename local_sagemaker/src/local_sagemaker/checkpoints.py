"""A training job's checkpoints: copied to S3 while it runs, and back before it starts.

"Existing checkpoints in S3 are written to the SageMaker container at the start of the job ... SageMaker also writes new
checkpoints from the container to S3 during training. If a checkpoint is deleted in the SageMaker container, it will
also be deleted in the S3 folder." (https://docs.aws.amazon.com/sagemaker/latest/dg/model-checkpoints.html)
"""

import logging
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from local_sagemaker import account
from local_sagemaker.store import Record

logger = logging.getLogger(__name__)

# Mounted into a container by SageMaker, and below it the default folder.
BASE = "/opt/ml/"
DEFAULT_PATH = f"{BASE}checkpoints/"
SYNC_SECONDS = 2.0


class Checkpoints:
    """The folder of a job with a CheckpointConfig and its copy in S3. folder: what stands for /opt/ml."""

    def __init__(self, config: Record, folder: Path, role_arn: str) -> None:
        self.folder = folder / config.get("LocalPath", DEFAULT_PATH).removeprefix(BASE)
        self._uri = config["S3Uri"]
        self._role_arn = role_arn
        self._copied: dict[str, tuple[int, int]] = {}

    def restore(self) -> None:
        """Writes what is in S3 into the folder. Raises ValueError for keys that can't be files, and ClientError."""
        account.download_prefix(account.client_as(self._role_arn, "s3"), self._uri, self.folder)
        self._copied = self._present()

    def copy(self) -> None:
        """Makes the copy in S3 what the folder is; what S3 does not take now is copied the next time.

        Raises ClientError if the role may not write there.
        """
        present = self._present()
        changed = [name for name, seen in present.items() if self._copied.get(name) != seen]
        deleted = [name for name in self._copied if name not in present]
        bucket, prefix = account.split_uri(self._uri)
        prefix = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        try:
            s3 = account.client_as(self._role_arn, "s3")
            for name in changed:
                # At once: a file that grows while it is sent would be longer than its request says.
                s3.put_object(Bucket=bucket, Key=prefix + name, Body=(self.folder / name).read_bytes())
                self._copied[name] = present[name]
            for name in deleted:
                s3.delete_object(Bucket=bucket, Key=prefix + name)
                del self._copied[name]
        except FileNotFoundError:  # renamed or deleted meanwhile
            return
        except (BotoCoreError, ClientError) as error:
            if account.is_refusal(error):
                raise
            logger.warning("checkpoints for %s wait: %s", self._uri, error)

    def _present(self) -> dict[str, tuple[int, int]]:
        """Time of the last change and size of each file, by its path within the folder."""
        found = {}
        for path in sorted(self.folder.rglob("*")):
            try:
                seen = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file():
                found[path.relative_to(self.folder).as_posix()] = (seen.st_mtime_ns, seen.st_size)
        return found
