"""Models and endpoint configs: Create, Describe, List and Delete of each."""

from local_sagemaker import account
from local_sagemaker.protocol import ValidationException
from local_sagemaker.resources import (
    ENDPOINT_CONFIG,
    MODEL,
    MODEL_PACKAGE,
    Resources,
    check_s3_uri,
    refuse,
    require,
)
from local_sagemaker.store import Record


class ModelOperations:
    """A model is one container here; pipelines of several are refused."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def create_model(self, request: Record) -> Record:
        refuse(request, "InferenceExecutionConfig")
        if ("PrimaryContainer" in request) == ("Containers" in request):
            raise ValidationException("Give either PrimaryContainer or Containers.")
        containers = request.get("Containers", [request.get("PrimaryContainer", {})])
        if len(containers) != 1:
            raise ValidationException("Containers: this server hosts models of one container.")
        container = containers[0]
        refuse(container, "MultiModelConfig", "AdditionalModelDataSources", "InferenceSpecificationName")
        if container.get("Mode") == "MultiModel":
            raise ValidationException("Mode MultiModel is not supported by this server.")
        if container.get("ModelPackageName"):
            if {"Image", "ModelDataUrl", "ModelDataSource"} & set(container):
                raise ValidationException("Give either ModelPackageName or an Image with its model data.")
            container = self._packaged(container["ModelPackageName"])
        elif not container.get("Image"):
            raise ValidationException("A container needs an Image or a ModelPackageName.")
        if container.get("ModelDataUrl") and container.get("ModelDataSource"):
            raise ValidationException("Give either ModelDataUrl or ModelDataSource.")
        _check_data(request.get("ExecutionRoleArn"), container)
        return self._resources.create(MODEL, request["ModelName"], request)

    def describe_model(self, request: Record) -> Record:
        return self._resources.get(MODEL, request["ModelName"])

    def list_models(self, request: Record) -> Record:
        return self._resources.page(MODEL, request, "Models", newest_first=True)

    def delete_model(self, request: Record) -> None:
        self._resources.delete(MODEL, request["ModelName"])

    def _packaged(self, name: str) -> Record:
        """The container of a model package; raises ValidationException if no model can be made of it."""
        package = self._resources.get(MODEL_PACKAGE, name)
        if "ModelPackageVersion" in package and package["ModelApprovalStatus"] != "Approved":
            raise ValidationException(
                f'Model package "{package["ModelPackageArn"]}" is {package["ModelApprovalStatus"]}: '
                "a version must be Approved to be deployed."
            )
        containers = package.get("InferenceSpecification", {}).get("Containers", [])
        if len(containers) != 1 or not containers[0].get("Image"):
            raise ValidationException(
                f'Model package "{package["ModelPackageArn"]}" must specify one container with an Image.'
            )
        found: Record = containers[0]
        return found


def _check_data(role: str | None, container: Record) -> None:
    """Raises ValidationException if the role can't read the model's data, which AWS tells at once.

    The sentences are AWS's, as quoted in issue 2 of philschmid/llm-sagemaker-sample.
    """
    source = container.get("ModelDataSource", {}).get("S3DataSource", {})
    uri = container.get("ModelDataUrl") or source.get("S3Uri")
    if not uri or role is None:
        return
    check_s3_uri("ModelDataUrl", uri)
    if not account.readable(role, uri, as_prefix=source.get("S3DataType") == "S3Prefix"):
        raise ValidationException(
            f'Could not access model data at {uri}. Please ensure that the role "{role}" exists and that its trust '
            'relationship policy allows the action "sts:AssumeRole" for the service principal '
            '"sagemaker.amazonaws.com". Also ensure that the role has "s3:GetObject" permissions and that the object '
            f"is located in {account.region()}. If your Model uses multiple models or uncompressed models, please "
            'ensure that the role has "s3:ListBucket" permission.'
        )


class EndpointConfigOperations:
    """Endpoint configs of production variants on instances."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def create_endpoint_config(self, request: Record) -> Record:
        refuse(request, "AsyncInferenceConfig", "ExplainerConfig", "ShadowProductionVariants")
        names = [variant["VariantName"] for variant in request["ProductionVariants"]]
        if len(set(names)) < len(names):
            raise ValidationException("Variant names must be unique within an endpoint configuration.")
        for variant in request["ProductionVariants"]:
            refuse(variant, "ServerlessConfig", "InstancePools", "ManagedInstanceScaling")
            require(variant, "ModelName", "InstanceType", "InitialInstanceCount")
            self._resources.get(MODEL, variant["ModelName"])
        fields = {}
        if "DataCaptureConfig" in request:
            check_s3_uri("DataCaptureConfig.DestinationS3Uri", request["DataCaptureConfig"]["DestinationS3Uri"])
            # AWS captures unless told otherwise.
            fields["DataCaptureConfig"] = {"EnableCapture": True, **request["DataCaptureConfig"]}
        return self._resources.create(ENDPOINT_CONFIG, request["EndpointConfigName"], request, **fields)

    def describe_endpoint_config(self, request: Record) -> Record:
        return self._resources.get(ENDPOINT_CONFIG, request["EndpointConfigName"])

    def list_endpoint_configs(self, request: Record) -> Record:
        return self._resources.page(ENDPOINT_CONFIG, request, "EndpointConfigs", newest_first=True)

    def delete_endpoint_config(self, request: Record) -> None:
        self._resources.delete(ENDPOINT_CONFIG, request["EndpointConfigName"])
