"""Brings infrastructure and images to AWS: stacks, training and test images, manifests."""

from prefect import flow

from flows.identity import run_name
from tasks.images import load_dataset, upload_dataset
from tasks.infrastructure import deploy_infrastructure


@flow(name="prepare-data", flow_run_name=run_name, log_prints=True)
def prepare_data(dataset: str | None = None, fall_back_to_generated: bool = False) -> dict[str, object]:
    """dataset: 'cifar100', 'generated' or the path of an archive; by default the setting's.

    fall_back_to_generated: draw images where the archive can't be had at once. Scheduled runs never do.
    """
    installation = deploy_infrastructure()
    images = load_dataset(dataset, fall_back_to_generated)
    return upload_dataset(installation.bucket, images)


if __name__ == "__main__":
    prepare_data()
