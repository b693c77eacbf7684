"Layouts of other programs are read, and a folder that no layout fits gets a table that would do."

import json

import numpy as np
import pytest
from PIL import Image

from xmodal.core import InputError, project_root
from xmodal.data import layouts
from xmodal.data.check import check
from xmodal.data.formats import write_volume
from xmodal.data.images import load_image
from xmodal.data.layouts import SAID, find_records, guess_layout, join_sources, say_once
from xmodal.data.split import split_records

from small_model import xmodal
from test_sources import people, save, scene


@pytest.fixture(autouse=True)
def fresh():
    "Every test hears what is said once a process."
    SAID.clear()


def volumes(root, *names):
    "A small volume under each of the names."
    for k, name in enumerate(names):
        save(root / f'{name}.nii.gz', scene(k, 16, 16, 4))
    return root


def pictures(root, *names, shape=(16, 16)):
    "A small grey picture under each of the names."
    for k, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((scene(k, *shape) * 255).astype(np.uint8)).save(root / f'{name}.png')
    return root


def cases(words, *names):
    "Every name with every word at its {}."
    return [name.format(w) for name in names for w in words]


def test_nnunet_with_a_table_and_without(tmp_path):
    part = cases(('0000', '0001'), 'imagesTr/a_{}', 'imagesTr/b_{}', 'imagesTs/c_{}')
    root = volumes(tmp_path, *part, 'labelsTr/a', 'labelsTr/b')
    found = find_records('nnunet', root)
    assert [(r.name, r.split, bool(r.mask)) for r in found] == [
        ('a', 'train', True),
        ('b', 'train', True),
        ('c', 'test', False),
    ]
    (root / 'dataset.json').write_text(json.dumps(dict(channel_names={'0': 'CT', '1': 'PET'})))
    for words in (('PET', 'CT'), ('1', '0'), ('0001', '0000')):
        r = find_records('nnunet', root, *words)[0]
        assert (r.source.name, r.target.name) == ('a_0001.nii.gz', 'a_0000.nii.gz')
        assert (r.meta['modality'], r.target_meta['modality']) == ('PET', 'CT')
    r = find_records('nnunet', root, 'CT,PET', 'labels', allow_unpaired=True)[0]
    assert (r.target.parent.name, r.more_sources[0].name) == ('labelsTr', 'a_0001.nii.gz')
    with pytest.raises(InputError, match=r'0 \(CT\), 1 \(PET\), none called .T1.'):
        find_records('nnunet', root, 'T1', 'CT')


@pytest.mark.parametrize('way', ['{0}{1}', '{0}/{1}', '{1}/{0}', '{0}_{1}'])
def test_pairs_in_the_folders_of_cyclegan(tmp_path, way):
    names = [f'{way.format(p, s)}/{n}' for p, n in (('train', '1'), ('test', '1')) for s in 'AB']
    found = find_records('ab', pictures(tmp_path, *names))
    assert [(r.name, r.split) for r in found] == [('test_1', 'test'), ('train_1', 'train')]
    assert guess_layout(tmp_path) == ('ab', 'A', 'B', 2)


def test_pictures_without_pairs_are_refused(tmp_path):
    pictures(tmp_path, 'trainA/horse1', 'trainA/horse2', 'trainB/zebra1')
    with pytest.raises(InputError, match='without pairs, as for CycleGAN'):
        find_records('ab', tmp_path)


@pytest.mark.parametrize('kind, ending', [(np.uint8, '.png'), (np.uint16, '.tif')])
def test_halves_are_the_picture(tmp_path, kind, ending):
    whole = (scene(0, 8, 16) * np.iinfo(kind).max).astype(kind)
    for part in ('train', 'test'):
        (tmp_path / part).mkdir()
        Image.fromarray(whole).save(tmp_path / part / '1.png')
    r = find_records('sidebyside', tmp_path, 'B', 'A')[0]
    assert r.source.suffix == ending and r.source.is_relative_to(project_root() / 'data')
    (right, dtype), (left, _) = load_image(r.source), load_image(r.target)
    assert dtype == kind and np.array_equal(np.concatenate([left, right], 2)[0], whole)
    Image.fromarray(whole[::-1]).save(tmp_path / 'test' / '1.png')  # newer
    again = find_records('sidebyside', tmp_path, 'B', 'A')[0]
    assert np.array_equal(load_image(again.source)[0], right[:, ::-1])
    split = split_records(find_records('sidebyside', tmp_path))
    assert (split['train'], split['test']) == (['train_1'], ['test_1'])


