"""The condition key cloudwatch:namespace of PutMetricData, which ministack's evaluation of policies does not know.

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/iam-cw-condition-keys-namespace.html
"""

import json
from typing import Any
from urllib.parse import parse_qs

from botocore.parsers import RpcV2CBORParser
from ministack.core import iam_actions


def install() -> None:
    """Has policies decide by the namespace that a request puts its metrics into."""
    original = iam_actions.request_tag_context

    def with_namespace(service: str, iam_action: str, body: bytes, params: dict[str, Any]) -> dict[str, Any]:
        context: dict[str, Any] = original(service, iam_action, body, params)
        if iam_action == "cloudwatch:PutMetricData":
            context["cloudwatch:namespace"] = _namespace(body)
        return context

    iam_actions.request_tag_context = with_namespace


def _namespace(body: bytes) -> str:
    """Of a request by any of CloudWatch's protocols; empty if there is none."""
    if body[:1] == b"{":
        content = json.loads(body)
    elif body.startswith(b"Action="):
        content = {name: values[-1] for name, values in parse_qs(body.decode()).items()}
    else:
        cbor = RpcV2CBORParser()
        content = cbor.parse_data_item(cbor.get_peekable_stream_from_bytes(body))
    return str(content.get("Namespace", ""))
