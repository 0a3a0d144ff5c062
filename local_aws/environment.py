"""The environment of local processes, in which nothing of the shell's own AWS account or Prefect workspace is left."""

import os
import shlex
import sys
from pathlib import Path

from local_aws.config import ROOT, LocalConfig, settings_file
from local_aws.credentials import credentials, private_folder

FOREIGN_PREFIXES = ("AWS_", "PREFECT_", "SAGEMAKER_", "SM_", "BOTO_")
# A proxy must not stand between processes of one machine.
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")
# What processes of this project tell each other; no settings.
PROCESS_VARIABLES = {
    "SCONES_SETTINGS",
    "SCONES_ROOT",
    "SCONES_SUPERVISED",
    "SCONES_SOCKET",
    "SCONES_AUTHORIZER",
    "SCONES_WORK_POOL",
    "SCONES_DEFAULTS",
}
MINISTACK_SERVICES = (
    "s3",
    "lambda",
    "stepfunctions",
    "iam",
    "sts",
    "cloudformation",
    "logs",
    "events",
    "cloudtrail",
    "monitoring",
    "sns",
    "ecs",
    "ecr",
    "budgets",
)
ACCOUNT_ID = "000000000000"
REGION = "us-east-1"


def prefect_variables(config: LocalConfig, real_aws: bool = False) -> dict[str, str]:
    """A Prefect server and worker of our own."""
    home = config.prefect_home(real_aws)
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_URL": f"{config.prefect_url}/api",
        "PREFECT_UI_URL": config.prefect_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        # Whoever asks has to know this password, and a web page may ask from the server's own origin only.
        "PREFECT_SERVER_API_AUTH_STRING": credentials(config).prefect_auth,
        "PREFECT_API_AUTH_STRING": credentials(config).prefect_auth,
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": config.prefect_url,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": config.prefect_database_url(real_aws),
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        # So that `prefect deployment run --watch` shows a run's log.
        "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
        "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
        "PREFECT_WORKER_PREFETCH_SECONDS": "10",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "",
        "DO_NOT_TRACK": "1",
    }


def aws_variables(config: LocalConfig) -> dict[str, str]:
    """The installation's own credentials, endpoints on this machine, and no other source of either."""
    root = credentials(config)
    nowhere = str(config.state / "aws" / "no-such-file")
    return {
        "AWS_ACCESS_KEY_ID": root.access_key_id,
        "AWS_SECRET_ACCESS_KEY": root.secret_access_key,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ENDPOINT_URL": config.aws_url,
        "AWS_ENDPOINT_URL_SAGEMAKER": config.sagemaker_url,
        "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": config.sagemaker_url,
        "AWS_ENDPOINT_URL_APPLICATION_AUTO_SCALING": config.sagemaker_url,
        "AWS_CA_BUNDLE": str(config.certificate),
        "AWS_CONFIG_FILE": nowhere,
        "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        "AWS_EC2_METADATA_DISABLED": "true",
        "SAGEMAKER_ADMIN_CONFIG_OVERRIDE": str(_sdk_defaults(config)),
        "SAGEMAKER_USER_CONFIG_OVERRIDE": str(_sdk_defaults(config)),
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        # ministack runs a custom runtime's bootstrap as it is, and keeps the names of errors only so.
        "SCONES_LAMBDA_RUNTIME": "provided.al2023",
        "SCONES_DEFAULTS": str(defaults_file(config)),
    }


def machine_defaults() -> dict[str, str]:
    """Defaults that suit this machine; the embedded AWS has no limits of calls a second.

    Processes read them from a file that SCONES_DEFAULTS names, and both the settings file and the environment go before
    them, so that a change of either applies to the next run.
    """
    return {
        "SCONES_LAMBDA_CONCURRENCY": str(_in_flight()),
        "SCONES_EXECUTIONS_IN_FLIGHT": str(_in_flight()),
        "SCONES_STARTS_PER_SECOND": "1000",
        "SCONES_DESCRIBES_PER_SECOND": "1000",
        "SCONES_LISTS_PER_SECOND": "1000",
    }


def local_exports(config: LocalConfig) -> list[str]:
    """Names in this process's environment that lead to the embedded AWS, as env.sh exports them."""
    ours = aws_variables(config)
    leading = [name for name in ours if name.startswith("AWS_ENDPOINT_URL")] + ["AWS_ACCESS_KEY_ID", "AWS_CA_BUNDLE"]
    return sorted(name for name in leading if os.environ.get(name) == ours[name])


def work_pool(real_aws: bool) -> str:
    """Of each mode its own, and also what its deployments are called, so that neither starts runs of the other."""
    return "aws" if real_aws else "local"