@pytest.mark.parametrize(
    'names, words, subjects',
    [
        (cases(('T1', 'T2'), 'p1_{}', 'p2_{}'), ('T1', 'T2'), ['p1', 'p2']),
        (cases(('mr', 'ct'), '1BA1/{}', '1BA2/{}'), ('mr', 'ct'), ['1BA1', '1BA2']),
        (cases(('mr', 'ct'), 'x/1BA1/{}', 'y/1PA1/{}'), ('mr', 'ct'), ['1BA1', '1PA1']),
        (cases(('t1n', 't2w'), 'G-1/G-1-{}', 'G-2/G-2-{}'), ('t1n', 't2w'), ['G-1', 'G-2']),
        (cases(('mr', 'ct'), 'P1/v1/{}', 'P1/v2/{}', 'P2/v1/{}'), ('mr', 'ct'), ['P1', 'P1', 'P2']),
        (cases(('a', 'b'), '{0}/p1_{0}', '{0}/p2_{0}'), ('a', 'b'), ['p1', 'p2']),
        (cases(('mri', 'ct'), '{}/p1', '{}/p2'), ('mri', 'ct'), ['p1', 'p2']),
        (cases(('mr', 'ct'), 'ann/{}', 'bob/{}', 'tom/{}'), ('mr', 'ct'), ['ann', 'bob', 'tom']),
    ],
)
def test_folders_of_volumes(tmp_path, names, words, subjects):
    found = find_records('folder', volumes(tmp_path, *names), *words)
    assert [r.subject for r in found] == subjects
    assert guess_layout(tmp_path) == ('folder', *words, len(found))


def test_who_counts_as_a_subject_is_said(tmp_path, capsys):
    "Visits with dates of their own look like patients; the group in the note makes them visits."
    dates = 'P1/2019-01-01/{}', 'P1/2020-02-02/{}', 'P2/2019-03-03/{}'
    volumes(tmp_path / 'dates', *cases(('mr', 'ct'), *dates))
    found = find_records('folder', tmp_path / 'dates', 'mr', 'ct')
    assert len({r.subject for r in found}) == 3
    (note,) = capsys.readouterr().out.splitlines()
    assert 'such as P1/2019-01-01 counts as a subject of its own, though P1 holds 2' in note
    group = note.split("group '")[1].rstrip("'")
    found = find_records('folder', tmp_path / 'dates', 'mr', 'ct', group=group)
    assert sorted(r.subject for r in found) == ['P1', 'P1', 'P2']
    assert capsys.readouterr().out == ''
    volumes(tmp_path / 'deep', *cases(('mr', 'ct'), *(f'site/{d}' for d in dates)))
    find_records('folder', tmp_path / 'deep', 'mr', 'ct')
    group = capsys.readouterr().out.split("group '")[1].rstrip("'\n")
    found = find_records('folder', tmp_path / 'deep', 'mr', 'ct', group=group)
    assert sorted(r.subject for r in found) == ['P1', 'P1', 'P2']
    volumes(tmp_path / 'visits', *cases(('mr', 'ct'), 'P1/v1/{}', 'P1/v2/{}', 'P2/v1/{}'))
    find_records('folder', tmp_path / 'visits', 'mr', 'ct')
    assert 'every outer folder such as P1 counts as one subject' in capsys.readouterr().out
    volumes(tmp_path / 'lone', *cases(('mr', 'ct'), 'x/1BA1/{}', 'y/1PA1/{}'))
    find_records('folder', tmp_path / 'lone', 'mr', 'ct')
    assert capsys.readouterr().out == ''


