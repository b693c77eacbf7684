"Translation as people use it: grids, kinds of number, damaged files, interruptions, BIDS rules."

import gzip, json, os, re, resource, signal, struct, subprocess, sys, time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings, strategies as st

from small_model import VOLUME, echo, xmodal

from xmodal.nets.build import build
from xmodal.training.model_folder import save_model
from xmodal.translate import Translator

ROOT = Path(__file__).resolve().parents[1]
AXES = [''.join(v) for v in __import__('itertools').permutations('RAS')]
# all 48
CODES = [
    ''.join(c if s else dict(R='L', A='P', S='I')[c] for c, s in zip(a, signs))
    for a in AXES
    for signs in __import__('itertools').product((0, 1), repeat=3)
]


@settings(max_examples=40, deadline=None)
@given(
    code=st.sampled_from(CODES),
    shape=st.tuples(*[st.integers(5, 21)] * 2, st.integers(1, 9)),
    angles=st.tuples(*[st.floats(-25, 25)] * 3),
    zooms=st.tuples(st.floats(1.5, 4), st.floats(1.5, 4), st.floats(2, 6)),
    kind=st.sampled_from(['int16', 'float32', 'uint8', 'scaled']),
    codes=st.tuples(st.sampled_from([0, 1, 2, 4]), st.sampled_from([1, 2])),
    seed=st.integers(0, 99),
)
# a place that stands in the qform alone
@example(
    code='SAL',
    shape=(5, 5, 1),
    angles=(1.0, 0.0, 1.0),
    zooms=(2.0, 2.0, 2.0),
    kind='int16',
    codes=(0, 1),
    seed=0,
)
def test_a_translated_volume_lies_where_it_lay(
    code, shape, angles, zooms, kind, codes, seed, tmp_path_factory
):
    """Every orientation, oblique, any voxel and odd size, one slice, any kind of number: shape,
    affine and codes come back, the kind is the target's, and smooth contents come back.
    """
    from scipy.spatial.transform import Rotation

    A = np.eye(4)
    A[:3, :3] = Rotation.from_euler('xyz', angles, degrees=True).as_matrix() @ np.diag(zooms)
    A[:3, 3] = np.random.default_rng(seed).uniform(-50, 50, 3)
    g = np.stack(np.meshgrid(*map(np.arange, shape), indexing='ij'), -1) * zooms
    v = (
        500
        + 150 * np.cos(g[..., 0] / 25 + seed)
        + 150 * np.cos(g[..., 1] / 30)
        + 100 * np.cos(g[..., 2] / 40)
    )
    v = v * (0.24 if kind == 'uint8' else 1)
    base = nib.Nifti1Image(v.astype('int16' if kind == 'scaled' else kind), A)
    # nibabel chooses slope and intercept
    if kind == 'scaled':
        base = nib.Nifti1Image(v.astype(np.float32), A, base.header)
        base.set_data_dtype(np.int16)
    img = base.as_reoriented(
        nib.orientations.ornt_transform(
            nib.orientations.axcodes2ornt('RAS'), nib.orientations.axcodes2ornt(code)
        )
    )
    where = img.affine.copy()
    img.set_qform(where, codes[1])
    img.set_sform(where, codes[0])
    folder = tmp_path_factory.mktemp('scan')
    nib.save(img, folder / 'in.nii.gz')
    src = nib.load(folder / 'in.nii.gz')
    with __import__('warnings').catch_warnings():
        __import__('warnings').simplefilter('ignore')
        nib.save(echo(VOLUME).translate(folder / 'in.nii.gz'), folder / 'out.nii.gz')
    out = nib.load(folder / 'out.nii.gz')
    assert (
        out.shape == src.shape
        and np.array_equal(out.affine, src.affine)
        and out.get_data_dtype() == np.float32
    )
    assert all(
        int(out.header[k]) == int(src.header[k]) for k in ('sform_code', 'qform_code')
    ) and np.allclose(out.header.get_qform(), src.header.get_qform(), atol=1e-4)
    assert np.isfinite(out.get_fdata()).all()
    # where the neighbourhood is whole
    inner = tuple(slice(n // 4, max(n // 4 + 1, n - n // 4)) for n in shape[:2])
    want, got = (nib.Nifti1Image(i.get_fdata(), i.affine) for i in (src, out))
    back = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(code), nib.orientations.axcodes2ornt('RAS')
    )
    want, got = (i.as_reoriented(back).get_fdata()[inner] for i in (want, got))
    # smaller ones are all border at 3 mm
    if min(n * z for n, z in zip(shape[:2], zooms)) > 30:
        assert np.median(np.abs(got - want / 2)) < 12, np.abs(got - want / 2).max()


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    "A saved model with random weights."
    folder, spec = (
        tmp_path_factory.mktemp('model') / 'model',
        dict(method='cdtsde', channels=1, net=dict(ch=8, mults=[1, 2], layers=1)),
    )
    torch.manual_seed(0)
    save_model(folder, build(**spec), spec, echo(VOLUME).data)
    return folder


def scan(path, seed=0, shape=(14, 16, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    img = nib.Nifti1Image(
        (np.random.default_rng(seed).random(shape) * 900).astype(np.int16), np.diag([3.0, 3, 4, 1])
    )
    img.set_sform(img.affine, 1)
    nib.save(img, path)
    return path


def command(*words):
    return [sys.executable, '-m', 'xmodal.cli', *map(str, words)]


ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''}


def test_killed_and_started_again(model, tmp_path):
    """Killed at random moments and restarted: nothing half-written is ever visible, nothing is
    lost, and the end is that of an undisturbed run.
    """
    for k in range(6):
        scan(tmp_path / 'in' / f's{k}.nii.gz', k)
    words = lambda out: command(
        'translate',
        model,
        tmp_path / 'in',
        tmp_path / out,
        '--steps',
        '3',
        '--samples',
        '2',
        '--device',
        'cpu',
    )
    assert subprocess.run(words('whole'), env=ENV, capture_output=True).returncode == 0
    rng, kills, out = np.random.default_rng(0), 0, tmp_path / 'out'
    for _ in range(3):
        one = subprocess.Popen(
            words('out'), env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before, deadline = len(list(out.glob('*.nii.gz'))) if out.is_dir() else 0, time.time() + 60
        # it has begun to write
        while (
            one.poll() is None
            and time.time() < deadline
            and (len(list(out.glob('*.nii.gz'))) if out.is_dir() else 0) <= before
        ):
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.25))
        if one.poll() is None:
            one.send_signal(signal.SIGKILL)
            one.wait()
            kills += 1
        else:
            assert one.returncode == 0
            break
        # whatever can be seen is whole
        for p in out.glob('[!.]*.nii.gz'):
            np.asarray(nib.load(p).dataobj)
    assert kills >= 2
    assert subprocess.run(words('out'), env=ENV, capture_output=True).returncode == 0
    names = sorted(p.name for p in (tmp_path / 'whole').iterdir())
    assert (
        sorted(p.name for p in out.iterdir() if not p.name.startswith('.')) == names
        and len(names) == 18
    )
    for n in names:
        if n.endswith('.nii.gz'):
            assert np.array_equal(
                nib.load(out / n).get_fdata(), nib.load(tmp_path / 'whole' / n).get_fdata()
            )


def test_killed_between_a_map_and_its_output(model, tmp_path, monkeypatch):
    "A map that nothing came after is ours: the next run replaces it."
    from xmodal import folders
    from xmodal.translate import Translator

    tr, out = Translator.from_pretrained(model), tmp_path / 'out.nii.gz'
    source, write = scan(tmp_path / 'in.nii.gz'), folders.save_translation

    def dies(result, path, ready=None, names=()):
        if path == out:
            raise KeyboardInterrupt
        write(result, path, ready, names)

    monkeypatch.setattr(folders, 'save_translation', dies)
    with pytest.raises(KeyboardInterrupt):
        folders.translate_paths(tr, source, out, steps=2, samples=2)
    assert [p.name for p in tmp_path.glob('out*.nii.gz')] and not out.exists()
    monkeypatch.setattr(folders, 'save_translation', write)
    assert folders.translate_paths(tr, source, out, steps=2, samples=2) == []
    assert out.exists()


def damaged(k, rng, good: bytes, raw: bytes, bad_numbers: bytes):
    "Damage number k: ending and bytes."
    kind = k % 8
    if kind == 0:
        return '.nii.gz', good[: int(rng.integers(0, len(good)))]
    if kind == 1:
        return '.nii', raw[: int(rng.integers(0, len(raw)))]
    b = bytearray(raw)
    if kind == 2:
        [b.__setitem__(int(i), int(rng.integers(0, 256))) for i in rng.integers(0, 348, 3)]
    if kind == 3:
        b[344:348] = rng.bytes(4)
    if kind == 4:
        b[40:56] = struct.pack(
            '<8h', 3, *[int(v) for v in rng.integers(2000, 32767, 3)], 1, 1, 1, 1
        )
    if kind == 5:
        return '.nii.gz', bad_numbers
    if kind == 6:
        [b.__setitem__(int(i), int(rng.integers(0, 256))) for i in rng.integers(0, len(b), 40)]
    if kind == 7:
        c = bytearray(good)
        [c.__setitem__(int(i), int(rng.integers(0, 256))) for i in rng.integers(0, len(c), 5)]
        return '.nii.gz', bytes(c)
    return ('.nii', bytes(b)) if k % 3 else ('.nii.gz', gzip.compress(bytes(b), 1))


def test_two_hundred_damaged_files(model, tmp_path):
    """Truncated, flipped, wrong magic, huge dimensions, NaN: no traceback, no hang, under 2 GB, and
    a line for each file that was not translated.
    """
    rng = np.random.default_rng(0)
    good = scan(tmp_path / 'good.nii.gz').read_bytes()
    raw = gzip.decompress(good)
    v = np.full((6, 7, 5), np.nan, np.float32)
    nib.save(nib.Nifti1Image(v, np.eye(4)), tmp_path / 'nan.nii.gz')
    bad = (tmp_path / 'nan.nii.gz').read_bytes()
    (tmp_path / 'in').mkdir()
    for k in range(200):
        end, content = damaged(k, rng, good, raw, bad)
        (tmp_path / 'in' / f'f{k:03d}{end}').write_bytes(content)
    # getrusage would count what this test process holds
    watch = (
        'import sys; from xmodal.cli import main; code = main(sys.argv[1:]); print([l for l in'
        ' open("/proc/self/status") if l.startswith("VmHWM")][0].replace("VmHWM:", "PEAK"));'
        ' sys.exit(code)'
    )
    r = subprocess.run(
        [
            sys.executable,
            '-c',
            watch,
            'translate',
            str(model),
            str(tmp_path / 'in'),
            str(tmp_path / 'out'),
            '--steps',
            '1',
            '--device',
            'cpu',
        ],
        env=ENV,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert r.returncode == 1 and 'Traceback' not in r.stderr, r.stderr[-3000:]
    made = {p.name for p in (tmp_path / 'out').glob('*.nii*')}
    lines = [l for l in r.stderr.splitlines() if 'not translated' in l]
    missed = [p.name for p in (tmp_path / 'in').iterdir() if p.name not in made]
    assert (
        len(lines) == len(missed)
        and all(sum(f'{n}' in l for l in lines) == 1 for n in missed)
        and len(missed) > 120
    ), (len(lines), len(missed))
    for n in made:
        assert np.isfinite(np.asarray(nib.load(tmp_path / 'out' / n).dataobj)).all()
    assert int(re.search(r'PEAK\s+(\d+)', r.stdout)[1]) * 1024 < 2e9


NAME = re.compile(
    r'sub-[A-Za-z0-9]+(_ses-[A-Za-z0-9]+)?(_(acq|ce|rec|run|echo|part|space|desc)-[A-Za-z0-9]+)*_[A-Za-z0-9]+\.(nii\.gz|json)$'
)


def bids_faults(root):
    "What the rules of BIDS derivatives say against a data set."
    out, about = [], json.loads((root / 'dataset_description.json').read_text())
    for k in ('Name', 'BIDSVersion', 'DatasetType', 'GeneratedBy'):
        if k not in about:
            out.append(f'dataset_description.json lacks {k}')
    if about.get('DatasetType') != 'derivative' or not all(
        'Name' in g for g in about.get('GeneratedBy', [])
    ):
        out.append('not described as a derivative')
    for p in root.rglob('*'):
        if p.is_dir() or p.parent == root:
            continue
        parts = p.relative_to(root).parts
        if p.name.startswith('.') or not NAME.match(p.name):
            out.append(f'{p.name}: not a BIDS name')
        elif (
            not p.name.startswith(parts[0] + '_')
            or (len(parts) == 4 and f'_{parts[1]}_' not in p.name)
            or parts[-2] != 'anat'
        ):
            out.append(f'{p}: stands in another folder than its name says')
        if p.name.endswith('.json'):
            for s in json.loads(p.read_text())['Sources']:
                m = re.fullmatch(r'bids:(\w+):(.+)', s)
                if not m or not (root / about['DatasetLinks'][m[1]] / m[2]).is_file():
                    out.append(f'{p.name}: source {s} does not exist')
        elif (
            not p.with_name(p.name.replace('.nii.gz', '.json')).is_file()
            and 'synthStd' not in p.name
            and 'synthMix' not in p.name
        ):
            out.append(f'{p.name}: has no sidecar')
    return out


def test_a_bids_derivative_follows_the_rules(model, tmp_path):
    """Two sessions, runs, a further contrast, one participant that cannot be read: names, sidecars,
    links; the others are there, exit code 1.
    """
    raw = tmp_path / 'raw'
    for n in (
        'sub-01/anat/sub-01_T1w',
        'sub-02/ses-a/anat/sub-02_ses-a_acq-hi_run-1_T1w',
        'sub-02/ses-b/anat/sub-02_ses-b_T1w',
        'sub-03/anat/sub-03_T1w',
        'sub-03/anat/sub-03_FLAIR',
    ):
        scan(raw / f'{n}.nii.gz')
    (raw / 'sub-03' / 'anat' / 'sub-03_T1w.nii.gz').write_bytes(b'nothing')
    (raw / 'dataset_description.json').write_text(json.dumps(dict(Name='raw', BIDSVersion='1.8.0')))
    go = lambda *more: xmodal(
        'translate',
        model,
        raw,
        raw / 'derivatives' / 'xmodal',
        '--bids',
        '--steps',
        '1',
        '--samples',
        '2',
        '--device',
        'cpu',
        *more,
    )
    r = go()
    assert r.returncode == 1 and r.stderr.count('not translated') == 1 and 'sub-03_T1w' in r.stderr
    assert (
        not bids_faults(raw / 'derivatives' / 'xmodal')
        and len(list(raw.glob('derivatives/xmodal/**/*_desc-synth_T2w.nii.gz'))) == 3
    )
    # the test can fail
    (raw / 'derivatives' / 'xmodal' / 'sub-01' / 'anat' / 'oops.nii.gz').write_bytes(b'')
    assert bids_faults(raw / 'derivatives' / 'xmodal')
    r = go('--participant-label', '01')
    assert r.returncode == 0 and '1 of 1 were there already' in r.stdout
    r = go('--participant-label', '01', '--seed', '3')
    assert r.returncode == 1 and 'made otherwise' in r.stderr


def test_forced_and_said_so(model, tmp_path):
    """A T2w scan for a model of T1w is refused; forced, it is translated, and its notes say what
    spoke against it.
    """
    f = scan(tmp_path / 'sub-9_T2w.nii.gz')
    (tmp_path / 'sub-9_T2w.json').write_text(
        json.dumps(dict(Modality='MR', ProtocolName='t2', modality='T2w'))
    )
    run = lambda *more: xmodal(
        'translate', model, f, tmp_path / 'out.nii.gz', '--steps', '1', '--device', 'cpu', *more
    )
    r = run()
    assert r.returncode == 1 and 'is a T2w' in r.stderr and not (tmp_path / 'out.nii.gz').exists()
    r = run('--force')
    assert r.returncode == 0, r.stderr
    notes = json.loads((tmp_path / 'out.json').read_text())
    assert notes['Forced'] and 'T2w' in notes['Doubts'][0]


def test_finished_means_finished(model, tmp_path):
    """Another source under the old name, a map that is gone, maps of an older run, scans with a
    contrast agent, a broken link, an image with a telling name.
    """
    from xmodal.core import InputError
    from xmodal.folders import translate_paths

    tr, (a, b), out = (
        Translator.from_pretrained(model, 'cpu'),
        (tmp_path / 'a', tmp_path / 'b'),
        tmp_path / 'out',
    )
    go = lambda src=a, to=out, **how: translate_paths(
        tr, src, to, progress=False, **{**dict(steps=1, samples=2), **how}
    )
    there = lambda: {p.name for p in out.glob('*.nii.gz')}
    scan(a / 's.nii.gz', 0)
    assert go() == [] and there() == {'s.nii.gz', 's_std.nii.gz'}
    when = (out / 's.nii.gz').stat().st_mtime_ns
    assert go() == [] and (out / 's.nii.gz').stat().st_mtime_ns == when
    (out / 's_std.nii.gz').unlink()
    assert go() == [] and there() == {'s.nii.gz', 's_std.nii.gz'}
    scan(a / 's.nii.gz', 1)
    ((_, why),) = go()
    assert 'made from another s.nii.gz' in why
    # no old map beside a new image
    assert go(samples=1, overwrite=True) == [] and there() == {'s.nii.gz'}
    (a / 'gone.nii.gz').symlink_to(tmp_path / 'nowhere.nii.gz')
    ((p, why),) = go(samples=1)
    assert p.name == 'gone.nii.gz' and 'no such' in why.lower()
    for n in ('sub-1_T1w', 'sub-1_ce-gado_T1w'):
        scan(b / 'sub-1' / 'anat' / f'{n}.nii.gz')
    assert go(b, tmp_path / 'd', bids=True, labels=['1', 'sub-1']) == [] and [
        p.name for p in (tmp_path / 'd').rglob('*synth_T2w.nii.gz')
    ] == ['sub-1_desc-synth_T2w.nii.gz']
    with pytest.raises(InputError, match='is a participant'):
        go(b / 'sub-1', tmp_path / 'e', bids=True)
    assert not (tmp_path / 'e').exists()
    with pytest.raises(InputError, match='is a T2w'):
        tr.translate(nib.load(scan(tmp_path / 'sub-9_T2w.nii.gz')), steps=1)
    with pytest.raises(InputError, match='reaches 255'):
        tr.translate(torch.full((1, 1, 16, 16), 255.0), steps=1)
    nib.save(
        nib.Nifti2Image(
            np.ones((14, 16, 6), np.int16) * np.arange(6, dtype=np.int16) * 100,
            np.diag([3.0, 3, 4, 1]),
        ),
        tmp_path / 'two.nii.gz',
    )
    assert isinstance(
        tr.translate(nib.load(tmp_path / 'two.nii.gz'), steps=1, force=True), nib.Nifti2Image
    )


class Noisy(torch.nn.Module):
    "A network whose answer is its state: what comes out is noise."

    config = dict(channels=1)

    def forward(self, x, t, y, ctx=None, side=None):
        return x


def test_noise_hangs_on_the_values_of_a_scan_and_not_on_its_name(tmp_path):
    den = build('ddpm', 1, net=dict(ch=8, mults=(1, 2)))
    den.net = Noisy()
    tr = Translator(den.eval(), dict(model=dict(method='ddpm', channels=1), data=VOLUME))
    rng, found = np.random.default_rng(0), {}
    one, other = (rng.uniform(0, 1000, (32, 32, 3)).astype(np.float32) for _ in range(2))
    (tmp_path / 'elsewhere').mkdir()
    for name, values in dict(a=one, b=other, **{'elsewhere/c': one}).items():
        nib.save(nib.Nifti1Image(values, np.diag([3.0, 3, 3, 1])), tmp_path / f'{name}.nii')
        found[name] = {
            noise: tr.translate(tmp_path / f'{name}.nii', noise=noise, steps=2).get_fdata()
            for noise in ('shared', 'independent', 'same')
        }
    alike = lambda x, y: np.corrcoef(x.ravel(), y.ravel())[0, 1]
    a, b, c = found['a'], found['b'], found['elsewhere/c']
    assert all(np.array_equal(a[k], c[k]) for k in a)
    assert abs(alike(a['shared'], b['shared'])) < 0.2 and alike(a['same'], b['same']) > 0.99
    slices = lambda x: alike(x[..., 0], x[..., 2])
    assert slices(a['shared']) > 0.99 and abs(slices(a['independent'])) < 0.2


def test_the_viewer_shows_a_share_of_the_source_only_where_there_is_one():
    "The panel was all zero for a regression; the function is that of the notebook."
    cells = json.loads((ROOT / 'nbs' / 'translate.ipynb').read_text(encoding='utf-8'))['cells']
    source = next(s for s in (''.join(c['source']) for c in cells) if 'def views' in s)
    names = {}
    exec(re.search(r'def between.*?\n\n\n', source, re.S)[0], names)
    between, field = names['between'], np.zeros((4, 4, 2, 3))
    assert not between(field)
    field[..., 0] = 1
    assert not between(field), 'all of the source at the start is no field'
    field[2, 2, :, 1] = 0.4
    assert between(field) and 'not between(' in source.split('def views')[1]
