# The image of flow runs on ECS, and of the worker that starts them: `make image`. It has what flows import and nothing
# else: no PyTorch and no embedded AWS.
# python:3.11-slim-bookworm; renew the digest with `docker buildx imagetools inspect python:3.11-slim-bookworm`.
FROM python:3.11-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PREFECT_FLOWS_HEARTBEAT_FREQUENCY=30
WORKDIR /opt/scones

COPY infrastructure/runner.lock infrastructure/runner.lock
RUN pip install --no-cache-dir --require-hashes --no-deps --requirement infrastructure/runner.lock

COPY settings.py ./
COPY flows flows
COPY tasks tasks
COPY watch watch
# What flows upload: the code of training and serving, of the functions and of the state machines, and the templates.
COPY classifier classifier
COPY lambdas lambdas
COPY statemachine statemachine
COPY infrastructure infrastructure
RUN python -m tasks.aws.function_packages

# Its home, caches and reports vanish with the task; all that lasts is in the bucket and in the Prefect server.
RUN useradd --create-home --uid 10001 scones
USER scones
ENV SCONES_CACHE=/tmp/scones/cache SCONES_REPORTS=/tmp/scones/reports

CMD ["python", "-m", "prefect", "flow-run", "execute"]
