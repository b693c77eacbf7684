"Damaged and hostile inputs: one line each, nothing outside the folder, no memory taken on a promise."

import gzip
import io
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from small_model import TINY, VOLUME

from xmodal import core, files
from xmodal.data import cards
from xmodal.training import loop as train
from xmodal.training import model_folder as store
from xmodal.core import InputError
from xmodal.files import atomic
from xmodal.data.images import load_image
from xmodal.data.volumes import load_volume, open_volume
from xmodal.data.layouts import read_table
from xmodal.nets.build import build

ROOT = Path(__file__).resolve().parents[1]
ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}
DATA = dict(VOLUME, options={})


def said(f, *words):
    "The one line of an InputError that holds all the words."
    with pytest.raises(InputError) as e:
        f()
    text = str(e.value)
    assert '\n' not in text and all(str(w) in text for w in words), text
    return text


# ---- files that are whole or absent


def name_of(host, pid, start, kind, name, space=None):
    return f'.xmodal-{host}-{space or files.process_space()}-{pid}-{start}-{"0" * 8}.{kind}.{name}'


def leave(path, kind):
    "A leftover: a file, a folder, or one that may not be written."
    if kind == 'file':
        path.write_text('half')
        return
    path.mkdir()
    (path / 'inside').write_text('half')
    if kind == 'read-only':
        (path / 'inside').chmod(0o400)
        path.chmod(0o500)


GONE = 2**22 + 1  # larger than any number of a process


@pytest.mark.parametrize('kind', ['file', 'folder', 'read-only'])
@pytest.mark.parametrize('named', ['now', 'earlier'])
@pytest.mark.parametrize('result', ['file', 'folder'])
def test_leftovers_stop_nobody(tmp_path, monkeypatch, kind, named, result):
    """Process number 1 finds what number 1 of an earlier container has left, under the names of now
    and of before.
    """
    monkeypatch.setattr(os, 'getpid', lambda: 1)
    name = name_of(files.HOST, GONE, 7, 'part', 'a') if named == 'now' else '.1.part.a'
    leave(tmp_path / name, kind)
    with atomic(tmp_path / 'a') as tmp:
        if result == 'folder':
            tmp.mkdir()
            (tmp / 'b').write_text('whole')
        else:
            tmp.write_text('whole')
    written = tmp_path / 'a' / 'b' if result == 'folder' else tmp_path / 'a'
    assert written.read_text() == 'whole'
    assert (tmp_path / name).exists() == (named == 'earlier')  # not known whose: it stays for a day


def test_an_old_folder_is_put_back(tmp_path):
    """Killed between the two renames of a replacement: the old folder returns, the unfinished one
    goes.
    """
    for kind in ('old', 'part'):
        leave(tmp_path / name_of(files.HOST, GONE, 7, kind, 'model'), 'folder')
    said(lambda: store.load_config(tmp_path / 'model'), 'not a complete')
    assert [p.name for p in tmp_path.iterdir()] == ['model'] and (
        tmp_path / 'model' / 'inside'
    ).is_file()


def test_what_others_write_stays(tmp_path):
    "A living process, another machine, another container: their files are never touched."
    me = os.getpid()
    names = [
        name_of(files.HOST, me, files.started(me), 'part', 'a'),
        name_of('0' * 8, GONE, 7, 'part', 'a'),
        name_of(files.HOST, GONE, 7, 'part', 'a', space='1'),
    ]
    for n in names:
        (tmp_path / n).write_text('theirs')
    gone = tmp_path / name_of(files.HOST, me, 1, 'part', 'a')  # had our number once
    gone.write_text('half')
    with atomic(tmp_path / 'a') as tmp:
        tmp.write_text('whole')
    assert all((tmp_path / n).read_text() == 'theirs' for n in names) and not gone.exists()


def test_a_killed_writer_is_tidied_up(tmp_path):
    "A real kill in the middle of a write; the next one leaves no litter."
    code = (
        'import os, sys; from pathlib import Path; from xmodal.files import atomic\nwith'
        ' atomic(Path(sys.argv[1])/"a") as tmp:\n    tmp.mkdir(); (tmp/"b").write_text("half");'
        ' os.kill(os.getpid(), 9)'
    )
    subprocess.run([sys.executable, '-c', code, str(tmp_path)], env=ENV)
    assert len(list(tmp_path.iterdir())) == 1
    with atomic(tmp_path / 'c') as tmp:
        tmp.write_text('whole')
    assert [p.name for p in tmp_path.iterdir()] == ['c']


