"The main job as a user types it: papermill runs, the console command, the installed wheel."

import json, os, re, shutil, subprocess, sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from run_rows import execute
from small_model import xmodal as copy_of_xmodal
from xmodal.data.layouts import datasets

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
REAL = ROOT.parent / 'shared' / 'data' / 'brain'


def papermill(*parameters, out=None, cwd=ROOT, kernel=False):
    """Run nbs/train.ipynb with papermill; by default in this process, where imports are paid for
    once, with `kernel` as a user does. Returns returncode and stderr.
    """
    if not kernel:
        try:
            execute(ROOT / 'nbs' / 'train.ipynb', **{k: value_of(v) for k, v in parameters})
        except Exception as e:
            return subprocess.CompletedProcess('papermill', 1, '', f'{type(e).__name__}: {e}\n')
        return subprocess.CompletedProcess('papermill', 0, '', '')
    words = [
        str(BIN / 'papermill'),
        str(ROOT / 'nbs' / 'train.ipynb'),
        *([str(out)] if out else []),
        '--no-progress-bar',
        '--log-level',
        'ERROR',
    ]
    for name, value in parameters:
        words += ['-p', name, str(value)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'PATH': f'{BIN}{os.pathsep}{os.environ["PATH"]}'}
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, timeout=600, env=env)


def value_of(v):
    "What papermill makes of a word of its command line."
    from papermill.cli import _resolve_type

    return _resolve_type(str(v))


def xmodal(*words):
    """The console command in this process; returncode and stderr.

    Tests of the command itself start a process.
    """
    import contextlib, io, warnings
    from xmodal.cli import main

    said, text = warnings.formatwarning, io.StringIO()
    try:
        with contextlib.redirect_stderr(text):
            code = main([str(w) for w in words])
    finally:
        warnings.formatwarning = said
    return subprocess.CompletedProcess('xmodal', code, '', text.getvalue())


@pytest.fixture
def run_name(request):
    "A name under runs/ that is removed afterwards."
    name = 'test-' + re.sub(r'\W+', '-', request.node.name)
    shutil.rmtree(ROOT / 'runs' / name, ignore_errors=True)
    yield name
    shutil.rmtree(ROOT / 'runs' / name, ignore_errors=True)


@pytest.fixture(scope='module')
def ixi_run():
    """A smoke run on made data in IXI's layout, without an output notebook, started from another
    folder.
    """
    name = 'test-ixi-made'
    r = papermill(
        ('dataset', 'ixi'),
        ('root', 'made'),
        ('smoke', 'True'),
        ('name', name),
        ('overwrite', 'True'),
        cwd=ROOT / 'tests',
        kernel=True,
    )
    assert r.returncode == 0, r.stderr[-3000:]
    yield ROOT / 'runs' / name
    shutil.rmtree(ROOT / 'runs' / name, ignore_errors=True)


def test_parameters_reach_the_notebook_and_results_are_kept(ixi_run):
    """If the parameters tag were lost, papermill would silently run the defaults (phantom) and exit
    0.
    """
    m = json.loads((ixi_run / 'metrics.json').read_text())
    assert m['parameters']['dataset'] == 'ixi' and m['parameters']['smoke'] is True
    assert m['nfe'] == 5 and m['seconds_per_image'] > 0 and m['environment']['versions']['torch']
    assert {'cdtsde', 'regression', 'identity'} == set(m['scores'])
    assert set(m['split']['train']).isdisjoint(m['split']['test'])
    assert {p.name for p in (ixi_run / 'figures').iterdir()} == {
        'batch.png',
        'training.png',
        'validation',
        'mixing.png',
        'panels.png',
    }
    assert {p.name for p in (ixi_run / 'model').iterdir()} == {
        'config.json',
        'model.safetensors',
        'README.md',
    }
    assert not [
        p for p in ixi_run.rglob('*') if p.suffix in ('.pt', '.pth', '.bin', '.pkl', '.ckpt')
    ]


