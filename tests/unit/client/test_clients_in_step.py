"""The two clients say the same, and together with the workers they reach every method of the contract."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool

from control_plane.app import SERVICES
from headway_client import retries
from headway_client.aio_client import AsyncClient
from headway_client.client import Client

CLIENT = Path(inspect.getfile(Client)).parent
# What only a platform's own processes write; `workers/control_plane.py` calls them.
OF_WORKERS = re.compile(
    r"headway\.attempts\.v1\..*|.*/(RegisterWorker|RegisterNodePool|AppendLogs|RegisterModelVersion|RecordMirror|IssueAttemptToken)"
)


def methods(kind: type) -> dict[str, Any]:
    return {name: member for name, member in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_both_clients_have_the_same_methods_with_the_same_parameters() -> None:
    blocking, asyncio_ = methods(Client), methods(AsyncClient)
    assert set(blocking) == set(asyncio_)
    for name, method in blocking.items():
        one, other = inspect.signature(method), inspect.signature(asyncio_[name])
        assert one.parameters == other.parameters, name
        told = str(other.return_annotation).replace("Async", "")
        assert str(one.return_annotation) == told, name
        assert inspect.getdoc(method) == inspect.getdoc(asyncio_[name]), name


class _Plain(ast.NodeTransformer):
    """Takes out what makes code asynchronous, so that what is left can be compared."""

    def visit_Await(self, node: ast.Await) -> Any:
        return self.visit(node.value)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> Any:
        return self.generic_visit(ast.FunctionDef(**{field: getattr(node, field) for field in node._fields}))

    def visit_AsyncFor(self, node: ast.AsyncFor) -> Any:
        return self.generic_visit(ast.For(**{field: getattr(node, field) for field in node._fields}))

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        if isinstance(node.func, ast.Attribute) and node.func.attr == "to_thread":
            return ast.Call(func=node.args[0], args=node.args[1:], keywords=node.keywords)
        return node


def bodies(path: Path) -> dict[str, str]:
    tree = _Plain().visit(ast.parse(path.read_text(encoding="utf-8")))
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            text = "\n".join(ast.unparse(ast.fix_missing_locations(line)) for line in node.body)
            found[node.name] = re.sub(r"for item in (.*):\n\s+yield item", r"yield from \1", text)
    return found


@pytest.mark.parametrize("name", ["jobs", "catalog", "organisation", "scheduling"])
def test_both_clients_do_the_same(name: str) -> None:
    blocking, asyncio_ = bodies(CLIENT / f"blocking/{name}.py"), bodies(CLIENT / f"aio/{name}.py")
    assert blocking == asyncio_
    assert blocking


def contract() -> Iterator[tuple[str, str]]:
    for service in SERVICES:
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            yield f"{service}/{method.name}", method.input_type.full_name


@pytest.mark.parametrize("folder", ["blocking", "aio"])
def test_every_method_of_the_contract_is_called(folder: str) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in (CLIENT / folder).glob("*.py"))
    missing = [
        method
        for method, _ in contract()
        if not OF_WORKERS.fullmatch(method) and not re.search(rf"self\._\w+\.{method.rpartition('/')[2]}\b", text)
    ]
    assert missing == []


def test_every_method_that_the_contract_calls_safe_is_retried() -> None:
    for method, request in contract():
        if not OF_WORKERS.fullmatch(method):
            assert request in vars(retries)["_SAFE_REQUESTS"], method