def test_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    "Every file of a folder and the folder itself are synced before the rename."
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, 'fsync', lambda h: (order.append('sync'), fsync(h)))
    monkeypatch.setattr(os, 'replace', lambda a, b: (order.append('rename'), replace(a, b)))
    with atomic(tmp_path / 'a') as tmp:
        tmp.mkdir()
        (tmp / 'b').write_text('x')
    assert order == ['sync', 'sync', 'rename', 'sync']


def test_long_names(tmp_path):
    "A name of 250 letters leaves no room for a temporary one beside it, which is cut."
    path = tmp_path / ('n' * 243 + '.nii.gz')
    with atomic(path) as tmp:
        assert tmp.name.endswith('.nii.gz')
        tmp.write_text('whole')
    assert path.read_text() == 'whole'


# ---- model folders


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp('model') / 'model'
    torch.manual_seed(0)
    store.save_model(folder, build(**TINY), TINY, DATA)
    return folder


def opened(folder):
    config = store.load_config(folder)
    store.check_data_section(config, folder / 'config.json')
    return store.load_model(folder)


def edited(model, tmp_path, part, key, value):
    "A copy of the model whose config.json says something else."
    folder = shutil.copytree(model, tmp_path / 'edited')
    config = json.loads((folder / 'config.json').read_text())
    (config[part] if part else config)[key] = value
    (folder / 'config.json').write_text(json.dumps(config))
    return folder


NAN, BIG = float('nan'), float('inf')
WRONG = [
    ('data', 'target_window', v)
    for v in (
        [500.0, 0.0],
        [1.0, 1.0],
        [NAN, 1.0],
        [0.0, BIG],
        [0],
        5,
        '0:1',
        [[0], [1]],
        [True, 2],
        None,
    )
]
WRONG += [('data', 'size', v) for v in (10**9, -64, 0, 64.5, True, [64], '64', NAN)]
WRONG += [('data', 'spacing', v) for v in (0, -1.0, 1e9, NAN, BIG, '3', [3], True)]
WRONG += [
    ('data', 'source_window', v)
    for v in (5, [0, 1], '5:5', '9:1', 'nan:1', '0:inf', 'labels:3:1', 'a:b', '')
]
WRONG += [('data', 'channels', v) for v in ([1], [1, 10**9], [0, 1], 'ab', {}, [1, True])]
WRONG += [('data', 'steps', v) for v in (0, -1, 2.5, 'x', [1], 10**9, True)]
WRONG += [('data', 'tau', v) for v in (5, 'loud', ['markov'])]
WRONG += [('data', 'options', v) for v in (5, [1], {'eta': 'x'}, {'eta': [1]}, {'colour': 1})]
WRONG += [
    ('data', 'grids', v)
    for v in (
        5,
        {'2': 3},
        {'2': {'grid': [0, 1]}},
        {'2': {'grid': ['a', 'b']}},
        {'2': {'grid': [1, NAN, 0]}},
    )
]
WRONG += [
    ('data', 'target_windows', {'T2w': [3, 1]}),
    ('data', 'source_values', {'mean': [1]}),
    ('data', 'target_dtype', 'object'),
    ('data', 'kind', ['volume']),
    ('data', 'kind', 'film'),
    ('data', 'text', {'by': 'both'}),
    ('data', 'text', [1]),
    ('data', 'source', 5),
    ('data', 'steps', None),
    ('data', 'tau', None),
]
WRONG += [('model', 'method', v) for v in (5, ['cdtsde'], 'magic', None)]
WRONG += [('data', 'target_nodata', v) for v in (NAN, BIG, 'x', [0], True)]
WRONG += [('data', 'fit', v) for v in ('Patch', 'patches', None, 7, NAN, [], {}, True)]
WRONG += [
    ('data', 'target_reach', v)
    for v in (NAN, 'x', -1, BIG, [NAN, NAN], [5000, -5000], ['a', 'b'], {}, '', None, True)
]
WRONG += [('data', 'target_window_rule', v) for v in ('x', 'slice:x', 'percentiles', 5)]
WRONG += [('model', 'channels', v) for v in (0, -1, 10**9, 1.5, '1', [1], True)]
WRONG += [
    ('model', 'net', v)
    for v in (
        5,
        [1],
        {'ch': 10**9},
        {'ch': -8},
        {'ch': 'x'},
        {'ch': 8, 'mults': [1] * 99},
        {'mults': [10**6]},
        {'layers': 10**9},
        {'ch': 60000, 'mults': [1, 60000]},
        {'ch': 8, 'mults': []},
        {'ch': NAN},
        {'ch': 8, 'mults': 'ab'},
        {'colour': 1},
    )
]
WRONG += [
    ('model', 'bridge', v) for v in (5, {'keep': 'x'}, {'keep': 10**9}, {'base': 7}, {'colour': 1})
]
WRONG += (
    [('model', 'arch', v) for v in (5, ['unet'], 'magic')]
    + [('model', 'pred', v) for v in (5, 'magic')]
    + [('model', 'scale', v) for v in (5, {'a': 1})]
)
WRONG += [('', 'weights', 5), ('', 'weights', {'sha256': 5}), ('', 'data', 5), ('', 'format', True)]


