"What was not measured in volumes (NaN): in training, in use and in evaluation."

import nibabel as nib
import numpy as np
import pytest

from xmodal.core import InputError
from xmodal.data.cache import prepare
from xmodal.data.check import look
from xmodal.data.frames import frame_of
from xmodal.data.records import Record
from small_model import VOLUME, echo
from test_wrong_in_silence_translate import said

rng = np.random.default_rng(0)
PLACE = np.diag([3.0, 3, 4, 1])


def scan(path, low=100, missing=(), place=PLACE):
    "A volume of grey values; `missing` are rows that are NaN."
    v = rng.uniform(low, low + 300, (20, 24, 6)).astype('f4')
    v[:, list(missing)] = np.nan
    nib.save(nib.Nifti1Image(v, place), path)
    return path


def pair(folder, missing=((0, 1), (5, 6)), **more):
    "A Record of two volumes, whose rows of these numbers are NaN."
    paths = [scan(folder / f'{k}.nii.gz', missing=m) for k, m in zip('yx', missing)]
    return Record('s', 's', *paths, **more)


@pytest.mark.parametrize('rule', ['0:500', 'percentile', 'slice:minmax'])
def test_a_volume_with_holes_is_prepared_with_a_mask(tmp_path, capsys, rule):
    how = dict(spacing=3.0, source_window=rule, target_window=rule, cache=tmp_path / 'cache')
    data = prepare([pair(tmp_path)], 24, **how, progress=False)
    assert '2 files' not in capsys.readouterr().out and len(data) == 6
    item = data[2]
    valid = item['valid'][0]
    # 20 columns of voxels in the middle; rows run from front to back, in the file to the front
    rows = np.flatnonzero(~valid[:, 2:22].numpy().any(1))
    assert set(23 - rows) == {0, 1, 5, 6}
    assert item['y'].isfinite().all() and (item['x0'][0][~valid] == -1).all()
    assert (item['x0'][0][valid] > -1).float().mean() > 0.6
    if rule == 'slice:minmax':
        assert abs(item['x0'][0][valid].max() - 1) < 1e-5
    look_at = dict(min_foreground=0.05, register=False, size=24, spacing=3.0)
    facts = look(pair(tmp_path), dict(look_at, windows=(rule, rule)))
    assert facts['error'] is None
    assert sum('NaN' in text for _, _, text in facts['concerns']) == 2


def test_holes_of_a_further_source_take_nothing_from_the_pair(tmp_path):
    more = scan(tmp_path / 'more.nii.gz', missing=range(10))
    r = pair(tmp_path, missing=((), ()), more_sources=(more,))
    how = dict(spacing=3.0, source_window='0:500', target_window='0:500')
    data = prepare([r], 24, **how, cache=tmp_path / 'cache', progress=False)
    item = data[0]
    assert 'valid' not in item and item['side'].isfinite().all()
    assert (item['side'][0, 14:] == -1).all() and (item['side'][0, :14] > -1).float().mean() > 0.6
    assert list(data.index['records'][0]['said_beside']) == [str(more)]


@pytest.mark.parametrize(
    'kind, rule, empty',
    [('float32', 'percentile', np.nan), ('int16', 'percentile', 0), ('int16', 'hu', -1024)],
)
@pytest.mark.parametrize('spacing', [3.0, 4.5])
def test_holes_come_back_voxel_by_voxel(tmp_path, kind, rule, empty, spacing):
    turn = np.array([[0, -3.0, 0, 5], [3, 0, 0, 2], [0, 0, 4, 1], [0, 0, 0, 1]])
    path = scan(tmp_path / 'a.nii.gz', missing=(7, 8, 9), place=turn)
    low, high = (-1000, 1000) if rule == 'hu' else (0, 500)
    how = dict(source_window=f'{low}:{high}', target_window=[low, high], target_dtype=kind)
    tr = echo(VOLUME, **how, spacing=spacing, target_window_rule=rule)
    out, words = said(lambda: tr.translate(path))
    got, source = np.asarray(out.dataobj), nib.load(path).get_fdata()
    np.testing.assert_array_equal(got[:, 7:10], np.full((20, 3, 6), empty, got.dtype))
    rest = np.delete(got, [7, 8, 9], 1)
    assert np.isfinite(rest).all() and (rest != empty).all()
    if spacing == 3:
        assert abs(rest - np.delete(source, [7, 8, 9], 1)).max() < 1
    # nothing is darkened beside the hole, however coarse the grid
    assert rest[:, 6].mean() > 200
    texts = [t for _, t in words]
    assert any('12.50% of its voxels are NaN' in t for t in texts)
    assert any(f'come out as {empty:g}' in t for t in texts)


def test_several_draws_leave_holes_in_their_spread(tmp_path):
    path = scan(tmp_path / 'a.nii.gz', missing=(7,))
    tr = echo(VOLUME, source_window='0:500')
    out, _ = said(lambda: tr.maps(path, samples=2))
    assert np.isnan(np.asarray(out['std'].dataobj)[:, 7]).all()


def test_labels_keep_a_number_for_holes(tmp_path):
    path = scan(tmp_path / 'a.nii.gz', missing=(7,))
    how = dict(source_window='0:500', target_window_rule='labels:0:4', target_window=[0.0, 4.0])
    out, _ = said(lambda: echo(VOLUME, **how).translate(path))
    got = np.asarray(out.dataobj)
    assert (got[:, 7] == np.iinfo(got.dtype).max).all() and np.delete(got, 7, 1).max() <= 4


def test_infinite_voxels_and_empty_volumes_stay_refused(tmp_path):
    d = echo(VOLUME).data
    for bad, words in ((np.inf, 'infinite'), (np.nan, 'no voxel is measured')):
        v = np.ones((4, 4, 4), 'f4')
        v[:] = np.nan if bad is np.nan else v
        v[0, 0, 0] = bad
        nib.save(nib.Nifti1Image(v, PLACE), tmp_path / 'bad.nii')
        with pytest.raises(InputError, match=words):
            frame_of(tmp_path / 'bad.nii', d, 1)
