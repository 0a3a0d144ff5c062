"""Makes the calls of calls.yaml and prints where the answers differ from what is expected there.

    python -m conformance             on an embedded AWS of its own, in about a minute
    python -m conformance --aws real  on the account of the shell's credentials, in about half an hour

On an account this makes a bucket, two roles, a function, two state machines, a training job of some minutes on one
ml.m5.large and an endpoint of one ml.t2.medium: less than $1, and never more than an hour of either. It deletes all of
it, also after Ctrl-C; `--teardown PREFIX` deletes what a killed run has left. Exits with 1 if an answer differs.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, get_args

import jmespath
from botocore.exceptions import ClientError

from conformance import places
from conformance.calls import Call, Source, load
from conformance.comparison import ERROR, MESSAGE, STATUS, differences, normalized

POLL_SECONDS = {"embedded": 0.3, "account": 15}
# For any call that waits, and for all of them: an account's owner pays for instances by the second.
LONGEST_WAIT_SECONDS = 1800
LONGEST_RUN_SECONDS = 3600
# What AWS does a little later, such as a new role that can be assumed.
PROPAGATION_SECONDS = {"embedded": 0, "account": 20}


class TookTooLong(Exception):
    """The kit stops and deletes what it made."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--aws", choices=("local", "real"), default="local", help="where to call (default: local)")
    parser.add_argument("--show", metavar="NAME", help="print the whole answer of the calls whose name has this")
    parser.add_argument("--teardown", metavar="PREFIX", help="only delete what a run with this prefix has left")
    options = parser.parse_args()
    where = "account" if options.aws == "real" else "embedded"
    place = places.account() if options.aws == "real" else places.embedded()
    with place as (client_of, variables):
        here = variables["region"], variables["account"]
        if options.teardown:
            return _say_left(places.teardown(client_of, options.teardown, *here))
        print(f"everything is named {variables['prefix']}-..., in {variables['account']}, {variables['region']}")
        try:
            differing = run(load(), client_of, variables, where, options.show)
        finally:
            _say_left(places.teardown(client_of, variables["prefix"], *here))
    return 1 if differing else 0


def run(calls: list[Call], client_of: places.ClientOf, variables: dict[str, Any], where: str, show: str | None) -> int:
    """Makes the calls in their order and prints a line for each; returns how many answers differ."""
    began, differing = time.monotonic(), 0
    sources: Counter[Source] = Counter()
    for call in calls:
        if time.monotonic() - began > LONGEST_RUN_SECONDS:
            raise TookTooLong(f"the run has taken {LONGEST_RUN_SECONDS} s")
        answer = make(call, client_of, variables, where)
        for name, path in call.save.items():
            variables[name] = jmespath.search(path, answer)
        comparable = normalized(answer, _known(variables))
        found = differences(call.expect, comparable)
        differing += bool(found)
        sources[call.source] += 1
        print(f"{'differs' if found else 'as expected':12} {call.name}  ({call.call}; {call.source})", flush=True)
        for line in found:
            print(f"{'':12} {line}\n{'':12} {call.reference}")
        if show and show in call.name:
            print(json.dumps(comparable, indent=2, default=str))
    told = ", ".join(f"{sources[source]} {source}" for source in get_args(Source))
    print(
        f"\n{sources.total()} calls: {sources.total() - differing} as expected, {differing} otherwise. Known by: {told}"
    )
    return differing


def make(call: Call, client_of: places.ClientOf, variables: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The members of a call's answer or error, with its code, status and message; waits if the call says until when."""
    service, method = call.call.split(".")
    arguments = filled(call.arguments, variables)
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    propagated = time.monotonic() + PROPAGATION_SECONDS[where]
    while True:
        answer = _answer(getattr(client_of(service), method), arguments)
        waiting = any(jmespath.search(path, answer) not in values for path, values in call.until.items())
        early = answer.get(ERROR) != call.expect.error and time.monotonic() < propagated
        if not (waiting and ERROR not in answer) and not early:
            return answer
        if time.monotonic() > deadline:
            raise TookTooLong(f"{call.name} has taken {LONGEST_WAIT_SECONDS} s")
        time.sleep(POLL_SECONDS[where])


def filled(value: Any, variables: Mapping[str, Any]) -> Any:
    """A call's arguments with ${names} replaced; one that is nothing else may be bytes, or None and is left out."""
    if isinstance(value, dict):
        members = {name: filled(member, variables) for name, member in value.items()}
        return {name: member for name, member in members.items() if member is not None}
    if isinstance(value, list):
        return [filled(member, variables) for member in value]
    if not isinstance(value, str):
        return value
    if value.startswith("${") and value.endswith("}") and value[2:-1] in variables:
        return variables[value[2:-1]]
    for name, text in variables.items():
        if isinstance(text, str):
            value = value.replace(f"${{{name}}}", text)
    return value


def _answer(method: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = method(**arguments)
    except ClientError as error:
        told = error.response["Error"]
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        rest = {name: value for name, value in error.response.items() if name not in ("Error", "ResponseMetadata")}
        return {**rest, ERROR: told["Code"], MESSAGE: told.get("Message", ""), STATUS: status}
    for name in ("Body", "Payload"):
        if hasattr(answer.get(name), "read"):
            answer[name] = answer[name].read().decode()
    return {**answer, STATUS: answer["ResponseMetadata"]["HTTPStatusCode"]}


def _known(variables: Mapping[str, Any]) -> dict[str, str]:
    names = {"bucket": "BUCKET", "prefix": "PREFIX", "account": "ACCOUNT", "region": "REGION"}
    return {variables[name]: stands_for for name, stands_for in names.items()}


def _say_left(left: list[str]) -> int:
    for line in left:
        print(f"could not be deleted: {line}", file=sys.stderr)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
