"""Opens a model package with onnxruntime's own C API (1.31 and newer), and prints what it finds as JSON.

    python tests/support/model_package_api.py FOLDER

onnxruntime's Python package has no binding for model packages; its library has. Functions are called by their
place in the tables `OrtApi` and `OrtModelPackageApi` of onnxruntime_c_api.h, to which versions only append.
A process of its own, because a wrong call ends it.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

API_VERSION = 31
GET_ERROR_MESSAGE, CREATE_ENV, CREATE_SESSION_OPTIONS, SESSION_GET_INPUT_COUNT = 2, 3, 10, 30
GET_MODEL_PACKAGE_API = 427
CREATE_OPTIONS, CREATE_CONTEXT, GET_COMPONENT_NAMES, GET_VARIANT_NAMES, GET_VARIANT_EP = 0, 2, 6, 8, 9
SELECT_COMPONENT, GET_SELECTED_NAME, CREATE_SESSION = 11, 13, 15

Pointer = ctypes.c_void_p


class Table:
    """A table of functions, called by their place."""

    def __init__(self, address: int, functions: int) -> None:
        self._functions = (Pointer * functions).from_address(address)

    def call(self, place: int, *arguments: Any, result: Any = Pointer) -> Any:
        return ctypes.CFUNCTYPE(result)(self._functions[place] or 0)(*arguments)


class ApiBase(ctypes.Structure):
    """`OrtApiBase`."""

    _fields_ = (
        ("get_api", ctypes.CFUNCTYPE(Pointer, ctypes.c_uint32)),
        ("get_version", ctypes.CFUNCTYPE(ctypes.c_char_p)),
    )


def open_api() -> Table:
    """Returns `OrtApi` of the installed onnxruntime."""
    import onnxruntime

    (library,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
    loaded = ctypes.CDLL(str(library))
    loaded.OrtGetApiBase.restype = ctypes.POINTER(ApiBase)
    return Table(loaded.OrtGetApiBase().contents.get_api(API_VERSION), GET_MODEL_PACKAGE_API + 1)


def open_package(folder: Path) -> dict[str, Any]:
    """Returns the component, its variants and their providers, which one the CPU gets, and its inputs."""
    api = open_api()
    packages = Table(api.call(GET_MODEL_PACKAGE_API), CREATE_SESSION + 1)

    def check(status: int | None) -> None:
        if status:
            message = api.call(GET_ERROR_MESSAGE, Pointer(status), result=ctypes.c_char_p)
            print(json.dumps({"error": message.decode()}))
            raise SystemExit

    def new(table: Table, place: int, *arguments: Any) -> Pointer:
        out = Pointer()
        check(table.call(place, *arguments, ctypes.byref(out)))
        return out

    def names(place: int, *arguments: Any) -> list[str]:
        out, count = ctypes.POINTER(ctypes.c_char_p)(), ctypes.c_size_t()
        check(packages.call(place, *arguments, ctypes.byref(out), ctypes.byref(count)))
        return [(out[index] or b"").decode() for index in range(count.value)]

    environment = new(api, CREATE_ENV, 3, b"test")
    options = new(packages, CREATE_OPTIONS, environment, new(api, CREATE_SESSION_OPTIONS))
    context = new(packages, CREATE_CONTEXT, os.fsencode(folder))
    (component,) = names(GET_COMPONENT_NAMES, context)
    variants = names(GET_VARIANT_NAMES, context, component.encode())
    providers = {}
    for variant in variants:
        provider = new(packages, GET_VARIANT_EP, context, component.encode(), variant.encode())
        providers[variant] = ctypes.string_at(provider).decode()
    selected = new(packages, SELECT_COMPONENT, context, component.encode(), options)
    name = ctypes.string_at(new(packages, GET_SELECTED_NAME, selected)).decode()
    session = new(packages, CREATE_SESSION, environment, selected, None)
    inputs = ctypes.c_size_t()
    check(api.call(SESSION_GET_INPUT_COUNT, session, ctypes.byref(inputs)))
    return {"component": component, "providers": providers, "selected": name, "inputs": inputs.value}


if __name__ == "__main__":
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    print(json.dumps(open_package(Path(sys.argv[1]))))
    sys.stdout.flush()
    os._exit(0)  # nothing that was opened is released
