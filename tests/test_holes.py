"What was not measured in volumes (NaN): in training, in use and in evaluation."

from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import tifffile

from xmodal.core import InputError
from xmodal.data.cache import prepare
from xmodal.data.check import look
from xmodal.data.frames import frame_of
from xmodal.data.records import Record
from xmodal.evaluation.cohort import error_by_label, evaluate_cases, match
from xmodal.folders import translate_paths
from small_model import IMAGE, VOLUME, echo
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


# --- evaluation


def cohort(folder, spoil=0.0, ending='.nii.gz'):
    "Folders of two translations and truths; what is NaN in the translation is off by `spoil`."
    for name in 'ab':
        v = rng.uniform(0, 100, (20, 24, 6)).astype('f4')
        p = v + rng.normal(size=v.shape).astype('f4')
        p[:, :12] = p[:, :12] + spoil if spoil else np.nan
        for d, x in (('pred', p), ('truth', v)):
            (folder / d).mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(x, PLACE), folder / d / f'sub-0{name}{ending}')
    return match(folder / 'pred', folder / 'truth')


@pytest.mark.parametrize('per', ['image', 'volume'])
def test_metrics_leave_out_what_was_not_measured(tmp_path, per):
    "Half of a translation is NaN: the decibels are those of the other half, and it is said."
    e = evaluate_cases(cohort(tmp_path), window='0:100', per=per, progress=False)
    assert abs(e.stats['psnr']['mean'] - 40) < 0.3 and abs(e.stats['mae']['mean'] - 0.008) < 3e-4
    line = next(n for n in e.notes if 'not measured' in n)
    assert line.startswith('50.0% of the pixels (2 of 2 files)') and 'hf_power' in line
    whole = evaluate_cases(cohort(tmp_path, spoil=1e-9), window='0:100', per=per, progress=False)
    assert not any('not measured' in n for n in whole.notes)
    for name in ('ncc', 'sharpness', 'ssim'):
        assert abs(e.stats[name]['mean'] - whole.stats[name]['mean']) < 0.05, name
    labels = [replace(c, labels=c.truth) for c in cohort(tmp_path)]
    for c in labels:
        nib.save(nib.Nifti1Image(np.ones((20, 24, 6), 'i2'), PLACE), tmp_path / 'ones.nii')
    by = error_by_label([replace(c, labels=tmp_path / 'ones.nii') for c in labels], progress=False)
    assert by['mae'].notna().all() and (by['share'] == 0.5).all()


def test_a_protocol_of_whole_images_is_refused(tmp_path):
    cases = cohort(tmp_path)
    with pytest.raises(InputError, match='50.0% .* use fixed'):
        evaluate_cases(cases, 'cdtsde', window='0:100', progress=False)
    with pytest.raises(InputError, match='needs a mask'):
        evaluate_cases(cases, 'synthrad', progress=False, hu=(0, 100))


def test_our_own_answers_are_evaluated(tmp_path):
    "A picture with holes, translated and measured: float TIFF, NaN in both."
    for d in ('x', 'truth', 'out'):
        (tmp_path / d).mkdir()
    v = rng.uniform(0, 200, (32, 32)).astype('f4')
    v[:8] = np.nan
    for d in ('x', 'truth'):
        tifffile.imwrite(tmp_path / d / 'a.tif', v)
    how = dict(source_window='0:200', target_window=[0.0, 200.0], target_dtype='float32', size=32)
    said(lambda: translate_paths(echo(IMAGE, **how), tmp_path / 'x', tmp_path / 'out'))
    cases = match(tmp_path / 'out', tmp_path / 'truth')
    e = evaluate_cases(cases, window='0:200', progress=False)
    assert e.stats['psnr']['mean'] > 60 and any('25.0%' in n for n in e.notes)
