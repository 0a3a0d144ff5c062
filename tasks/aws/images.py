"""Container images that AWS publishes."""

from packaging.version import InvalidVersion, Version

from settings import Settings
from tasks.aws.clients import sdk

# From here on AWS builds its training images on Amazon Linux 2023, by another name, each with one version of Python.
FIRST_ON_AMAZON_LINUX_2023 = Version("2.11")


def training_image(chosen: Settings) -> str:
    """URI of AWS's PyTorch image for training. Raises ValueError if there is none as the settings ask for."""
    version, python, instance = chosen.training_pytorch, chosen.training_python, chosen.training_instance_type
    try:
        number = Version(version)
    except InvalidVersion as error:
        raise ValueError(f"SCONES_TRAINING_PYTORCH: {error}") from error
    if number < FIRST_ON_AMAZON_LINUX_2023:
        return _retrieve("pytorch", "training", version, python, instance)
    return _retrieve("pytorch-amzn2023", "training", f"{number.major}.{number.minor}", None, instance)


def inference_image(chosen: Settings) -> str:
    """URI of the image that serves: the setting's, else AWS's of the chosen container. Raises ValueError likewise."""
    if chosen.inference_image:
        return chosen.inference_image
    instance = chosen.endpoint_instance_type
    if chosen.inference_container == "ray-serve":
        return _retrieve("ray-serve", "inference", chosen.inference_ray_serve, None, instance)
    return _retrieve("pytorch", "inference", chosen.inference_pytorch, chosen.inference_python, instance)


def _retrieve(framework: str, scope: str, version: str, python: str | None, instance_type: str) -> str:
    from sagemaker.core import image_uris  # takes a second

    return image_uris.retrieve(
        framework,
        region=sdk()["region"],
        version=version,
        py_version=python,
        instance_type=instance_type,
        image_scope=scope,
    )
