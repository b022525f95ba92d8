"""The same questions to a server that speaks S3, on this machine."""

from __future__ import annotations

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto.server")
pytest.importorskip("distributed")

import dask
import fsspec
from moto.server import ThreadedMotoServer

import jessymem.distributed as jd
from jessymem import MmapManager, MmapRegion, RegionBuilder, RemoteError
from jessymem.remote.cache import FileCache

BUCKET = "stories"


@pytest.fixture(scope="module")
def options():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield {
        "key": "user",
        "secret": "word",
        "client_kwargs": {"endpoint_url": f"http://{host}:{port}"},
    }
    server.stop()


@pytest.fixture
def system(options):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem(**options)
    system.mkdir(BUCKET, region_name="eu-west-1")
    for place in range(6):
        builder = RegionBuilder(15, f"part {place}")
        builder.add_layer(0, f"part {place} " + "river " * place, keywords=["water"])
        builder.add_layer(1, "x" * 100_000)
        region = builder.build_to_memory()
        system.pipe(
            f"{BUCKET}/part-{place}/region.mmap", bytes(region.read_content(0, region.size))
        )
    yield system
    system.rm(BUCKET, recursive=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_questions_to_a_bucket(system, options, tmp_path):
    cache = FileCache(tmp_path / "cache")
    given = {"storage_options": options, "cache": cache}
    with dask.config.set(scheduler="synchronous"):
        counted = jd.count(f"s3://{BUCKET}/*/region.mmap", b"river ", **given).compute()
        assert list(counted["count"]) == list(range(6))
        chosen = jd.select(f"s3://{BUCKET}", keywords=["water"], storage_options=options).compute()
        assert len(chosen) == 6
        again = jd.count(f"s3://{BUCKET}", b"river ", **given)
        cold = {"storage_options": options, "cache": FileCache(tmp_path / "cold")}
        elsewhere = jd.count(f"s3://{BUCKET}", b"river ", **cold)
        system.pipe(f"{BUCKET}/part-3/region.mmap", system.cat(f"{BUCKET}/part-4/region.mmap"))
        region = MmapRegion.from_url(f"s3://{BUCKET}/part-5/region.mmap", **given)
        assert bytes(region.read_content(region.layout.content_start, 6)) == b"part 5"
        # Who has the edition that was planned answers from it; who has not, says so.
        assert list(again.compute()["count"]) == list(range(6))
        with pytest.raises(RemoteError, match="by now"):
            elsewhere.compute()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_manager_of_a_bucket(system, options, tmp_path, monkeypatch):
    monkeypatch.setenv("JESSYMEM_CACHE_DIR", str(tmp_path / "cache"))
    # As fsspec's own configuration says it, for what cannot be told of each file.
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    builder = RegionBuilder(20, "grown")
    builder.add_layer(7, "a river", name="first")
    region = builder.build_to_memory()
    key = f"{BUCKET}/D20/region.mmap"
    system.pipe(key, bytes(region.read_content(0, region.size)))
    with MmapManager(64, base_path=f"s3://{BUCKET}") as manager:
        assert manager.discover() == [20]
        assert manager.load_all().loaded == (20,)
        assert bytes(manager["D20/first"]) == b"a river"
        assert not manager.refresh("D20")
        builder.add_layer(8, "a sea")
        region = builder.build_to_memory()
        system.pipe(key, bytes(region.read_content(0, region.size)))
        assert manager.refresh("D20")
        assert manager.count("a ") == 2
        assert bytes(manager.ref("L20-08").get()) == b"a sea"