def worker_settings(config: LocalConfig, real_aws: bool = False) -> dict[str, str]:
    """The settings of the shell, and of this machine, with which a worker runs flows; ports and folders aside."""
    own = {f"SCONES_{name.upper()}" for name in LocalConfig.model_fields} | PROCESS_VARIABLES
    environment = process_environment(config, real_aws)
    return {name: value for name, value in environment.items() if name.startswith("SCONES_") and name not in own}


def _in_flight() -> int:
    """Each execution keeps up to a CPU busy while one of its functions runs, and waits in between."""
    return 4 * (os.cpu_count() or 1)


def process_environment(config: LocalConfig, real_aws: bool = False) -> dict[str, str]:
    """The shell's environment without foreign variables, and with ours. `real_aws` keeps the shell's AWS_*."""
    ours = prefect_variables(config, real_aws) | ({} if real_aws else aws_variables(config))
    dropped = ("PREFECT_",) if real_aws else FOREIGN_PREFIXES
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(dropped) and (real_aws or name not in PROXIES)
    }
    binaries = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join([str(config.state / "bin"), binaries, kept.get("PATH", "")])
    kept["SCONES_STATE"] = str(config.state)
    kept["SCONES_ROOT"] = str(ROOT)
    if "SCONES_SETTINGS" in kept:
        kept["SCONES_SETTINGS"] = str(settings_file().resolve())
    kept["SCONES_PREFECT_PORT"] = str(config.prefect_port)
    kept["SCONES_AWS_PORT"] = str(config.aws_port)
    kept["SCONES_SAGEMAKER_PORT"] = str(config.sagemaker_port)
    kept["SCONES_SAGEMAKER_OPTIONS"] = config.sagemaker_options
    kept["SCONES_LIST_DELAY"] = str(config.list_delay)
    kept["SCONES_ROLE_DELAY"] = str(config.role_delay)
    return kept | ours


def enter(config: LocalConfig, real_aws: bool = False) -> None:
    """Makes that the environment of this very process; to be called before boto3 or prefect are imported."""
    environment = process_environment(config, real_aws)
    prepare(config)
    os.environ.clear()
    os.environ.update(environment)


def prepare(config: LocalConfig) -> None:
    """Makes the folders and the file that the environment names."""
    private_folder(config.state)
    for folder in ("logs", "prefect", "prefect-aws", "aws/tmp", "bin"):
        (config.state / folder).mkdir(parents=True, exist_ok=True)
    _sdk_defaults(config).write_text("SchemaVersion: '1.0'\n")
    defaults_file(config).write_text("".join(f"{name}={value}\n" for name, value in machine_defaults().items()))
    # The AWS CLI's own script does not start if the path of its Python has a space in it.
    cli = config.state / "bin" / "aws"
    cli.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m awscli "$@"\n')
    cli.chmod(0o755)


def defaults_file(config: LocalConfig) -> Path:
    """What machine_defaults says, for every process."""
    return config.state / "defaults.env"


def _sdk_defaults(config: LocalConfig) -> Path:
    """In place of the SageMaker SDK's defaults of this user and machine, which may name real roles and buckets."""
    return config.state / "sagemaker-defaults.yaml"


def ministack_variables(config: LocalConfig) -> dict[str, str]:
    """What ministack itself is told."""
    return {
        "BIND_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(config.aws_port),
        "SERVICES": ",".join(MINISTACK_SERVICES),
        # Policies are enforced: a permission that a role lacks fails here, not first on AWS.
        "AUTH": "true",
        "MINISTACK_ACCOUNT_ID": ACCOUNT_ID,
        "PERSIST_STATE": "1",
        "STATE_DIR": str(config.state / "aws" / "state"),
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(config.state / "aws" / "s3"),
        "IOT_MTLS_ENABLED": "0",
        "TMPDIR": str(config.state / "aws" / "tmp"),
        "USE_SSL": "1",
        "MINISTACK_SSL_CERT": str(config.certificate),
        "MINISTACK_SSL_KEY": str(config.key),
    }


def shell_script(config: LocalConfig, real_aws: bool) -> str:
    """Shell commands that give a shell the environment of the running services."""
    ours = prefect_variables(config, real_aws) | ({} if real_aws else aws_variables(config))
    # Sourced later and elsewhere: what that shell exports by then is not known here.
    pattern = "PREFECT_" if real_aws else "|".join(FOREIGN_PREFIXES)
    lines = [
        f"for name in $(env | cut -d= -f1 | grep -E '^({pattern})'); do unset \"$name\"; done",
        *(f"unset {name}" for name in (() if real_aws else PROXIES)),
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(ours.items())),
        f"export SCONES_STATE={shlex.quote(str(config.state))}",
        *(
            [f"export SCONES_SETTINGS={shlex.quote(str(settings_file().resolve()))}"]
            if "SCONES_SETTINGS" in os.environ
            else []
        ),
        f'export PATH={shlex.quote(str(config.state / "bin"))}:{shlex.quote(str(Path(sys.executable).parent))}:"$PATH"',
    ]
    return "\n".join(lines) + "\n"
