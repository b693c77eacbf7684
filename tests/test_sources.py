"Several sources of one pair: found by name in every layout, looked at, and prepared together."

import shutil
from collections import Counter
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from xmodal.core import InputError
from xmodal.data import check as checking
from xmodal.data.cache import prepare
from xmodal.data.check import check
from xmodal.data.layouts import find_records, sources_of
from xmodal.engine import windows_of
from xmodal.job import FromData


def scene(i, *shape):
    "A smooth random picture, 0 to 1."
    z = gaussian_filter(np.random.default_rng(i).normal(size=shape), 4)
    return (z - z.min()) / np.ptp(z)


def save(path, x, affine=np.diag([3.0, 3, 3, 1])):
    "A NIfTI file of an array."
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.Nifti1Image((x * 1000).astype('i2'), affine).to_filename(path)


def people(root, n=4):
    "T1w, FLAIR and T2w of n people, in BIDS."
    for i in range(n):
        z, folder = scene(i, 32, 32, 8), root / f'sub-{i:02}' / 'anat'
        for name, x in (('T1w', z), ('FLAIR', z**2), ('T2w', 1 - z)):
            save(folder / f'sub-{i:02}_{name}.nii.gz', x)
    return root


def test_sources_stand_in_the_order_named(tmp_path):
    root = people(tmp_path)
    for names in ('T1w,FLAIR', 'FLAIR, T1w'):
        first, second = sources_of(names)
        for r in find_records('bids', root, names, 'T2w'):
            assert r.source.name == f'{r.name}_{first}.nii.gz'
            assert [q.name for q in r.more_sources] == [f'{r.name}_{second}.nii.gz']
            assert r.meta['modality'] == first
    assert all(r.more_sources == () for r in find_records('bids', root, 'T1w', 'T2w'))


@pytest.mark.parametrize('typed', ['T1w,', ' T1w', 'T1w ,', ', T1w'])
def test_a_name_has_no_blanks_and_no_comma(tmp_path, typed):
    assert sources_of(typed) == sources_of('T1w') == ('T1w',)
    assert len(find_records('bids', people(tmp_path), typed, 'T2w')) == 4
    (tmp_path / 'A,').mkdir()
    assert sources_of('A,', tmp_path) == ('A,',)  # the name of a folder


def test_who_lacks_a_companion_is_left_out_and_counted(tmp_path, capsys):
    root = people(tmp_path)
    (root / 'sub-02' / 'anat' / 'sub-02_FLAIR.nii.gz').unlink()
    found = find_records('bids', root, 'T1w,FLAIR', 'T2w')
    assert [r.subject for r in found] == ['sub-00', 'sub-01', 'sub-03']
    assert '3 pairs; 1 left out for want of FLAIR (first: sub-02)' in capsys.readouterr().out


@pytest.mark.parametrize(
    'dataset, source, target',
    [
        ('brats', 't1,t1ce,flair', 't2'),
        ('ixi', 'T1,PD', 'T2'),
        ('pelvis', 'T1,T2', 'CT'),
    ],
)
def test_made_data_of_several_sources(dataset, source, target):
    found = find_records(dataset, 'made', source, target, n=4, voxel=6.0)
    assert {len(r.more_sources) for r in found} == {len(source.split(',')) - 1}
    assert len({p for r in found for p in (r.source, *r.more_sources, r.target)}) == len(found) * (
        len(source.split(',')) + 1
    )


def test_columns_of_a_table_are_sources(tmp_path):
    people(tmp_path / 'scans')
    cell = 'scans/sub-{0:02}/anat/sub-{0:02}_{1}.nii.gz'
    rows = [
        ','.join([f'p{i}', *(cell.format(i, m) for m in ('T1w', 'FLAIR', 'T2w'))]) for i in range(4)
    ]
    (tmp_path / 'pairs.csv').write_text('subject,source,source2,target\n' + '\n'.join(rows) + '\n')
    assert find_records('csv', tmp_path)[0].more_sources == ()
    found = find_records('csv', tmp_path, 'source,source2')
    assert [r.more_sources[0].name for r in found] == [f'sub-{i:02}_FLAIR.nii.gz' for i in range(4)]
    one = rows[1].split(',')
    rows[1] = ','.join([*one[:2], '', one[3]])
    (tmp_path / 'pairs.csv').write_text('subject,T1w,FLAIR,T2w\n' + '\n'.join(rows) + '\n')
    found = find_records('csv', tmp_path, 'T1w,FLAIR', 'T2w')
    assert [(r.subject, r.target_meta['modality']) for r in found] == [
        ('p0', 'T2w'),
        ('p2', 'T2w'),
        ('p3', 'T2w'),
    ]


def test_check_looks_at_every_source(tmp_path):
    root = people(tmp_path / 'a')
    report = check('bids', root, 'T1w,FLAIR', 'T2w', progress=False)
    assert report.ok and not report.findings
    broken = root / 'sub-01' / 'anat' / 'sub-01_FLAIR.nii.gz'
    broken.write_bytes(broken.read_bytes()[:300])
    report = check('bids', root, 'T1w,FLAIR', 'T2w', progress=False)
    assert [(f.what, 'source 2: ' in f.text) for f in report.errors] == [('unreadable', True)]
    assert broken.name in report.errors[0].text
    shutil.copy(root / 'sub-01' / 'anat' / 'sub-01_T2w.nii.gz', broken)
    report = check('bids', root, 'T1w,FLAIR', 'T2w', progress=False)
    assert 'identical' in {f.what for f in report.errors}


