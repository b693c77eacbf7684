"Holes, neighbouring slices and further sources: a training counts and shows what a translation does."

import json
from dataclasses import dataclass
from hashlib import blake2b

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from xmodal.core import InputError
from xmodal.data import cache as caching
from xmodal.data import dicom
from xmodal.data.cache import (
    CACHE_FORMAT,
    cache_key,
    check_one_kind,
    measured_values,
    native_grid,
    prepare,
)
from xmodal.data.check import check
from xmodal.data.frames import BesideSlices, VolumeFrame, concerns_of_values, frame_of
from xmodal.data.records import Record, both_measured
from xmodal.data.volumes import load_volume, open_volume
from xmodal.evaluation.cohort import Case, read_case
from xmodal.train import source_values, target_reach
from xmodal.training.loop import measure_scale
from test_native import head


@dataclass
class Spec:
    "What a frame asks of a model."

    kind: str = 'volume'
    size: int = 32
    spacing: float = 2.0
    context: int = None
    step: float = None
    source_window: str = 'percentile'
    fit: str = 'shrink'
    dataset: str = 'test'
    tile: int = None
    depth: int = None
    further: int = 0
    plane: str = 'axial'
    source_values: dict = None
    channels: tuple = (1, 1)


def volumes(folder, **zooms):
    "A record for each name, with volumes whose slices are so many mm apart, 45 mm high in all."
    records = []
    for k, (name, apart) in enumerate(zooms.items()):
        paths = [folder / f'{name}_{side}.nii.gz' for side in ('T1w', 'T2w')]
        for path, contrast in zip(paths, (1.0, 0.9)):
            shape = (24, 28, round(45 / apart))
            nib.save(head(k, contrast, shape, (2.0, 2.0, apart)), path)
        records.append(Record(name, name, *paths))
    return records


def pairs_of(folder, *pictures):
    "Records of pictures given as (source, target) arrays, as TIFF files."
    records = []
    for k, sides in enumerate(pictures):
        paths = [folder / f'{side}{k}.tif' for side in 'AB']
        for path, a in zip(paths, sides):
            tifffile.imwrite(path, a)
        records.append(Record(f's{k}', f's{k}', *paths))
    return records


def scene(measured=1.0, seed=0, side=20):
    "A picture of noise whose first rows are measured and whose others are NaN."
    a = np.random.default_rng(seed).uniform(0.1, 1, (side, side)).astype(np.float32)
    a.reshape(-1)[round(measured * a.size) :] = np.nan
    return a


RULES = dict(source_window='0:1', target_window='0:1', progress=False)


# caches


def earlier_key(records, params):
    "The fingerprint as it was before nodata values were holes."
    files = [
        (str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns)
        for r in records
        for p in (r.source, r.target)
    ]
    text = json.dumps(
        [CACHE_FORMAT, params, [(r.subject, r.name) for r in records], files], sort_keys=True
    )
    return blake2b(text.encode(), digest_size=6).hexdigest()


def test_only_pictures_with_a_nodata_value_get_another_cache(tmp_path):
    records = pairs_of(tmp_path, (scene(), scene(seed=1)))
    assert cache_key(records, dict(size=32)) == earlier_key(records, dict(size=32))
    nodata = (42113, 's', 0, '-9999', True)
    tifffile.imwrite(records[0].target, scene(), extratags=[nodata])
    assert cache_key(records, dict(size=32)) != earlier_key(records, dict(size=32))
    records[0].source.write_bytes(b'II*\0 cut short')  # refused when it is read, not here
    assert len(cache_key(records, dict(size=32))) == 12


def test_a_voxel_that_is_longer_than_wide_counts_by_its_finer_side(tmp_path, monkeypatch):
    records = volumes(tmp_path, a=5.0, b=5.0, c=5.0)
    for r, zooms in zip(records, ((0.5, 1.0, 5.0), (0.8, 0.8, 5.0), (3.0, 0.9, 5.0))):
        for path in (r.source, r.target):
            nib.save(head(0, zooms=zooms), path)
    size, spacing, _ = native_grid(records, image=False)
    assert (size, spacing) == (96, 0.8)  # median of 0.5, 0.8 and 0.9; 72 mm of the third
    opened = []
    monkeypatch.setattr(caching, 'open_volume', lambda p: opened.append(p) or open_volume(p))
    prepare(records, 0, cache=tmp_path / 'cache', progress=False)
    assert opened == [r.target for r in records]


