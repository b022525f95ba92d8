"""A stranger with files: docs/first_steps.md, command by command."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.transcripts import run_again

PAGE = Path(__file__).parent.parent / "docs" / "first_steps.md"


@pytest.mark.skipif(os.name == "nt", reason="the commands are those of a POSIX shell")
def test_the_first_steps_lead_where_the_page_says(tmp_path):
    page = PAGE.read_text("utf-8")
    assert run_again(page, tmp_path).splitlines() == page.splitlines()
