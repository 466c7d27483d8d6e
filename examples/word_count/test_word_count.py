"""python -m pytest examples/word_count"""

from __future__ import annotations

from pathlib import Path

import pytest
from word_count import Counter

from civitas_shm import AgentError
from civitas_shm.testing import RuntimeUnderTest


async def test_words_are_counted_and_a_file_that_is_not_there_is_told_to_who_asked(
    runtime: RuntimeUnderTest, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("to be or not to be")
    await runtime.start(Counter("counter"), backoff_base=0.0)
    assert (await runtime.ask("counter", {"path": str(tmp_path / "a.txt")})).payload == {"words": 6}
    with pytest.raises(AgentError, match="FileNotFoundError"):
        await runtime.ask("counter", {"path": str(tmp_path / "b.txt")})
