"Faults of real data folders: padding, tables out of Excel, litter, pipes, label maps. Each is read, or named in one line."

import json
import os

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from xmodal.data.check import check
from xmodal.core import InputError
from xmodal.data.cache import prepare
from xmodal.data.volumes import load_volume
from xmodal.data.windows import padding_of, window_of
from xmodal.data.layouts import (
    SAID,
    bids,
    csv,
    find_records,
    folder,
    ixi,
    ixi_people,
    pelvis,
    pscde,
    read_json,
    read_table,
    sentinel,
    sidecar,
)
from xmodal.metadata.context import nearby_metadata


@pytest.fixture(autouse=True)
def fresh():
    "Every test hears what is said once a process."
    SAID.clear()


def refused(f, *words):
    "The text of the InputError of f(), of one line and with all `words`."
    with pytest.raises(InputError) as e:
        f()
    text = str(e.value)
    assert '\n' not in text and len(text) < 600
    for w in words:
        assert str(w) in text, text


def scan(path, pad=None, seed=0):
    "A small head with noise; where `pad` is given the corners hold it."
    path.parent.mkdir(parents=True, exist_ok=True)
    x = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (20, 24, 8)], indexing='ij'))
    r = np.sqrt((x**2).sum(0))
    v = np.clip(1 - r, 0, 1) * 900 + 40 + 10 * np.random.default_rng(seed).random(r.shape)
    if pad is not None:
        v[r > 1.3] = pad
    nib.save(nib.Nifti1Image(v.astype(np.float32), np.diag([2.0, 2, 4, 1])), path)
    return path


def people(root, names=('sub-01', 'sub-02'), pad=None):
    "A BIDS folder of T1w and T2w."
    for k, n in enumerate(names):
        for c in ('T1w', 'T2w'):
            scan(root / n / 'anat' / f'{n}_{c}.nii.gz', pad, k)
    return root


def pictures(root, names=('s0_0', 's0_1', 's1_0', 's1_1'), sides=('a', 'b')):
    "Two folders of PNG files."
    g = np.random.default_rng(0)
    for side in sides:
        (root / side).mkdir(parents=True, exist_ok=True)
        for n in names:
            Image.fromarray(g.integers(0, 255, (32, 32), dtype=np.uint8)).save(
                root / side / f'{n}.png'
            )
    return root


# ---- padding


@pytest.mark.parametrize('value', [-32768, -9999, -3024, -2000, -1024, 65535, -3.4e38])
def test_padding_is_left_out_of_the_window(tmp_path, capsys, value):
    """The window and the planes of a padded volume are those of the same volume without padding, in
    training and by `to_plane`.
    """
    clean, padded = people(tmp_path / 'clean'), people(tmp_path / 'padded', pad=value)
    a, b = (
        prepare(bids(root), 16, cache=tmp_path / 'cache', progress=False)
        for root in (clean, padded)
    )
    said = capsys.readouterr().out
    assert 'padding in 2 of 2 source files' in said and f'{value:g}' in said
    assert said.count('note: padding') == 2
    one, two = (d.index['records'][0]['windows'][0] for d in (a, b))
    assert abs(one['lo'] - two['lo']) < 5 and abs(one['hi'] - two['hi']) < 5
    y = b[0]['y'].numpy()
    assert y.min() >= -1.1 and y.max() < 2
    v = np.asarray(load_volume(bids(padded)[0].source).dataobj)
    assert (window_of(v).scale(v)[v == v.flat[0]] == -1).all()  # what the translator does


