"""Container images that AWS publishes."""

from tasks.aws.clients import sdk


def pytorch_image(scope: str, version: str, python: str, instance_type: str) -> str:
    """URI of AWS's PyTorch image for training or inference. Raises ValueError if the SDK knows of none."""
    from sagemaker.core import image_uris  # takes a second

    return image_uris.retrieve(
        "pytorch",
        region=sdk()["region"],
        version=version,
        py_version=python,
        instance_type=instance_type,
        image_scope=scope,
    )
