"""The local services: python -m local_aws up | down | status | logs | clean."""

import argparse
import sys

from local_aws import services
from local_aws.config import ConfigError, LocalConfig


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m local_aws", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start Prefect server, ministack, SageMaker server and worker")
    start.add_argument(
        "--aws",
        choices=["local", "real"],
        default="local",
        help="real: only Prefect server and worker, which then use the shell's own AWS credentials",
    )
    commands.add_parser("down", help="stop them all")
    commands.add_parser("status", help="say what runs, and where")
    commands.add_parser("logs", help="follow the logs")
    commands.add_parser("clean", help="stop them all and delete what they kept")
    arguments = parser.parse_args()
    try:
        config = LocalConfig()
        if arguments.command == "up":
            print("\n".join([*services.up(config, real_aws=arguments.aws == "real"), services.status(config)]))
        elif arguments.command == "down":
            services.down(config)
        elif arguments.command == "logs":
            services.follow_logs(config)
        elif arguments.command == "clean":
            services.clean(config)
        else:
            print(services.status(config))
    except (services.ServicesError, ConfigError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
