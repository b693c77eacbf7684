"Several processes: real ones, started by accelerate, on the CPU. They must give what one process gives, and nothing twice."

import ast, json, os, re, runpy, shutil, subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from small_model import copied

# noqa: F401  (run_name is a fixture)
from test_main_job import BIN, ROOT, papermill, run_name, xmodal

ENV = {
    **{k: v for k, v in os.environ.items() if k not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK')},
    'ACCELERATE_USE_CPU': 'true',
    'OMP_NUM_THREADS': '1',
}


def launched(*words, n=2):
    """`accelerate launch` with n processes.

    Its own script, because `accelerate` also imports what its other commands need; --multi_gpu,
    because --cpu wants MPI; the programs are told to stay on the CPU.
    """
    return subprocess.run(
        [
            str(BIN / 'accelerate-launch'),
            '--multi_gpu',
            '--num_processes',
            str(n),
            '--num_machines',
            '1',
            '--mixed_precision',
            'no',
            '--dynamo_backend',
            'no',
            '--main_process_port',
            '0',
            *map(str, words),
        ],
        cwd=ROOT,
        env=ENV,
        capture_output=True,
        text=True,
        timeout=600,
    )


def same_logs(a, b, columns=('loss', 'loss_g', 'loss_d', 'r1')):
    for c in columns:
        if c in a:
            np.testing.assert_allclose(a[c], b[c], rtol=1e-3 if c == 'r1' else 1e-4, atol=1e-7)
    np.testing.assert_allclose(a.val_psnr.dropna(), b.val_psnr.dropna(), rtol=1e-3)


SCRIPT = """
import json, os, signal, sys, torch; torch.set_num_threads(1)
from xmodal.processes import is_main
from xmodal.training.loop import Recipe
from xmodal.training.adversarial import fit
from xmodal.nets.build import build
from xmodal.training.model_folder import save_tensors
out, method, arch, objective, how = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4]), json.loads(sys.argv[5])
stop = how.pop('stop', 0)
class Waves(torch.utils.data.Dataset):
    asked = 0
    def __len__(self): return 12
    def __getitem__(self, i):
        self.asked += 1
        if self.asked == stop and not is_main(): os.kill(os.getpid(), signal.SIGINT)     # one process alone is told to stop
        y = torch.sin(torch.linspace(0, 3 + i, 256)).reshape(1, 16, 16)
        return dict(y=y, x0=-y**3)
model = dict(method=method, channels=1, net=dict(ch=8, mults=[1, 2], layers=1), arch=arch)
torch.manual_seed(int(os.environ.get('RANK', 0)))                          # other first weights in every process: the first one's count
torch.manual_seed(0) if is_main() else None
den = build(**model)
try: fit(den, Waves(), out, method, Recipe(steps=12, batch=4, ema=.9), model, objective, val=Waves(), device='cpu', log_every=3, progress=False, **how)
except KeyboardInterrupt as e: print(e); sys.exit(0)
save_tensors(den.state_dict(), f"{out}/weights-{os.environ.get('RANK', 0)}.safetensors")
"""


def job(tmp_path, out, n, method='cdtsde', net='unet', objective=None, **how):
    script = tmp_path / 'job.py'
    script.write_text(SCRIPT)
    words = [str(script), str(tmp_path / out), method, net, json.dumps(objective), json.dumps(how)]
    if n > 1:
        r = launched(*words, n=n)
    else:
        r = copied(runpy.run_path, script, argv=words, env=ENV)
    assert r.returncode == 0, r.stderr[-3000:]
    return r


@pytest.mark.parametrize(
    'method, net, objective',
    [('cdtsde', 'unet', None)]
    + [
        pytest.param(*v, marks=pytest.mark.slow)
        for v in [
            ('pix2pix', 'unet', None),
            ('selfrdb', 'unet', dict(group=1, r1_every=2)),
            ('syndiff', 'unet', dict(group=1, r1_every=2, reduction='sum')),
            ('dtfnet', 'unet', None),
        ]
    ],
)
def test_two_processes_equal_one(method, net, objective, tmp_path):
    """The same global batch: the same losses, validations and averaged weights, on every process.

    Critics without the minibatch standard deviation.
    """
    job(tmp_path, 'one', 1, method, net, objective)
    job(
        tmp_path,
        'two',
        2,
        method,
        net,
        objective,
        **({} if objective or method != 'cdtsde' else dict(accumulate=2)),
    )
    same_logs(*(pd.read_csv(tmp_path / n / 'log.csv') for n in ('one', 'two')))
    one, first, second = (
        load_file(tmp_path / f)
        for f in (
            'one/weights-0.safetensors',
            'two/weights-0.safetensors',
            'two/weights-1.safetensors',
        )
    )
    for k in one:
        assert torch.equal(first[k], second[k]), k
    far, size = (
        sum(float(f(k).square().sum()) for k in one) ** 0.5
        for f in (lambda k: one[k] - first[k], lambda k: one[k])
    )
    # not voxel by voxel: Adam makes a whole step out of a gradient that is nothing but rounding
    assert far < 1e-3 * size, far / size


def test_stopped_on_two_continued_on_one(tmp_path):
    """One of two processes is interrupted: both stop after the same step, the checkpoint is whole,
    one process goes on, and the end is that of an undisturbed run.
    """
    job(tmp_path, 'whole', 1)
    # two images per process and step: in step 5, agreed on at the next row of the log
    r = job(tmp_path, 'parts', 2, stop=9)
    assert 'stopped after step 6 of 12' in r.stdout, r.stdout
    kept = (tmp_path / 'parts' / 'checkpoints').glob('step-*')
    assert [p.name for p in kept] == ['step-000006']
    job(tmp_path, 'parts', 1, resume=True)
    same_logs(*(pd.read_csv(tmp_path / n / 'log.csv') for n in ('whole', 'parts')))


def test_the_job_with_a_launcher_and_in_a_notebook(run_name):
    """accelerate launch -m xmodal.train, papermill with two processes, and one process: the same
    training, the same numbers.
    """
    names = [f'{run_name}-{k}' for k in ('one', 'launcher', 'notebook')]
    try:
        common = ['--smoke', '--baseline', 'False', '--dataset', 'phantom', '--device', 'cpu']
        r = launched('-m', 'xmodal.train', *common, '--name', names[1])
        assert r.returncode == 0, r.stderr[-3000:]
        assert r.stdout.count('/model written') == 1 and r.stdout.count('train    2 subjects') == 1
        r = papermill(
            ('smoke', 'True'),
            ('baseline', 'False'),
            ('device', 'cpu'),
            ('name', names[2]),
            ('processes', '2'),
            kernel=True,
        )
        assert r.returncode == 0, r.stderr[-3000:]
        r = papermill(
            ('smoke', 'True'), ('baseline', 'False'), ('device', 'cpu'), ('name', names[0])
        )
        assert r.returncode == 0, r.stderr[-3000:]
        logs = [pd.read_csv(ROOT / 'runs' / n / 'log.csv') for n in names]
        for log in logs[1:]:
            same_logs(logs[0], log)
        scores = [
            json.loads((ROOT / 'runs' / n / 'metrics.json').read_text())['scores']['cdtsde']
            for n in names
        ]
        for s in scores[1:]:
            np.testing.assert_allclose(
                [v['mean'] for v in s.values()], [v['mean'] for v in scores[0].values()], rtol=1e-2
            )
        assert (ROOT / 'runs' / names[1] / 'model' / 'config.json').is_file() and 'processes' in (
            ROOT / 'runs' / names[1] / 'model' / 'config.json'
        ).read_text()
    finally:
        for n in names:
            shutil.rmtree(ROOT / 'runs' / n, ignore_errors=True)


def test_a_folder_is_translated_by_two_processes(tmp_path, run_name):
    """Every file once, the same voxels as from one process; a bad file is named once and the others
    are there.
    """
    assert papermill(('smoke', 'True'), ('baseline', 'False'), ('name', run_name)).returncode == 0
    model, made = (
        ROOT / 'runs' / run_name / 'model',
        sorted((ROOT / 'data' / 'made').glob('bids-n4-*/sub-*/anat/*_T1w.nii.gz'))[:3],
    )
    (tmp_path / 'in').mkdir()
    for p in made:
        shutil.copy(p, tmp_path / 'in')
    (tmp_path / 'in' / 'broken_T1w.nii.gz').write_bytes(b'not a scan')
    r = launched(
        '-m',
        'xmodal.cli',
        'translate',
        model,
        tmp_path / 'in',
        tmp_path / 'two',
        '--steps',
        '1',
        '--device',
        'cpu',
    )
    assert (
        r.returncode != 0
        and r.stderr.count('not translated: ') == 1
        and 'broken_T1w.nii.gz' in r.stderr
    )
    assert (
        xmodal(
            'translate', model, tmp_path / 'in', tmp_path / 'one', '--steps', '1', '--device', 'cpu'
        ).returncode
        == 1
    )
    assert sorted(p.name for p in (tmp_path / 'two').iterdir()) == sorted(
        p.name for p in (tmp_path / 'one').iterdir()
    )
    answers = sorted(p.name.replace('_T1w', '_T2w') for p in made)  # named by what they are
    assert sorted(p.name for p in (tmp_path / 'two').glob('*.nii.gz')) == answers
    for name in answers:
        np.testing.assert_allclose(
            nib.load(tmp_path / 'one' / name).get_fdata(),
            nib.load(tmp_path / 'two' / name).get_fdata(),
            atol=1e-3,
        )


PARAMETER = re.compile(  # comments above, name, value, comment beside
    r"((?:^# (?!---).*\n)*)^(\w+) = ('[^']*'|[^#\n]*?) *(?:# (.*))?$", re.M
)


def test_the_parameters_are_those_of_the_notebook():
    "The parameters cell of train.ipynb and the fields of Job: names, order, defaults, meanings."
    from xmodal.job import defaults, meanings

    cells = json.loads((ROOT / 'nbs' / 'train.ipynb').read_text())['cells']
    (cell,) = [''.join(c['source']) for c in cells if 'parameters' in c['metadata'].get('tags', [])]
    found = PARAMETER.findall(cell[: cell.index('defaults = snapshot')])
    assert {name: ast.literal_eval(value) for _, name, value, _ in found} == defaults
    assert [name for _, name, _, _ in found] == list(defaults)
    for above, name, _, beside in found:
        lines = [line.removeprefix('# ') for line in above.splitlines()]
        assert (' '.join(lines) or beside) == meanings[name], name


@pytest.mark.slow
def test_a_compiled_network_trains_alike(tmp_path):
    """torch.compile with its real back end (needs a C++ compiler on a CPU): the same losses to
    rounding, and weights under their usual names.
    """
    for name, how in ('plain', {}), ('compiled', dict(compile=True)):
        job(tmp_path, name, 1, **how)
    same_logs(*(pd.read_csv(tmp_path / n / 'log.csv') for n in ('plain', 'compiled')))
    assert set(load_file(tmp_path / 'plain' / 'weights-0.safetensors')) == set(
        load_file(tmp_path / 'compiled' / 'weights-0.safetensors')
    )