@pytest.mark.parametrize(
    'part,key,value', WRONG, ids=[f'{p}.{k}={str(v)[:20]}' for p, k, v in WRONG]
)
def test_config_says_nonsense(model, tmp_path, part, key, value):
    "One line that names config.json and the key, before anything large is made."
    text = said(
        lambda: opened(edited(model, tmp_path, part, key, value)),
        'config.json' if key != 'net' else 'edited',
    )
    if part == 'data':
        assert key in text, text
    if part == 'data' and key in ('steps', 'tau'):
        assert f'data.{key} must be ' in text and f'got {value!r}' in text, text
    assert len(text) < 700


def test_a_description_is_read_and_checked_once(model, monkeypatch):
    from xmodal.translate import Translator

    calls = []

    def counted(where, name):
        once = getattr(where, name)
        count = lambda *a: (calls.append((where.__name__, name)), once(*a))[1]
        monkeypatch.setattr(where, name, count)

    counted(store.json, 'loads')
    for record in (store.ModelSpec, store.DataSpec):
        counted(record, 'from_json')
    assert Translator.from_pretrained(model, 'cpu').data.size == DATA['size']
    names = ['loads', 'from_json', 'from_json']
    assert sorted(n for _, n in calls) == sorted(names), calls


METRICS = dict(scores={}, protocol='fixed', split=dict(test=['a']), parameters={}, environment={})


@pytest.mark.parametrize('value', [None, 5, [1]])
@pytest.mark.parametrize('key', ['scores', 'split', 'parameters', 'environment'])
def test_metrics_that_hold_nothing(tmp_path, key, value):
    "A key that is absent was not said; one that is there and holds nothing is damaged."
    from xmodal.evaluation.collect import read_run

    path = tmp_path / 'metrics.json'
    path.write_text(json.dumps(METRICS))
    assert read_run(path) == []
    path.write_text(json.dumps({**METRICS, key: value}))
    text = said(lambda: read_run(path), 'metrics.json')
    assert f'{key} must be an object, got {json.dumps(value)}' in text, text


@pytest.mark.parametrize(
    'text',
    [
        '[1, 2',
        '"text"',
        '[]',
        '{}',
        '{"format": 1' + '0' * 5000 + '}',
        '[' * 100_000,
        '{"format": NaN}',
        '\udcff',
        '',
    ],
)
def test_config_is_no_config(model, tmp_path, text):
    folder = shutil.copytree(model, tmp_path / 'edited')
    (folder / 'config.json').write_bytes(text.encode('utf-8', 'surrogateescape'))
    said(lambda: opened(folder), 'config.json')


@pytest.mark.parametrize(
    'part, key',
    [('data', k) for k in ('kind', 'size', 'source_window', 'target_window', 'channels')]
    + [('model', 'method'), ('model', 'channels')],
)
def test_a_key_that_is_needed_is_missed(model, tmp_path, part, key):
    folder = shutil.copytree(model, tmp_path / 'edited')
    config = json.loads((folder / 'config.json').read_text())
    del config[part][key]
    (folder / 'config.json').write_text(json.dumps(config))
    said(lambda: opened(folder), 'config.json', key)


def test_a_name_that_is_no_text(tmp_path):
    "Bytes that are not UTF-8 cannot stand in the notes of an output."
    from xmodal.folders import file_tasks

    (tmp_path / 'in').mkdir()
    for name in (b'\xff.nii', b'a.nii'):
        (tmp_path / 'in' / os.fsdecode(name)).write_bytes(b'')
    tasks = file_tasks(tmp_path / 'in', tmp_path / 'out')
    assert sorted(t.wrong != '' for t in tasks) == [False, True]
    assert 'its name is no text' in next(t.wrong for t in tasks if t.wrong)