@pytest.mark.parametrize(
    'kind',
    [
        'ct air',
        'ct clipped',
        'mr',
        'skull-stripped',
        'normalised',
        'bytes',
        'labels',
        'hot pixel',
        'saturated',
    ],
)
def test_what_is_no_padding(kind):
    g = np.random.default_rng(0)
    head = g.normal(400, 100, 20_000).clip(60)
    made = {
        'ct air': np.r_[g.normal(-1000, 20, 30_000).clip(-1024), g.normal(40, 30, 20_000)],
        'ct clipped': np.r_[np.full(30_000, -1000.0), g.normal(40, 200, 20_000)],
        'mr': np.r_[np.zeros(30_000), head],
        'skull-stripped': np.r_[np.zeros(30_000), head + 300],
        'normalised': np.r_[np.full(30_000, -1.0), head / 400],
        'bytes': np.r_[np.full(9000, 255.0), head / 8],
        'labels': np.repeat([0.0, 1, 2, 3, 1000], 5000),
        'hot pixel': np.r_[head, 30_000.0],
        'saturated': head.clip(None, 600),
    }
    assert padding_of(made[kind]) == ()


# ---- tables

TABLES = {
    'trailing tab': 'participant_id\tage\tsex\nsub-01\t34\tM\t\nsub-02\t60\tF\t\n',
    'numbers': 'participant_id\tage\tsex\n1\t34\tM\n2\t60\tF\n',
    'floats': 'participant_id\tage\tsex\n1.0\t34\tM\n2.0\t60\tF\n',
    'no prefix': 'participant_id\tage\tsex\n01\t34\tM\n02\t60\tF\n',
    'longer numbers': 'participant_id\tage\tsex\nsub-001\t34\tM\nsub-002\t60\tF\n',
    'blanks': ' participant_id \tage\tsex\n  sub-01\t 34\tM\nsub-02 \t60\tF \n',
    'byte-order mark': '\ufeffparticipant_id\tage\tsex\nsub-01\t34\tM\nsub-02\t60\tF\n',
    'windows': 'participant_id\tage\tsex\r\nsub-01\t34\tM\r\nsub-02\t60\tF\r\n',
    'upper case': 'Participant_ID\tage\tsex\nSUB-01\t34\tM\nSub-02\t60\tF\n',
    'quoted': '"participant_id"\t"age"\t"sex"\n"sub-01"\t"34"\t"M"\n"sub-02"\t"60"\t"F"\n',
    'twice': 'participant_id\tage\tsex\nsub-01\t34\tM\nsub-01\t34\tn/a\nsub-02\t60\tF\n',
    'semicolons': 'participant_id;age;sex\nsub-01;34;M\nsub-02;60;F\n',
    'commas': 'participant_id,age,sex\nsub-01,34,M\nsub-02,60,F\n',
    'blank rows': 'participant_id\tage\tsex\n\nsub-01\t34\tM\n\t\t\nsub-02\t60\tF\n\n',
}


@pytest.mark.parametrize('name', TABLES)
def test_what_is_known_about_people_is_not_lost(tmp_path, name):
    people(tmp_path)
    (tmp_path / 'participants.tsv').write_bytes(TABLES[name].encode())
    got = bids(tmp_path)
    assert [(r.meta.get('age'), r.meta.get('sex')) for r in got] == [(34, 'M'), (60, 'F')]
    assert nearby_metadata(got[0].source)['age'] == 34  # translation reads the same


def test_utf16_is_read(tmp_path):
    people(tmp_path)
    (tmp_path / 'participants.tsv').write_text(TABLES['windows'], encoding='utf-16')
    assert [r.meta['age'] for r in bids(tmp_path)] == [34, 60]


@pytest.mark.parametrize(
    'text,words',
    [
        ('participant_id\tage\n1\t34\n01\t35\n', 'could mean somebody else'),
        ('participant_id\tage\nsub-77\t34\n', 'no row for 2 of 2'),
        ('participant_id\tage\nsub-01\t34\n', 'no row for 1 of 2'),
        ('participant_id\tage\n1\t34\n2\t35\n', 'matched by their number'),
        ('participant_id\tage\n\t34\nsub-01\t3\nsub-02\t3\n', 'rows without participant_id'),
    ],
)
def test_what_is_not_matched_is_said(tmp_path, capsys, text, words):
    people(tmp_path)
    (tmp_path / 'participants.tsv').write_text(text)
    bids(tmp_path)
    said = capsys.readouterr().out
    assert words in said and 'participants.tsv' in said


