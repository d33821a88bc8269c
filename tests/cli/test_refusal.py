import json

from rekindle_cli.output.refusal import explain_refusal


def body(message: str, *causes: tuple[str, str]) -> str:
    details = {"causes": [{"field": field, "message": text} for field, text in causes]}
    return json.dumps({"kind": "Status", "message": message, "details": details})


def test_each_field_is_a_line_of_its_own() -> None:
    lines = explain_refusal(
        body(
            'TrainingJob.rekindle.dev "x" is invalid: [...]',
            ("spec.replicas", "Invalid value: 0: must be at least 1"),
            ("spec.checkpoint.uri", "Required value"),
        ),
        422,
        "TrainingJob x",
    )
    assert lines == [
        "The API server refuses TrainingJob x:",
        "  spec.replicas: Invalid value: 0: must be at least 1",
        "  spec.checkpoint.uri: Required value",
    ]


def test_a_cause_said_twice_is_one_line() -> None:
    twice = ("spec.replicas", "too small")
    assert len(explain_refusal(body("x", twice, twice), 422, "TrainingJob x")) == 2


def test_the_servers_hint_that_it_did_not_check_everything_is_left_out() -> None:
    hint = "Invalid value: null: some validation rules were not checked because ..."
    lines = explain_refusal(
        body("x", ("spec.replicas", "too small"), ("<nil>", hint)), 422, "TrainingJob x"
    )
    assert lines[1:] == ["  spec.replicas: too small"]


def test_unknown_fields_come_with_the_fix() -> None:
    text = (
        'TrainingJob in version "v1alpha1" cannot be handled as a TrainingJob: strict decoding '
        'error: unknown field "spec.replica", unknown field "spec.foo"'
    )
    assert explain_refusal(body(text), 400, "TrainingJob x")[1:] == [
        '  unknown field "spec.replica"; correct its name or remove it',
        '  unknown field "spec.foo"; correct its name or remove it',
    ]


def test_a_name_that_is_taken_is_said_plainly() -> None:
    (line,) = explain_refusal(body("already exists"), 409, "TrainingJob x")
    assert line.startswith("TrainingJob x exists already")


def test_a_message_without_causes_loses_the_repeated_name() -> None:
    lines = explain_refusal(body('Pod "x" is invalid: bad thing'), 422, "Pod x")
    assert lines == ["The API server refuses Pod x: bad thing"]


def test_an_answer_that_is_no_status_is_passed_on() -> None:
    assert explain_refusal("gateway timeout", 504, "Pod x") == [
        "The API server refuses Pod x: gateway timeout"
    ]
    assert explain_refusal(None, 500, "Pod x") == ["The API server refuses Pod x: HTTP 500"]
