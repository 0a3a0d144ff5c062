import re
from typing import Any

from local_aws.config import ROOT
from statemachine.draw import DEFINITION, flowchart, visited_states

README = (ROOT / "README.md").read_text()


def test_the_readme_shows_the_workflow_as_it_is() -> None:
    import json

    assert flowchart(json.loads(DEFINITION.read_text())) in README


def test_a_drawing_marks_what_a_history_went_through() -> None:
    history: list[dict[str, Any]] = [{"stateEnteredEventDetails": {"name": "A"}}, {"type": "TaskScheduled"}]
    history.append({"stateEnteredEventDetails": {"name": "B"}})
    assert visited_states(history) == ["A", "B"]
    states = {"A": {"Type": "Task", "Next": "B"}, "B": {"Type": "Succeed"}}
    drawn = flowchart({"States": states}, ["A", "B"], "accepted")
    assert "A --> B" in drawn and "class A,B visited" in drawn and "title: accepted" in drawn


def test_every_link_and_target_of_the_readme_exists() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target.split("#")[0]).exists(), target
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
