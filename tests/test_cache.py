"What a cache of prepared slices holds: few bytes, the same bits, both directions."

import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from xmodal.data import cache as caching
from xmodal.data.cache import cache_is_whole, prepare
from xmodal.data.records import Record, prepare_image, prepare_volume

rng = np.random.default_rng(0)


def tiles(folder, n=4, size=32):
    "Grey sources and coloured targets of 8 bits."
    found = []
    for k in range(n):
        paths = folder / f'{k}_y.png', folder / f'{k}_x.png'
        for path, shape in zip(paths, ((size, size), (size, size, 3))):
            Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(path)
        found.append(Record(f's{k}', f's{k}', *paths))
    return found


def scans(folder, kind='i2', place=np.eye(4)):
    "Two volumes of whole numbers, the target on the grid `place`."
    paths = folder / 'y.nii.gz', folder / 'x.nii.gz'
    for path, affine in zip(paths, (np.eye(4), place)):
        v = rng.integers(0, 900, (24, 24, 6)).astype(kind)
        nib.save(nib.Nifti1Image(v, affine), path)
    return [Record('s', 's', *paths)]


def turned(records):
    return [replace(r, source=r.target, target=r.source) for r in records]


def as_prepared(data, records, one):
    "Do all slices have the bits that preparing gives?"
    params, k = data.index['params'], 0
    for r in records:
        y, x0, *_ = one(r, params)
        for pair in zip(y, x0):
            for seen, wanted in zip((data[k]['y'], data[k]['x0']), pair):
                np.testing.assert_array_equal(seen.numpy(), wanted)
            k += 1
    assert k == len(data)


@pytest.mark.parametrize('rules', [(None, None), ('minmax', 'percentile'), ('0:100', '0:255')])
def test_pictures_of_bytes_are_kept_in_bytes(tmp_path, rules):
    records = tiles(tmp_path)
    how = dict(source_window=rules[0], target_window=rules[1], progress=False)
    data = prepare(records, 32, **how, cache=tmp_path / 'cache')
    as_prepared(data, records, prepare_image)
    sizes = [(data.folder / f'{side}.bin').stat().st_size for side in ('source', 'target')]
    assert sizes == [4 * 32 * 32, 3 * 4 * 32 * 32]  # a grey source is kept once


def test_volumes_keep_their_numbers_or_float32(tmp_path):
    records = scans(tmp_path)
    data = prepare(records, 0, min_foreground=0.0, cache=tmp_path / 'cache', progress=False)
    as_prepared(data, records, prepare_volume)
    assert (data.folder / 'source.bin').stat().st_size == 2 * math.prod(data.index['shape'])
    small = prepare(records, 16, min_foreground=0.0, cache=tmp_path / 'cache', progress=False)
    as_prepared(small, records, prepare_volume)


def test_holes_and_padding_keep_their_bits():
    x = np.array([np.nan, -0.0, 0.0, -1.0] * 64, np.float32).reshape(1, 1, 16, 16)
    values, numbers = caching.few_bits(caching.bits_of(x))
    assert len(values) == 4
    np.testing.assert_array_equal(values[numbers], caching.bits_of(x))


def test_both_directions_share_a_cache(tmp_path):
    for k, (records, size) in enumerate([(tiles(tmp_path), 32), (scans(tmp_path), 16)]):
        how = dict(min_foreground=0.0, progress=False)
        there = prepare(records, size, **how, cache=tmp_path / f'a{k}')
        back = prepare(turned(records), size, **how, cache=tmp_path / f'a{k}')
        own = prepare(turned(records), size, **how, cache=tmp_path / f'b{k}')
        assert back.folder == there.folder and len(own) == len(back)
        for i in range(len(own)):
            assert all(torch.equal(own[i][s], back[i][s]) for s in ('y', 'x0'))
        assert [r['windows'] for r in own.index['records']] == [
            r['windows'] for r in back.index['records']
        ]


def test_a_damaged_cache_of_the_other_direction_is_not_used(tmp_path):
    records = tiles(tmp_path)
    there = prepare(records, 32, cache=tmp_path / 'cache', progress=False)
    (there.folder / 'tables.f32').write_bytes(b'')
    back = prepare(turned(records), 32, cache=tmp_path / 'cache', progress=False)
    assert back.folder != there.folder


def test_scans_on_two_grids_have_a_cache_for_each_direction(tmp_path):
    moved = np.eye(4)
    moved[:3, 3] = 2.0
    records = scans(tmp_path, place=moved)
    how = dict(spacing=1.5, min_foreground=0.0, cache=tmp_path / 'cache', progress=False)
    there = prepare(records, 16, **how)
    assert prepare(turned(records), 16, **how).folder != there.folder


def test_a_flipped_byte_of_a_table_is_found(tmp_path):
    data = prepare(tiles(tmp_path), 32, cache=tmp_path / 'cache', progress=False)
    path = data.folder / 'tables.f32'
    broken = bytearray(path.read_bytes())
    broken[5] ^= 1
    path.write_bytes(broken)
    assert not cache_is_whole(data.folder)


def test_a_cache_of_an_earlier_format_is_said_and_made_again(tmp_path, capsys, monkeypatch):
    records = tiles(tmp_path)
    data = prepare(records, 32, cache=tmp_path / 'cache', progress=False)
    params = data.index['params']
    params['windows'] = tuple(params['windows'])
    old = caching.cache_key(records, params, caching.EARLIER)
    data.folder.rename(tmp_path / 'cache' / old)
    capsys.readouterr()
    again = prepare(records, 32, cache=tmp_path / 'cache', progress=False)
    assert again.folder == data.folder
    assert f'{old}: slices in an earlier format' in capsys.readouterr().out