def test_one_number_of_two_people_is_nobodys(tmp_path, capsys):
    people(tmp_path, ('sub-1', 'sub-01'))
    (tmp_path / 'participants.tsv').write_text('participant_id\tage\n1\t34\n')
    assert ['age' in r.meta for r in bids(tmp_path)] == [False, False]
    assert 'could mean somebody else' in capsys.readouterr().out


@pytest.mark.parametrize(
    'raw,words',
    [
        (b'participant_id\tage\nsub-01\t34\t5\n', 'more cells'),
        (b'id\tage\nsub-01\t34\n', "no column 'participant_id'"),
        (b'participant_id\tage\tage\nsub-01\t3\t4\n', 'two columns'),
        (b'participant_id\tage\n"sub-01\t34\nsub-02\t3\n', 'never closed'),
        ('participant_id\tname\nsub-01\tMüller\n'.encode('latin-1'), 'UTF-8'),
        (b'\x00\x00\x00\x00', 'zero bytes'),
    ],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path, raw, words):
    people(tmp_path)
    (tmp_path / 'participants.tsv').write_bytes(raw)
    refused(lambda: bids(tmp_path), 'participants.tsv', words)


@pytest.mark.parametrize(
    'text',
    [
        'source;target;subject;TE\r\nv/a.nii.gz;v/b.nii.gz;x;3,5\r\n',
        '\ufeffsource;target;subject;TE\r\nv/a.nii.gz;v/b.nii.gz;x;3,5\r\n',
        'source,target,subject,TE\nv\\a.nii.gz,v\\b.nii.gz,x,3.5\n',
        'Source , TARGET,Subject,TE\n v/a.nii.gz,v/b.nii.gz ,x,3.5\n',
        '"source","target","subject","TE",\n"v/a.nii.gz","v/b.nii.gz","x","3.5",\n',
        'source\ttarget\tsubject\tTE\nv/a.nii.gz\tv/b.nii.gz\tx\t3.5\n',
    ],
)
def test_a_table_of_pairs_out_of_excel(tmp_path, text):
    for n in 'ab':
        scan(tmp_path / 'v' / f'{n}.nii.gz')
    (tmp_path / 'pairs.csv').write_bytes(text.encode())
    r = csv(tmp_path)[0]
    assert (r.subject, r.source.name, r.meta['TE']) == ('x', 'a.nii.gz', '3.5')


def test_a_path_of_windows_says_what_to_change(tmp_path):
    (tmp_path / 'pairs.csv').write_text('source,target\nC:\\data\\a.nii.gz,b\n')
    refused(lambda: csv(tmp_path), 'line 2', 'without a drive')


@pytest.mark.parametrize(
    'rows', ['2,2,35.8\n12.0,1,38.8\n', 'IXI002,2,35.8\n ixi012,1,38.8,\n', '2;2;35,8\n12;1;38,8\n']
)
def test_the_table_of_ixi(tmp_path, rows):
    mark = ';' if ';' in rows else ','
    head = mark.join(('ixi_id', '"SEX_ID (1=m, 2=f)"', 'AGE'))
    (tmp_path / 'IXI.csv').write_text(f'{head}\n{rows}')
    assert ixi_people(tmp_path) == {
        'IXI002': dict(age=35.8, sex='F'),
        'IXI012': dict(age=38.8, sex='M'),
    }


def test_spreadsheets_are_read_as_they_are_shown(tmp_path):
    import openpyxl

    book = openpyxl.Workbook()
    for row in (
        ['IXI_ID', 'SEX_ID (1=m, 2=f)', 'AGE', None],
        [2, 2, 35.8, None],
        [None] * 4,
        [12, 1, '', None],
    ):
        book.active.append(row)
    book.save(tmp_path / 'IXI.xlsx')
    assert ixi_people(tmp_path) == {'IXI002': dict(age=35.8, sex='F'), 'IXI012': dict(sex='M')}
    book.active.cell(1_000_000, 1000).value = 1
    book.save(tmp_path / 'IXI.xlsx')
    refused(lambda: ixi_people(tmp_path), 'IXI.xlsx', 'cells', 'limit')


