"""What becomes of the inputs of an app: filled, checked, and refused in words that help."""

from typing import Any

import pytest

from opendify.chat import form_inputs
from opendify.chat.form_inputs import TemplateVars
from opendify.dify.apps import (
    FileRules,
    FormField,
    parse_app,
    parse_form,
)
from opendify.errors import InvalidRequest
from opendify.files.input_placement import place_files

FACTS = TemplateVars(user="u{role}", role="admin", chat_id="c-1", system="Be brief.")


def form(**kinds: Any) -> tuple[FormField, ...]:
    """Fields by name: a kind, or what Dify tells of the field beside its name."""
    told = []
    for name, kind in kinds.items():
        one = {"kind": kind} if isinstance(kind, str) else dict(kind)
        told.append({one.pop("kind"): {"variable": name, **one}})
    return parse_form(told)


def test_the_callers_facts_fill_the_operators_inputs_once() -> None:
    configured = {"who": "{user} as {role}", "deep": {"list": ["{chat_id}", 7]}, "no": "{other} {}"}
    assert form_inputs.fill(configured, FACTS) == {
        "who": "u{role} as admin",
        "deep": {"list": ["c-1", 7]},
        "no": "{other} {}",
    }
    assert form_inputs.fill({"s": "{system}"}, FACTS) == {"s": "Be brief."}


RESERVED = [
    pytest.param("{user}", True, id="user"),
    pytest.param("{role}", True, id="role"),
    pytest.param("chat {chat_id}!", True, id="chat_id, within a text"),
    pytest.param({"deep": ["x", {"er": "{user}"}]}, True, id="at any depth"),
    pytest.param("{system}", False, id="what the caller says anyway"),
    pytest.param({"{user}": "x"}, False, id="a name is no value"),
    pytest.param("{users} { user }", False, id="other names"),
    pytest.param(7, False, id="a number"),
]


@pytest.mark.parametrize(("value", "is_reserved"), RESERVED)
def test_inputs_that_identify_the_caller_are_set_by_the_operator(
    value: Any, is_reserved: bool
) -> None:
    assert form_inputs.reserved({"who": value, "other": "x"}) == ({"who"} if is_reserved else set())


def test_defaults_of_the_form_fill_what_is_empty() -> None:
    fields = form(
        city={"kind": "text-input", "required": True, "default": "Oslo"},
        tone={"kind": "select", "options": ["warm", "cold"], "default": "warm"},
        yes={"kind": "checkbox", "required": True},
    )
    assert form_inputs.complete({"yes": False, "tone": "", "own": 1}, fields) == {
        "city": "Oslo",
        "tone": "warm",
        "yes": False,
        "own": 1,
    }


def test_all_missing_inputs_are_named_at_once() -> None:
    fields = form(
        a={"kind": "text-input", "required": True},
        b={"kind": "file-list", "required": True},
        c={"kind": "number", "required": True},
        looked_up={"kind": "external_data_tool", "type": "api", "required": True},
    )
    with pytest.raises(InvalidRequest, match=r"needs these inputs: a, b\. ") as caught:
        form_inputs.complete({"a": "", "b": [], "c": 0}, fields)
    assert caught.value.param == "inputs"


REFUSED = [
    ("text-input", 7, "must be text"),
    ({"kind": "paragraph", "max_length": 3}, "猫猫猫猫", "may have 3 characters at most"),
    ({"kind": "paragraph", "max_length": "3"}, "cats", "may have 3 characters at most"),
    ({"kind": "select", "options": ["a", "b"]}, "c", "must be one of a, b"),
    ({"kind": "select", "options": ["a"]}, ["a"], "must be one of a"),
    ("number", "many", "must be a number"),
    ("number", "nan", "must be a number"),
    ("number", True, "must be a number"),
    ("number", [1], "must be a number"),
    ("json_object", "{}", "must be an object"),
    ("file", ["x"], "must be one of Dify's file objects"),
    ("file-list", {"type": "image"}, "must be an array of Dify's file objects"),
    ({"kind": "file-list", "max_length": 1}, [{}, {}], "may have 1 files at most"),
]


