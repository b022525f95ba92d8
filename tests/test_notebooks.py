"""The notebooks among the examples run from first cell to last, over a folder and a bucket."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("distributed")
pytest.importorskip("matplotlib")

import nbformat
from nbclient import NotebookClient
from support.processes import with_support

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def execute(folder: Path, monkeypatch: pytest.MonkeyPatch, **variables: str) -> None:
    """Run the notebook in a folder; what a cell raises is raised."""
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setenv("PYTHONPATH", with_support({})["PYTHONPATH"])
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(EXAMPLES / "many_files.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert (folder / "bridges.png").stat().st_size > 10_000


def test_a_notebook_over_a_folder(tmp_path, monkeypatch):
    execute(tmp_path, monkeypatch)


def test_a_notebook_over_a_bucket(tmp_path, monkeypatch):
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(
        ip_address="127.0.0.1", port=0, verbose=False
    )
    server.start()
    try:
        host, port = server.get_host_and_port()
        told = {
            "key": "user",
            "secret": "word",
            "client_kwargs": {"endpoint_url": f"http://{host}:{port}"},
        }
        execute(
            tmp_path,
            monkeypatch,
            STORIES="s3://stories",
            N_DAYS="60",
            FSSPEC_S3=json.dumps(told),
            JESSYMEM_CACHE_DIR=str(tmp_path / "cache"),
        )
    finally:
        server.stop()
