"""A result that tests change."""

from tasks.evaluation.results import Result

RESULT = Result(
    inference_id="5b52074c57ed-0123456789abcdef0123-a1",
    execution_arn="arn:aws:states:eu-west-1:000000000000:execution:machine:name",
    key="test/a.png",
    label="bicycle",
    attempt=1,
    status="accepted",
    predicted_class="bicycle",
    confidence=0.99,
    threshold=0.93,
    model_version="v1",
    error=None,
    cause=None,
    failed_state=None,
    started="2026-11-22T03:30:00.000+00:00",
    stopped="2026-11-22T03:40:00.000+00:00",
)