# ---- litter and pipes

LITTER = ('._s0_0.png', '.DS_Store', 'Thumbs.db', 'desktop.ini', '__MACOSX/s0_0.png')


def strew(where):
    for n in LITTER:
        (where / n).parent.mkdir(exist_ok=True, parents=True)
        (where / n).write_bytes(b'\x00\x05\x16\x07junk')


def test_litter_is_passed_over_in_folders(tmp_path):
    pictures(tmp_path)
    before = folder(tmp_path, 'a', 'b', group='^(s[0-9]+)_')
    for where in (tmp_path, tmp_path / 'a', tmp_path / 'b'):
        strew(where)
    assert folder(tmp_path, 'a', 'b', group='^(s[0-9]+)_') == before
    assert check(
        'folder', tmp_path, 'a', 'b', group='^(s[0-9]+)_', size=32, progress=False
    ).about.startswith('folder (a -> b): 4 pairs of 2')


def test_litter_is_passed_over_in_every_layout(tmp_path):
    root = people(tmp_path / 'bids')
    before = bids(root)
    (root / 'sub-01' / 'anat' / '._sub-01_T1w.nii.gz').write_bytes(b'junk')
    (root / 'sub-01' / 'anat' / '._sub-01_T1w.json').write_bytes(b'junk')
    (root / '._T1w.json').write_bytes(b'junk')
    strew(root)
    assert bids(root) == before
    gold = tmp_path / 'gold' / '1_01_P'
    for c in ('T2', 'CT'):
        scan(gold / f'1_01_P_{c}.nii.gz')
        (gold / f'._1_01_P_{c}.nii.gz').write_bytes(b'junk')
    assert len(pelvis(tmp_path / 'gold')) == 1
    for s in ('s1', 's2'):
        pictures(tmp_path / 'sen' / 'ROIs1_spring', [f'ROIs1_spring_{s}_7_p1'], [f'{s}_7'])
        (tmp_path / 'sen' / 'ROIs1_spring' / f'{s}_7' / f'._ROIs1_spring_{s}_7_p1.png').write_bytes(
            b'junk'
        )
    assert len(sentinel(tmp_path / 'sen')) == 1
    for side in ('image', 'mask'):
        for split in ('train', 'test'):
            pictures(tmp_path / 'cells' / side, [f'{split}1'], [split])
        strew(tmp_path / 'cells' / side / 'train')
        strew(tmp_path / 'cells' / side)
    assert len(pscde(tmp_path / 'cells')) == 2
    x = tmp_path / 'ixi'
    for m in ('T1', 'T2'):
        scan(x / f'IXI-{m}' / f'IXI002-Guys-0802-{m}.nii.gz')
        (x / f'IXI-{m}' / f'._IXI002-Guys-0802-{m}.nii.gz').write_bytes(b'junk')
    assert len(ixi(x)) == 1


@pytest.mark.parametrize('name', ['participants.tsv', 'T1w.json', 'sub-01/anat/sub-01_T1w.json'])
def test_pipes_are_never_opened(tmp_path, name):
    """A named pipe as table or sidecar: one line with its name, where opening it would wait for
    ever.
    """
    people(tmp_path)
    os.mkfifo(tmp_path / name)
    refused(lambda: bids(tmp_path), os.path.basename(name), 'named pipe')
    refused(
        lambda: nearby_metadata(tmp_path / 'sub-01' / 'anat' / 'sub-01_T1w.nii.gz'),
        os.path.basename(name),
        'named pipe',
    )