def test_the_odd_record_is_named():
    some = [Record(f's{k}', f's{k}', f's{k}.nii', f't{k}.nii') for k in range(3)]
    pictures = Record('p', 'p', 'p.png', 'q.png')
    more = Record('m', 'm', 'm.nii', 'n.nii', more_sources=('o.nii',))
    check_one_kind(some)
    with pytest.raises(InputError, match='m.nii: this pair has 2 sources, most have 1'):
        check_one_kind([more, *some])
    with pytest.raises(InputError, match='p.png and q.png'):
        check_one_kind([pictures, *some])


# neighbouring slices


def test_the_outermost_slices_see_in_training_what_they_see_in_use(tmp_path):
    records = volumes(tmp_path, a=5.0, b=5.0, c=2.5)  # the third shows every second slice
    how = dict(context=2, cache=tmp_path / 'cache', progress=False)
    for some in (dict(min_foreground=0.2), dict(slices=3)):
        data = prepare(records, 0, **some, **how)
        assert data.index['params']['step'] == 5.0
        assert sum(r['n'] for r in data.index['records']) == len(data) < data.shape[0]
        spec = Spec(size=data.shape[-1], context=2, step=5.0)
        for r in records:
            frame = VolumeFrame(r.source, spec, 1)
            frame.cut()
            side, mine = frame.side(), data.select([r.subject])
            assert len(mine) == some.get('slices', len(mine)) > 0
            for k in range(len(mine)):
                seen = side[mine.info(k)['slice']]
                np.testing.assert_allclose(mine[k]['side'], seen, atol=1e-5)


def test_unlike_distances_and_low_volumes_are_said(tmp_path, capsys):
    records = volumes(tmp_path, a=5.0, b=5.0, c=5.0, d=2.5, e=9.0)
    how = dict(min_foreground=0.0, cache=tmp_path / 'cache', progress=False)
    prepare(records, 0, context=1, **how)
    said = capsys.readouterr().out
    assert '1 of 5 volumes have slices 2.5 to 9 mm apart' in said and 'd_T2w' in said
    assert '1 of 5 volumes have slices more than 7.5 mm apart' in said and 'e_T2w' in said
    assert 'fewer slices' not in said
    prepare(records, 0, context=3, **how)
    assert 'volumes have fewer slices than' in capsys.readouterr().out
    low = VolumeFrame(head(0, shape=(24, 28, 3)), Spec(context=2, step=5.0), 1)
    assert any('has 3 slices' in words for _, words in low.concerns())
    prepare(records, 0, **how)
    assert 'mm apart' not in capsys.readouterr().out


def test_a_cache_without_neighbours_shows_none(tmp_path):
    data = prepare(volumes(tmp_path, a=5.0), 0, cache=tmp_path / 'cache', progress=False)
    with pytest.raises(InputError, match='no neighbours for context 1'):
        caching.Slices(data.folder, context=1)


def test_a_view_works_out_no_neighbours_anew(tmp_path, monkeypatch):
    records = volumes(tmp_path, a=5.0, b=5.0)
    data = prepare(records, 0, context=1, cache=tmp_path / 'cache', progress=False)
    for name in ('neighbours', 'groups_beside', 'read_index'):
        monkeypatch.setattr(caching, name, None)
    part = data.select(['b'])
    assert set(part.subjects) == {'b'}
    torch.testing.assert_close(part[0]['side'], data[int(np.argmax(data.subjects == 'b'))]['side'])


def test_slices_of_an_array_are_as_far_apart_as_those_of_the_training():
    stack = np.random.default_rng(0).normal(size=(7, 16, 16)).astype(np.float32)
    for step in (1.0, 5.0):
        frame = frame_of(stack, Spec(size=16, context=1, step=step), 1)
        frame.cut()
        np.testing.assert_array_equal(frame.side()[3], frame.grey[[2, 4]])


