#!/usr/bin/env python3
"""Count a tree of Python files in one process, with nothing but the standard library.

This is the check on code_atlas: it shares no code with it. It prints the totals of a directory as JSON and, with
`--check REPORT`, compares them and every file's numbers with what code_atlas wrote; exit code 1 when they differ.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import stat
import sys
import sysconfig
import warnings
from typing import Any

TOTALS = ("files", "bytes", "lines", "functions", "classes", "imports", "unparsable", "complexity")


def find(root: str, skip: list[str]) -> list[str]:
    """Regular files named *.py below `root`, by no way that leads through a symbolic link or a directory to skip."""
    found = []
    for directory, subdirectories, names in os.walk(root, followlinks=False):
        subdirectories[:] = [
            name for name in subdirectories if name not in skip and not os.path.islink(os.path.join(directory, name))
        ]
        for name in names:
            path = os.path.join(directory, name)
            if name.endswith(".py") and stat.S_ISREG(os.lstat(path).st_mode):
                found.append(os.path.relpath(path, root))
    return found


class Counting(ast.NodeVisitor):
    """Counts in one pass with a list in place of recursion, so that depth does not matter."""

    def __init__(self) -> None:
        self.functions = self.classes = self.imports = 0
        self.complexity = 1

    def count(self, tree: ast.AST) -> None:
        waiting = [tree]
        while waiting:
            node = waiting.pop()
            self.visit(node)
            waiting.extend(ast.iter_child_nodes(node))

    def generic_visit(self, node: ast.AST) -> None:
        """Children are visited by `count`."""

    def visit_FunctionDef(self, node: ast.AST) -> None:
        self.functions += 1
        self.complexity += 1

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_ClassDef(self, node: ast.AST) -> None:
        self.classes += 1

    def visit_Import(self, node: ast.AST) -> None:
        self.imports += 1

    visit_ImportFrom = visit_Import

    def branch(self, node: ast.AST) -> None:
        self.complexity += 1

    visit_If = visit_IfExp = visit_For = visit_AsyncFor = visit_While = visit_ExceptHandler = branch
    visit_Assert = visit_match_case = branch

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self.complexity += 1 + len(node.ifs)

    def visit_BoolOp(self, node: ast.BoolOp) -> None:
        self.complexity += len(node.values) - 1


def count_file(data: bytes) -> dict[str, int]:
    counting = Counting()
    unparsable = 0
    try:
        tree = ast.parse(data)
    except Exception:  # noqa: BLE001 - the definition of unparsable: ast.parse raises, whatever it is
        unparsable, counting.complexity = 1, 0
    else:
        counting.count(tree)
    return {
        "bytes": len(data),
        "lines": len(data.splitlines()),
        "functions": counting.functions,
        "classes": counting.classes,
        "imports": counting.imports,
        "unparsable": unparsable,
        "complexity": counting.complexity,
    }


def count_tree(root: str, skip: list[str]) -> dict[str, Any]:
    totals = dict.fromkeys(TOTALS, 0)
    per_file: dict[str, dict[str, int]] = {}
    unreadable = []
    for path in sorted(find(root, skip)):
        try:
            with open(os.path.join(root, path), "rb") as file:
                data = file.read()
        except OSError:
            unreadable.append(path)
            continue
        numbers = count_file(data)
        per_file[path] = numbers
        totals["files"] += 1
        for name, value in numbers.items():
            totals[name] += value
    return {**totals, "unreadable": unreadable, "per_file": [{"path": path} | row for path, row in per_file.items()]}


def differences(own: dict[str, Any], report: dict[str, Any]) -> list[str]:
    """Sentences about everything in which the two counts differ; empty when they agree exactly."""
    found = [
        f"{name}: own count {own[name]:,}, report {report.get(name)!r}"
        for name in TOTALS
        if own[name] != report.get(name)
    ]
    if sorted(own["unreadable"]) != sorted(report.get("unreadable", [])):
        found.append(f"unreadable: own count {len(own['unreadable'])}, report {len(report.get('unreadable', []))}")
    mine = {row["path"]: row for row in own["per_file"]}
    theirs = {row["path"]: row for row in report.get("per_file", [])}
    if len(theirs) != len(report.get("per_file", [])):
        found.append("per_file: the report lists a path twice")
    for path in sorted(mine.keys() | theirs.keys()):
        if mine.get(path) != theirs.get(path):
            found.append(f"{path!r}: own count {mine.get(path)}, report {theirs.get(path)}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Count a tree of Python files with the standard library alone.")
    parser.add_argument("directory", nargs="?", default=sysconfig.get_path("stdlib"), help="default: standard library")
    parser.add_argument(
        "--skip", metavar="NAME", action="append", default=[], help="leave out directories of that name"
    )
    parser.add_argument("--per-file", action="store_true", help="print the list of files too")
    parser.add_argument("--check", metavar="REPORT", help="compare with a report of code_atlas")
    arguments = parser.parse_args()
    if not os.path.isdir(arguments.directory):
        parser.error(f"{arguments.directory!r} is not a directory")
    warnings.simplefilter("ignore")  # ast.parse warns about other people's escapes
    own = count_tree(arguments.directory, arguments.skip)
    if arguments.check:
        with open(arguments.check, encoding="utf-8") as file:
            found = differences(own, json.load(file))
        for sentence in found[:20]:
            print(sentence)
        if len(found) > 20:
            print(f"… and {len(found) - 20} more")
        if not found:
            print(f"exact: {own['files']:,} files, {own['lines']:,} lines, {own['functions']:,} functions agree")
        return 1 if found else 0
    if not arguments.per_file:
        del own["per_file"]
    json.dump(own, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
