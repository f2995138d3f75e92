"""The checks that every class shares: TypeError for a wrong type, ValueError for a number out of range.

Both speak of an argument's form and are raised before the engine is touched; what is logically wrong is
an LLMException (raise_if_false).
"""

import operator
import typing

import numpy as np


def _names(classes: typing.Any) -> str:
    if isinstance(classes, (list, tuple)):
        return "[" + ", ".join(_names(one) for one in classes) + "]"
    return getattr(classes, "__name__", str(classes))


def _accepted(classes: typing.Any) -> typing.Tuple[type, ...]:
    given = tuple(classes) if isinstance(classes, (list, tuple)) else (classes,)
    return given + (np.integer,) if int in given else given


def check_isinstance(name: str, value: typing.Any, classes: typing.Any,
                     inner_class: typing.Any = None, extra_info: str = "",
                     allow_none: bool = True) -> None:
    """TypeError unless `value` is None (if allowed) or of one of `classes`, and its elements are of
    `inner_class` if that is given.  Where int is, numpy's integers are too."""
    if value is None and allow_none:
        return
    if not isinstance(value, tuple(classes) if type(classes) is list else classes) and not isinstance(
            value, _accepted(classes)):
        raise TypeError(f"{name} only support {_names(classes)}, but got {_names(type(value))}."
                        f"{extra_info}")
    if inner_class is None:
        return
    inner = _accepted(inner_class)
    for one in typing.cast(typing.Iterable, value):
        if not isinstance(one, inner):
            raise TypeError(f"{name} inner type only support {_names(inner_class)}, "
                            f"but got {_names(type(one))}.{extra_info}")


def check_dict(name: str, value: typing.Any, key_class: typing.Any, value_class: typing.Any,
               inner_class: typing.Any = None, extra_info: str = "",
               allow_none: bool = False) -> None:
    """TypeError unless `value` is a dict with keys and values of these classes."""
    check_isinstance(name, value, dict, extra_info=extra_info, allow_none=allow_none)
    for key, one in (value or {}).items():
        check_isinstance(f"{name} key", key, key_class, extra_info=extra_info, allow_none=False)
        check_isinstance(f"{name} value", one, value_class, inner_class, extra_info,
                         allow_none=False)


def _check_int(name: str, value: typing.Any, low: int, high: int, extra_info: str) -> None:
    if not isinstance(value, int):
        check_isinstance(name, value, int, extra_info=extra_info, allow_none=False)
        value = operator.index(value)
    if not low <= value <= high:
        raise ValueError(f"{name} value is out of range, expected {low}..{high}, but got {value}."
                         f"{extra_info}")


def check_uint64(name: str, value: typing.Any, extra_info: str = "") -> None:
    _check_int(name, value, 0, 2**64 - 1, extra_info)


def check_int64(name: str, value: typing.Any, extra_info: str = "") -> None:
    _check_int(name, value, -2**63, 2**63 - 1, extra_info)


def check_uint32(name: str, value: typing.Any, extra_info: str = "") -> None:
    _check_int(name, value, 0, 2**32 - 1, extra_info)


def check_int32(name: str, value: typing.Any, extra_info: str = "") -> None:
    _check_int(name, value, -2**31, 2**31 - 1, extra_info)


def check_uint16(name: str, value: typing.Any, extra_info: str = "") -> None:
    _check_int(name, value, 0, 2**16 - 1, extra_info)


def check_uint8(name: str, value: typing.Any, extra_info: str = "") -> None:
    _check_int(name, value, 0, 2**8 - 1, extra_info)


def check_list_int32(name: str, values: typing.Iterable, extra_info: str = "") -> None:
    for value in values:
        check_int32(name, value, extra_info)


def check_list_int64(name: str, values: typing.Iterable, extra_info: str = "") -> None:
    for value in values:
        check_int64(name, value, extra_info)


def check_list_uint64(name: str, values: typing.Iterable, extra_info: str = "") -> None:
    for value in values:
        check_uint64(name, value, extra_info)


def check_positive_or_set_default(name: str, value: typing.Optional[int], default: int = -1) -> int:
    """`default` for None, else `value`, which must be an int64, 0 or more."""
    if value is None:
        return default
    _check_int(name, value, 0, 2**63 - 1, "")
    return operator.index(value)


def check_keywords(name: str, given: dict, known: typing.Iterable[str]) -> None:
    """TypeError for a keyword that the call doesn't know; the original ignored those."""
    for key in given:
        if key not in known:
            raise TypeError(f"{name}() got an unexpected keyword argument '{key}'")
