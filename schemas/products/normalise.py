"""A row of the staging table as a product. Dirty data is mended with a warning, never a reason to stop (PE-67); an
error is only what has no key, or would become a wrong price."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from decimal import ROUND_HALF_UP, Decimal, InvalidOperation
from typing import Any, NamedTuple

from millstream.errors import MillstreamError
from schemas.products.stable import data_version, stable_json
from schemas.products.text import PLACEHOLDERS, clean, scalar, texts

BRAND, STYLE, UPDATED = "style_brand_no", "style_no", "src_updated_at"
FIELDS = {
    "name": ("commodity_name", "name", "product_name", "style_name", "prod_name", "item_name"),
    "price": ("price", "sale_price", "retail_price"),
    "colors": ("colors_concat", "colors", "color_concat"),
    "tags": ("tags_json", "tags", "tag_json"),
    "attributes": ("attrs_json", "attributes", "attrs", "attribute_json"),
    "description": ("description", "desc", "product_desc"),
    "image_url": ("image_url", "image", "img_url", "pic_url", "main_image"),
    "on_sale": ("on_sale", "onsale", "is_on_sale", "is_sale"),
}
"""What is read for each field: the first column that holds something (facts 2.4)."""
COLUMNS = (BRAND, STYLE, UPDATED, *(name for names in FIELDS.values() for name in names))
"""All columns that are read."""

KEY_CHARS, NAME_CHARS, URL_CHARS = 64, 255, 512
_CENT = Decimal("0.01")
_PRICE_LIMIT = Decimal(10**8)
_BARS = re.compile(r"\|\||｜｜")
"""Between the items of a list; the full-width form occurs too (T69)."""
_TRUE, _FALSE = {"true", "t", "yes", "y", "1", "是"}, {"false", "f", "no", "n", "0", "否"}

Warn = Callable[[str], None]


class BadRowError(MillstreamError):
    """A row that cannot become a product. The text names brand, style and field."""

    def __init__(self, row: Mapping[str, Any], field: str, why: str) -> None:
        self.field = field
        super().__init__(f"staging row {BRAND}={row.get(BRAND)!r}, {STYLE}={row.get(STYLE)!r}, field {field}: {why}")


class Product(NamedTuple):
    """A row for `products`; equal content gives an equal tuple."""

    brand_code: str
    sku: str
    name: str
    price: str
    """Two decimals, as numeric(10,2) gives it back."""
    tags: str
    """Stable JSON: a sorted list of distinct texts."""
    attributes: str
    """Stable JSON: name -> text, or sorted list of distinct texts. Has the colours, as `colors`."""
    description: str | None
    image_url: str | None
    on_sale: bool | None
    data_version: str = ""


def normalise(row: Mapping[str, Any]) -> tuple[Product, list[str]]:
    """The product, and what was mended on the way. Raises BadRowError."""
    warnings: list[str] = []
    warn = warnings.append
    brand, sku = _key(row, BRAND), _key(row, STYLE)
    try:
        attributes = _attributes(_first(row, "attributes"), warn)
        colors = _colors(_first(row, "colors"), warn)
        tags = _tags(_first(row, "tags"), warn)
    except TypeError as e:
        raise BadRowError(row, "tags, attributes or colors", f"{e}; numbers inside of JSON text are exact") from e
    if colors:
        attributes.setdefault("colors", colors)
    found = Product(
        brand_code=brand,
        sku=sku,
        name=_cut(_text(row, "name") or "", NAME_CHARS, "name", warn),
        price=_price(row, warn),
        tags=stable_json(tags),
        attributes=stable_json(attributes),
        description=_text(row, "description"),
        image_url=_url(_text(row, "image_url"), warn),
        on_sale=_flag(_first(row, "on_sale"), warn),
    )
    version = data_version(found._asdict() | {"tags": tags, "attributes": attributes})
    return found._replace(data_version=version), warnings


def _key(row: Mapping[str, Any], column: str) -> str:
    """Keys are taken as they are: two spellings in the source are two products, and deletes can be found (T74)."""
    value = row.get(column)
    if value is None or (isinstance(value, str) and not value.strip()):
        raise BadRowError(row, column, "required, and missing or empty")
    if isinstance(value, bool | float) or not isinstance(value, str | int):
        raise BadRowError(row, column, f"must be text, not {type(value).__name__}")
    text = str(value)
    if len(text) > KEY_CHARS:
        raise BadRowError(row, column, f"{len(text)} characters, {KEY_CHARS} are allowed")
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise BadRowError(row, column, "has characters that Postgres does not store")
    return text


def _first(row: Mapping[str, Any], field: str) -> Any:
    for column in FIELDS[field]:
        value = row.get(column)
        if value is not None and not (isinstance(value, str) and not clean(value)):
            return value
    return None


def _text(row: Mapping[str, Any], field: str) -> str | None:
    value = _first(row, field)
    try:
        return None if value is None else scalar(value) or None
    except TypeError as e:
        raise BadRowError(row, field, f"must be text: {e}") from e


def _cut(text: str, limit: int, field: str, warn: Warn) -> str:
    if len(text) > limit:
        warn(f"{field}: {len(text)} characters cut to {limit}")
    return text[:limit].rstrip()


def _url(text: str | None, warn: Warn) -> str | None:
    if text is not None and len(text) > URL_CHARS:
        warn(f"image_url: {len(text)} characters, {URL_CHARS} are stored; left out, a part of it leads nowhere")
        return None
    return text


def _price(row: Mapping[str, Any], warn: Warn) -> str:
    value = _first(row, "price")
    if isinstance(value, float):
        raise BadRowError(
            row, "price", f"is the float {_shown(value)}: prices are numeric or text, never float (PE-62)"
        )
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal | None):
        raise BadRowError(row, "price", f"must be numeric or text, not {type(value).__name__}")
    if isinstance(value, str) and clean(value) in PLACEHOLDERS:
        warn(f"price: {_shown(value)} taken as 0.00")
        value = None
    try:
        number = Decimal(clean(value) if isinstance(value, str) else value or 0)
    except InvalidOperation as e:
        raise BadRowError(row, "price", f"{_shown(value)} is no number") from e
    if not number.is_finite() or abs(number) >= _PRICE_LIMIT:
        raise BadRowError(row, "price", f"{_shown(value)} does not fit numeric(10,2)")
    cents = number.quantize(_CENT, ROUND_HALF_UP)
    if abs(cents) >= _PRICE_LIMIT:
        raise BadRowError(row, "price", f"{_shown(value)} does not fit numeric(10,2)")
    if cents != number:
        warn(f"price: {_shown(value)} rounded to {cents}")
    return str(cents or abs(cents))  # no -0.00


def _flag(value: Any, warn: Warn) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    word = clean(value).lower() if isinstance(value, str) else str(value)
    if word in _TRUE:
        return True
    if word not in _FALSE:
        if word not in PLACEHOLDERS:
            warn(f"on_sale: {_shown(value)} is neither yes nor no; left out")
        return None
    return False


def _colors(value: Any, warn: Warn) -> list[str]:
    if isinstance(value, str):
        return _unique(_BARS.split(value))
    if isinstance(value, list):
        return _unique(texts(value))
    if value is not None:
        warn(f"colors: {type(value).__name__} instead of text; left out")
    return []


def _tags(value: Any, warn: Warn) -> list[str]:
    value = _json(value, "tags", warn)
    if value is None or isinstance(value, list):
        return _unique(value or [])
    warn(f"tags: {type(value).__name__} instead of a list; left out")
    return []


def _attributes(value: Any, warn: Warn) -> dict[str, str | list[str]]:
    value = _json(value, "attributes", warn)
    if value is None:
        return {}
    if not isinstance(value, dict):
        warn(f"attributes: {type(value).__name__} instead of an object; left out")
        return {}
    found: dict[str, str | list[str]] = {}
    for name in sorted(value, key=str):
        item, known = _attribute(value[name]), clean(str(name))
        if not item:
            continue
        if not known or known in found:
            warn(f"attributes: the name {name!r} is {'there twice' if known else 'empty'}; left out")
        else:
            found[known] = item
    return found


def _attribute(value: Any) -> str | list[str]:
    """Empty: dropped."""
    if isinstance(value, list):
        return _unique(value)
    text = _item(value)
    if _BARS.search(text):
        return _unique(_BARS.split(text))
    return "" if text in PLACEHOLDERS else text


def _unique(items: list[Any]) -> list[str]:
    """Sorted and distinct (PE-62). `True` and 1 stay two, as texts (T69)."""
    return sorted({_item(i) for i in items} - PLACEHOLDERS)


def _item(value: Any) -> str:
    if isinstance(value, str):
        return clean(value)
    return "" if value is None else stable_json(value)


def _json(value: Any, field: str, warn: Warn) -> Any:
    """JSON text parsed, or what stands there already; everything inside as text. Raises TypeError for a float."""
    if isinstance(value, str) and clean(value) in PLACEHOLDERS:
        return None
    try:
        if isinstance(value, str):
            value = json.loads(value, parse_float=Decimal, parse_int=Decimal, parse_constant=_refuse)
        if isinstance(value, dict):
            return {name: texts(item) for name, item in value.items()}  # names that are alike are told by the caller
        return texts(value)
    except (ValueError, InvalidOperation, RecursionError) as e:
        warn(f"{field}: not JSON ({str(e)[:80]}); left out")
        return None


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")
