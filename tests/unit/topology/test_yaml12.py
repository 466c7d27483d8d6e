"""The reader of topologies: YAML 1.2 meanings, positions, bounds."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from civitas_shm.topology.yaml12 import DEPTH_MAX, SIZE_MAX_BYTES, Mark, read, resolve


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("Off", "Off"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("2001-01-01", "2001-01-01"),
        ("0x", "0x"),
        ("1e", "1e"),
        (".", "."),
        ("012", 12),
        ("0o14", 12),
        ("0xFF", 255),
        ("-5", -5),
        ("+5", 5),
        ("9223372036854775807", 2**63 - 1),
        (".5", 0.5),
        ("5.", 5.0),
        ("1e3", 1000.0),
        ("-.inf", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("tRUE", "tRUE"),
        ("~", None),
        ("", None),
        ("null", None),
    ],
)
def test_a_plain_scalar_means_what_the_yaml_1_2_core_schema_says(text: str, meaning: object) -> None:
    value = resolve(text)
    assert value == meaning
    assert type(value) is type(meaning)


def test_nan_is_the_only_number_that_is_not_itself() -> None:
    value = resolve(".NaN")
    assert isinstance(value, float)
    assert math.isnan(value)


@pytest.mark.parametrize("text", ["9223372036854775808", "-9223372036854775809", "9" * 5000, "0x" + "f" * 17])
def test_a_whole_number_beyond_64_bits_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="64 bits"):
        resolve(text)


def test_leading_zeros_do_not_count_towards_the_64_bits() -> None:
    assert resolve("0" * 100 + "7") == 7


def test_quoted_text_and_text_with_a_str_tag_stays_text() -> None:
    assert read("[\"12\", '~', !!str 12, ! no]").data == ["12", "~", "12", "no"]
    assert read("a: |\n  12\n").data == {"a": "12\n"}


def test_every_key_and_value_has_its_place() -> None:
    document = read("a: 1\nb:\n  - x\n  - {c: 2}\n")
    assert document.data == {"a": 1, "b": ["x", {"c": 2}]}
    assert document.key_mark(("b",)) == Mark(2, 1)
    assert document.mark(("b", 0)) == Mark(3, 5)
    assert document.key_mark(("b", 1, "c")) == Mark(4, 6)
    assert document.mark(("b", 1, "c")) == Mark(4, 9)


def test_columns_count_characters_and_not_bytes() -> None:
    assert read("{é😀: x}").mark(("é😀",)) == Mark(1, 6)


def test_the_place_of_what_is_not_there_is_what_it_would_be_in() -> None:
    assert read("a:\n  b: {}\n").mark(("a", "b", "c", "d")) == Mark(2, 6)


@pytest.mark.parametrize(
    ("text", "mark", "part"),
    [
        ("a: 1\na: 2\n", Mark(2, 1), "the key 'a' is set twice; first in line 1"),
        ("a: {b: 1, b: 2}", Mark(1, 11), "the key 'b' is set twice"),
        ("1: a\n0x1: b", Mark(2, 1), "the key 1 is set twice"),
        ("<<: {a: 1}", Mark(1, 1), "merge keys (<<)"),
        ("? [a]\n: b", Mark(1, 3), "a key is a word or a whole number"),
        ("true: b", Mark(1, 1), "put it in quotes"),
        ("a: !EVN HOME", Mark(1, 4), "the tag !EVN is not supported"),
        ("a: !ENV [HOME]", Mark(1, 4), "the tag !ENV is not supported"),
        ("!ENV HOME: a", Mark(1, 1), "a key is a word"),
        ("a: !!python/none x", Mark(1, 4), "the tag !!python/none is not supported"),
        ("a: !set {b: c}", Mark(1, 4), "the tag !set is not supported"),
        ("a: !!int x", Mark(1, 4), "'x' is not what its tag !!int says"),
        ("a: *b", Mark(1, 4), "the alias *b has no anchor &b before it"),
        ("a: &b [*b]", Mark(1, 8), "the alias *b stands inside of what it names"),
        ("---\na: 1\n---\nb: 1", Mark(3, 1), "a second document"),
        ("%YAML 1.1\n---\na: no", Mark(1, 1), "the file asks for YAML 1.1"),
        ("a: [1", Mark(2, 1), "not valid YAML"),
        ("a: b: c", Mark(1, 5), "not valid YAML: mapping values are not allowed in this context"),
        ("\ta: b", Mark(1, 1), "not valid YAML"),
        ("a: b\nc: \x07", Mark(2, 4), "U+0007"),
        ("a: \ud800", Mark(1, 4), "U+D800"),
        ("a: " + "9" * 30, Mark(1, 4), "64 bits"),
        ("[" * (DEPTH_MAX + 2), Mark(1, DEPTH_MAX + 1), f"deeper than {DEPTH_MAX} levels"),
        ("#" * (SIZE_MAX_BYTES + 1), Mark(1, 1), "the limit is"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, mark: Mark, part: str) -> None:
    (problem,) = read(text).problems
    assert problem.mark == mark
    assert part in problem.text


def test_an_alias_is_what_its_anchor_names_and_a_later_anchor_replaces_it() -> None:
    assert read("a: &x 1\nb: *x\nc: &x 2\nd: *x").data == {"a": 1, "b": 1, "c": 2, "d": 2}


def test_aliases_that_multiply_are_stopped() -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    for before, name in zip("abcdefgh", "bcdefghi", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]")
    (problem,) = read("\n".join(lines)).problems
    assert "once aliases (*) are followed" in problem.text


def test_aliases_that_deepen_are_stopped() -> None:
    lines = ["a0: &a0 []", *(f"a{i}: &a{i} [[[*a{i - 1}]]]" for i in range(1, 60))]
    (problem,) = read("\n".join(lines)).problems
    assert "deeper than" in problem.text


@given(st.text(st.sampled_from("ab:-?&*!|>'\"%#{}[], \n\t1.~<"), max_size=80))
def test_any_text_is_read_or_has_a_problem(text: str) -> None:
    document = read(text)
    for problem in document.problems:
        assert problem.mark.line >= 1
        assert problem.mark.column >= 1
        assert problem.text