@pytest.mark.parametrize(
    'change, key',
    [
        (dict(target_window_rule='-1000:2000', target_window=[1.0, 2.0]), 'target_window'),
        (dict(target_window_rule='hu', target_window=[0.0, 1.0]), 'target_window'),
        (dict(target_window_rule='labels:0:3', target_window=[0.0, 4.0]), 'target_window'),
        (dict(kind='volume', spacing=1.0, channels=[1, 2]), 'channels'),
        (
            dict(target_window_rule='dtype', target_window=[0.0, 255.0], target_dtype='int8'),
            'target_dtype',
        ),
        (
            dict(target_window_rule='dtype', target_window=[0.0, 255.0], target_dtype='bool'),
            'target_dtype',
        ),
    ],
)
def test_config_contradicts_itself(model, tmp_path, change, key):
    "Values that are possible one by one, and not together."
    folder = shutil.copytree(model, tmp_path / 'edited')
    config = json.loads((folder / 'config.json').read_text())
    config['data'].update(change)
    (folder / 'config.json').write_text(json.dumps(config))
    said(lambda: opened(folder), 'config.json', f'data.{key}')


def test_keys_of_later_versions_do_not_disturb(model, tmp_path):
    assert opened(edited(model, tmp_path, 'data', 'new', dict(a=[1])))[1]['data']['new'] == dict(
        a=[1]
    )


def test_weights_of_the_right_size(model, tmp_path):
    """A flipped bit, another type of numbers; a folder of an earlier version, without a digest, is
    read.
    """
    folder = shutil.copytree(model, tmp_path / 'flipped')
    weights = bytearray((folder / 'model.safetensors').read_bytes())
    weights[-2] ^= 64
    (folder / 'model.safetensors').write_bytes(weights)
    said(lambda: opened(folder), 'model.safetensors', 'sha256')
    folder = edited(model, tmp_path, '', 'weights', {})
    opened(folder)
    raw = (folder / 'model.safetensors').read_bytes()
    (folder / 'model.safetensors').write_bytes(raw.replace(b'"F32"', b'"I32"'))
    said(lambda: opened(folder), 'model.safetensors', 'do not belong')


def test_a_mistyped_folder_is_not_looked_up(monkeypatch, tmp_path):
    "Somebody else may have a model of that name on the hub."
    import huggingface_hub
    from xmodal.nets.latent import read_prior
    from xmodal.translate import Translator

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        huggingface_hub, 'snapshot_download', lambda *a, **k: pytest.fail('the hub was asked')
    )
    said(
        lambda: Translator.from_pretrained('runs/typo', 'cpu'),
        'no such model folder',
        'hf://runs/typo',
    )
    said(lambda: Translator.from_pretrained('hf://typo', 'cpu'), 'hf://NAME/REPOSITORY')
    said(lambda: read_prior('runs/typo'), 'no such folder', 'hf://ORG/NAME')


# ---- archives


def tar(path, members, mode='w'):
    with tarfile.open(path, mode) as t:
        for name, content, kind in members:
            i = tarfile.TarInfo(name)
            i.type = kind
            i.size = len(content) if kind == tarfile.REGTYPE else 0
            i.linkname = '' if kind == tarfile.REGTYPE else '../../outside'
            t.addfile(i, io.BytesIO(content))
    return path


FILE = tarfile.REGTYPE
SOME = [(f'd/{k}.nii', bytes([k]) * 700, FILE) for k in range(5)]
MEMBERS = dict(
    parent=('../x', b'1', FILE),
    inside=('a/../../x', b'1', FILE),
    absolute=('/tmp/x', b'1', FILE),
    backslash=('..\\x', b'1', FILE),
    drive=('C:x', b'1', FILE),
    symlink=('l', b'', tarfile.SYMTYPE),
    hardlink=('l', b'', tarfile.LNKTYPE),
    device=('l', b'', tarfile.CHRTYPE),
    fifo=('l', b'', tarfile.FIFOTYPE),
    twice=('d/0.nii', b'1', FILE),
)


@pytest.mark.parametrize('name', MEMBERS)
def test_members_that_are_refused(tmp_path, name):
    said(
        lambda: cards.unpack(
            tar(tmp_path / 'a.tar', [*SOME, MEMBERS[name]]), tmp_path / 'in' / 'out'
        ),
        'a.tar',
    )
    assert sorted(p.name for p in tmp_path.rglob('*')) == ['a.tar', 'in']


@pytest.mark.parametrize(
    'mode,cut',
    [(m, c) for m in ('w', 'w:gz', 'w:xz') for c in ('half', 'blocks', 'zeroed', 'broken')],
)
def test_archives_that_are_not_whole(tmp_path, mode, cut):
    """Cut at a header, a header of zeros or noise in the middle: the library reads fewer members
    and says nothing.
    """
    raw = tar(tmp_path / 'whole.tar', SOME).read_bytes()
    start = 1536 * 3  # header and two blocks for each
    raw = dict(
        half=raw[: start - 700],
        blocks=raw[:start],
        zeroed=raw[:start] + bytes(512) + raw[start + 512 :],
        broken=raw[:start] + b'x' * 512 + raw[start + 512 :],
    )[cut]
    pack = {'w': bytes, 'w:gz': gzip.compress, 'w:xz': __import__('lzma').compress}[mode]
    (tmp_path / 'a.tar').write_bytes(pack(raw))
    said(lambda: cards.unpack(tmp_path / 'a.tar', tmp_path / 'out'), 'a.tar', 'whole')
    assert not (tmp_path / 'out').exists()


