"""The error tree: exit codes, and what is kept when an error is passed between processes."""

from __future__ import annotations

import json

import pytest

import headrace.client.errors
from headrace import errors
from headrace.errors import HeadraceError, RolloutAborted, near_miss


def subclasses(cls: type[HeadraceError]) -> list[type[HeadraceError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in subclasses(child))]


CLASSES = [cls for cls in subclasses(HeadraceError) if cls.__module__ in (errors.__name__, headrace.client.errors.__name__)]
VALUES = {"facts": {"step": 5, "rates": [0.1, None]}, "status": 503, "code": "c", "request_id": "r", "retry_after": 1.5}


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_an_error_survives_the_way_through_json(cls: type[HeadraceError]) -> None:
    further = {name: VALUES.get(name, {"path": "x"}) for name in cls.fields}
    error = cls("message", where="place", hint="command", **further)
    found = HeadraceError.from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(found) is cls and vars(found) == vars(error) and found.args == error.args
    assert (str(found), found.exit_code) == (str(error), error.exit_code)


def test_all_constructor_arguments_are_kept() -> None:
    """A subclass whose constructor takes more than the base class has to name it in `fields`."""
    import inspect

    for cls in CLASSES:
        arguments = set(inspect.signature(cls.__init__).parameters) - {"self", "message", "where", "hint"}
        assert arguments == set(cls.fields), cls


def test_an_error_of_an_older_version_keeps_its_hint() -> None:
    found = HeadraceError.from_dict(
        {"error": "DataError", "message": "no rows", "where": None, "remedy": "bring rows", "exit_code": 3}
    )
    assert type(found) is errors.DataError and found.hint == "bring rows"


def test_an_unknown_class_becomes_the_base_class() -> None:
    found = HeadraceError.from_dict({"error": "Newer", "message": "m", "where": None, "hint": None, "exit_code": 9})
    assert type(found) is HeadraceError and found.message == "m"


def test_exit_codes_of_the_tree() -> None:
    codes = {cls.__name__: cls.exit_code for cls in CLASSES if cls.__module__ == errors.__name__}
    expected = {
        1: "HeadraceError TrainingError ExportError DamagedFile NewerFile",
        2: "UsageError RecipeError SettingsError",
        3: "DataError SourceError SourceUnreachable DataRejected",
        4: "NotReleased ModelRefused AwaitsApproval Rejected RolloutAborted RolledBack NotReproduced",
        5: "ServiceError PortTaken EngineMissing RegistryError",
        6: "Busy",
        7: "DiskFull",
        130: "Interrupted",
    }
    assert codes == {name: code for code, names in expected.items() for name in names.split()}


def test_an_error_is_only_what_its_base_class_says() -> None:
    assert not issubclass(errors.SettingsError, errors.RecipeError)
    for cls in (errors.AwaitsApproval, errors.Rejected, RolloutAborted, errors.RolledBack):
        assert issubclass(cls, errors.NotReleased) and not issubclass(cls, errors.ModelRefused)


def test_an_error_lists_at_most_twenty_names() -> None:
    names = [f"column_{number:02}" for number in range(23)]
    assert near_miss("zebra", names) == f"known: {', '.join(names[:20])} and 3 more"
    assert near_miss("zebra", names[:20]) == f"known: {', '.join(names[:20])}"
    assert near_miss("column_2", names) == "did you mean 'column_22'?"
