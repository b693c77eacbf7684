"A name under runs/ is used once, and by one training at a time."

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from test_main_job import ROOT, papermill, run_name  # noqa: F401  (run_name is a fixture)
from test_scale import launched
from xmodal.run_folder import check_name, owner_of, release, take, what_is_there
from xmodal.train import Job, plan, train_command

ENV = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
SMALL = [
    '--smoke',
    'True',
    '--baseline',
    'False',
    '--check',
    'False',
    '--steps',
    '2',
    '--made-subjects',
    '4',
]


def train(name, *words):
    "A smoke run in this process; exit code."
    return train_command([*SMALL, '--name', name, *words])


def state(run):
    "Every file of a run with its bytes."
    return {f.relative_to(run): f.read_bytes() for f in run.rglob('*') if f.is_file()}


def wait_for(path, process, seconds=120):
    end = time.time() + seconds
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.time() < end, f'{path} did not appear'
        time.sleep(0.05)


def test_a_used_name_is_refused_until_a_word_is_said(run_name, capsys):
    "What `python -m xmodal.train` did before: delete model and checkpoints of the finished run."
    run = ROOT / 'runs' / run_name
    assert train(run_name) == 0
    before = state(run)
    capsys.readouterr()
    assert train(run_name, '--seed', '1') == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and f'runs/{run_name} holds an earlier run' in said
    assert all(
        word in said
        for word in ('model', 'checkpoints (step-000002)', 'resume', 'overwrite', 'another name')
    )
    r = papermill(('smoke', 'True'), ('name', run_name))
    assert r.returncode == 1 and 'overwrite True' in r.stderr
    assert state(run) == before
    assert train(run_name, '--resume') == 0  # finished: nothing is trained
    assert state(run)[Path('model/model.safetensors')] == before[Path('model/model.safetensors')]
    capsys.readouterr()
    assert train(run_name, '--resume', '--overwrite') == 2
    assert 'exclude each other' in capsys.readouterr().err
    assert train(run_name, '--seed', '1', '--overwrite') == 0
    assert 'the earlier run is deleted (model, metrics, checkpoints' in capsys.readouterr().out
    assert state(run)[Path('model/model.safetensors')] != before[Path('model/model.safetensors')]
    assert not (run / '.lock').exists()


@pytest.mark.parametrize(
    'left',
    [
        'model/config.json',
        'metrics.json',
        'checkpoints/step-000001/state.json',
        'log.csv',
        'regression/log.csv',
    ],
)
def test_every_trace_of_a_run_counts(left, run_name):
    path = ROOT / 'runs' / run_name / left
    path.parent.mkdir(parents=True)
    path.write_text('step\n1\n')
    with pytest.raises(Exception, match='overwrite True'):
        plan(Job(smoke=True, name=run_name))
    plan(Job(smoke=True, name=run_name, resume=True))
    plan(Job(smoke=True, name=run_name, overwrite=True))


def test_what_is_not_a_run_does_not_count(run_name):
    """An executed notebook, figures, the head of a log: papermill writes the first before anything
    is checked.
    """
    run = ROOT / 'runs' / run_name
    (run / 'figures').mkdir(parents=True)
    (run / 'train.ipynb').touch()
    (run / 'log.csv').write_text('step,loss\n')
    assert what_is_there(run) == []
    plan(Job(smoke=True, name=run_name))


def test_a_smoke_run_never_takes_the_name_of_a_real_one(capsys):
    p = plan(Job(smoke=True, dataset='phantom', method='bbdm'))
    assert (
        p.name == 'phantom-bbdm-smoke'
        and plan(Job(method='bbdm', name='', overwrite=True)).name == 'phantom-bbdm'
    )


HOLD = """
import sys, time
from xmodal.run_folder import take
take(sys.argv[1])
print('taken', flush=True)
time.sleep(120)
"""


@pytest.fixture(scope='module')
def holder():
    "Starts processes that hold a folder; ended afterwards."
    started = []

    def start(run):
        p = subprocess.Popen(
            [sys.executable, '-c', HOLD, str(run)], env=ENV, stdout=subprocess.PIPE, text=True
        )
        started.append(p)
        p.line = p.stdout.readline
        return p

    yield start
    for p in started:
        p.kill()
        p.wait()


def test_the_lock_ends_with_its_process_however_it_ends(tmp_path, holder, capsys):
    """Two real processes: the second is refused with the owner's name; after SIGKILL of the first
    it takes over and says so.
    """
    run = tmp_path / 'run'
    first = holder(run)
    assert first.line() == 'taken\n'
    assert owner_of(run)['pid'] == first.pid
    with pytest.raises(Exception, match=f'is being trained by process {first.pid} on'):
        take(run)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert (run / '.lock').exists() and owner_of(run) == {}
    take(run)
    assert f'process {first.pid} on' in capsys.readouterr().out
    second = subprocess.run(
        [sys.executable, '-c', HOLD, str(run)], env=ENV, capture_output=True, text=True
    )
    assert second.returncode and f'process {os.getpid()} on' in second.stderr.splitlines()[-1]
    release(run)
    assert not (run / '.lock').exists()


SLOW = """
import sys, time
import xmodal.train as j
trained = j.trained
def slow(*args, **kw):
    trained(*args, **kw)
    time.sleep(120)
j.trained = slow
j.train_command(sys.argv[1:])
"""