def test_whole_archives(tmp_path):
    for k, mode in enumerate(('w', 'w:gz', 'w:xz', 'w:bz2')):
        cards.unpack(tar(tmp_path / f'{k}.tar', SOME, mode), tmp_path / str(k))
        assert {p.name: p.read_bytes() for p in (tmp_path / str(k) / 'd').iterdir()} == {
            Path(n).name: c for n, c, _ in SOME
        }
    with zipfile.ZipFile(tmp_path / 'a.zip', 'w', zipfile.ZIP_DEFLATED) as z:
        for n, c, _ in SOME:
            z.writestr(n, c)
    cards.unpack(tmp_path / 'a.zip', tmp_path / 'zip')
    assert len(list((tmp_path / 'zip' / 'd').iterdir())) == 5


def zip_with(path, name='d/0', link=False):
    i = zipfile.ZipInfo(name)
    i.external_attr = (0o120777 if link else 0o100644) << 16
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as z:
        z.writestr(i, b'/etc/passwd' * 9)
    return path


@pytest.mark.parametrize('name,link', [('../x', False), ('/x', False), ('l', True)])
def test_zip_members(tmp_path, name, link):
    said(
        lambda: cards.unpack(zip_with(tmp_path / 'a.zip', name, link), tmp_path / 'out'),
        'a.zip',
        repr(name),
    )


def test_zip_sizes(tmp_path, monkeypatch):
    "A wrong checksum, a table that promises too much, more than the limit."
    path = zip_with(tmp_path / 'a.zip')
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b'PK\1\2')
    for k, value in ((16, 5), (24, 98), (24, 100)):  # checksum and size in the table
        bad = raw.copy()
        bad[at + k : at + k + 4] = struct.pack('<I', value)
        path.write_bytes(bad)
        said(lambda: cards.unpack(path, tmp_path / 'out'), 'a.zip')
    path.write_bytes(raw)
    monkeypatch.setenv('XMODAL_MAX_UNPACKED', '98')
    said(lambda: cards.unpack(path, tmp_path / 'out'), '99 bytes', 'XMODAL_MAX_UNPACKED')


def test_an_archive_that_is_there_is_checked(tmp_path, monkeypatch):
    path = tar(tmp_path / 'a.tar', SOME)
    remote = cards.Remote('http://127.0.0.1:9/a.tar', 'ab' * 16, 'a')
    monkeypatch.setitem(cards.cards, 'trial', cards.Card(*['x'] * 10, remote=dict(a=remote)))
    said(
        lambda: cards.get('trial', tmp_path, progress=False), 'a.tar', 'there already', 'remove it'
    )
    assert path.exists() and not (tmp_path / 'a').exists()


# ---- pictures, volumes, tables


def test_the_reader_is_chosen_by_the_ending(tmp_path, monkeypatch):
    "An EPS that is called .png starts Ghostscript if Pillow may look at its content."
    (tmp_path / 'a.png').write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n')
    monkeypatch.setattr(
        subprocess, 'check_call', lambda *a, **k: pytest.fail('a program was started')
    )
    said(lambda: load_image(tmp_path / 'a.png'), 'a.png', 'PNG')
    Image.new('L', (8, 8)).save(tmp_path / 'b.bmp')
    shutil.move(tmp_path / 'b.bmp', tmp_path / 'b.png')
    said(lambda: load_image(tmp_path / 'b.png'), 'b.png', 'PNG')


def test_nothing_opens_pictures_by_content():
    "Image.open says its formats, everywhere in the package."
    calls = [
        (p.name, l.strip())
        for p in (ROOT / 'xmodal').rglob('*.py')
        for l in p.read_text().splitlines()
        if re.search(r'Image\.open\((?!OLD)', l)
    ]
    assert calls and all('formats=' in l for _, l in calls), calls


def test_masks_with_a_palette_are_not_to_be_converted(tmp_path):
    im = Image.fromarray(np.eye(8, dtype=np.uint8)).convert('P')
    for n in ('a.png', 'a.tif'):
        im.save(tmp_path / n)
        text = said(lambda: load_image(tmp_path / n), 'palette', 'numbers')
        assert 'grey' not in text and 'RGB' not in text
    # what the message says
    Image.fromarray(np.array(Image.open(tmp_path / 'a.png'))).save(tmp_path / 'b.png')
    assert load_image(tmp_path / 'b.png')[0].shape == (1, 8, 8)


