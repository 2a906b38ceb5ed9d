"""The normaliser: any spelling of the same content is the same product with the same version; dirty data is mended."""

from __future__ import annotations

import json
import unicodedata
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.products import BadRowError, Product, data_version, normalise, stable, stable_json

KEY = {"style_brand_no": "B1", "style_no": "S1"}


def product(**fields: Any) -> Product:
    return normalise(KEY | fields)[0]


def warned(**fields: Any) -> list[str]:
    return normalise(KEY | fields)[1]


@pytest.mark.parametrize("field", ["style_brand_no", "style_no"])
@pytest.mark.parametrize("value", [None, "", "  ", True, 1.5, "x" * 65, "a\0b", "a\ud800"])
def test_a_row_without_a_usable_key_is_an_error_that_names_the_key(field: str, value: object) -> None:
    with pytest.raises(BadRowError, match=rf"field {field}"):
        normalise(KEY | {field: value})


def test_each_field_is_read_from_the_first_column_that_holds_something() -> None:  # facts 2.4
    found = product(commodity_name=" ", prod_name="Boot", retail_price="5", tag_json='["a"]', attrs='{"k":"v"}',
                    colors="red||blue", desc="d", pic_url="u", is_sale=True)  # fmt: skip
    assert found[2:9] == ("Boot", "5.00", '["a"]', '{"colors":["blue","red"],"k":"v"}', "d", "u", True)


def test_a_row_with_nothing_but_its_key_is_a_product() -> None:
    assert product()[:9] == ("B1", "S1", "", "0.00", "[]", "{}", None, None, None)


@pytest.mark.parametrize("price", [398, "398", "398.0", "398.00", " 398 ", Decimal("398"), Decimal("3.98E2"), "３９８"])
def test_a_price_has_one_version_however_it_is_spelled(price: object) -> None:  # T67
    assert product(price=price) == product(price=Decimal("398.00"))


@pytest.mark.parametrize("price", [0, "0", "0.00", None, "", "--", Decimal("-0"), "无"])
def test_a_price_of_nothing_is_zero(price: object) -> None:  # T67
    assert product(price=price).price == "0.00"


@pytest.mark.parametrize("price", [398.0, float("nan"), True, "abc", "NaN", "Infinity", "99999999.995", "1e999999", []])
def test_a_price_that_would_be_wrong_is_refused_by_name(price: object) -> None:  # T67, PE-62
    with pytest.raises(BadRowError, match=r"style_brand_no='B1', style_no='S1', field price"):
        normalise(KEY | {"price": price})


def test_a_float_anywhere_is_refused() -> None:  # PE-62
    with pytest.raises(TypeError, match=r"\$\.a\[0\] is the float 1\.5"):
        stable_json({"a": [1.5]})
    with pytest.raises(BadRowError, match="float"):
        normalise(KEY | {"attributes": {"a": 1.5}})


def test_numbers_in_json_text_are_exact_and_have_one_spelling() -> None:
    texts = ('{"a": 398, "b": 0.1}', '{"b":0.10,"a":398.00}', '{"a":3.98e2,"b":1e-1}')
    assert {product(attrs_json=t) for t in texts} == {product(attrs_json='{"a":"398","b":"0.1"}')}
    assert json.loads(product(attrs_json='{"a":123456789012345678901234567890123456789.5}').attributes) == {
        "a": "123456789012345678901234567890123456789.5"
    }


def test_true_is_not_one() -> None:  # T69
    assert json.loads(product(tags_json="[true, 1, false, 0, 1.0]").tags) == ["0", "1", "false", "true"]


def test_both_forms_of_unicode_and_full_width_bars_are_one_content() -> None:  # T69
    composed, split = "é", unicodedata.normalize("NFD", "é")
    assert product(name=composed, colors_concat=f"{composed}||a") == product(
        name=split, colors_concat=f" a｜｜{split} "
    )


def test_placeholders_are_dropped_and_lists_are_sorted_and_distinct() -> None:  # PE-62, PE-67
    attributes = {"a": "无", "b": "不适用", "c": " 空 ", "d": "--", "e": None, "f": "", "g": "y||x|| y ||", "h": " z "}
    assert json.loads(product(attrs_json=json.dumps(attributes)).attributes) == {"g": ["x", "y"], "h": "z"}


@pytest.mark.parametrize(
    "fields",
    [
        {"attrs_json": "{bad"},
        {"attrs_json": "[1]"},
        {"tags_json": '{"a":1}'},
        {"tags_json": "[NaN]"},
        {"tags_json": "[" * 5000},
        {"attrs_json": "[" * 40 + "]" * 40},
        {"name": "x" * 300},
        {"image_url": "u" * 513},
        {"price": "--"},
        {"price": "1.005"},
        {"on_sale": "maybe"},
        {"attrs_json": '{"\u00e9":"1","e\u0301":"2"}'},
    ],
)
def test_dirty_data_is_mended_with_a_warning(fields: dict[str, str]) -> None:  # PE-67
    assert len(warned(**fields)) == 1
    assert normalise(_as_row(product(**fields)))[1] == []