def test_what_stands_beside_slices_is_stacked_when_it_is_asked_for():
    one, two = np.random.default_rng(0).normal(size=(2, 6, 4, 5)).astype(np.float32)
    beside = BesideSlices([one, two], 1, 2)
    assert beside.shape == (6, 5, 4, 5) and not hasattr(beside, '__array__')
    wanted = np.stack([one[0], two[0], two[1], one[3], two[3]])  # the first slice is repeated
    np.testing.assert_array_equal(beside[1], wanted)
    np.testing.assert_array_equal(beside[1:3][0], wanted)
    assert beside[4:9].shape == (2, 5, 4, 5)


# holes


def test_pictures_of_which_hardly_anything_is_measured_are_left_out(tmp_path, capsys):
    good = [(scene(seed=k), scene(0.5, seed=k + 9)) for k in range(2)]
    records = pairs_of(tmp_path, (scene(0.03), scene()), *good, (scene(), scene(0.0)))
    data = prepare(
        records, 64, cache=tmp_path / 'cache', **RULES
    )  # their padding is no measurement
    said = capsys.readouterr().out
    assert len(data) == 2 and '2 of 4 pairs are left out' in said and 'A0.tif' in said
    prepare(records, 64, cache=tmp_path / 'cache', **RULES)
    assert '2 of 4 pairs are left out' in capsys.readouterr().out  # also from the cache
    with pytest.raises(InputError, match='A0.tif.* nor is there more in any of the 2 pairs'):
        prepare(records[::3], 64, cache=tmp_path / 'cache', **RULES)


def test_the_check_reports_such_pictures(tmp_path):
    good = [(scene(seed=k), scene(seed=k + 9)) for k in range(3)]
    records = pairs_of(tmp_path, (scene(0.03), scene()), *good, (scene(), scene(0.0)))
    how = dict(source_window='0:1', target_window='0:1', size=32, progress=False)
    found = check('folder', tmp_path, records=records, **how).findings
    own = [(f.level, f.text) for f in found if f.what in ('unmeasured', 'unreadable')]
    assert [level for level, _ in own] == ['warning']
    assert 'A0.tif' in own[0][1] and '2 of 5 pairs' in own[0][1]
    alone = check('folder', tmp_path, records=records[:1], **how).findings
    assert [f.level for f in alone if f.what == 'unmeasured'] == ['error']


def test_squares_without_measurements_are_counted(tmp_path, capsys):
    records = pairs_of(tmp_path, (scene(0.5, side=64), scene(side=64)))
    data = prepare(records, 16, fit='patch', cache=tmp_path / 'cache', **RULES)
    assert len(data) == 8
    assert '8 of 16 squares of 1 pictures are left out' in capsys.readouterr().out


def test_holes_count_in_no_number_about_a_training(tmp_path):
    torn = scene(0.5), np.full((20, 20), 0.6, np.float32)
    torn[1][:10] = scene(seed=2)[:10] / 2 + 0.3
    records = pairs_of(tmp_path, torn)
    data = prepare(records, 20, cache=tmp_path / 'cache', **RULES)
    y, x0 = (2 * v.astype(np.float64)[:10] - 1 for v in torn)
    got = measure_scale(data)
    assert np.allclose(
        [got['s0'], got['sT'], got['cov']],
        [(x0**2).mean() ** 0.5, (y**2).mean() ** 0.5, (x0 * y).mean()],
    )
    values = source_values(data)
    lit = y[y > -0.8]
    seen = [values[f'foreground {k}'][0] for k in ('mean', 'spread')]
    assert np.allclose(seen, [lit.mean(), lit.std()])
    assert np.allclose(target_reach(data), [torn[1][:10].min(), torn[1][:10].max()])
    frame = frame_of(records[0].source, Spec('image', 20, source_window='0:1'), 1)
    seen = frame.cut()
    assert np.isfinite(seen).all() and np.isclose(np.nanmean(frame.grey), y.mean())
    item = data[0]
    assert len(measured_values(item, 'y')[0]) == 200