def test_patients_below_train_are_no_sides(tmp_path):
    names = cases(('t1', 't2'), 'train/sub01/{}', 'train/sub02/{}', 'train/sub03/{}')
    assert guess_layout(pictures(tmp_path, *names)) == ('folder', 't1', 't2', 3)


def test_two_files_of_a_pair_are_one_scan(tmp_path):
    import nibabel as nib

    for name in cases(('T1', 'T2'), 'p1_{}', 'p2_{}'):
        path = tmp_path / f'{name}.hdr'
        write_volume(nib.Nifti1Image(scene(1, 8, 8, 4), np.eye(4)), path, path)
    found = find_records('folder', tmp_path, 'T1', 'T2')
    assert [r.source.name for r in found] == ['p1_T1.img', 'p2_T1.img']


def test_a_mask_beside_the_pair(tmp_path):
    volumes(tmp_path, *cases(('mr', 'ct', 'mask'), '1BA1/{}', '1BA2/{}'))
    assert [r.mask.name for r in find_records('folder', tmp_path, 'mr', 'ct')] == [
        'mask.nii.gz'
    ] * 2
    assert find_records('folder', tmp_path, 'mr', 'mask')[0].mask is None


def test_several_sources_by_the_ends_of_names(tmp_path):
    volumes(tmp_path, *cases(('T1', 'FLAIR', 'T2'), 'p1_{}', 'p2_{}'), 'p3_T1', 'p3_T2')
    found = find_records('folder', tmp_path, 'T1,FLAIR', 'T2')
    assert [r.more_sources[0].name for r in found] == ['p1_FLAIR.nii.gz', 'p2_FLAIR.nii.gz']


def test_the_refusal_names_the_layout_that_fits(tmp_path):
    with pytest.raises(InputError) as e:
        find_records('folder', people(tmp_path))
    said = f'xmodal data check bids --root {tmp_path} --source T1w --target T2w'
    assert str(e.value).endswith(f'this looks like data set bids (4 pairs): {said}')
    assert '\n' not in str(e.value)


def test_a_table_for_these_very_files(tmp_path, capsys):
    volumes(tmp_path, 'T1_case1', 'T1_case2', 'x_01_of_t2', 'x_02_of_t2')
    with pytest.raises(InputError, match='4 .nii.gz .*begins as printed .paired by their numbers'):
        find_records('bids', tmp_path)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        'source,target,subject',
        'T1_case1.nii.gz,x_01_of_t2.nii.gz,1',
        'T1_case2.nii.gz,x_02_of_t2.nii.gz,2',
    ]
    (tmp_path / 'pairs.csv').write_text('\n'.join(lines) + '\n')
    assert len(find_records('csv', tmp_path)) == 2  # what was printed does


@pytest.mark.parametrize('names, word', [((), 'no files'), (('a.npy', 'b.mat'), '1 .mat')])
def test_nothing_that_can_be_read(tmp_path, names, word):
    (tmp_path / 'x').mkdir()
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=f'{word}.*what is read are pairs of .nii.gz'):
        find_records('folder', tmp_path)


def test_what_a_guess_keeps_to_itself_is_said_by_the_reading(tmp_path, capsys):
    root = people(tmp_path)
    (root / 'participants.tsv').write_text('participant_id\tage\nsub-77\t40\n')
    assert guess_layout(root) == ('bids', 'T1w', 'T2w', 4)
    assert capsys.readouterr().out == ''
    records = find_records('bids', root)
    assert 'has no row for 4 of 4 people' in capsys.readouterr().out
    find_records('bids', root)
    assert capsys.readouterr().out == ''  # each note once

    def read(source):
        say_once(f'note about {source}')
        return records

    join_sources(records, ('FLAIR',), read)
    assert capsys.readouterr().out == ''
    read('FLAIR')
    assert capsys.readouterr().out == 'note about FLAIR\n'