@pytest.mark.parametrize("spelling", [True, "true", "Y", 1, "1", Decimal(1), "是"])
def test_on_sale_has_one_version_however_it_is_spelled(spelling: object) -> None:
    assert product(is_on_sale=spelling) == product(on_sale=True)


def test_what_is_versioned_is_the_white_list_and_the_schema_version(monkeypatch: pytest.MonkeyPatch) -> None:
    one = product(name="a", description="x")  # PE-61, T68
    assert product(name="a", description="y").data_version == one.data_version
    assert len(one.data_version) == 32
    fields = one._asdict() | {"tags": [], "attributes": {}}
    assert data_version(fields) == one.data_version
    for name, other in (("brand_code", "B"), ("sku", "s"), ("name", "b"), ("price", "1.00"), ("image_url", "u"),
                        ("on_sale", False), ("tags", ["t"]), ("attributes", {"a": "b"})):  # fmt: skip
        assert data_version(fields | {name: other}) != one.data_version, name
    monkeypatch.setattr(stable, "SCHEMA_VERSION", 2)
    assert data_version(fields) != one.data_version


def test_a_version_never_changes_by_accident() -> None:
    found = product(name="Boot", price="398", tags_json='["b","a"]', attrs_json='{"k":"x||y"}', colors_concat="red")
    assert found.data_version == "e7408a55489c0800907fa1990054dde3"


words = st.text(max_size=6) | st.sampled_from(["无", "--", "a||b", "é", "e\u0301", " x ", "\0"])
numbers = st.integers(-(10**20), 10**20) | st.decimals(allow_nan=False, allow_infinity=False, places=3)
scalars = st.none() | st.booleans() | words | numbers
values = st.recursive(scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3), max_leaves=6)
rows = st.fixed_dictionaries(
    {"style_brand_no": st.just("B1"), "style_no": st.just("S1")},
    optional={
        "name": words,
        "price": st.decimals(-1000, 1000, places=2) | st.integers(0, 10**6),
        "tags_json": st.lists(scalars, max_size=5),
        "attrs_json": st.dictionaries(words, values, max_size=5),
        "colors_concat": words,
        "description": words,
        "image_url": words,
        "on_sale": st.booleans(),
    },
)


def _text(value: Any, data: st.DataObject | None) -> str:
    """JSON, by hand: Decimals keep their digits; with `data` in any order, spacing and Unicode escape."""
    if isinstance(value, dict):
        items = list(value.items()) if data is None else data.draw(st.permutations(list(value.items())))
        return "{" + ", ".join(f"{_text(k, data)}:{_text(v, data)}" for k, v in items) + "}"
    if isinstance(value, list):
        return "[ " + ",".join(_text(v, data) for v in value) + "]"
    if isinstance(value, Decimal):
        return f"{value:f}" + ("" if data is None or value == value.to_integral_value() else data.draw(st.just("00")))
    return json.dumps(value, ensure_ascii=data is None or data.draw(st.booleans()))


def _as_row(found: Product) -> dict[str, Any]:
    names = {"brand_code": "style_brand_no", "sku": "style_no", "attributes": "attrs_json", "tags": "tags_json"}
    return {names.get(name, name): value for name, value in found._asdict().items()}


@settings(max_examples=60, deadline=None)
@given(rows, st.data())
def test_any_order_and_spelling_of_the_same_row_is_the_same_product(row: dict[str, Any], data: st.DataObject) -> None:
    one = row | {n: _text(row[n], None) for n in ("tags_json", "attrs_json") if n in row}
    other = dict(data.draw(st.permutations(list(row.items()))))
    if "tags_json" in row:
        tags = data.draw(st.permutations(row["tags_json"]))
        other["tags_json"] = _text([*tags, *tags[:1]], data)
    if "attrs_json" in row:
        other["attrs_json"] = _text(row["attrs_json"], data)
    if isinstance(price := row.get("price"), Decimal):
        other["price"] = data.draw(st.sampled_from([str(price), f" {price}0", price * Decimal("1.000")]))
    assert normalise(one)[0] == normalise(other)[0]  # T67, T69


@settings(max_examples=60, deadline=None)
@given(rows)
def test_normalising_what_is_normal_changes_nothing(row: dict[str, Any]) -> None:
    once = normalise(row | {n: _text(row[n], None) for n in ("tags_json", "attrs_json") if n in row})[0]
    again, warnings = normalise(_as_row(once))
    assert (again, warnings) == (once, [])