@pytest.mark.parametrize(("kind", "value", "problem"), REFUSED)
def test_an_input_that_dify_would_refuse_is_refused_here(
    kind: Any, value: Any, problem: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        form_inputs.complete({"x": value}, form(x=kind))
    assert caught.value.message == f"The input 'x' of the Dify app {problem}."
    assert caught.value.param == "inputs.x"


TAKEN = [
    ("text-input", "a" * 1000),
    ({"kind": "paragraph", "max_length": 4}, "猫🐱猫🐱"),
    ({"kind": "select", "options": []}, "c"),
    ("number", "1.5"),
    ("number", -3),
    ("checkbox", "yes"),
    ("json_object", {"a": 1}),
    ("file", {"type": "image"}),
    ({"kind": "file-list", "max_length": 2}, [{}, {}]),
    ("from_the_future", object()),
]


@pytest.mark.parametrize(("kind", "value"), TAKEN)
def test_an_input_that_dify_takes_is_taken(kind: Any, value: Any) -> None:
    assert form_inputs.complete({"x": value}, form(x=kind)) == {"x": value}


TEXT = {"kind": "paragraph"}
NEEDED = {"kind": "paragraph", "required": True}
TEXT_FIELDS: list[tuple[str, Any, str, dict[str, Any], str, str]] = [
    ("configured", form(query=TEXT), "topic", {}, "", "topic"),
    ("nothing is known", None, "", {}, "", "query"),
    ("by name", form(city=TEXT, question=TEXT), "", {}, "", "question"),
    ("the best name", form(text=TEXT, query=TEXT), "", {}, "", "query"),
    ("the only one", form(thema=TEXT, n="number"), "", {}, "", "thema"),
    ("the only one that is needed", form(a=TEXT, b=NEEDED), "", {}, "", "b"),
    ("the only one without a value", form(a=TEXT, b=TEXT), "", {"a": "x"}, "", "b"),
    ("all have a value", form(a=TEXT, b=TEXT), "", {"a": "x", "b": "y"}, "", ""),
    ("the caller says all, and there is none", form(n="number"), "", {"n": 1}, "", ""),
    ("a text generator", form(a=TEXT, query=TEXT), "", {}, "query", "query"),
    ("a text generator without inputs", form(), "", {}, "query", "query"),
    ("a text generator of many", form(a=TEXT, b=TEXT), "", {}, "query", "a"),
]


@pytest.mark.parametrize(
    ("fields", "configured", "given", "usual", "expected"),
    [row[1:] for row in TEXT_FIELDS],
    ids=[row[0] for row in TEXT_FIELDS],
)
def test_the_text_goes_into(
    fields: Any, configured: str, given: dict[str, Any], usual: str, expected: str
) -> None:
    assert form_inputs.text_field(fields, configured, given, usual) == expected


@pytest.mark.parametrize(
    ("fields", "names"), [(form(a=TEXT, b=TEXT), "a, b"), (form(n="number"), "none")]
)
def test_a_workflow_that_does_not_tell_where_the_text_goes(fields: Any, names: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"its text inputs: {names}\).*'text_input'"):
        form_inputs.text_field(fields, "", {})


def file(kind: str, id_: str = "1") -> dict[str, Any]:
    return {"type": kind, "transfer_method": "local_file", "upload_file_id": id_}


def taking(kind: str, *types: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, "allowed_file_types": list(types), **more}


IMAGE, OTHER_IMAGE, DOCUMENT = file("image"), file("image", "2"), file("document")
ANY_IMAGES = FileRules(frozenset({"image"}))
PLACES: list[tuple[str, Any, list[Any], FileRules | None, dict[str, Any], list[Any]]] = [
    ("no inputs for files", form(q=TEXT), [IMAGE], None, {}, [IMAGE]),
    ("one", form(f=taking("file", "image")), [IMAGE], None, {"f": IMAGE}, []),
    ("a list", form(f=taking("file-list", "image")), [IMAGE], None, {"f": [IMAGE]}, []),
    (
        "by kind",
        form(pictures=taking("file-list", "image"), paper=taking("file", "document")),
        [DOCUMENT, IMAGE, OTHER_IMAGE],
        None,
        {"paper": DOCUMENT, "pictures": [IMAGE, OTHER_IMAGE]},
        [],
    ),
    (
        "no more than fit",
        form(f=taking("file-list", "image", max_length=1)),
        [IMAGE, OTHER_IMAGE],
        None,
        {"f": [IMAGE]},
        [OTHER_IMAGE],
    ),
    (
        "beside the inputs before an input that need not be there",
        form(f=taking("file", "image", "document")),
        [IMAGE, DOCUMENT],
        ANY_IMAGES,
        {"f": DOCUMENT},
        [IMAGE],
    ),
    (
        "an input that must be there first",
        form(f=taking("file", "image", required=True)),
        [IMAGE, OTHER_IMAGE],
        ANY_IMAGES,
        {"f": IMAGE},
        [OTHER_IMAGE],
    ),
    ("an input that says nothing of kinds", form(f="file"), [DOCUMENT], None, {"f": DOCUMENT}, []),
    ("an input that has a value", form(given=taking("file", "image")), [IMAGE], None, {}, [IMAGE]),
]


@pytest.mark.parametrize(
    ("fields", "files", "beside", "placed", "rest"),
    [row[1:] for row in PLACES],
    ids=[row[0] for row in PLACES],
)
def test_files_go_into(
    fields: Any, files: list[Any], beside: FileRules | None, placed: Any, rest: list[Any]
) -> None:
    assert place_files(files, fields, {"given": {"type": "image"}}, beside) == (placed, rest)


def test_an_app_takes_files_beside_its_form_and_in_it() -> None:
    parameters = {
        "file_upload": {
            "enabled": True,
            "allowed_file_types": ["image"],
            "allowed_file_upload_methods": ["local_file"],
            "number_limits": 2,
        },
        "user_input_form": [
            {
                "file-list": {
                    "variable": "papers",
                    "allowed_file_types": ["document", "custom"],
                    "allowed_file_extensions": [".LOG"],
                    "allowed_file_upload_methods": ["remote_url"],
                    "max_length": 3,
                }
            }
        ],
        "system_parameters": {"image_file_size_limit": "10"},
    }
    app = parse_app({"mode": "advanced-chat"}, parameters)
    assert app.files is not None
    assert app.files.kinds == {"image", "document", "custom"}
    assert app.files.extensions == {"log"}
    assert app.files.methods == {"local_file", "remote_url"}
    assert app.files.max_count == 5
    assert app.files.max_bytes["image"] == 10 * 1024 * 1024
    assert app.message_files is not None
    assert app.message_files.kinds == {"image"}
    parameters["file_upload"] = {"enabled": False}
    only_form = parse_app({"mode": "workflow"}, parameters)
    assert only_form.files is not None
    assert only_form.files.kinds == {"document", "custom"}
    assert only_form.files.max_count == 3