def test_pipes_in_tables_and_beside_plain_files(tmp_path):
    os.mkfifo(tmp_path / 'p.nii.gz')
    os.mkfifo(tmp_path / 'scan.json')
    os.mkfifo(tmp_path / 't.csv')
    (tmp_path / 'pairs.csv').write_text('source,target\np.nii.gz,p.nii.gz\n')
    refused(lambda: csv(tmp_path), 'p.nii.gz', 'named pipe')
    refused(lambda: find_records('csv', tmp_path / 't.csv'), 't.csv', 'named pipe')
    refused(lambda: sidecar(tmp_path / 'scan.nii.gz'), 'scan.json', 'named pipe')
    os.mkfifo(tmp_path / 'IXI.xls')
    refused(lambda: ixi_people(tmp_path), 'IXI.xls', 'named pipe')


@pytest.mark.parametrize(
    'text',
    [
        '{"EchoTime": ' + '9' * 5000 + '}',
        '[' * 100_000,
        '{"a":' * 50_000 + '1' + '}' * 50_000,
        '[1]',
        '"x"',
        '{"EchoTime": NaN}',
        '{"EchoTime": -Infinity}',
        '{"EchoTime": 1',
        '',
        '\x00',
    ],
)
def test_damaged_sidecars_are_named(tmp_path, text):
    (tmp_path / 'scan.json').write_text(text)
    refused(lambda: read_json(tmp_path / 'scan.json'), 'scan.json')


def test_a_sidecar_of_another_editor(tmp_path):
    (tmp_path / 'scan.json').write_text(json.dumps(dict(EchoTime=0.1)), encoding='utf-8-sig')
    assert read_json(tmp_path / 'scan.json') == dict(EchoTime=0.1)


# ---- words


def test_refusals_name_what_is_read(tmp_path):
    pictures(tmp_path)
    (tmp_path / 'bmp').mkdir()
    Image.new('L', (8, 8)).save(tmp_path / 'bmp' / 's0_0.bmp')
    refused(lambda: folder(tmp_path, 'bmp', 'b'), '.bmp', '.png, .tif, .tiff, .jpg')
    root = people(tmp_path / 'bids')
    refused(
        lambda: find_records('bids', root, 'T1w', 'FLAIR,T2w'),
        'only one target is possible',
        "'FLAIR'",
    )
    refused(lambda: find_records('bids', root, 'T1w+FLAIR', 'T2w'), 'commas: T1w,FLAIR')


# ---- data check


def head_slices(root, n=6, cases=4, seed=0):
    """MR- and CT-like slices of small heads: the first and last slice of a case shows hardly
    anything.
    """
    from scipy import ndimage

    g = np.random.default_rng(seed)
    for side in ('mr', 'ct'):
        (root / side).mkdir(parents=True, exist_ok=True)
    yy, xx = np.mgrid[-1:1:64j, -1:1:64j]
    for c in range(cases):
        tissue = ndimage.gaussian_filter(g.standard_normal((n, 64, 64)), (1.5, 3, 3)) * 12
        for k in range(n):
            size = 0.85 - 0.05 * c if 0 < k < n - 1 else 0.25
            inside = (yy**2 + (xx / (0.8 + 0.04 * c)) ** 2) < size**2
            mr, ct = (
                np.where(inside, 120 + 40 * tissue[k], 5),
                np.where(inside, 90 - 30 * np.abs(tissue[k]), 0),
            )
            # a CT that shows another thing
            if not 0 < k < n - 1:
                ct = np.where(inside & (xx > 0), 200, 0)
            for side, v in (('mr', mr), ('ct', ct)):
                v = v + g.normal(0, 3, v.shape)
                Image.fromarray(v.clip(0, 255).astype(np.uint8)).save(
                    root / side / f'case{c}_{k:02d}.png'
                )
    return root


def of(report, level, what):
    return [f.text for f in report.findings if (f.level, f.what) == (level, what)]