def test_a_guess_writes_nothing_and_decodes_nothing(tmp_path, monkeypatch):
    pictures(tmp_path, 'train/1', 'train/2', 'test/1', shape=(8, 16))
    reads = []
    for name in ('load_image', 'halves'):
        monkeypatch.setattr(layouts, name, lambda *a, n=name: reads.append(n) or halt())
    assert guess_layout(tmp_path) == ('sidebyside', 'A', 'B', 3) and not reads
    pictures(tmp_path, 'test/2', shape=(8, 16))  # parts of a split are no sides
    assert guess_layout(tmp_path) == ('sidebyside', 'A', 'B', 4) and not reads
    pictures(tmp_path, 'test/3', shape=(8, 15))  # which the reader refuses
    assert guess_layout(tmp_path) == () and not reads


def halt():
    raise AssertionError('a guess has read a picture')


def test_a_guess_reads_with_the_names_that_were_given(tmp_path, capsys):
    people(tmp_path / 'scans')
    cell = 'scans/sub-{0:02}/anat/sub-{0:02}_{1}.nii.gz'
    rows = [','.join(cell.format(i, m) for m in ('T1w', 'FLAIR', 'T2w')) for i in range(4)]
    (tmp_path / 'pairs.csv').write_text('T1w,FLAIR,T2w\n' + '\n'.join(rows) + '\n')
    report = check('auto', tmp_path, 'T1w', 'T2w', progress=False)
    assert report.ok and report.about.startswith('csv (T1w -> T2w): 4 pairs')
    said = f'xmodal data check csv --root {tmp_path} --source T1w --target T2w'
    assert said in capsys.readouterr().out
    report = check('auto', tmp_path / 'scans', 'T1w,FLAIR', 'T2w', progress=False)
    assert report.about.startswith('bids (T1w,FLAIR -> T2w): 4 pairs')
    assert guess_layout(tmp_path / 'scans', target='T1w') == ('bids', 'T2w', 'T1w', 4)
    with pytest.raises(InputError, match="no layout fits source 'T1w' and target 'PDw'; this look"):
        check('auto', tmp_path / 'scans', 'T1w', 'PDw')


def test_auto_looks_where_it_was_told_to(tmp_path, monkeypatch):
    with pytest.raises(InputError, match='nowhere: no such folder'):
        check('auto', tmp_path / 'nowhere')
    monkeypatch.chdir(people(tmp_path))
    assert check('auto', progress=False).about.startswith('bids (T1w -> T2w): 4 pairs')


def test_check_auto(tmp_path, capsys):
    report = check('auto', people(tmp_path), 'T1w', 'T2w', progress=False)
    assert report.ok and report.about.startswith('bids (T1w -> T2w): 4 pairs')
    said = f'xmodal data check bids --root {tmp_path} --source T1w --target T2w'
    assert said in capsys.readouterr().out
    words = ['data', 'check', 'auto', '--root', str(tmp_path), '--target', 'T2w']
    r = xmodal(*words)
    assert 'looks like data set bids (4 pairs)' in r.stdout, r.stderr


def test_halves_are_kept_outside_of_the_data_set(tmp_path, monkeypatch):
    "A data set may be read-only; where the halves cannot be kept either, that is one line."
    root, project = tmp_path / 'facades', tmp_path / 'project'
    root.mkdir()
    project.mkdir()
    Image.fromarray(np.arange(200, dtype=np.uint8).reshape(10, 20)).save(root / 'a_1.png')
    monkeypatch.setattr(layouts, 'project_root', lambda: project)
    (project / 'data').write_text('in the way')
    with pytest.raises(InputError, match='halves of a_1.png cannot be kept here'):
        layouts.sidebyside(root)
    (project / 'data').unlink()
    (record,) = layouts.sidebyside(root)
    assert project in record.source.parents and [p.name for p in root.iterdir()] == ['a_1.png']
