"""What the installation costs a month on AWS, by its settings and last runs: `make cost`."""

import argparse
import sys

from deploy import DeploymentError, enter_installation
from local_aws import services
from local_aws.config import ConfigError
from local_aws.errors import print_error
from settings import SettingsError, settings
from tasks.errors import SconesError


def main() -> int:
    parser = argparse.ArgumentParser(prog="make cost", description=__doc__)
    parser.add_argument(
        "--aws", choices=["local", "real"], default="local", help="real: with the shell's own AWS credentials"
    )
    try:
        enter_installation(parser.parse_args().aws == "real")
        from tasks import costs
        from tasks.aws.stacks import installation
        from tasks.run import utc_now

        today = utc_now().date()
        print(costs.table(costs.of_installation(installation(), settings(), today), today))
    except (services.ServicesError, DeploymentError, SettingsError, ConfigError, SconesError) as error:
        return print_error(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
