"""Brings infrastructure and images to AWS: stacks, training and test images, manifests."""

from prefect import flow

from flows.ending import endings
from flows.identity import run_name
from tasks.aws import stacks
from tasks.data import images
from tasks.installation import DatasetNote
from tasks.review import training_set


@flow(name="prepare-data", flow_run_name=run_name, log_prints=True, **endings())
def prepare_data(
    dataset: str | None = None, fall_back_to_generated: bool = False, include_reviewed: bool | None = None
) -> DatasetNote:
    """dataset: 'cifar100', 'generated', the path of an archive, or your own images: a folder with one per class, a CSV
    or JSON Lines file of paths and labels, or an s3:// prefix. By default what was prepared before.

    If nothing was prepared yet, that is the setting's. fall_back_to_generated: draw images then if the archive
    can't be had at once. include_reviewed: train on what people said about queued images too, or not any more; by
    default as before. Returns the note that describes the images in the bucket.
    """
    installed = stacks.deploy_infrastructure(images.classes_of(dataset))
    bucket = installed.bucket
    chosen = images.load_dataset(installed, dataset, fall_back_to_generated)
    if chosen is not None:
        images.upload_dataset(bucket, chosen)
    return training_set.include(bucket, include_reviewed)


if __name__ == "__main__":
    prepare_data()
