"""Draws the workflow as a Mermaid flowchart: python -m statemachine.draw [EXECUTION_ARN].

With an execution's ARN, what its history went through is marked, and its end is the title.
"""

import argparse
import json
from pathlib import Path
from typing import Any

DEFINITION = Path(__file__).with_name("classify_image.asl.json")
SHAPES = {"Task": '["{}"]', "Choice": '{{"{}"}}', "Succeed": '(["{}"])', "Fail": '(["{}"])'}


def flowchart(definition: dict[str, Any], visited: list[str] | None = None, title: str | None = None) -> str:
    """Mermaid source of the states and their transitions; `visited` states are filled."""
    lines = [*(["---", f"title: {title}", "---"] if title else []), "flowchart LR"]
    for name, state in definition["States"].items():
        lines.append(f"    {name}{SHAPES[state['Type']].format(name)}")
    edges: list[str] = []
    for name, state in definition["States"].items():
        if "Next" in state:
            edges.append(f"    {name} --> {state['Next']}")
        for choice in state.get("Choices", []):
            condition = choice["Condition"].removeprefix("{% $states.input.").removesuffix(" %}")
            edges.append(f'    {name} -- "{condition}" --> {choice["Next"]}')
        if "Default" in state:
            edges.append(f"    {name} -- otherwise --> {state['Default']}")
        edges += [f"    {name} -.-> {catch['Next']}" for catch in state.get("Catch", [])]
    lines += edges
    if visited:
        lines.append("    classDef visited fill:#0072B2,color:#ffffff,stroke:#003f63")
        lines.append(f"    class {','.join(visited)} visited")
    return "\n".join(lines)


def visited_states(history: list[dict[str, Any]]) -> list[str]:
    """Names of the states that a GetExecutionHistory answer entered, in order."""
    return [event["stateEnteredEventDetails"]["name"] for event in history if "stateEnteredEventDetails" in event]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m statemachine.draw", description=__doc__)
    parser.add_argument("execution", nargs="?", help="ARN of an execution; by default the workflow alone is drawn")
    arn = parser.parse_args().execution
    definition = json.loads(DEFINITION.read_text())
    if arn is None:
        print(flowchart(definition))
        return
    import boto3

    states = boto3.client("stepfunctions")
    execution = states.describe_execution(executionArn=arn)
    pages = states.get_paginator("get_execution_history").paginate(executionArn=arn)
    visited = visited_states([event for page in pages for event in page["events"]])
    print(flowchart(definition, visited, execution.get("error") or execution["status"]))


if __name__ == "__main__":
    main()
