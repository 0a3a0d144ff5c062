"""The control plane: finds the operation by its name, checks the request and shapes the answer."""

from botocore import xform_name

from local_sagemaker.authorization import Authorizer, requests_of
from local_sagemaker.operations.autoscaling import AutoScalingOperations
from local_sagemaker.operations.endpoints import EndpointOperations
from local_sagemaker.operations.model_packages import ModelPackageOperations
from local_sagemaker.operations.models import EndpointConfigOperations, ModelOperations
from local_sagemaker.operations.training_jobs import TrainingJobOperations
from local_sagemaker.protocol import ApiError, operation, shaped, validate
from local_sagemaker.resources import Resources
from local_sagemaker.store import Record

Operations = (
    TrainingJobOperations
    | ModelOperations
    | EndpointConfigOperations
    | EndpointOperations
    | ModelPackageOperations
    | AutoScalingOperations
)


class ControlPlane:
    """Answers operations by name. Requests and answers are AWS's own, as plain dicts with times in epoch seconds."""

    def __init__(
        self,
        resources: Resources,
        authorizer: Authorizer | None,
        *families: Operations | Resources,
        service: str = "sagemaker",
    ) -> None:
        """service: as botocore names it, whose operations these are."""
        self._resources = resources
        self._authorizer = authorizer
        self._families = families
        self.service = service

    def call(self, name: str, request: Record, access_key: str | None) -> Record:
        """Raises ApiError for an unknown operation, a bad request, a caller who may not do it, and whatever the
        operation itself refuses."""
        model = operation(name, self.service)
        methods = (getattr(family, xform_name(name), None) for family in self._families)
        method = next((method for method in methods if method), None)
        if method is None:
            raise ApiError("UnknownOperationException", f"the operation {name} is not implemented by this server")
        assert model.input_shape is not None, "every operation of SageMaker has one"
        validate(model.input_shape, request)
        # Only what the API knows, and no null, reaches an operation and what it stores.
        request = shaped(model.input_shape, request)
        if self._authorizer:
            wanted = requests_of(name, request, self._resources.tags_of, self.service)
            self._authorizer.check(access_key, list(wanted))
        answer = method(request) or {}
        return shaped(model.output_shape, answer) if model.output_shape else {}