def test_end_slices_are_a_warning_with_a_picture(tmp_path):
    r = check(
        'folder', head_slices(tmp_path, n=10), 'mr', 'ct', group='^(case[0-9]+)_', progress=False
    )
    assert r.ok, r.lines()
    (text,) = of(r, 'warning', 'misfit')
    assert 'case' in text and '_00' in text + '_09' and 'end of a scan' in text
    assert r.worst()['r'].name[-2:] in ('00', '09')


@pytest.mark.parametrize(
    'values,rule,level,words',
    [
        ((0, 1, 2, 3, 255), None, 'error', 'labels:0:3; 255 looks like an ignore value'),
        ((0, 1, 2, 3), None, 'error', 'target_window labels:0:3'),
        ((0, 255), None, 'warning', 'target_window binary'),
        ((0, 1), None, 'warning', 'target_window binary'),
        ((0, 1, 2, 3), '0:3', 'warning', 'target_window labels:0:3'),
        ((0, 1, 2, 3), 'labels:0:3', None, ''),
        ((0, 255), 'binary', None, ''),
    ],
)
def test_label_maps_are_recognised(tmp_path, values, rule, level, words):
    pictures(tmp_path)
    g = np.random.default_rng(1)
    for q in (tmp_path / 'b').iterdir():
        Image.fromarray(np.array(values, np.uint8)[g.integers(0, len(values), (32, 32))]).save(q)
    r = check('folder', tmp_path, 'a', 'b', size=32, target_window=rule, progress=False)
    assert [f.level for f in r.findings if f.what == 'labels'] == ([level] if level else [])
    if level:
        assert words in of(r, level, 'labels')[0] and '.png' in of(r, level, 'labels')[0]
    assert not of(r, 'warning', 'saturated')


def test_label_volumes_are_recognised_and_not_called_clipped(tmp_path):
    people(tmp_path)
    for k, q in enumerate(sorted(tmp_path.rglob('*_T2w.nii.gz'))):
        img = nib.load(q)
        v = np.digitize(img.get_fdata(), [100, 300, 500])
        nib.save(nib.Nifti1Image(np.where(v == 2, 255, v).astype(np.int16), img.affine), q)
    r = check('bids', tmp_path, size=16, progress=False)
    assert 'only the values 0, 1, 3, 255' in of(r, 'error', 'labels')[0]
    assert not of(r, 'warning', 'saturated') and not of(r, 'warning', 'padding')


def test_padding_is_named_by_data_check(tmp_path):
    r = check('bids', people(tmp_path, pad=-3024), size=16, progress=False)
    text = of(r, 'warning', 'padding')[0]
    assert (
        '-3024 in' in text
        and 'sub-0' in text
        and '1 more source files' in text
        and 'left out of the window' in text
    )
    deep = tmp_path / 'deep'
    pictures(deep)
    g = np.random.default_rng(2)
    for side in 'ab':
        for q in (deep / side).iterdir():
            v = g.integers(0, 4000, (32, 32)).astype(np.uint16)
            v[:8] = 65535
            Image.fromarray(v).save(q)
    r = check('folder', deep, 'a', 'b', size=32, progress=False)
    assert (
        '65535 in 25.0%' in of(r, 'warning', 'padding')[0]
        and 'under the rule dtype' in of(r, 'warning', 'padding')[0]
    )


def test_the_offset_of_a_padded_ct_is_still_missed(tmp_path):
    "A CT whose offset is lost hides behind its padding no longer."
    people(tmp_path, pad=-3024)
    r = check('bids', tmp_path, size=16, target_window='hu', progress=False)
    assert 'no air' in of(r, 'error', 'range')[0]


