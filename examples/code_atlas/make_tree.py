#!/usr/bin/env python3
"""Make a tree of Python files that a careless counter gets wrong: odd names, odd encodings, broken files, links.

The same directory, number and seed give the same bytes and names. Needs a file system whose names are bytes (Linux).
"""

from __future__ import annotations

import argparse
import os
import random
import sys

ODD_NAMES = (
    b"space in name.py",
    b"-dash.py",
    b".py",
    b".hidden.py",
    b"caf\xe9 latin-1.py",
    b"\xff\xfe bytes only.py",
    "naïve ☃ 名前.py".encode(),
    b"new\nline.py",
    b"tab\tand\x1bescape.py",
    b"[bold]markup[red].py",
    b"quote'\".py",
    b"a" * 252 + b".py",
    b"two.dots.py",
    b"init.py.py",
)

ODD_SOURCES = {
    b"empty.py": b"",
    b"one_newline.py": b"\n",
    b"no_newline_at_end.py": b"x = 1",
    b"crlf.py": b"def f():\r\n    return 1\r\n",
    b"carriage_returns.py": b"x = 1\ry = 2\rz = 3\r",
    b"mixed_line_ends.py": b"a = 1\nb = 2\r\nc = 3\rd = 4\n",
    b"form_feed.py": b"import os\n\x0c\nclass A:\n\x0c\n    pass\n",
    b"vertical_tab_in_string.py": b"x = 'a\x0bb\x1cc'\n",
    b"bom.py": b"\xef\xbb\xbfimport os, sys\n",
    b"latin_1.py": "# -*- coding: latin-1 -*-\nname = 'café'\ndef naïve(): pass\n".encode("latin-1"),
    b"cp1252.py": "# coding: cp1252\nquote = '“hm”'\n".encode("cp1252"),
    b"shift_jis.py": "# coding: shift_jis\nname = '名前'\n".encode("shift_jis"),
    b"escapes.py": b'pattern = "\\d+\\.\\w"\nassert (1, "always true")\nx = 1 is 1\n',
    b"nested.py": b"def a():\n def b():\n  async def c():\n   class D:\n    def e(self): import x\n    import y\n",
    b"matching.py": b"match command:\n    case [1, *rest] if rest: pass\n    case {'k': v}: pass\n    case _: pass\n",
    b"long_line.py": b"x = [" + b"1, " * 20_000 + b"]\n",
    b"deep_but_fine.py": b"x = " + b"-" * 60 + b"1\n",
    # below: ast.parse raises
    b"bad_syntax.py": b"def f(:\n    pass\n",
    b"python_2.py": b"print 'hello'\nexec 'x = 1'\n",
    b"bad_indent.py": b"if True:\nx = 1\n",
    b"tabs_and_spaces.py": b"if True:\n\tx = 1\n        y = 2\n",
    b"null_byte.py": b"x = 1\x00\n",
    b"undeclared_latin_1.py": b"name = 'caf\xe9'\n",
    b"utf_16.py": "import os\n".encode("utf-16"),
    b"unknown_encoding.py": b"# coding: no-such-codec\nx = 1\n",
    b"not_a_text_encoding.py": b"# coding: hex\n78203d2031\n",
    b"bom_and_other_cookie.py": b"\xef\xbb\xbf# coding: latin-1\nx = 1\n",
    b"too_deep.py": b"x = " + b"(" * 5_000 + b")" * 5_000 + b"\n",
    b"unclosed.py": b"x = '''never ends\n",
    b"binary.py": bytes(range(256)) * 40,
    b"not_a_keyword.py": b"nonlocal = 1\nreturn\n",
}


def random_source(random_: random.Random, functions: int) -> bytes:
    """Valid source with every kind of node that is counted."""
    parts = ["import os, sys", "from json import loads as l, dumps"]
    for number in range(functions):
        parts.append(random_.choice((_FUNCTION, _CLASS, _ASYNC)).format(n=number, k=random_.randrange(1000)))
    return "\n".join(parts).encode() + b"\n"


_FUNCTION = '''
def f{n}(a, b={k}):
    """Text {k}."""
    for i in range(a):
        if i > {k} and b or not a:
            import math
            return [x for x in range(i) if x % 2 if x % 3]
        elif i: b += 1
    else:
        while b: b -= 1
    try:
        assert a, "why"
    except (ValueError, TypeError): pass
    return (lambda: {k})() if a else None
'''
_CLASS = """
class C{n}(dict):
    field: int = {k}
    def method(self, x):
        class Inner:
            def deeper(self): return {{y: {k} for y in x}}
        return Inner
"""
_ASYNC = """
async def g{n}(source):
    async for item in source:
        async with item as opened: yield {k} if opened else -{k}
"""


def make_tree(root: bytes, files: int, seed: int, functions: int = 40) -> None:
    """Fill `root`, which must be missing or empty, with `files` ordinary files and every odd one."""
    os.makedirs(root, exist_ok=True)
    if os.listdir(root):
        raise FileExistsError(f"{os.fsdecode(root)!r} is not empty")
    random_ = random.Random(seed)
    directories = [b"", b"package", b"package/sub", b".hidden", b"dir.py", b"caf\xe9 dir", b"new\nline dir", b"z/y/x"]
    for directory in directories:
        os.makedirs(os.path.join(root, directory), exist_ok=True)

    def write(directory: bytes, name: bytes, data: bytes) -> None:
        with open(os.path.join(root, directory, name), "wb") as file:
            file.write(data)

    for number in range(files):
        source = random_source(random_, random_.randrange(functions + 1))
        write(random_.choice(directories), b"m%05d.py" % number, source)
    for name in ODD_NAMES:
        write(random_.choice(directories), name, random_source(random_, 2))
    for name, data in ODD_SOURCES.items():
        write(random_.choice(directories), name, data)
    write(b"", b"large.py", random_source(random_, 1_500))
    for name in (b"notes.txt", b"upper.PY", b"compiled.pyc", b"stub.pyi", b"py", b"package.py~"):
        write(b"", name, b"def not_counted(): pass\n")
    os.symlink(b"large.py", os.path.join(root, b"link_to_file.py"))
    os.symlink(b"package", os.path.join(root, b"link_to_directory"))
    os.symlink(b"..", os.path.join(root, b"package", b"link_to_parent"))
    os.symlink(b"nowhere", os.path.join(root, b"dangling.py"))
    os.mkfifo(os.path.join(root, b"pipe.py"))


def main() -> int:
    parser = argparse.ArgumentParser(description="Make a tree of odd Python files.")
    parser.add_argument("directory")
    parser.add_argument("--files", type=int, default=400, help="ordinary files beside the odd ones (default 400)")
    parser.add_argument("--functions", type=int, default=40, help="definitions per ordinary file, at most (default 40)")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    make_tree(os.fsencode(arguments.directory), arguments.files, arguments.seed, arguments.functions)
    return 0


if __name__ == "__main__":
    sys.exit(main())