def test_sources_that_are_scaled_by_two_rules(tmp_path, monkeypatch):
    "Refused by training; the check says so, and looks at all by the one rule there would be."
    root = people(tmp_path)
    for path in root.glob('*/anat/*_FLAIR.nii.gz'):
        path.rename(path.with_name(path.name.replace('FLAIR', 'CT')))
    asked = FromData(dataset='bids', root=str(root), source='CT,T1w', target='T2w')
    with pytest.raises(InputError, match='CT is scaled by hu and T1w by .*; give source_window'):
        windows_of(asked, ['T2w'])
    assert windows_of(replace(asked, source_window='minmax'), ['T2w']) == ['minmax', None]
    assert windows_of(replace(asked, source='CT'), ['T2w']) == ['hu', None]
    rules, look = [], checking.look_at_all
    monkeypatch.setattr(
        checking, 'look_at_all', lambda r, p, *a: rules.append(p['windows']) or look(r, p, *a)
    )
    report = check('bids', root, 'CT,T1w', 'T2w', progress=False)
    assert report.errors[0].what == 'window' and 'give source_window' in report.errors[0].text
    assert rules == [('hu', 'percentile')] * 2
    rules.clear()
    assert check('bids', root, 'CT,T1w', 'T2w', source_window='minmax', progress=False).ok
    assert rules == [('minmax', 'percentile')] * 2


def test_the_first_source_is_praised_only_where_it_fits(tmp_path):
    root = people(tmp_path, 6)

    def mirror(word):
        path = root / 'sub-01' / 'anat' / f'sub-01_{word}.nii.gz'
        img = nib.load(path)
        save(path, np.asarray(img.dataobj)[::-1] / 1000, img.affine)

    def moved():
        found = check('bids', root, 'T1w,FLAIR', 'T2w', progress=False).findings
        return [f.text for f in found if f.what == 'flip' and 'sub-01' in f.text]

    mirror('FLAIR')
    (said,) = moved()
    assert said.startswith('source 2: ') and said.endswith(
        '; the first source fits, so look at this one'
    )
    mirror('FLAIR')
    mirror('T2w')
    first, second = moved()
    assert second.startswith('source 2: ') and 'first source fits' not in first + second


def test_no_file_is_read_again_for_its_grid(tmp_path, monkeypatch):
    root, load = people(tmp_path), checking.load_volume
    reads = []
    monkeypatch.setattr(
        checking, 'load_volume', lambda p, **k: reads.append(p.name) or load(p, **k)
    )

    def count(source):
        reads.clear()
        check('bids', root, source, 'T2w', progress=False)
        return Counter(n for n in reads if 'T1w' in n)

    assert count('T1w,FLAIR') == count('T1w')


def test_sources_on_another_grid_are_said(tmp_path):
    root = people(tmp_path)
    save(root / 'sub-01' / 'anat' / 'sub-01_FLAIR.nii.gz', scene(1, 32, 32, 8)[:, :-4] ** 2)
    report = check('bids', root, 'T1w,FLAIR', 'T2w', progress=False)
    assert [(f.level, f.what) for f in report.findings] == [('warning', 'grid')]
    assert '32 x 28 x 8 voxels instead of 32 x 32 x 8' in report.findings[0].text


def test_a_picture_of_another_size_is_an_error(tmp_path):
    "It cannot be looked at beside its target; its size is known all the same."
    for word in ('A', 'C', 'B'):
        (tmp_path / word).mkdir()
        for k in range(3):
            x = scene(k, 24, 20 if (word, k) == ('C', 1) else 24)
            Image.fromarray((x * 255).astype(np.uint8)).save(tmp_path / word / f'{k}.png')
    report = check('folder', tmp_path, 'A,C', 'B', progress=False)
    (said,) = (f for f in report.errors if f.what == 'grid')
    assert 'C/1.png: has 24 x 20 pixels instead of 24 x 24 of' in said.text


def test_further_sources_are_prepared_beside_the_first(tmp_path):
    found = find_records('bids', people(tmp_path), 'T1w,FLAIR', 'T2w')
    both = prepare(found, 16, cache=tmp_path / 'cache', progress=False)
    assert both[0]['side'].shape == both[0]['y'].shape
    other = find_records('bids', people(tmp_path), 'FLAIR', 'T2w')
    alone = prepare(other, 16, cache=tmp_path / 'cache', progress=False)
    where = {(s['subject'], s['slice']): k for k, s in enumerate(alone.index['slices'])}
    matches = 0
    for k, s in enumerate(both.index['slices']):
        if (s['subject'], s['slice']) in where:
            same = alone[where[s['subject'], s['slice']]]
            assert (both[k]['side'] == same['y']).all()
            matches += 1
    assert matches > 0


@pytest.mark.parametrize(
    'source, target, word',
    [
        ('T1w,T1w', 'T2w', 'twice'),
        ('T1w,T2w', 'T2w', 'nothing to translate'),
        ('T1w,PDw', 'T2w', 'not one PDw'),
        ('T1w FLAIR', 'T2w', 'commas: T1w,FLAIR'),
    ],
)
def test_refusals(tmp_path, source, target, word):
    with pytest.raises(InputError, match=word):
        find_records('bids', people(tmp_path), source, target)