def test_a_second_training_is_refused_while_one_runs(run_name, capsys):
    """The whole command, twice at once; the first is killed, and the third call goes on from its
    checkpoint.
    """
    words = [*SMALL, '--name', run_name]
    first = subprocess.Popen(
        [sys.executable, '-c', SLOW, *words],
        cwd=ROOT,
        env=ENV,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        run = ROOT / 'runs' / run_name
        wait_for(run / 'checkpoints' / 'step-000002', first)
        for more in ((), ('--resume',), ('--overwrite',)):
            assert train(run_name, *more) == 2
            said = capsys.readouterr().err
            assert said.count('\n') == 1 and f'is being trained by process {first.pid} on' in said
    finally:
        first.kill()
        first.communicate()
    assert train(run_name, '--resume') == 0
    assert 'taken over' in capsys.readouterr().out and (run / 'model').exists()


def test_a_training_on_two_processes_is_refused_as_one(run_name, tmp_path):
    "The first of them finds the lock and tells the other: both end, with one line."
    run = ROOT / 'runs' / run_name
    words = [*SMALL, '--name', run_name, '--batch', '4', '--device', 'cpu']
    script = tmp_path / 'late.py'  # the plan finds nobody: the other training begins after it
    script.write_text(
        'import sys\nimport xmodal.run_folder as folder\nimport xmodal.train as j\n'
        f'folder.owner_of = lambda run: {{}}\nsys.exit(j.train_command({words!r}))\n'
    )
    take(run)
    try:
        r = launched(script)
    finally:
        release(run)
    assert (
        r.returncode
        and r.stderr.count('error: runs/') == 1
        and f'process {os.getpid()} on' in r.stderr
    ), r.stderr[-2000:]
    assert not (run / 'checkpoints').exists()


def test_another_machines_lock_lives_by_its_signs_of_life(tmp_path):
    "A shared disk: no kernel's lock reaches us, only the file and its age."
    import xmodal.run_folder as j

    lock = tmp_path / '.lock'
    lock.write_text(json.dumps(dict(pid=7, host='node12', machine='other', since='now')))
    with pytest.raises(Exception, match='process 7 on node12.*wait 5 minutes or delete'):
        take(tmp_path)
    os.utime(lock, (time.time() - j.DEAD - 5,) * 2)
    take(tmp_path)
    assert json.loads(lock.read_text())['pid'] == os.getpid()
    release(tmp_path)


def test_a_disk_without_locks_goes_by_the_file(tmp_path, monkeypatch):
    """Where the kernel's lock is refused, an owner counts as alive until its signs of life end,
    also on this machine.
    """
    import xmodal.run_folder as j

    monkeypatch.setattr(j, 'try_flock', lambda f: None)
    lock = tmp_path / '.lock'
    lock.write_text(json.dumps(dict(pid=7, host='here', machine=j.machine(), since='now')))
    with pytest.raises(Exception, match='process 7 on here'):
        take(tmp_path)
    os.utime(lock, (time.time() - j.DEAD - 5,) * 2)
    take(tmp_path)
    release(tmp_path)


def test_the_owner_gives_signs_of_life(tmp_path, monkeypatch):
    import xmodal.run_folder as j

    monkeypatch.setattr(j, 'BEAT', 0.05)
    take(tmp_path)
    os.utime(tmp_path / '.lock', (0, 0))
    end = time.time() + 10
    while (tmp_path / '.lock').stat().st_mtime == 0 and time.time() < end:
        time.sleep(0.02)
    assert j.silent_for(tmp_path / '.lock') < 5
    release(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_where_its_data_were_copied_to(run_name, tmp_path, capsys):
    "Other paths and dates are no other data; another pixel is."
    first, second = tmp_path / 'here', tmp_path / 'there'
    rng = np.random.default_rng(0)
    for side in 'ab':
        (first / side).mkdir(parents=True)
        for i in range(8):
            picture = Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8))
            picture.save(first / side / f'sub-{i // 2}_{i % 2}.png')
    words = '--dataset folder --source a --target b --no-smoke --size 32 --ch 8 --mults 1,2'.split()
    words += ['--batch', '2', '--val-every', '0', '--method', 'regression', '--save-every', '2']
    more = [*words, '--root', str(second), '--resume', '--change', 'steps', '--steps']
    assert train(run_name, *words, '--root', str(first)) == 0
    shutil.copytree(first, second, copy_function=shutil.copyfile)
    shutil.rmtree(first)
    assert train(run_name, *more, '4') == 0
    capsys.readouterr()
    picture.rotate(90).save(second / 'b' / 'sub-3_1.png')
    assert train(run_name, *more, '6') == 2
    assert 'on other pictures' in capsys.readouterr().err


def test_a_finished_run_is_not_judged_anew(run_name, capsys):
    "There is nothing left to look at: a rule that is named all the same was taken down as if kept."
    words = (
        '--dataset folder --root made --made-subjects 4 --made-pixels 32 --size 32 --ch 8'.split()
    )
    words += '--mults 1,2 --batch 2 --method regression --no-baseline --no-check'.split()
    words += '--val-pictures 0 --val-every 2 --steps'.split()
    assert train(run_name, *words, '4') == 0
    more = ['--keep', 'psnr', '--resume', '--change']
    assert train(run_name, *words, '4', *more, 'keep') == 2
    assert 'nothing is left to be judged' in capsys.readouterr().err
    assert train(run_name, *words, '6', *more, 'keep,steps') == 0
