from __future__ import annotations

import pytest

from causaltrace.report.shape import Map, Maybe, ShapeError, reader


@pytest.mark.parametrize(
    ("shape", "data"),
    [
        (str, "x → y"),
        (int, -(2**53) + 1),
        (bool, False),
        (float, 0.5),
        ([int], [1, 2]),
        ((int, str), [1, "a"]),
        (Maybe(int), None),
        (Map([bool]), {"k": [True]}),
        ({"a": int}, {"a": 1}),
    ],
)
def test_data_of_the_shape_are_taken_as_they_are(shape, data):
    assert reader(shape)(data) == (tuple(data) if isinstance(shape, tuple) else data)


def test_other_keys_are_ignored():
    assert reader({"a": int})({"a": 1, "b": object()}) == {"a": 1}


@pytest.mark.parametrize(
    ("shape", "data", "message"),
    [
        (int, True, "the document must be a whole number below 2**53, not True"),
        (int, 1.0, "must be a whole number"),
        (int, 2**53, "must be a whole number"),
        (float, True, "must be a number, not True"),
        (float, float("nan"), "must be a number"),
        (bool, 0, "must be true or false, not int"),
        (str, None, "must be text, not None"),
        ([int], {"a": 1}, "must be a list, not dict"),
        ((int, int), [1], "must be a list of 2"),
        (Map(int), [], "must be an object, not list"),
        ({"a": int}, {}, "the document has no 'a'"),
        (
            {"a": [{"b": int}]},
            {"a": [{"b": 1}, {"b": "x"}]},
            "a[1].b must be a whole number below 2**53, not 'x'",
        ),
        ({"a": {"b": int}}, {"a": {}}, "a has no 'b'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(shape, data, message):
    with pytest.raises(ShapeError) as caught:
        reader(shape)(data)
    assert message in str(caught.value)


def test_characters_that_steer_a_terminal_become_visible():
    assert reader(str)("a\x1b[31mb\x9bc\x00\nd\te") == "a�[31mb�c�\nd\te"
    assert reader(str)("\ud800") == "�"