def test_checksums_of_a_png_are_looked_at(tmp_path):
    "Pillow reads pixels whose checksum is wrong without a word."
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 36), np.uint8)).save(
        tmp_path / 'a.png'
    )
    raw = bytearray((tmp_path / 'a.png').read_bytes())
    for at in range(60, 1200, 200):
        bad = raw.copy()
        bad[at] ^= 4
        (tmp_path / 'b.png').write_bytes(bad)
        said(lambda: load_image(tmp_path / 'b.png'), 'b.png', 'copy it again')


def test_a_tiff_that_lost_its_depth(tmp_path):
    "Without the tag a picture of bytes would be read as one of bits."
    tifffile.imwrite(tmp_path / 'a.tif', np.full((16, 16), 200, np.uint8), compression='zlib')
    raw = bytearray((tmp_path / 'a.tif').read_bytes())
    at = raw.index(struct.pack('<HHI', 258, 3, 1))
    raw[at : at + 2] = struct.pack('<H', 65000)
    (tmp_path / 'a.tif').write_bytes(raw)
    said(lambda: load_image(tmp_path / 'a.tif'), 'a.tif', 'bits')


def png_of(path, width, height):
    "A PNG of zeros of any size."

    def chunk(kind, content):
        return (
            struct.pack('>I', len(content))
            + kind
            + content
            + struct.pack('>I', zlib.crc32(kind + content))
        )

    pack = zlib.compressobj()
    rows = b''.join([pack.compress(bytes(width + 1)) for _ in range(height)] + [pack.flush()])
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', rows) + chunk(b'IEND', b'')
    )
    return path


def nifti_of(path, shape, promised=None, kind=2):
    "A .nii.gz of zeros: `shape` of bytes, and a header that may promise another."
    header = nib.Nifti1Header()
    header.set_data_dtype(kind)
    header.set_data_shape(promised or shape)
    header['magic'], header['vox_offset'] = b'n+1', 352
    header.set_sform(np.eye(4), 1)
    piece = gzip.compress(bytes(2**24), 9)
    path.write_bytes(
        gzip.compress(header.binaryblock + bytes(4))
        + piece * (int(np.prod(shape)) >> 24)
        + gzip.compress(bytes(int(np.prod(shape)) % 2**24))
    )
    return path


def far_cell(path):
    "A spreadsheet with one cell at the far end of its last row."
    if path.suffix == '.xls':  # BIFF2: begin of a sheet, a number, end
        record = lambda kind, content: struct.pack('<HH', kind, len(content)) + content
        cell = struct.pack('<HH3xd', 16383, 255, 1.0)
        path.write_bytes(
            record(0x09, struct.pack('<HH', 2, 0x10)) + record(0x03, cell) + record(0x0A, b'')
        )
        return path
    import openpyxl

    book = openpyxl.Workbook()
    book.active.cell(row=1048576, column=16384).value = 1
    book.save(path)
    return path


BOMBS = """
import sys
from pathlib import Path
from xmodal.core import InputError
from xmodal.data.images import load_image
from xmodal.data.volumes import load_volume
from xmodal.data.layouts import read_table
for path in map(Path, sys.argv[1:]):
    read = load_volume if '.nii' in path.name else load_image if path.suffix in ('.png', '.tif') else lambda p: read_table(p, 'a')
    try:
        read(path); print(path.name, '|', 'was read')
    except InputError as e:
        print(path.name, '|', e)
print([l for l in open('/proc/self/status') if l.startswith('VmHWM')][0].split()[1])
"""


