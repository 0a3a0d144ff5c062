"""Serves Amazon SageMaker's API on 127.0.0.1: trains in processes, serves models from processes, captures to S3.

S3, STS and CloudWatch Logs are found by the AWS SDK's environment variables, such as AWS_ENDPOINT_URL.
"""

import argparse
import fcntl
import logging
from importlib import metadata
from pathlib import Path

import uvloop
from aiohttp import web

from local_sagemaker.server import ServerConfig, create_app

OPTIONS = {
    "training_jobs": "training jobs that run at once; others wait as Starting",
    "instances": "instances of all endpoints together; one more is ResourceLimitExceeded",
    "requests_per_instance": "requests in flight on an instance; one more is ServiceUnavailable",
    "capture_interval": "seconds between uploads of captured records",
    "capture_delay": "seconds that a captured record waits at least before it is uploaded",
    "capture_loss": "share of the records that are lost, from 0 to 1",
    "worker_delay": "seconds that an instance in service answers 503 for want of a worker",
    "calls_per_second": "control-plane calls beyond this rate are ThrottlingException; 0 for no limit",
    "model_seconds": "seconds that a model has to answer",
    "scaling_period": "seconds between looks at endpoints that scale by themselves; a minute on AWS",
    "stop_grace": "seconds that a stopped training job has to end by itself",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="local-sagemaker", description=__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {metadata.version('local-sagemaker')}")
    parser.add_argument("--port", type=int, default=4568, help="port on 127.0.0.1 (default: 4568)")
    parser.add_argument(
        "--state",
        type=Path,
        default=Path("local-sagemaker-state"),
        help="folder for resources, models and spooled capture (default: local-sagemaker-state)",
    )
    parser.add_argument(
        "--authorizer",
        default="",
        help="URL that is asked whether a caller's policies allow a call (default: every call is allowed)",
    )
    for name, meaning in OPTIONS.items():
        default = getattr(ServerConfig, name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"{meaning} (default: {default:g})")
    arguments = vars(parser.parse_args())
    port = arguments.pop("port")
    for name in OPTIONS:
        if arguments[name] < (0 if isinstance(arguments[name], float) else 1):
            parser.error(f"--{name.replace('_', '-')} must not be {arguments[name]:g}")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("botocore").setLevel(logging.WARNING)
    # Containers have a folder of their own.
    arguments["state"] = arguments["state"].resolve()
    arguments["state"].mkdir(parents=True, exist_ok=True)
    with (arguments["state"] / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            parser.error(f"another server runs with the state in {arguments['state']}")
        serve(port, ServerConfig(**arguments))


def serve(port: int, config: ServerConfig) -> None:
    """Serves on 127.0.0.1 until SIGTERM or SIGINT."""
    app = create_app(config)
    loop = uvloop.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None, shutdown_timeout=2, loop=loop)


if __name__ == "__main__":
    main()