def test_console_command_keeps_the_grid(ixi_run, tmp_path):
    "NIfTI in (sagittal, tilted), NIfTI out: same shape, affine and codes, finite, not constant."
    config = json.loads((ixi_run / 'model' / 'config.json').read_text())
    assert config['data']['source'] == 'T1' and config['data']['dataset'] == 'ixi'
    source = sorted((ROOT / 'data' / 'made').glob('ixi-*/IXI-T1/*.nii.gz'))[0]
    out = tmp_path / 'deep' / 't2.nii.gz'
    r = subprocess.run(
        [
            str(BIN / 'xmodal'),
            'translate',
            str(ixi_run / 'model'),
            str(source),
            str(out),
            '--steps',
            '2',
        ],
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0, r.stderr
    assert 'translating' in r.stderr  # a progress bar
    a, b = nib.load(source), nib.load(out)
    assert a.shape == b.shape and np.array_equal(a.affine, b.affine)
    assert (int(a.header['sform_code']), int(a.header['qform_code'])) == (
        int(b.header['sform_code']),
        int(b.header['qform_code']),
    )
    v = b.get_fdata()
    assert np.isfinite(v).all() and v.std() > 0
    r = copy_of_xmodal('translate', ixi_run / 'model', source, out)
    assert r.returncode == 1 and 'exists' in r.stderr and 'Traceback' not in r.stderr


def test_resume_and_change_of_recipe(run_name):
    "A finished run continued is finished; with another learning rate it is refused."
    base = (('smoke', 'True'), ('name', run_name), ('baseline', 'False'), ('steps', 6))
    assert papermill(*base).returncode == 0
    before = (
        ROOT / 'runs' / run_name / 'checkpoints' / 'step-000006' / 'model.safetensors'
    ).read_bytes()
    assert papermill(*base, ('resume', 'True')).returncode == 0
    assert (
        ROOT / 'runs' / run_name / 'checkpoints' / 'step-000006' / 'model.safetensors'
    ).read_bytes() == before
    r = papermill(*base, ('resume', 'True'), ('lr', '0.5'))
    assert r.returncode == 1 and 'started with lr' in r.stderr


def test_options_reach_the_model_folder(run_name):
    "One text for bridge and sampler; stored, and used by the translator."
    from xmodal.translate import Translator

    r = papermill(
        ('method', 'bbdm'),
        ('options', 'schedule=sin,eta=0.0'),
        ('smoke', 'True'),
        ('name', run_name),
        ('baseline', 'False'),
        ('steps', 2),
        ('sample_steps', 3),
        ('check', 'False'),
    )
    assert r.returncode == 0, r.stderr[-3000:]
    config = json.loads((ROOT / 'runs' / run_name / 'model' / 'config.json').read_text())
    assert (
        config['model']['bridge'] == {'schedule': 'sin'}
        and config['data']['options'] == {'eta': 0.0}
        and config['data']['steps'] == 3
    )
    tr = Translator.from_pretrained(ROOT / 'runs' / run_name / 'model', 'cpu')
    assert abs(float(tr.den.bridge.coefs(1 / 1000)[1]) - 5.7e-4) < 1e-5
    y = np.random.default_rng(0).random((1, 1, 16, 16)).astype(np.float32)
    # from the source, without noise: no seed matters
    assert np.array_equal(tr.run(y, seed=0), tr.run(y, seed=1))
    assert not np.array_equal(tr.run(y, seed=0, eta=1.0), tr.run(y, seed=1, eta=1.0))


def test_one_model_for_two_targets_takes_a_wish(run_name, tmp_path):
    """Prompts for a plain bridge row, two directions in one model; the console command says which,
    and a time in the wrong unit is refused before anything is written.
    """
    words = (
        ('method', 'bbdm'),
        ('text', 'both'),
        ('target', 'T2w,PDw'),
        ('made_varied', 'True'),
        ('smoke', 'True'),
        ('name', run_name),
        ('baseline', 'False'),
    )
    r = papermill(*words)
    assert r.returncode == 0, r.stderr[-3000:]
    told = json.loads((ROOT / 'runs' / run_name / 'model' / 'config.json').read_text())['data']
    assert (
        set(told['text']['usual']) == {'T2w', 'PDw'} == set(told['target_windows'])
        and told['text']['usual']['T2w']['TE'] > 40 > told['text']['usual']['PDw']['TE']
    )
    scan = sorted(
        (ROOT / 'data' / 'made').glob('bids-n4-seed0-6mm-varied/sub-*/anat/*_T1w.nii.gz')
    )[0]

    def go(wish, out):
        return xmodal(
            'translate',
            ROOT / 'runs' / run_name / 'model',
            scan,
            out,
            '--steps',
            '2',
            *(['--target', wish] if wish else []),
        )

    for wish, name in (('', 'a'), ('TE=140', 'b'), ('modality=PDw,TE=15', 'c')):
        r = go(wish, tmp_path / f'{name}.nii.gz')
        assert r.returncode == 0, r.stderr
    a, b, c = (nib.load(tmp_path / f'{n}.nii.gz').get_fdata() for n in 'abc')
    assert not np.array_equal(a, b) and not np.array_equal(a, c)
    for wish, word in (('TE=0.1', 'seconds'), ('modality=CT', 'T2w, PDw'), ('echo=3', 'echo')):
        r = go(wish, tmp_path / 'd.nii.gz')
        assert (
            r.returncode == 1
            and word in r.stderr
            and r.stderr.count('\n') == 1
            and 'Traceback' not in r.stderr
            and not (tmp_path / 'd.nii.gz').exists()
        ), r.stderr
    r = papermill(*(w for w in words if w[0] != 'text'))
    assert r.returncode == 1 and 'has to be told which' in r.stderr

    def evaluate(target):
        execute(
            ROOT / 'nbs' / 'evaluate.ipynb',
            model=f'runs/{run_name}/model',
            name=f'{run_name}-ev',
            target=target,
            steps=2,
            made_varied=True,
            made_subjects=4,
            made_voxel=6.0,
        )

    with pytest.raises(Exception, match='say with target which'):
        evaluate('')
    evaluate('PDw')
    shutil.rmtree(ROOT / 'runs' / f'{run_name}-ev', ignore_errors=True)


def test_a_papers_own_network_is_chosen_by_name(run_name):
    """-p net ncsnpp: trained with its latent, stored with its name, translated; a network blind to
    its state is refused for a method of several steps.
    """
    from xmodal.translate import Translator

    words = (
        ('smoke', 'true'),
        ('name', run_name),
        ('baseline', 'False'),
        ('check', 'False'),
        ('steps', 2),
    )
    r = papermill(('method', 'syndiff'), ('net', 'ncsnpp'), *words)
    assert r.returncode == 0, r.stderr[-3000:]
    tr = Translator.from_pretrained(ROOT / 'runs' / run_name / 'model', 'cpu')
    assert tr.den.latent == 100 and type(tr.den.net).__name__ == 'NCSNpp'
    y = np.random.default_rng(0).random((3, 1, 32, 32)).astype(np.float32) * 2 - 1
    np.testing.assert_allclose(tr.run(y, batch=1), tr.run(y, batch=3), atol=2e-4)
    r = papermill(('method', 'cdtsde'), ('net', 'unet256'), *words)
    assert r.returncode == 1 and 'sees its state' in r.stderr


def test_image_folders_train_and_translate(run_name, tmp_path):
    """Two folders of PNG files: trained, and one file translated by the command; PNG in, PNG of the
    same size and depth out.
    """
    from PIL import Image

    r = papermill(
        ('dataset', 'folder'),
        ('root', 'made'),
        ('smoke', 'True'),
        ('name', run_name),
        ('baseline', 'False'),
        kernel=True,
    )
    assert r.returncode == 0, r.stderr[-3000:]
    m = json.loads((ROOT / 'runs' / run_name / 'metrics.json').read_text())
    # grouped by subject, not by slice
    assert all(re.fullmatch(r'sub-\d+', s) for part in m['split'].values() for s in part)
    source = sorted((ROOT / 'data' / 'made').glob('folder-*/A/*.png'))[0]
    r = copy_of_xmodal(
        'translate',
        str(ROOT / 'runs' / run_name / 'model'),
        str(source),
        str(tmp_path / 'b.png'),
        '--steps',
        '1',
    )
    assert r.returncode == 0, r.stderr
    a, b = Image.open(source), Image.open(tmp_path / 'b.png')
    assert a.size == b.size and a.mode == b.mode == 'L' and np.asarray(b).std() > 0
    r = copy_of_xmodal(
        'translate',
        str(ROOT / 'runs' / run_name / 'model'),
        str(next((ROOT / 'data' / 'made').glob('*/**/*.nii.gz'))),
        str(tmp_path / 'c.nii.gz'),
    )
    assert r.returncode == 1 and 'not on volumes' in r.stderr and r.stderr.count('\n') == 1


@pytest.mark.parametrize('dataset', sorted(set(datasets) - {'ixi', 'folder'}))
def test_every_layout_is_made_checked_trained_and_translated(dataset, run_name, tmp_path):
    """Made data in the layout of every data set (ixi and folder have tests of their own) goes all
    the way to a translated file.
    """
    r = papermill(
        ('dataset', dataset),
        ('root', 'made'),
        ('smoke', 'True'),
        ('name', run_name),
        ('baseline', 'False'),
        ('steps', 4),
    )
    assert r.returncode == 0, r.stderr[-3000:]
    m = json.loads((ROOT / 'runs' / run_name / 'metrics.json').read_text())
    config = json.loads((ROOT / 'runs' / run_name / 'model' / 'config.json').read_text())
    assert (
        m['split']['train']
        and m['split']['test']
        and not set(m['split']['train']) & set(m['split']['test'])
    )
    if dataset == 'pelvis':
        assert config['data']['target_window'] == [-1000, 1000]
    if dataset == 'sentinel':
        assert config['data']['channels'] == [1, 3]
    from xmodal.data.layouts import find_records

    q = m['parameters']
    record = find_records(
        dataset,
        'made',
        n=q['made_subjects'],
        seed=q['seed'],
        voxel=q['made_voxel'],
        pixels=q['made_pixels'],
    )[0]
    out = tmp_path / ('b.png' if record.source.suffix == '.png' else 'b.nii.gz')
    r = xmodal('translate', ROOT / 'runs' / run_name / 'model', record.source, out, '--steps', '1')
    assert r.returncode == 0 and out.exists(), r.stderr


def test_the_split_of_a_paper(run_name):
    """MetaDB's counts on the pelvis: 9, 2, 4 patients; too few patients are refused with the
    numbers.
    """
    base = (
        ('dataset', 'pelvis'),
        ('root', 'made'),
        ('smoke', 'True'),
        ('baseline', 'False'),
        ('steps', 2),
        ('name', run_name),
        ('split', 'metadb'),
    )
    r = papermill(*base, ('made_subjects', 14))
    assert r.returncode == 1 and '15 subjects of pelvis, here are 14' in r.stderr
    r = papermill(*base, ('made_subjects', 15))
    assert r.returncode == 0, r.stderr[-2000:]
    m = json.loads((ROOT / 'runs' / run_name / 'metrics.json').read_text())
    assert [len(m['split'][k]) for k in ('train', 'val', 'test')] == [9, 2, 4] and m['parameters'][
        'slices'
    ] == 100


def test_a_faulty_data_set_stops_before_training(run_name, tmp_path):
    "A pair whose target lies 24 mm off is an error of the check; `check False` goes on."
    from xmodal.data.layouts import simulated_root

    root = tmp_path / 'bids'
    shutil.copytree(simulated_root('bids', 6, 0, 4.0), root)
    bad = sorted(root.glob('sub-*/anat/*_T2w.nii.gz'))[1]
    img = nib.load(bad)
    nib.save(nib.Nifti1Image(np.roll(np.asarray(img.dataobj), 6, 1), img.affine, img.header), bad)
    words = (
        ('dataset', 'bids'),
        ('root', root),
        ('name', run_name),
        ('baseline', 'False'),
        ('size', 32),
        ('ch', 8),
        ('mults', '1,2'),
        ('steps', 2),
        ('batch', 4),
        ('sample_steps', 1),
    )
    r = papermill(*words)
    last = [l for l in r.stderr.strip().splitlines() if l.strip()][-1]
    assert (
        r.returncode == 1
        and 'not fit to be trained on' in last
        and bad.name in last
        and not (ROOT / 'runs' / run_name / 'model').exists()
    )
    assert (
        papermill(*words, ('check', 'False')).returncode == 0
        and (ROOT / 'runs' / run_name / 'model').exists()
    )


def test_data_check_names_the_faulty_file(tmp_path):
    """The command: exit code 1, the file and a picture for a shifted pair; exit code 0 for clean
    data.
    """
    from xmodal.data.layouts import simulated_root

    root = tmp_path / 'bids'
    shutil.copytree(simulated_root('bids', 6, 0, 4.0), root)
    bad = sorted(root.glob('sub-*/anat/*_T2w.nii.gz'))[1]
    img = nib.load(bad)
    nib.save(nib.Nifti1Image(np.roll(np.asarray(img.dataobj), 6, 1), img.affine, img.header), bad)
    r = copy_of_xmodal(
        'data',
        'check',
        'bids',
        '--root',
        str(root),
        '--picture',
        str(tmp_path / 'worst.png'),
    )
    assert (
        r.returncode == 1
        and 'shift' in r.stdout
        and bad.name in r.stdout
        and (tmp_path / 'worst.png').stat().st_size > 5000
    )
    assert (
        xmodal('data', 'check', 'bids', '--root', simulated_root('bids', 6, 0, 4.0)).returncode == 0
    )


@pytest.mark.parametrize(
    'parameters, words',
    [
        ([('datset', 'ixi')], ["unknown parameter 'datset'", "did you mean 'dataset'"]),
        (
            [('dataset', 'no_such_set')],
            ["unknown data set 'no_such_set'", 'phantom, bids, ixi, brats'],
        ),
        (
            [('dataset', 'ixi')],
            ['brain-development.org', 'CC BY-SA 3.0', 'data/ixi', 'phantom needs nothing'],
        ),
        ([('method', 'cdstde')], ["unknown method 'cdstde'", 'cdtsde_linear']),
        ([('method', 'ddbm_vp'), ('options', 'eta=0.5')], ["'eta'", 'churn', 'guidance']),
        ([('steps', 'many')], ['steps must be a whole number', "'many'"]),
        ([('smoke', 'maybe')], ['smoke must be True or False']),
        ([('dataset', 'bids'), ('root', '/no/such/place')], ['/no/such/place', 'no such folder']),
    ],
    ids=lambda v: (
        '-'.join(str(x) for x in v[0])
        if isinstance(v, list) and v and isinstance(v[0], tuple)
        else ''
    ),
)
def test_wrong_parameters_are_named(parameters, words, run_name):
    r = papermill(*parameters, ('name', run_name), kernel='datset' in dict(parameters))
    assert r.returncode == 1
    last = [l for l in r.stderr.strip().splitlines() if l.strip()][-1]
    assert 'InputError' in last, r.stderr[-2000:]
    for w in words:
        assert w in last, last
    assert not (ROOT / 'runs' / run_name / 'model').exists()


def test_damaged_subject_is_named_and_leaves_nothing(tmp_path, run_name):
    from xmodal.data.layouts import simulated_root

    root = tmp_path / 'bids'
    shutil.copytree(simulated_root('bids', 4, 0, 6.0), root)
    bad = sorted(root.glob('sub-*/anat/*_T1w.nii.gz'))[1]
    bad.write_bytes(bad.read_bytes()[:-200])
    caches = (
        set((ROOT / 'data' / 'cache').iterdir()) if (ROOT / 'data' / 'cache').exists() else set()
    )
    r = papermill(('dataset', 'bids'), ('root', root), ('smoke', 'True'), ('name', run_name))
    last = r.stderr.strip().splitlines()[-1]
    assert r.returncode == 1 and bad.name in last and 'damaged' in last, r.stderr[-2000:]
    assert (
        set((ROOT / 'data' / 'cache').iterdir()) == caches
        and not (ROOT / 'runs' / run_name / 'model').exists()
    )


def test_help_is_fast():
    import time

    best = 9.0
    for _ in range(3):
        t = time.perf_counter()
        r = subprocess.run([str(BIN / 'xmodal'), '--help'], capture_output=True, text=True)
        best = min(best, time.perf_counter() - t)
    assert r.returncode == 0 and 'translate' in r.stdout
    assert best < 1, f'{best:.2f} s'


def test_wheel_alone_imports_and_helps(tmp_path):
    """The wheel's files, outside the project and without notebooks, give a package and a console
    entry point.
    """
    subprocess.run(
        [
            sys.executable,
            '-m',
            'build',
            '--wheel',
            '--no-isolation',
            '--outdir',
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob('*.whl')
    site = tmp_path / 'site'
    subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'install',
            '--quiet',
            '--no-deps',
            '--no-index',
            '--target',
            str(site),
            str(wheel),
        ],
        check=True,
        capture_output=True,
    )
    assert (site / 'xmodal' / 'cli.py').is_file() and not list(site.rglob('*.ipynb'))
    env = {**{k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}, 'PYTHONPATH': str(site)}
    r = subprocess.run(
        [sys.executable, '-c', 'import xmodal; print(xmodal.__file__)'],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert r.returncode == 0 and str(site) in r.stdout
    entry = next(site.glob('*.dist-info')) / 'entry_points.txt'
    assert 'xmodal = xmodal.cli:main' in entry.read_text().replace('=', ' = ').replace('  ', ' ')


@pytest.mark.slow
def test_wheel_in_an_empty_environment(tmp_path):
    """pip install dist/*.whl into a new environment, nothing else: import and help work (needs a
    package index).
    """
    subprocess.run(
        [
            sys.executable,
            '-m',
            'build',
            '--wheel',
            '--no-isolation',
            '--outdir',
            str(tmp_path),
            str(ROOT),
        ],
        check=True,
        capture_output=True,
    )
    subprocess.run([sys.executable, '-m', 'venv', str(tmp_path / 'user')], check=True)
    py = tmp_path / 'user' / 'bin'
    subprocess.run(
        [
            str(py / 'pip'),
            'install',
            '--quiet',
            '-c',
            str(ROOT / 'constraints.txt'),
            *map(str, tmp_path.glob('*.whl')),
        ],
        check=True,
        cwd=tmp_path,
    )
    assert (
        subprocess.run(
            [str(py / 'python'), '-c', 'import xmodal, xmodal.translate'], cwd=tmp_path
        ).returncode
        == 0
    )
    assert (
        b'translate'
        in subprocess.run([str(py / 'xmodal'), '--help'], cwd=tmp_path, capture_output=True).stdout
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    'method, net, objective',
    [
        ('cdtsde', 'unet', None),
        ('pix2pix', 'unet', None),
        ('selfrdb', 'unet', dict(group=1, r1_every=2)),
        ('syndiff', 'unet', dict(group=1, r1_every=2, reduction='sum')),
        ('dtfnet', 'unet', None),
    ],
)
def test_training_on_two_processes_equals_one(method, net, objective, tmp_path):
    """Same global batch, same losses to rounding (real multi-process training through accelerate);
    critics without the minibatch standard deviation.
    """
    script = tmp_path / 'job.py'
    script.write_text("""
import json, sys, torch; torch.set_num_threads(1)
from xmodal.training.loop import Recipe
from xmodal.training.adversarial import fit
from xmodal.nets.build import build
class Waves(torch.utils.data.Dataset):
    def __len__(self): return 12
    def __getitem__(self, i):
        y = torch.sin(torch.linspace(0, 3 + i, 256)).reshape(1, 16, 16)
        return dict(y=y, x0=-y**3, i=i)
model = dict(method=sys.argv[3], channels=1, net=dict(ch=8, mults=[1, 2], layers=1), arch=sys.argv[4])
torch.manual_seed(0)
fit(build(**model), Waves(), sys.argv[1], sys.argv[3], Recipe(steps=12, batch=int(sys.argv[2]), ema=.9), model, json.loads(sys.argv[5]), val=Waves(), device='cpu', log_every=3, progress=False)
""")
    env, words = (
        {**os.environ, 'ACCELERATE_USE_CPU': 'true', 'OMP_NUM_THREADS': '1'},
        [method, net, json.dumps(objective)],
    )
    subprocess.run(
        [sys.executable, str(script), str(tmp_path / 'one'), '4', *words], check=True, env=env
    )
    subprocess.run(
        [
            sys.executable,
            '-m',
            'torch.distributed.run',
            '--nproc_per_node',
            '2',
            str(script),
            str(tmp_path / 'two'),
            '2',
            *words,
        ],
        check=True,
        env=env,
        capture_output=True,
    )
    import pandas as pd

    a, b = (pd.read_csv(tmp_path / n / 'log.csv') for n in ('one', 'two'))
    for column in ('loss', 'loss_g', 'loss_d', 'r1'):
        if column in a:
            np.testing.assert_allclose(
                a[column], b[column], rtol=1e-3 if column == 'r1' else 1e-4, atol=1e-7
            )
    np.testing.assert_allclose(a.val_psnr.dropna(), b.val_psnr.dropna(), rtol=1e-3)


def test_a_latent_model_from_a_prior(tmp_path, run_name):
    """The Stable Diffusion layout, tiny and random: trained on cached latents, saved without the
    prior, reloaded, translated.
    """
    from xmodal.nets.latent import tiny_prior

    r = papermill(
        ('backbone', 'latent'),
        ('prior', tiny_prior(tmp_path / 'prior')),
        ('smoke', 'True'),
        ('name', run_name),
        ('baseline', 'False'),
    )
    assert r.returncode == 0, r.stderr[-3000:]
    shutil.rmtree(tmp_path / 'prior')
    model, source = (
        ROOT / 'runs' / run_name / 'model',
        sorted((ROOT / 'data' / 'made').glob('bids-n4-*/sub-*/anat/*_T1w.nii.gz'))[0],
    )
    assert (
        json.loads((model / 'config.json').read_text())['data']['latent']['part'] == 'paper'
        and str(tmp_path) not in (model / 'config.json').read_text()
    )
    r = xmodal('translate', model, source, tmp_path / 'out.nii.gz', '--steps', '2')
    assert r.returncode == 0, r.stderr
    out, like = nib.load(tmp_path / 'out.nii.gz'), nib.load(source)
    assert (
        out.shape == like.shape
        and np.array_equal(out.affine, like.affine)
        and np.isfinite(out.get_fdata()).all()
    )
    bad = papermill(
        ('backbone', 'latent'),
        ('prior', tmp_path / 'nowhere'),
        ('smoke', 'True'),
        ('name', run_name),
    )
    assert bad.returncode and 'cannot read' in bad.stderr and 'unet/' in bad.stderr
    other = tiny_prior(tmp_path / 'other')
    (other / 'scheduler').mkdir()
    (other / 'scheduler' / 'scheduler_config.json').write_text(
        '{"prediction_type": "v_prediction"}'
    )
    bad = papermill(('backbone', 'latent'), ('prior', other), ('smoke', 'True'), ('name', run_name))
    assert bad.returncode and 'use pred v' in bad.stderr