@pytest.fixture(scope='module')
def bombs(tmp_path_factory):
    "What a child says of files that ask for much, and its largest memory in GB."
    d = tmp_path_factory.mktemp('bombs')
    png_of(d / 'large.png', 13000, 13000)
    nifti_of(d / 'large.nii.gz', (1024, 1024, 1024))
    nifti_of(d / 'short.nii.gz', (16, 16, 16), (500, 500, 500))
    nifti_of(d / 'long.nii.gz', (500, 500, 500), (16, 16, 16))
    raw = bytearray(nib.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4)).to_bytes())
    raw[40:56] = struct.pack('<8h', 3, 500, 500, 500, 1, 1, 1, 1)
    (d / 'short.nii').write_bytes(raw)
    raw[40:56], raw[348:352], raw[108:112] = (
        struct.pack('<8h', 3, 4, 4, 4, 1, 1, 1, 1),
        b'\1\0\0\0',
        struct.pack('<f', 3e7),
    )
    (d / 'extended.nii.gz').write_bytes(
        gzip.compress(bytes(raw[:352]) + struct.pack('<ii', 2**31 - 16, 4))
        + gzip.compress(bytes(2**24)) * 64
    )
    tifffile.imwrite(d / 'deflated.tif', np.zeros((16, 16), np.uint8), compression='zlib')
    with tifffile.TiffFile(d / 'deflated.tif', mode='r+') as f:
        bomb = zlib.compress(bytes(2**29), 9)
        at = f.filehandle.size
        f.filehandle.seek(at)
        f.filehandle.write(bomb)
        f.pages[0].tags['StripOffsets'].overwrite(at)
        f.pages[0].tags['StripByteCounts'].overwrite(len(bomb))
    for n in ('far.xls', 'far.xlsx'):
        far_cell(d / n)
    (d / 'wide.csv').write_text('a' + ',' * 300_000 + '\n' + '1\n' * 1000)
    done = subprocess.run(
        [sys.executable, '-c', BOMBS, *map(str, sorted(d.iterdir()))],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    *lines, peak = done.stdout.splitlines()
    return dict(l.split(' | ', 1) for l in lines), int(peak) / 1e6


LIMITED = {
    'large.png': 'XMODAL_MAX_VALUES',
    'large.nii.gz': 'XMODAL_MAX_VOXELS',
    'short.nii.gz': 'promises',
    'long.nii.gz': 'promises',
    'short.nii': 'promises',
    'extended.nii.gz': 'extension',
    'deflated.tif': 'inflates',
    'far.xls': 'XMODAL_MAX_CELLS',
    'far.xlsx': 'XMODAL_MAX_ROWS',
    'wide.csv': 'XMODAL_MAX_COLUMNS',
}


def test_no_memory_on_a_promise(bombs):
    "One line for each, and never more than 700 MB (the imports alone are 250)."
    found, peak = bombs
    assert set(found) == set(LIMITED)
    assert not (wrong := {n: found[n] for n, w in LIMITED.items() if w not in found[n]}), wrong
    assert peak < 0.7, peak


def test_limits_can_be_raised(tmp_path, monkeypatch):
    path = png_of(tmp_path / 'a.png', 40, 30)
    monkeypatch.setitem(core.LIMITS, 'values', 1000)
    said(lambda: load_image(path), '1,200', 'XMODAL_MAX_VALUES')
    monkeypatch.setenv('XMODAL_MAX_VALUES', '1200')
    assert load_image(path)[0].shape == (1, 30, 40)
    monkeypatch.setenv('XMODAL_MAX_VALUES', 'many')
    said(lambda: load_image(path), 'XMODAL_MAX_VALUES', 'whole number')


HEADER = dict(
    negative=(42, '<h', -20),
    offset=(108, '<f', -500.0),
    far_offset=(108, '<f', 1e30),
    nan_offset=(108, '<f', NAN),
    axes=(40, '<h', 0),
    kind=(70, '<h', 9999),
)


@pytest.mark.parametrize('name', HEADER)
def test_headers_that_make_no_sense(tmp_path, name):
    raw = bytearray(
        nib.Nifti1Image(np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.eye(4)).to_bytes()
    )
    at, kind, value = HEADER[name]
    raw[at : at + struct.calcsize(kind)] = struct.pack(kind, value)
    for path, content in (
        (tmp_path / 'a.nii', bytes(raw)),
        (tmp_path / 'a.nii.gz', gzip.compress(bytes(raw))),
    ):
        path.write_bytes(content)
        said(lambda: load_volume(path), path.name)


def test_good_files_are_read_as_before(tmp_path):
    "Header extensions, NIfTI-2, both byte orders, a strip that inflates a thousand times."
    v = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
    plain = nib.Nifti1Image(v, np.eye(4))
    extended = nib.Nifti1Image(v, np.eye(4))
    extended.header.extensions.append(nib.nifti1.Nifti1Extension('comment', b'x' * 5000))
    swapped = nib.Nifti1Image(v.astype('>i2'), np.eye(4), plain.header.as_byteswapped('>'))
    for k, img in enumerate((plain, extended, nib.Nifti2Image(v, np.eye(4)), swapped)):
        for end in ('.nii', '.nii.gz'):
            nib.save(img, tmp_path / f'{k}{end}')
            assert np.array_equal(np.asarray(load_volume(tmp_path / f'{k}{end}').dataobj), v), (
                k,
                end,
            )
    flat = np.zeros((3000, 3000), np.uint8)
    flat[0, 0] = 1
    tifffile.imwrite(tmp_path / 'a.tif', flat, compression='zlib', rowsperstrip=3000)
    assert load_image(tmp_path / 'a.tif')[0].sum() == 1
    assert open_volume(tmp_path / '0.nii').shape == (3, 4, 5)


# ---- training that is continued


class Pairs(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        y = torch.sin(torch.arange(64.0).reshape(1, 8, 8) * (i + 1) / 9)
        return dict(y=y, x0=-y, i=i)


RECIPE = train.Recipe(steps=4, batch=2, ema=0.9)


def go(out, steps=4, **kw):
    torch.manual_seed(0)
    recipe = train.Recipe(steps=steps, batch=2, ema=0.9)
    return train.train(
        build(**TINY),
        Pairs(),
        out,
        'cdtsde',
        recipe,
        TINY,
        device='cpu',
        log_every=1,
        progress=False,
        **kw,
    )


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp('run') / 'a'
    go(out)
    return out


def damaged(trained, tmp_path, name, content):
    out = shutil.copytree(trained, tmp_path / 'a')
    path = out / name
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_bytes(content(path.read_bytes()))
    return out


def flipped(raw):
    return raw[:-3] + bytes([raw[-3] ^ 8]) + raw[-2:]


AT = 'checkpoints/step-000004/'


def but(**kw):
    return lambda raw: json.dumps({**json.loads(raw), **kw}).encode()


STATES = dict(
    empty=b'',
    half=lambda raw: raw[: len(raw) // 2],
    list=b'[]',
    text=b'"x"',
    binary=b'\xff\xfe\0',
    deep=b'[' * 100_000,
    digits=b'{"step": ' + b'1' * 5000 + b'}',
    step=but(step=3),
    huge=but(step=10**9),
    words=but(step='4'),
    seconds=but(seconds='x'),
    nan=but(seconds=NAN),
    recipe=but(recipe=[1]),
    missing=None,
)


@pytest.mark.parametrize('name', STATES)
def test_damaged_state(trained, tmp_path, name):
    said(
        lambda: go(damaged(trained, tmp_path, AT + 'state.json', STATES[name]), resume=True),
        'state.json',
        'delete the folder step-000004',
    )


@pytest.mark.parametrize('name', ['model', 'optim', 'ema'])
@pytest.mark.parametrize('how', ['missing', 'cut', 'flipped'])
def test_damaged_checkpoint(trained, tmp_path, name, how):
    change = dict(missing=None, cut=lambda raw: raw[:-9], flipped=flipped)[how]
    said(
        lambda: go(damaged(trained, tmp_path, f'{AT}{name}.safetensors', change), resume=True),
        f'{name}.safetensors',
    )


LOGS = dict(
    empty=b'',
    half=lambda raw: raw[: len(raw) // 2],
    binary=b'\xff\xfe\0\n\0',
    no_header=b'1,2,3\n',
    more=lambda raw: raw + raw.splitlines()[-1].replace(b'4', b'9', 1) + b'\n',
    twice=lambda raw: raw + raw,
    words=lambda raw: raw.replace(b'\n2,', b'\nx,'),
    missing=None,
)


@pytest.mark.parametrize('name', LOGS)
def test_damaged_log(trained, tmp_path, capsys, name):
    "A log is not what a training hangs on: what cannot be used is said, and the run goes on."
    out = damaged(trained, tmp_path, 'log.csv', LOGS[name])
    frame = go(out, resume=True)
    assert frame.step.iloc[-1] <= 4 and len(frame) >= 1 and frame.step.is_monotonic_increasing
    assert name == 'more' or 'log.csv' in capsys.readouterr().out


@pytest.mark.parametrize('limit', [20_000, 1_000_000])
def test_disk_full_during_a_checkpoint(trained, tmp_path, limit):
    "One line, and the checkpoint before it can be continued from."
    out = tmp_path / 'b'
    torch.manual_seed(0)
    den = build(**TINY)
    opts = dict(optim=torch.optim.AdamW(den.parameters()))
    run = train.RunState(den, opts, None, RECIPE, TINY)
    train.save_checkpoint(out, 2, run)
    for k in opts['optim'].param_groups[0]['params']:
        k.grad = torch.ones_like(k)
    opts['optim'].step()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (out / 'step-000002' / 'model.safetensors').stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (min(limit, size + 100), before[1]))
    try:
        said(
            lambda: train.save_checkpoint(out, 4, run),
            'step-000004',
            'cannot be written',
            'step 2 is whole',
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [p.name for p in out.iterdir()] == ['step-000002']
    assert train.load_checkpoint(out, train.RunState(den, {}, None, RECIPE, TINY))[0] == 2


def test_disk_full_while_logging(tmp_path, monkeypatch):
    import errno

    log = train.Log(tmp_path / 'log.csv')

    def full(*a, **k):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(Path, 'open', full)
    said(lambda: log.add(step=1), 'log.csv', 'No space left', 'resume')
