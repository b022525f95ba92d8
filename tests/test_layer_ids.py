"""`LayerIds`: a sequence of ids that is an array of packed ones."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import numpy as np
import pytest
from support.regions import build_region

from jessymem import LayerId, LayerIds, MmapManager


@pytest.fixture
def ids():
    return LayerIds(np.array([LayerId(1, 5), LayerId(1, 65_535), LayerId(65_535, 0)], np.int64))


def test_it_is_a_sequence_of_ids(ids):
    expected = [LayerId(1, 5), LayerId(1, 65_535), LayerId(65_535, 0)]
    assert isinstance(ids, Sequence)
    assert list(ids) == ids.tolist() == expected and len(ids) == 3
    assert {type(each) for each in (*ids, ids[0], ids[-1])} == {LayerId}
    assert [ids[at] for at in (0, 1, -1)] == expected
    assert list(reversed(ids)) == expected[::-1]
    assert expected[1] in ids and int(expected[1]) in ids
    assert LayerId(2, 0) not in ids and "L01-05" not in ids and None not in ids
    assert ids.index(expected[2]) == 2 and ids.count(LayerId(2, 0)) == 0
    with pytest.raises(IndexError):
        ids[3]


def test_parts_of_it(ids):
    assert isinstance(ids[1:], LayerIds) and list(ids[1:]) == list(ids)[1:]
    assert list(ids[np.array([True, False, True])]) == [ids[0], ids[2]]
    assert list(ids[np.array([2, 0])]) == [ids[2], ids[0]]
    assert ids.dimensions.tolist() == [1, 1, 65_535]
    assert ids.layers.tolist() == [5, 65_535, 0]


def test_it_is_an_array_to_numpy(ids):
    packed = [int(each) for each in ids]
    assert np.asarray(ids).tolist() == ids.array.tolist() == packed
    assert np.asarray(ids).dtype == np.int64 and np.asarray(ids, np.float64).tolist() == packed
    assert np.asarray(ids) is ids.array and np.array(ids) is not ids.array
    with pytest.raises(ValueError, match="read-only"):
        ids.array[0] = 1
    with pytest.raises(ValueError, match="copy"):
        ids.__array__(np.float64, copy=False)
    assert np.isin(ids, [packed[1]]).tolist() == [False, True, False]


def test_it_travels_and_compares(ids):
    assert pickle.loads(pickle.dumps(ids)) == ids != ids[1:]
    assert ids != list(ids) and LayerIds(ids.array.copy()) == ids
    with pytest.raises(TypeError):
        hash(ids)
    assert repr(ids) == "<3 layers: L01-05, L01-65535, L65535-00>"
    assert repr(ids[:0]) == "<0 layers>"
    many = LayerIds(np.arange(5) + int(LayerId(7, 0)))
    assert repr(many) == "<5 layers: L07-00, L07-01, L07-02, ...>"


def test_batches_take_it(tmp_path):
    build_region(tmp_path, "D20", b"twenty", layers=3)
    with MmapManager(base_path=tmp_path) as manager:
        manager.load_dimension(20)
        ids = LayerIds(np.array([LayerId(20, 2), LayerId(20, 0)], np.int64))
        assert manager.access_many(ids) == [b"twenty"] * 2
        assert manager.gather(ids)[1].tolist() == [0, 6, 12]
        assert [each.layer_id for each in manager.load_contexts(ids)] == list(ids)
