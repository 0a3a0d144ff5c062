"""The operations of the SageMaker API: one method each, named as boto3 names it."""

import time
from typing import Any

from botocore import xform_name

from local_aws.sagemaker import account, training
from local_aws.sagemaker.hosting import CONFIG, ENDPOINT, MODEL, Endpoints
from local_aws.sagemaker.protocol import ApiError, ResourceInUse, ValidationException, operation, shaped, validate
from local_aws.sagemaker.store import Record, Store
from local_aws.sagemaker.training import KIND as TRAINING_JOB
from local_aws.sagemaker.training import TrainingJobs

GROUP = "model-package-group"
PACKAGE = "model-package"


class ControlPlane:
    """Answers operations by name. Requests and answers are AWS's own, as plain dicts with times in epoch seconds."""

    def __init__(self, store: Store, training_jobs: TrainingJobs, endpoints: Endpoints) -> None:
        self._store = store
        self._training_jobs = training_jobs
        self._endpoints = endpoints

    def call(self, name: str, request: Record) -> Record:
        """Raises ApiError for an unknown operation, a bad request and whatever the operation itself refuses."""
        model = operation(name)
        method = getattr(self, xform_name(name), None)
        if method is None:
            raise ApiError("UnknownOperationException", f"the operation {name} is not implemented by this server")
        validate(model.input_shape, request)
        answer = method(request) or {}
        return shaped(model.output_shape, answer) if model.output_shape else {}

    # Training jobs

    def create_training_job(self, request: Record) -> Record:
        training.check_request(request)
        name = request["TrainingJobName"]
        output = request["OutputDataConfig"]["S3OutputPath"].rstrip("/")
        now = time.time()
        job = {
            **request,
            "TrainingJobArn": account.arn(f"training-job/{name}"),
            "StoppingCondition": {"MaxRuntimeInSeconds": 86400, **request.get("StoppingCondition", {})},
            "ModelArtifacts": {"S3ModelArtifacts": f"{output}/{name}/output/model.tar.gz"},
            "TrainingJobStatus": "InProgress",
            "SecondaryStatus": "Starting",
            "SecondaryStatusTransitions": [
                {"Status": "Starting", "StartTime": now, "StatusMessage": "Starting the training job"}
            ],
            "CreationTime": now,
            "LastModifiedTime": now,
        }
        self._create(TRAINING_JOB, name, job)
        self._training_jobs.start(job)
        return job

    def describe_training_job(self, request: Record) -> Record:
        return self._get(TRAINING_JOB, request["TrainingJobName"])

    def stop_training_job(self, request: Record) -> None:
        job = self._get(TRAINING_JOB, request["TrainingJobName"])
        if job["TrainingJobStatus"] != "InProgress":
            raise ValidationException(
                f"The request was rejected because the training job is in status {job['TrainingJobStatus']}."
            )
        self._training_jobs.stop(request["TrainingJobName"])

    def list_training_jobs(self, request: Record) -> Record:
        return self._list(TRAINING_JOB, "TrainingJobName", "TrainingJobSummaries", request, status="TrainingJobStatus")

    # Models

    def create_model(self, request: Record) -> Record:
        model = {
            **request,
            "ModelArn": account.arn(f"model/{request['ModelName']}"),
            "CreationTime": time.time(),
        }
        if "PrimaryContainer" not in request or "ExecutionRoleArn" not in request:
            raise ValidationException("this server needs a PrimaryContainer and an ExecutionRoleArn")
        self._create(MODEL, request["ModelName"], model)
        return model

    def describe_model(self, request: Record) -> Record:
        return self._get(MODEL, request["ModelName"])

    def delete_model(self, request: Record) -> None:
        self._delete(MODEL, request["ModelName"])

    def list_models(self, request: Record) -> Record:
        return self._list(MODEL, "ModelName", "Models", request)

    # Endpoint configs

    def create_endpoint_config(self, request: Record) -> Record:
        name = request["EndpointConfigName"]
        for variant in request["ProductionVariants"]:
            self._get(MODEL, variant.get("ModelName", ""))
        config = {
            **request,
            "EndpointConfigArn": account.arn(f"endpoint-config/{name}"),
            "CreationTime": time.time(),
        }
        if "DataCaptureConfig" in request:
            # AWS captures unless told otherwise.
            config["DataCaptureConfig"] = {"EnableCapture": True, **request["DataCaptureConfig"]}
        self._create(CONFIG, name, config)
        return config

    def describe_endpoint_config(self, request: Record) -> Record:
        return self._get(CONFIG, request["EndpointConfigName"])

    def delete_endpoint_config(self, request: Record) -> None:
        self._delete(CONFIG, request["EndpointConfigName"])

    def list_endpoint_configs(self, request: Record) -> Record:
        return self._list(CONFIG, "EndpointConfigName", "EndpointConfigs", request)

    # Endpoints

    def create_endpoint(self, request: Record) -> Record:
        name, config_name = request["EndpointName"], request["EndpointConfigName"]
        self._get(CONFIG, config_name)
        now = time.time()
        endpoint = {
            **request,
            "EndpointArn": account.arn(f"endpoint/{name}"),
            "EndpointStatus": "Creating",
            "CreationTime": now,
            "LastModifiedTime": now,
        }
        self._create(ENDPOINT, name, endpoint)
        self._endpoints.create(name, config_name)
        return endpoint

    def describe_endpoint(self, request: Record) -> Record:
        return self._get(ENDPOINT, request["EndpointName"])

    def update_endpoint(self, request: Record) -> Record:
        endpoint = self._settled_endpoint(request["EndpointName"])
        self._get(CONFIG, request["EndpointConfigName"])
        self._endpoints.update(request["EndpointName"], request["EndpointConfigName"])
        return endpoint

    def delete_endpoint(self, request: Record) -> None:
        self._settled_endpoint(request["EndpointName"])
        self._endpoints.delete(request["EndpointName"])

    def list_endpoints(self, request: Record) -> Record:
        return self._list(ENDPOINT, "EndpointName", "Endpoints", request, status="EndpointStatus")

    def _settled_endpoint(self, name: str) -> Record:
        endpoint = self._get(ENDPOINT, name)
        if endpoint["EndpointStatus"] not in ("InService", "Failed"):
            raise ValidationException(
                f"Cannot update in-progress endpoint {endpoint['EndpointArn']!r} ({endpoint['EndpointStatus']})."
            )
        return endpoint

    # Model packages

    def create_model_package_group(self, request: Record) -> Record:
        name = request["ModelPackageGroupName"]
        group = {
            **request,
            "ModelPackageGroupArn": account.arn(f"model-package-group/{name}"),
            "ModelPackageGroupStatus": "Completed",
            "CreationTime": time.time(),
            "CreatedBy": {},
        }
        self._create(GROUP, name, group)
        return group

    def describe_model_package_group(self, request: Record) -> Record:
        return self._get(GROUP, request["ModelPackageGroupName"].rsplit("/", 1)[-1])

    def create_model_package(self, request: Record) -> Record:
        if "ModelPackageGroupName" not in request:
            raise ValidationException("this server keeps versioned model packages only: give a ModelPackageGroupName")
        group = request["ModelPackageGroupName"].rsplit("/", 1)[-1]
        self._get(GROUP, group)
        versions = [package["ModelPackageVersion"] for package in self._packages(group)]
        version = max(versions, default=0) + 1
        arn = account.arn(f"model-package/{group}/{version}")
        package = {
            "ModelApprovalStatus": "PendingManualApproval",
            **request,
            "ModelPackageGroupName": group,
            "ModelPackageVersion": version,
            "ModelPackageArn": arn,
            "ModelPackageStatus": "Completed",
            "ModelPackageStatusDetails": {"ValidationStatuses": []},
            "CreationTime": time.time(),
        }
        self._create(PACKAGE, arn, package)
        return package

    def describe_model_package(self, request: Record) -> Record:
        return self._get(PACKAGE, request["ModelPackageName"])

    def list_model_packages(self, request: Record) -> Record:
        group = request.get("ModelPackageGroupName", "").rsplit("/", 1)[-1]
        if group:
            self._get(GROUP, group)
        return self._list(
            PACKAGE,
            "ModelPackageArn",
            "ModelPackageSummaryList",
            request,
            status="ModelApprovalStatus",
            wanted={"ModelPackageGroupName": group} if group else {},
        )

    def _packages(self, group: str) -> list[Record]:
        return [package for package in self._store.all(PACKAGE) if package["ModelPackageGroupName"] == group]

    # What all kinds share

    def _create(self, kind: str, name: str, record: Record) -> None:
        if not self._store.create(kind, name, record):
            raise ResourceInUse(f"Cannot create already existing {kind} {account.arn(f'{kind}/{name}')!r}.")

    def _get(self, kind: str, name: str) -> Record:
        record = self._store.get(kind, name)
        if record is None:
            raise ValidationException(f"Could not find {kind} {name!r}.")
        return record

    def _delete(self, kind: str, name: str) -> None:
        if not self._store.delete(kind, name):
            raise ValidationException(f"Could not find {kind} {name!r}.")

    def _list(
        self,
        kind: str,
        name_field: str,
        answer_field: str,
        request: Record,
        status: str | None = None,
        wanted: dict[str, Any] | None = None,
    ) -> Record:
        """A page of a kind's records, filtered and sorted as the request asks; newest first by default."""
        records = self._store.all(kind)
        criteria = dict(wanted or {})
        wanted_status = request.get("StatusEquals") or request.get("ModelApprovalStatus")
        if status and wanted_status:
            criteria[status] = wanted_status
        records = [record for record in records if all(record.get(key) == value for key, value in criteria.items())]
        if request.get("NameContains"):
            records = [record for record in records if request["NameContains"].lower() in record[name_field].lower()]
        sort_field = name_field if request.get("SortBy") == "Name" else "CreationTime"
        records.sort(key=lambda record: record[sort_field], reverse=request.get("SortOrder") != "Ascending")
        start = _offset(request.get("NextToken"))
        end = start + request.get("MaxResults", 10)
        answer: Record = {answer_field: records[start:end]}
        if end < len(records):
            answer["NextToken"] = str(end)
        return answer


def _offset(token: str | None) -> int:
    if token is None:
        return 0
    if not token.isdigit():
        raise ValidationException("Invalid pagination token.")
    return int(token)
