"""ministack and the SageMaker server alone, without Prefect: for tests, benchmarks and users who want no more.

with StandaloneAws(Path("state"), "--capture-delay", "60") as aws:
    aws.client("sagemaker").list_endpoints()
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import boto3
from botocore.config import Config

from local_aws.certificate import ensure_certificate
from local_aws.config import ROOT, LocalConfig, free_port
from local_aws.environment import REGION, prepare, process_environment
from local_aws.services import answers

START_SECONDS = 60
# ministack would wait for clients that keep a connection.
STOP_SECONDS = {"sagemaker": 20, "ministack": 2}
MODULES = {"ministack": "local_aws.ministack", "sagemaker": "local_sagemaker"}


class StandaloneAws:
    """Both servers as processes of this one, on free ports of 127.0.0.1, with state and logs below a folder.

    `options` are the SageMaker server's. `environment` is what a program needs to use them.
    """

    def __init__(self, folder: Path, *options: str) -> None:
        self.config = LocalConfig(state=folder.resolve(), aws_port=free_port(), sagemaker_port=free_port())
        self.environment = process_environment(self.config)
        self._options = options
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        prepare(self.config)
        ensure_certificate(self.config.certificate, self.config.key)
        try:
            self.start("ministack")
            self.start("sagemaker")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # ministack last: the other still delivers logs and capture to it.
        for name in reversed(list(self._processes)):
            self.stop(name)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """Starts ministack or sagemaker and waits until it answers."""
        command = [sys.executable, "-m", "local_aws.parent_watchdog", MODULES[name]]
        if name == "sagemaker":
            state = self.config.state / "sagemaker"
            command += ["--port", str(self.config.sagemaker_port), "--state", str(state)]
            command += ["--authorizer", self.config.authorizer_url, *self._options]
        with (self.config.state / "logs" / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes[name] = process
        deadline = time.monotonic() + START_SECONDS
        while not answers(self.config, name):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name} does not answer; see {self.config.state / 'logs' / f'{name}.log'}")
            time.sleep(0.05)
        return process

    def stop(self, name: str) -> None:
        """SIGTERM, and SIGKILL for what is left of its process group."""
        process = self._processes[name]
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS[name])
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self.kill(name)

    def kill(self, name: str) -> None:
        """SIGKILL, as a crash or the system's memory killer would."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()

    def signal(self, name: str, number: signal.Signals) -> None:
        """Sends a signal to ministack or sagemaker, such as SIGSTOP."""
        self._processes[name].send_signal(number)

    def process_id(self, name: str) -> int:
        """The id of its process."""
        return self._processes[name].pid

    def client(
        self,
        service: str,
        sagemaker_url: str | None = None,
        credentials: Mapping[str, str] | None = None,
        **config: Any,
    ) -> Any:
        """A boto3 client of these servers, whatever this process's environment says; `config` is botocore's.

        sagemaker_url: of another SageMaker server beside the same ministack. credentials: of a session, as AssumeRole
        answers them; by default the account's root user's.
        """
        caller = credentials or {
            "AccessKeyId": self.environment["AWS_ACCESS_KEY_ID"],
            "SecretAccessKey": self.environment["AWS_SECRET_ACCESS_KEY"],
        }
        sagemaker = service.startswith("sagemaker") or service == "application-autoscaling"
        session: Any = boto3.Session()  # its types know services by literal names only
        return session.client(
            service,
            region_name=REGION,
            endpoint_url=(sagemaker_url or self.config.sagemaker_url) if sagemaker else self.config.aws_url,
            aws_access_key_id=caller["AccessKeyId"],
            aws_secret_access_key=caller["SecretAccessKey"],
            aws_session_token=caller.get("SessionToken"),
            verify=str(self.config.certificate),
            config=Config(proxies={}, **config),
        )

    def create_role(self, name: str) -> str:
        """The ARN of a role that SageMaker can assume, with all of S3 and CloudWatch Logs."""
        iam = self.client("iam")
        service = {"Effect": "Allow", "Principal": {"Service": "sagemaker.amazonaws.com"}, "Action": "sts:AssumeRole"}
        allowed = {"Effect": "Allow", "Action": ["s3:*", "logs:*"], "Resource": "*"}
        trust, policy = (json.dumps({"Version": "2012-10-17", "Statement": [part]}) for part in (service, allowed))
        arn: str = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trust)["Role"]["Arn"]
        iam.put_role_policy(RoleName=name, PolicyName="use", PolicyDocument=policy)
        return arn
