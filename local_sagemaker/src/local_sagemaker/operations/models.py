"""Models and endpoint configs: Create, Describe, List and Delete of each."""

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
            self._check_package(container["ModelPackageName"])
        elif not container.get("Image"):
            raise ValidationException("A container needs an Image or a ModelPackageName.")
        if container.get("ModelDataUrl") and container.get("ModelDataSource"):
            raise ValidationException("Give either ModelDataUrl or ModelDataSource.")
        return self._resources.create(MODEL, request["ModelName"], request)

    def describe_model(self, request: Record) -> Record:
        return self._resources.get(MODEL, request["ModelName"])

    def list_models(self, request: Record) -> Record:
        return self._resources.page(MODEL, request, "Models", newest_first=True)

    def delete_model(self, request: Record) -> None:
        self._resources.delete(MODEL, request["ModelName"])

    def _check_package(self, name: str) -> None:
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
