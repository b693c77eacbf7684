"""Files on their way through the network: read once, in stages, several pictures in one batch; and
on several processes.
"""

import json
import threading
import time
import warnings

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from small_model import IMAGE, TINY, VOLUME, echo
from test_scale import launched

from xmodal import translate
from xmodal.data import volumes
from xmodal.folders import Waiting, translate_paths
from xmodal.nets.build import build
from xmodal.training.model_folder import save_model
from xmodal.translate import Translator


def scan(path, seed=0, shape=(20, 24, 6)):
    values = np.random.default_rng(seed).integers(0, 1000, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([3.0, 3, 3, 1])), path)
    return path


def scans(folder, n):
    folder.mkdir()
    return [scan(folder / f's{i}_T1w.nii.gz', i) for i in range(n)]


def pictures(folder, n, side=32):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(n):
        Image.fromarray(rng.integers(0, 256, (side, side), np.uint8)).save(folder / f'{i:02}.png')
    return folder


def test_a_sound_file_is_inflated_once(tmp_path, monkeypatch):
    path = scan(tmp_path / 'a.nii.gz')
    whole = np.asarray(volumes.load_volume(path).dataobj)
    monkeypatch.setattr(volumes, 'check_gzip', lambda *_: pytest.fail('inflated twice'))
    assert np.array_equal(whole, nib.load(path).get_fdata())
    assert np.array_equal(np.asarray(volumes.load_volume(path).dataobj), whole)


def test_network_and_files_overlap(tmp_path, monkeypatch):
    "While the network sleeps, the next file is read and the last one written, in other threads."
    tr, seen = echo(VOLUME), []
    scans(tmp_path / 'in', 4)
    load = volumes.load_volume

    def net(tr, y, how, *_):
        seen.append(('network', threading.get_ident(), time.perf_counter()))
        time.sleep(0.3)
        seen.append(('answer', threading.get_ident(), time.perf_counter()))
        return dict(mean=y)

    def reading(*a, **k):
        seen.append(('read', threading.get_ident(), time.perf_counter()))
        return load(*a, **k)

    monkeypatch.setattr(translate, 'draws', net)
    monkeypatch.setattr('xmodal.data.frames.load_volume', reading)
    assert translate_paths(tr, tmp_path / 'in', tmp_path / 'out', progress=False) == []
    reads, first = [v for v in seen if v[0] == 'read'], [v for v in seen if v[0] == 'answer'][0]
    assert {v[1] for v in reads}.isdisjoint({first[1]}) and len(reads) == 4
    assert sum(v[2] < first[2] for v in reads) >= 2
    assert len(list((tmp_path / 'out').glob('*.nii.gz'))) == 4


def test_errors_and_warnings_stay_with_their_file(tmp_path):
    "A damaged file is named and stops nothing; a warning is in the notes of its own file alone."
    tr = echo(VOLUME)
    paths = scans(tmp_path / 'in', 5)
    paths[1].write_bytes(paths[1].read_bytes()[:-40])
    odd = nib.load(paths[3])
    nib.save(nib.Nifti1Image(np.asarray(odd.dataobj), np.diag([9.0, 9, 9, 1])), paths[3])
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        bad = translate_paths(tr, tmp_path / 'in', tmp_path / 'out', progress=False)
    assert [p.name for p, _ in bad] == ['s1_T1w.nii.gz'] and 'damaged' in bad[0][1]
    doubts = {
        p.name: json.loads(p.read_text())['Doubts'] for p in (tmp_path / 'out').glob('*.json')
    }
    assert [k for k, v in doubts.items() if v] == ['s3_T2w.json']
    assert any('s3_T1w.nii.gz: voxels of 9 mm' in str(w.message) for w in said)


def test_a_full_disk_ends_the_cohort_and_leaves_no_thread(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, 'No space left on device')

    scans(tmp_path / 'in', 4)
    monkeypatch.setattr('xmodal.folders.save_translation', full)
    before = threading.active_count()
    with pytest.raises(OSError, match='No space'):
        translate_paths(echo(VOLUME), tmp_path / 'in', tmp_path / 'out', progress=False)
    assert threading.active_count() == before
    assert not list((tmp_path / 'out').glob('*.nii.gz'))


