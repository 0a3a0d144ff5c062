"""The secrets of an installation, random and its own: whoever has none of them gets into none of its services."""

import json
import os
import secrets
import string
from dataclasses import asdict, dataclass
from pathlib import Path

from local_aws.config import LocalConfig

UPPER = string.ascii_uppercase + "234567"
# Prefect's name for whoever signs in.
USER = "scones"


@dataclass(frozen=True)
class Credentials:
    """access_key_id, secret_access_key: of the embedded account's root. prefect_password: of Prefect's API and UI.

    review_token: of the page that `make review` serves.
    """

    access_key_id: str
    secret_access_key: str
    prefect_password: str
    review_token: str

    def sign_in(self, prefect_url: str) -> str:
        """The link by which a browser is signed in to Prefect's UI."""
        return f"{prefect_url}/sign-in#{self.prefect_auth}"

    @property
    def prefect_login(self) -> tuple[str, str]:
        """As HTTP clients take it."""
        return USER, self.prefect_password

    @property
    def prefect_auth(self) -> str:
        """As Prefect takes it: USER:PASSWORD."""
        return f"{USER}:{self.prefect_password}"


def credentials(config: LocalConfig) -> Credentials:
    """Returns the installation's secrets, which the first call makes."""
    file = private_folder(config.state) / "credentials.json"
    try:
        return Credentials(**json.loads(file.read_text()))
    except FileNotFoundError:
        pass
    made = Credentials(
        access_key_id="AKIA" + "".join(secrets.choice(UPPER) for _ in range(16)),
        secret_access_key=secrets.token_urlsafe(30),
        prefect_password=secrets.token_urlsafe(18),
        review_token=secrets.token_urlsafe(24),
    )
    # Another process may make them at this moment: the first one's stand.
    new = file.with_suffix(f".{os.getpid()}")
    write_private(new, json.dumps(asdict(made)))
    try:
        os.link(new, file)
    except FileExistsError:
        pass
    finally:
        new.unlink()
    return Credentials(**json.loads(file.read_text()))


def private_folder(folder: Path) -> Path:
    """Makes a folder that only its owner can enter, or has one that is there be so."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def write_private(file: Path, text: str) -> None:
    """Writes a file that only its owner can read."""
    file.unlink(missing_ok=True)  # one that is there may be open to others
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as opened:
        opened.write(text)