@pytest.mark.parametrize(
    'how, tile',
    [
        (dict(size=32), None),
        (dict(size=0), 16),
        (dict(size=0, air=1), None),
        (dict(size=0, plane='all'), 16),
        (dict(size=48, plane='coronal'), None),
        (dict(size=0, slices=3), None),
    ],
)
def test_nobody_of_the_training_is_unlike_the_training(how, tile, tmp_path):
    "People of other sizes with air around them, whose files are then translated by their model."
    records = []
    for k, shape in enumerate([(24, 28, 20), (40, 44, 30), (22, 22, 40)]):
        paths = [tmp_path / f'{k}_{side}.nii.gz' for side in ('T1w', 'T2w')]
        inside = np.linalg.norm(np.indices(shape).T / (np.array(shape) - 1) - 0.5, axis=-1).T < 0.4
        for path, power in zip(paths, (1, 2)):
            x = inside * (np.random.default_rng(k).uniform(0.5, 1, shape) * 900) ** power
            nib.save(nib.Nifti1Image(x.astype('f4'), np.diag([2.0, 2, 2, 1])), path)
        records.append(Record(f's{k}', f's{k}', *paths))
    data = prepare(records, cache=tmp_path / 'cache', progress=False, **how)
    p = data.index['params']
    own = dict(size=p['size'], spacing=p['spacing'], plane=p.get('plane', 'axial'), tile=tile)
    spec = Spec(**own, source_values=source_values(data))
    for r in records:
        frame = frame_of(r.source, spec, 1)
        frame.cut()
        assert concerns_of_values(spec, frame.grey) == []
    assert concerns_of_values(spec, -frame.grey)  # bright and dark exchanged


def test_both_sides_are_measured_where_no_channel_is_nan():
    y, x0 = np.zeros((2, 3, 3)), np.zeros((1, 3, 3))
    y[1, 0, 0] = x0[0, 2, 2] = np.nan
    for kind in (np.asarray, torch.from_numpy):
        there = np.asarray(both_measured(kind(y), kind(x0)))
        assert there.shape == (3, 3) and not there[0, 0] and not there[2, 2] and there.sum() == 7


# further sources


def test_a_further_picture_may_be_a_file_an_image_or_an_array(tmp_path):
    rng = np.random.default_rng(0)
    first, second = (rng.integers(0, 255, (20, 30), dtype=np.uint8) for _ in range(2))
    path = tmp_path / 'second.png'
    Image.fromarray(second).save(path)
    spec = Spec('image', 16, source_window='dtype', further=1)
    frame = frame_of(first, spec, 1)
    frame.cut()
    sides = [frame.side([v]) for v in (path, Image.fromarray(second), second)]
    for side in sides[1:]:
        np.testing.assert_array_equal(side, sides[0])
    with pytest.raises(InputError, match='another size'):
        frame.side([second.T.copy()])
    with pytest.raises(InputError, match='unsigned whole'):
        frame.side([second.astype(np.float32)])
    with pytest.raises(InputError, match='cannot be a further source'):
        frame.side([torch.zeros(1, 1, 16, 16)])
    assert frame.side([None])[0, 0].max() == -1.0


def test_a_further_volume_may_be_a_file_an_image_or_slices():
    stack = np.random.default_rng(0).normal(size=(7, 16, 16)).astype(np.float32)
    frame = frame_of(stack, Spec(size=16, further=1), 1)
    frame.cut()
    np.testing.assert_array_equal(frame.side([stack])[2][0], frame.grey[2])
    with pytest.raises(InputError, match='cannot be a further source'):
        frame.side([torch.zeros(1, 1, 16, 16)])


# ignore values


def test_an_ignore_value_is_refused_for_volumes(tmp_path):
    records = volumes(tmp_path, a=5.0)
    with pytest.raises(InputError, match='a_T2w.*works for pictures'):
        prepare(records, 0, target_window='labels:0:3:255', cache=tmp_path, progress=False)
    frame = VolumeFrame(records[0].source, Spec(source_window='labels:0:3:255'), 1)
    with pytest.raises(InputError, match='works for pictures'):
        frame.cut()
    case = Case('s', 's', records[0].target, records[0].target)
    with pytest.raises(InputError, match='a_T2w.*whole numbers from 0 to 3.*--ignore VALUE'):
        read_case(case, window='labels:0:3:255')


# DICOM


def test_the_grid_of_a_series_is_known_before_its_pixels_are(tmp_path, monkeypatch):
    pytest.importorskip('pydicom')
    from test_formats import slices

    slices(tmp_path / 'ct')
    monkeypatch.setattr(dicom, 'in_units', lambda d: 1 / 0)
    image = open_volume(tmp_path / 'ct')
    assert len(image.shape) == 3 and image.get_data_dtype() == np.float32
    with pytest.raises(InputError, match='cannot be decoded .*division'):
        load_volume(tmp_path / 'ct')
