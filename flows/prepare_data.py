"""Brings infrastructure and images to AWS: stacks, training and test images, manifests."""

from prefect import flow

from flows.ending import endings
from flows.identity import run_name
from tasks.aws import stacks
from tasks.data import images
from tasks.installation import DatasetNote


@flow(name="prepare-data", flow_run_name=run_name, log_prints=True, **endings())
def prepare_data(dataset: str | None = None, fall_back_to_generated: bool = False) -> DatasetNote:
    """dataset: 'cifar100', 'generated' or the path of an archive; by default what was prepared before.

    If nothing was prepared yet, that is the setting's. fall_back_to_generated: draw images then if the archive
    can't be had at once. Returns the note that describes the images in the bucket.
    """
    bucket = stacks.deploy_infrastructure().bucket
    chosen = images.load_dataset(bucket, dataset, fall_back_to_generated)
    return images.dataset_note(bucket) if chosen is None else images.upload_dataset(bucket, chosen)


if __name__ == "__main__":
    prepare_data()
