"""Model package groups and model packages: Create, Describe, Update, List and Delete."""

from collections.abc import Callable
from typing import Any

from local_sagemaker.protocol import ConflictException, ValidationException
from local_sagemaker.resources import MODEL_PACKAGE, MODEL_PACKAGE_GROUP, Resources, refuse
from local_sagemaker.store import Record

MAX_METADATA = 50


class ModelPackageOperations:
    """Versions of a group are named GROUP/NUMBER within ARNs; packages outside of groups by their own name."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def create_model_package_group(self, request: Record) -> Record:
        return self._resources.create(
            MODEL_PACKAGE_GROUP,
            request["ModelPackageGroupName"],
            request,
            ModelPackageGroupStatus="Completed",
            CreatedBy={},
            LastVersion=0,
        )

    def describe_model_package_group(self, request: Record) -> Record:
        return self._resources.get(MODEL_PACKAGE_GROUP, request["ModelPackageGroupName"])

    def list_model_package_groups(self, request: Record) -> Record:
        return self._resources.page(MODEL_PACKAGE_GROUP, request, "ModelPackageGroupSummaryList", newest_first=False)

    def delete_model_package_group(self, request: Record) -> None:
        with self._resources.store.lock:
            group = self._resources.get(MODEL_PACKAGE_GROUP, request["ModelPackageGroupName"])
            if any(self._versions(group["ModelPackageGroupName"])):
                raise ConflictException(
                    f'Model package group "{group["ModelPackageGroupArn"]}" still contains model packages.'
                )
            self._resources.delete(MODEL_PACKAGE_GROUP, group["ModelPackageGroupName"])

    def create_model_package(self, request: Record) -> Record:
        refuse(request, "ValidationSpecification", "CertifyForMarketplace", "SourceAlgorithmSpecification")
        if bool(request.get("ModelPackageName")) == bool(request.get("ModelPackageGroupName")):
            raise ValidationException("Give either ModelPackageName or ModelPackageGroupName.")
        common: dict[str, Any] = {
            "ModelPackageStatus": "Completed",
            "ModelPackageStatusDetails": {"ValidationStatuses": []},
            "CreatedBy": {},
        }
        if request.get("ModelPackageName"):
            return self._resources.create(MODEL_PACKAGE, request["ModelPackageName"], request, **common)
        with self._resources.store.lock:
            group = self._resources.get(MODEL_PACKAGE_GROUP, request["ModelPackageGroupName"])
            name = group["ModelPackageGroupName"]
            for package in self._versions(name):
                # boto3 makes one token for a call and its retries: a lost answer must not make a second version.
                if request.get("ClientToken") and package.get("ClientToken") == request["ClientToken"]:
                    return package
            number = group["LastVersion"] + 1
            self._resources.store.update(MODEL_PACKAGE_GROUP.path, name, LastVersion=number)
            return self._resources.create(
                MODEL_PACKAGE,
                f"{name}/{number}",
                {"ModelApprovalStatus": "PendingManualApproval", **request},
                ModelPackageGroupName=name,
                ModelPackageVersion=number,
                **common,
            )

    def describe_model_package(self, request: Record) -> Record:
        return self._resources.get(MODEL_PACKAGE, request["ModelPackageName"])

    def update_model_package(self, request: Record) -> Record:
        name = MODEL_PACKAGE.name(request["ModelPackageArn"])
        with self._resources.store.lock:
            package = self._resources.get(MODEL_PACKAGE, name)
            changes = {
                field: value
                for field, value in request.items()
                if field
                in (
                    "ModelApprovalStatus",
                    "ApprovalDescription",
                    "InferenceSpecification",
                    "SourceUri",
                    "ModelCard",
                    "ModelLifeCycle",
                    "ModelPackageRegistrationType",
                )
            }
            if "ModelApprovalStatus" in changes and "ModelPackageVersion" not in package:
                raise ValidationException("Only a version of a model package group has an approval status.")
            metadata = (package.get("CustomerMetadataProperties") or {}) | request.get("CustomerMetadataProperties", {})
            for key in request.get("CustomerMetadataPropertiesToRemove", []):
                metadata.pop(key, None)
            if len(metadata) > MAX_METADATA:
                raise ValidationException(f"A model package has at most {MAX_METADATA} metadata properties.")
            changes["CustomerMetadataProperties"] = metadata or None
            additional = package.get("AdditionalInferenceSpecifications") or []
            additional = additional + request.get("AdditionalInferenceSpecificationsToAdd", [])
            changes["AdditionalInferenceSpecifications"] = additional or None
            self._resources.update(MODEL_PACKAGE, name, **changes, LastModifiedBy={})
        return package

    def list_model_packages(self, request: Record) -> Record:
        return self._resources.page(
            MODEL_PACKAGE, request, "ModelPackageSummaryList", newest_first=False, wanted=self._wanted(request)
        )

    def delete_model_package(self, request: Record) -> None:
        self._resources.delete(MODEL_PACKAGE, request["ModelPackageName"])

    def _versions(self, group: str) -> list[Record]:
        packages = self._resources.store.all(MODEL_PACKAGE.path)
        return [package for package in packages if package.get("ModelPackageGroupName") == group]

    def _wanted(self, request: Record) -> Callable[[Record], bool]:
        group = request.get("ModelPackageGroupName")
        if group:
            group = self._resources.get(MODEL_PACKAGE_GROUP, group)["ModelPackageGroupName"]
        # AWS lists packages outside of groups unless a group or a type is named.
        kind = request.get("ModelPackageType", "Versioned" if group else "Unversioned")
        approval = request.get("ModelApprovalStatus")

        def wanted(package: Record) -> bool:
            versioned = "ModelPackageVersion" in package
            return (
                (kind == "Both" or versioned == (kind == "Versioned"))
                and (not group or package.get("ModelPackageGroupName") == group)
                and (not approval or package.get("ModelApprovalStatus") == approval)
            )

        return wanted