def test_an_interruption_leaves_whole_files(tmp_path, monkeypatch):
    tr, calls = echo(VOLUME), []

    def net(tr, y, *_):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return dict(mean=y)

    scans(tmp_path / 'in', 5)
    with monkeypatch.context() as m:
        m.setattr(translate, 'draws', net)
        with pytest.raises(KeyboardInterrupt):
            translate_paths(tr, tmp_path / 'in', tmp_path / 'out', progress=False)
    for p in (tmp_path / 'out').glob('*.nii.gz'):
        nib.load(p).get_fdata()
    assert translate_paths(tr, tmp_path / 'in', tmp_path / 'out', progress=False) == []
    assert len(list((tmp_path / 'out').glob('*.nii.gz'))) == 5
    assert not list((tmp_path / 'out').glob('.*'))


def random_pictures(**data):
    den = build('cdtsde', 1, net=TINY['net']).eval()
    about = {**IMAGE, 'steps': 2, **data}
    return Translator(den, dict(model=dict(method='cdtsde', channels=1), data=about))


@pytest.mark.parametrize('samples', (1, 3))
def test_pictures_share_a_batch(tmp_path, monkeypatch, samples):
    "Eleven pictures are two calls of the network a step; alone, each is the same up to rounding."
    tr, sizes, box = random_pictures(), [], pictures(tmp_path / 'in', 11)
    pictures(tmp_path / 'other', 1, 24)
    (tmp_path / 'other' / '00.png').rename(box / '05b.png')  # of another size, in between
    (box / '07.png').write_bytes(b'no picture')
    forward = type(tr.den.net).forward
    count = lambda net, x, *a, **k: sizes.append(len(x)) or forward(net, x, *a, **k)
    monkeypatch.setattr(type(tr.den.net), 'forward', count)
    out = {}
    for batch in (1, 4):
        sizes.clear()
        to = tmp_path / f'out{batch}'
        bad = translate_paths(tr, box, to, progress=False, batch=batch, samples=samples)
        assert [p.name for p, _ in bad] == ['07.png']
        out[batch] = {p.name: np.asarray(Image.open(p), int) for p in to.glob('*.png')}
        assert max(sizes) == batch
    assert out[1].keys() == out[4].keys() and len(out[1]) == 11
    assert max(np.abs(out[1][k] - out[4][k]).max() for k in out[1]) <= 1
    assert any((out[4]['00.png'] != out[4]['01.png']).ravel())


def test_a_row_rests_when_it_is_full():
    row, passed = Waiting(limit=10), []
    row.put('a', 10)
    thread = threading.Thread(target=lambda: passed.append(row.room()))
    thread.start()
    time.sleep(0.05)
    assert passed == []
    row.pop()
    thread.join(5)
    assert passed == [True]


def test_two_processes_share_a_folder(tmp_path):
    "Real processes: each file is translated by one of them, as by one process alone."
    den = build('cdtsde', 1, net=TINY['net'])
    save_model(tmp_path / 'model', den, TINY, VOLUME)
    scans(tmp_path / 'in', 3)
    words = [tmp_path / 'model', tmp_path / 'in', tmp_path / 'two', '--device', 'cpu']
    done = launched('-m', 'xmodal.cli', 'translate', *words)
    assert done.returncode == 0, done.stderr[-2000:]
    tr = Translator.from_pretrained(tmp_path / 'model', 'cpu')
    assert translate_paths(tr, tmp_path / 'in', tmp_path / 'one', progress=False) == []
    made = sorted(p.name for p in (tmp_path / 'one').iterdir())
    assert made == sorted(p.name for p in (tmp_path / 'two').iterdir()) and len(made) == 6
    for name in made:
        assert (tmp_path / 'one' / name).read_bytes() == (tmp_path / 'two' / name).read_bytes()