def test_neighbouring_slices_are_no_copies_but_copies_are(tmp_path):
    from scipy import ndimage

    g = np.random.default_rng(3)
    for side in 'ab':
        (tmp_path / side).mkdir()

    def save(v, name, side):
        Image.fromarray((128 + 60 * v).clip(0, 255).astype(np.uint8)).save(
            tmp_path / side / f'{name}.png'
        )

    for c in range(4):
        coarse = ndimage.gaussian_filter(g.standard_normal((64, 64)), 8) * 25
        for k in range(3):
            fine = ndimage.gaussian_filter(g.standard_normal((64, 64)), 1.5) * 0.6
            save(coarse + fine, f'case{c}_{k}', 'a')
            save(-np.abs(coarse) - fine, f'case{c}_{k}', 'b')
    ask = dict(source='a', target='b', group='^(case[0-9]+)_', progress=False)
    assert not [f for f in check('folder', tmp_path, **ask).findings if f.what == 'duplicate']
    for side in 'ab':
        (tmp_path / side / 'case0_9.png').write_bytes(
            (tmp_path / side / 'case0_1.png').read_bytes()
        )
        (tmp_path / side / 'case7_0.png').write_bytes(
            (tmp_path / side / 'case1_0.png').read_bytes()
        )
    found = ' '.join(
        f.text for f in check('folder', tmp_path, **ask).findings if f.what == 'duplicate'
    )
    assert 'case0_1 and case0_9' in found and 'case1_0' in found and 'case7_0' in found


def test_contrasts_without_direction_accuse_nobody(tmp_path):
    "Two noisy takes of one contrast: which is the source cannot be told, which is said."
    from scipy import ndimage

    g = np.random.default_rng(4)
    for side in 'ab':
        (tmp_path / side).mkdir()
    for k in range(24):
        v = ndimage.gaussian_filter(g.standard_normal((64, 64)), 3) * 6
        for side in 'ab':
            gain = g.uniform(0.6, 1.4)
            Image.fromarray(
                (110 + 45 * (gain * v + 0.3 * g.standard_normal(v.shape)))
                .clip(0, 255)
                .astype(np.uint8)
            ).save(tmp_path / side / f'p{k:02d}_0.png')
    r = check('folder', tmp_path, 'a', 'b', progress=False)
    assert not of(r, 'error', 'exchanged') and 'exchanged roles may go unnoticed' in ' '.join(
        of(r, 'warning', 'sight')
    )


@pytest.mark.parametrize(
    'zooms, harm, level, words',
    [
        ((3, 3, 3), lambda img: img.header.set_xyzt_units('meter'), 'error', 'lengths in'),
        (
            (1, 1, 1),
            lambda img: (img.set_sform(np.eye(4), 1), img.set_qform(np.diag([2.0, 2, 5, 1]), 1)),
            'error',
            'pixdim',
        ),
        ((6, 3, 3), lambda img: None, 'warning', 'sagittal'),
    ],
)
def test_what_a_header_says_against_itself_is_said(tmp_path, zooms, harm, level, words):
    """Real headers: what cannot be right stops a training, as it stops a translation; the rest is
    said.
    """
    root = people(tmp_path)
    # whole data sets in another plane are cut in it: only sources lie across here
    for path in root.rglob('*_T1w.nii.gz' if words == 'sagittal' else '*.nii.gz'):
        img = nib.Nifti1Image(
            np.asarray(nib.load(path).dataobj), np.diag([*map(float, zooms), 1.0])
        )
        harm(img)
        nib.save(img, path)
    report = check('bids', root, size=16, progress=False)
    text = next(t for t in of(report, level, 'header') if words in t)
    assert '(and ' in text and '.nii.gz' in text


@pytest.mark.parametrize(
    'dataset, said', [('pelvis', ''), ('bids', ''), ('folder', 'group '), ('csv', 'column subject')]
)
def test_who_is_named_by_the_layout_is_not_doubted(dataset, said):
    "The hospital before a person's number is no person, and pelvis takes no group."
    from types import SimpleNamespace
    from xmodal.data.check import find_groups

    names = [f'{site}_{k:02d}_P' for site in (1, 2, 3) for k in range(4)]
    found = []
    report = SimpleNamespace(add=lambda *words: found.append(words[-1]))
    find_groups([SimpleNamespace(name=n, subject=n) for n in names], report, dataset)
    assert said in found[0] if said else not found, found
