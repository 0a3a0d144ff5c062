"""Runs the SageMaker server: python -m local_aws.sagemaker --port 4568 --state FOLDER."""

import argparse
import logging
from pathlib import Path

import uvicorn

from local_aws.sagemaker.app import create_app


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local_aws.sagemaker", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--state", type=Path, required=True, help="folder for resources, models and spooled capture")
    parser.add_argument(
        "--capture-interval", type=float, default=2.0, help="seconds between uploads of captured records (default: 2)"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    app = create_app(arguments.state, arguments.capture_interval)
    uvicorn.run(app, host="127.0.0.1", port=arguments.port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
